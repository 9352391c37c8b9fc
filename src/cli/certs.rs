//! `quickcomm certs`: a development authority and certificates for module calls.
//!
//! The authority is kept as long as its key is there, so that certificates can be renewed while processes run; to change it, remove its files.

use anyhow::{Context, bail};
use clap::Args;
use fabric::{
    Role,
    certs::{Authority, Pair},
};
use std::{fs, io, path::PathBuf, process::ExitCode};

#[derive(Debug, Args)]
pub struct Options {
    /// Where they are kept.
    #[arg(long, default_value = ".quickcomm/certs")]
    dir: PathBuf,
    /// Days until the certificates end.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Make certificates anew that are there already.
    #[arg(long)]
    force: bool,
    /// Say what was made as one line of JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let dir = &options.dir;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let writing = || format!("writing to {}", dir.display());
    let (mut made, mut kept) = (vec![], vec![]);
    let (authority, ca) = match (read(dir.join("ca.pem"))?, read(dir.join("ca.key"))?) {
        (Some(certificate), Some(key)) => {
            kept.push("ca");
            (Authority::from_key(&key).with_context(|| format!("{} holds no key", dir.join("ca.key").display()))?, certificate)
        }
        (None, None) => {
            let authority = Authority::new()?;
            let Pair { certificate, key } = authority.pair();
            Pair { certificate: certificate.clone(), key }.write(dir, "ca", &certificate).with_context(writing)?;
            made.push("ca");
            (authority, certificate)
        }
        (Some(_), None) => {
            bail!("{} has ca.pem but not its ca.key: nothing can be issued; move ca.pem away or bring the key", dir.display())
        }
        (None, Some(_)) => bail!("{} has ca.key but not its ca.pem; bring it, or move ca.key away", dir.display()),
    };
    // The last is for a process with all roles.
    let sets: [(&str, &[Role]); 4] =
        [("api", &[Role::Api]), ("audio", &[Role::Audio]), ("inference", &[Role::Inference]), ("all", &Role::ALL)];
    for (name, roles) in sets {
        let there = dir.join(format!("{name}.pem")).exists() || dir.join(format!("{name}.key")).exists();
        if there && !options.force {
            kept.push(name);
            continue;
        }
        authority.issue(roles, options.days)?.write(dir, name, &ca).with_context(writing)?;
        made.push(name);
    }
    if options.json {
        println!("{}", serde_json::json!({ "dir": dir, "made": made, "kept": kept }));
    } else {
        tell(&options, &made, &kept);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: PathBuf) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn tell(options: &Options, made: &[&str], kept: &[&str]) {
    let dir = options.dir.display();
    if !made.is_empty() {
        println!("Made in {dir}: {}; certificates end in {} days.", made.join(", "), options.days);
    }
    if !kept.is_empty() {
        println!(
            "Kept as they were: {}. `--force` makes certificates anew; running processes take them up by themselves.",
            kept.join(", ")
        );
    }
    println!("For a process with the role audio:\n\n[grpc]\nlisten = \"https://0.0.0.0:7443\"");
    println!("[grpc.tls]\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/audio.pem\"\nkey = \"{dir}/audio.key\"");
}
