//! TLS to Redis and PostgreSQL: their certificates must come from the authority that is named and hold the name in the address; whoever does
//! not pass is named with what to do, and nothing falls back to plain text.

use crate::support::{
    Server, models,
    postgres::{self, Postgres},
};
use platform::testing::RedisServer;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
};

/// An authority and what it has signed, as PEM files that anybody may read.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(vec![]).unwrap();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        own.distinguished_name.push(DnType::CommonName, name);
        fs::write(folder.path().join("ca.pem"), own.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(own, key) }
    }

    fn ca(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// Certificate and key for a server of this name.
    fn sign(&self, name: &str, is_over: bool) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if is_over {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let files = ["pem", "key"].map(|kind| self.folder.path().join(format!("{name}-{is_over}.{kind}")));
        fs::write(&files[0], params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        fs::set_permissions(&files[1], Permissions::from_mode(0o644)).unwrap();
        files
    }
}

#[track_caller]
fn refused(env: &[(&str, &str)], says: &[&str]) {
    let data = tempfile::tempdir().unwrap();
    let said = Server::try_start(data.path(), &[], env).err().unwrap_or_else(|| panic!("it started with {env:?}"));
    assert!(!said.contains("hunter2"), "{said}");
    for part in says {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}

const RECORD: [&str; 2] = ["QUICKCOMM_API__RECORD__URL", "QUICKCOMM_API__RECORD__CA"];

#[tokio::test(flavor = "multi_thread")]
async fn the_record_is_kept_over_tls_on_a_postgres_that_is_who_it_says() {
    let (Some(_), Some(bin)) = (models(), postgres::installed()) else { return };
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let (ca, [cert, key]) = (authority.ca(), authority.sign("localhost", false));
    let server = Postgres::start_encrypted(bin, &cert, &key);
    server.sql("postgres", "CREATE ROLE clerk LOGIN PASSWORD 'hunter2'");
    server.sql("postgres", "CREATE DATABASE calls OWNER clerk TEMPLATE template0");
    let at = |host: &str, mode: &str| format!("postgres://clerk:hunter2@{host}:{}/calls{mode}", server.port());
    let [url, tls] = RECORD;
    let good = at("localhost", "?sslmode=verify-full");
    let migrated = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["db", "migrate"]).env(url, &good).env(tls, &ca).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let data = tempfile::tempdir().unwrap();
    let quickcomm = Server::start(data.path(), &[], &[(url, &good), (tls, &ca)]);
    assert_eq!(quickcomm.get("/v1/conversations").await["data"].as_array().map(Vec::len), Some(0));
    let plain = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                 WHERE application_name LIKE 'quickcomm %'";
    let counts = server.sql("postgres", plain);
    assert!(counts.ends_with("|0") && !counts.starts_with("0|"), "encrypted and plain connections: {counts}");
    assert!(quickcomm.stop());
    // `require` checks as much.
    let required = at("localhost", "?sslmode=require");
    assert!(Server::start(data.path(), &[], &[(url, &required), (tls, &ca)]).stop());

    let who = "is its certificate from an authority in api.record.ca, and does it hold the host's name";
    refused(&[(url, &good), (tls, &other.ca())], &["exit 1", "UnknownIssuer", who]);
    refused(&[(url, &required), (tls, &other.ca())], &["exit 1", "UnknownIssuer", who]);
    refused(&[(url, &good)], &["exit 1", "UnknownIssuer", who]);
    refused(&[(url, &at("127.0.0.1", "?sslmode=verify-full")), (tls, &ca)], &["exit 1", "not valid for name \"127.0.0.1\"", who]);
    refused(&[(url, &at("localhost", "?sslmode=verify-ca")), (tls, &ca)], &["exit 2", "expected verify-full"]);
    refused(&[(url, &at("localhost", "")), (tls, &ca)], &["exit 2", "api.record.ca", "expected ?sslmode=verify-full"]);
    refused(&[(url, &good), (tls, "/nowhere/ca.pem")], &["exit 2", "api.record.ca", "/nowhere/ca.pem", "No such file"]);
    refused(&[(url, &good), (tls, &key.display().to_string())], &["exit 2", "api.record.ca", "it holds none; expected PEM certificates"]);
    let [old, its_key] = authority.sign("localhost", true);
    let swap = |cert: &PathBuf, key: &PathBuf| {
        let set = |name: &str, file: &PathBuf| server.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{}'", file.display()));
        set("ssl_cert_file", cert);
        let own = server.socket().join("data/next.key");
        fs::copy(key, &own).unwrap();
        fs::set_permissions(&own, Permissions::from_mode(0o600)).unwrap();
        let owned = Command::new("chown").arg("--reference").arg(server.socket()).arg(&own).status();
        assert!(owned.is_ok_and(|status| status.success()));
        set("ssl_key_file", &own);
        server.kill(); // what it read before is in use as long as it runs
        server.start_again();
    };
    swap(&old, &its_key);
    refused(&[(url, &good), (tls, &ca)], &["exit 1", "certificate expired", who]);
    server.sql("postgres", "ALTER SYSTEM SET ssl = off");
    server.kill();
    server.start_again();
    refused(&[(url, &good), (tls, &ca)], &["exit 1", "does not support TLS", "`ssl = on`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bus_and_cache_stand_on_a_redis_over_tls_that_is_who_it_says() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let (ca, [cert, key]) = (authority.ca(), authority.sign("localhost", false));
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().port().to_string();
    let [cert, key] = [cert, key].map(|file| file.display().to_string());
    let options =
        ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    let (Some(_), Some(redis)) = (models(), RedisServer::start(&options)) else { return };
    let good = format!("rediss://localhost:{port}");
    let settings = [
        ["QUICKCOMM_BUS__KIND", "QUICKCOMM_BUS__URL", "QUICKCOMM_BUS__CA", "bus.ca"],
        ["QUICKCOMM_CACHE__KIND", "QUICKCOMM_CACHE__URL", "QUICKCOMM_CACHE__CA", "cache.ca"],
    ];
    let mut both: Vec<(&str, &str)> = vec![];
    for [kind, url, tls, named] in settings {
        let with = |at: &str, ca: &str, says: &[&str]| refused(&[(kind, "redis"), (url, at), (tls, ca)], says);
        let who = format!("is its certificate from an authority in {named}, and does it hold the host's name");
        with(&good, &other.ca(), &["exit 1", "UnknownIssuer", &who]);
        with(&format!("rediss://127.0.0.1:{port}"), &ca, &["exit 1", "not valid for name", &who]);
        with(&good, "/nowhere/ca.pem", &["exit 1", "/nowhere/ca.pem", "No such file"]);
        with(&good, &key, &["exit 1", "it holds none; expected PEM certificates"]);
        with(&redis.url(), &ca, &["exit 2", "would vouch for nobody", "expected rediss://host:port"]);
        with(&format!("rediss://localhost:{}", redis.port()), &ca, &["exit 1", &format!("rediss://localhost:{}", redis.port())]);
        refused(&[(kind, "redis"), (url, &good)], &["exit 1", "UnknownIssuer", &who]);
        refused(&[(kind, "redis"), (url, &format!("redis://localhost:{port}"))], &["exit 1", &format!("redis://localhost:{port}")]);
        both.extend([(kind, "redis"), (url, good.as_str()), (tls, ca.as_str())]);
    }
    let data = tempfile::tempdir().unwrap();
    let quickcomm = Server::start(data.path(), &[], &both);
    assert_eq!(quickcomm.get("/v1/conversations").await["data"].as_array().map(Vec::len), Some(0));
    let topology = quickcomm.get("/v1/admin/topology").await;
    for name in ["bus", "cache"] {
        let server = topology["modules"].as_array().unwrap().iter().find(|module| module["name"] == name).unwrap();
        assert_eq!((server["endpoint"].as_str(), server["state"].as_str()), (Some(good.as_str()), Some("ready")), "{server}");
    }
    let kept: Vec<String> = redis.ask(&["KEYS", "*"]);
    assert!(kept.iter().any(|key| key == "bus:epoch") && kept.iter().any(|key| key.starts_with("cache:")), "{kept:?}");
    assert!(quickcomm.stop());
}
