//! `quickcomm certs`: what it makes, and what it leaves alone.

use crate::support::{ROOT, Server, models};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn certs(dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
    command.arg("certs").arg("--dir").arg(dir).args(options).current_dir(ROOT).output().unwrap()
}

/// Settings for a process that has the certificate of a role; made if it is not there.
pub fn certificate(dir: &Path, role: &str) -> [(String, String); 3] {
    assert!(certs(dir, &[]).status.success());
    let at = |key: &str, file: String| (format!("QUICKCOMM_GRPC__TLS__{key}"), dir.join(file).display().to_string());
    [at("CA", "ca.pem".into()), at("CERT", format!("{role}.pem")), at("KEY", format!("{role}.key"))]
}

pub fn borrowed(env: &[(String, String); 3]) -> Vec<(&str, &str)> {
    env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn texts(dir: &Path) -> BTreeMap<String, String> {
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    fs::read_dir(dir).unwrap().flatten().map(|entry| (name(&entry), fs::read_to_string(entry.path()).unwrap())).collect()
}

#[test]
fn an_authority_and_a_certificate_per_role_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("certs");
    let first = certs(&dir, &[]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(String::from_utf8_lossy(&first.stdout).contains("[grpc.tls]"), "it says what to do with them");
    let made = texts(&dir);
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    let expected = ["all", "api", "audio", "ca", "inference"].map(|name| [format!("{name}.key"), format!("{name}.pem")]);
    assert_eq!(names, expected.concat());
    for name in names.iter().filter(|name| name.ends_with(".key")) {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    fs::remove_file(dir.join("audio.pem")).unwrap();
    fs::remove_file(dir.join("audio.key")).unwrap();
    assert!(certs(&dir, &[]).status.success());
    let again = texts(&dir);
    let changed: Vec<_> = again.iter().filter(|(name, text)| made[*name] != **text).map(|(name, _)| name.as_str()).collect();
    assert_eq!(changed, ["audio.key", "audio.pem"], "what was there is left alone");
    assert!(certs(&dir, &["--force"]).status.success());
    let renewed = texts(&dir);
    assert_eq!((&renewed["ca.pem"], &renewed["ca.key"]), (&made["ca.pem"], &made["ca.key"]), "the authority stays");
    assert_ne!(renewed["api.pem"], made["api.pem"]);
    fs::remove_file(dir.join("ca.key")).unwrap();
    let keyless = certs(&dir, &[]);
    assert_eq!(keyless.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&keyless.stderr).contains("ca.key"));
}

#[test]
fn a_process_with_the_wrong_certificate_does_not_start() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = |env: &[(&str, &str)]| {
        let options = ["--roles", "inference", "--grpc", "https://127.0.0.1:0"];
        Server::try_start(&folder.path().join("data"), &options, env).map(drop).unwrap_err()
    };
    let of_audio = certificate(&folder.path().join("certs"), "audio");
    let wrong = start(&borrowed(&of_audio));
    assert!(wrong.contains("names no role inference"), "{wrong}");
    let none = start(&[]);
    assert!(none.contains("quickcomm certs"), "{none}");
}
