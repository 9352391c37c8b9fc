//! A start on a Redis or a PostgreSQL that is there and cannot be stood on: what was tried, why it came to nothing, and what to do. None starts
//! off loopback without a password (S27).

use crate::support::{
    Server,
    postgres::{self, Postgres},
};
use platform::testing::RedisServer;
use std::{
    io::{BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

const BUS: [&str; 2] = ["QUICKCOMM_BUS__KIND", "QUICKCOMM_BUS__URL"];
const CACHE: [&str; 2] = ["QUICKCOMM_CACHE__KIND", "QUICKCOMM_CACHE__URL"];
const SETTINGS: [([&str; 2], &str); 2] = [(BUS, "bus.url"), (CACHE, "cache.url")];
const RECORD: &str = "QUICKCOMM_API__RECORD__URL";

/// What it says instead of starting; never a password.
#[track_caller]
fn refused(env: &[(&str, &str)]) -> String {
    let data = tempfile::tempdir().unwrap();
    let said = Server::try_start(data.path(), &[], env).err().unwrap_or_else(|| panic!("it started with {env:?}"));
    assert!(!said.contains("hunter2"), "{said}");
    said
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}

/// Answers as a Redis of this version does, as far as a client asks before it works; `None`: of before 6, which has no HELLO.
fn a_redis_of(version: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(client, version)); // ends with the connection
        }
    });
    format!("redis://127.0.0.1:{port}")
}

fn answer(mut client: TcpStream, version: Option<&str>) {
    let mut asked = BufReader::new(client.try_clone().unwrap());
    while let Some(command) = next_command(&mut asked) {
        let hello = |version: &str| format!("*4\r\n$7\r\nversion\r\n${}\r\n{version}\r\n$4\r\nrole\r\n$6\r\nmaster\r\n", version.len());
        let said = match (command.first().map(|name| name.to_ascii_uppercase()).as_deref(), version) {
            (Some("HELLO"), Some(version)) => hello(version),
            (Some("HELLO"), None) => "-ERR unknown command `HELLO`, with args beginning with: \r\n".into(),
            _ => "+OK\r\n".into(),
        };
        if client.write_all(said.as_bytes()).is_err() {
            return;
        }
    }
}

/// `*2`, then `$3` and the word of each part.
fn next_command(asked: &mut impl std::io::BufRead) -> Option<Vec<String>> {
    let mut line = String::new();
    let mut number = |asked: &mut dyn std::io::BufRead| -> Option<usize> {
        line.clear();
        asked.read_line(&mut line).ok()?;
        line.trim_end().get(1..)?.parse().ok()
    };
    let parts = number(asked)?;
    (0..parts)
        .map(|_| {
            let mut word = vec![0; number(asked)? + 2];
            asked.read_exact(&mut word).ok()?;
            Some(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned())
        })
        .collect()
}

#[test]
fn a_redis_that_refuses_the_password_is_named_with_its_setting() {
    let Some(server) = RedisServer::start(&["--requirepass", "right"]) else { return };
    for ([kind, url], setting) in SETTINGS {
        for wrong in [format!("redis://:hunter2@127.0.0.1:{}", server.port()), server.url()] {
            let said = refused(&[(kind, "redis"), (url, &wrong)]);
            says(&said, &["exit 1", "refuses the user or password", setting, "expected redis://user:password@host:port"]);
        }
    }
}

#[test]
fn a_redis_that_is_too_old_or_none_at_all_is_named_with_what_was_expected() {
    for ([kind, url], _) in SETTINGS {
        for (version, shown) in [(Some("6.2.14"), "version 6.2.14"), (None, "version before 6")] {
            let at = a_redis_of(version);
            let said = refused(&[(kind, "redis"), (url, &at)]);
            says(&said, &["exit 1", &at, shown, "expected 7.0 or later"]);
        }
        let web = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = format!("redis://{}", web.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut client in web.incoming().map_while(Result::ok) {
                let _ = client.read(&mut [0; 512]);
                let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        says(&refused(&[(kind, "redis"), (url, &at)]), &["exit 1", &at, "Redis"]);
    }
}

#[test]
fn a_postgres_that_refuses_the_password_or_is_too_old_is_named_with_what_to_do() {
    let Some(server) = postgres::shared() else { return };
    let database = server.database("template0");
    let url = server.url("postgres", &database);
    let migrated = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["db", "migrate"]).env(RECORD, &url).status();
    assert!(migrated.is_ok_and(|status| status.success()));
    // The server asks `locked` for a password, wherever it comes from.
    server.sql("postgres", "DROP ROLE IF EXISTS locked; CREATE ROLE locked LOGIN PASSWORD 'right'");
    let with = |password: &str| server.url("locked", &database).replace("locked@", &format!("locked{password}@"));
    says(&refused(&[(RECORD, &with(":hunter2"))]), &["exit 1", "postgres://locked@", "is the password of locked in api.record.url right?"]);
    says(&refused(&[(RECORD, &with(""))]), &["exit 1", "postgres://locked@", "it asks locked for one"]);

    pretend_to_be_old(server, &database);
    let said = refused(&[(RECORD, &server.url("aged", &database))]);
    says(&said, &["exit 1", "it is PostgreSQL 14.11; expected 15 or later"]);
    let status = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["db", "migrate"]).env(RECORD, server.url("aged", &database)).output();
    let status = status.unwrap();
    says(&String::from_utf8_lossy(&status.stderr), &["it is PostgreSQL 14.11; expected 15 or later"]);
    assert_eq!(status.status.code(), Some(1));
}

/// For the user `aged` another function answers what the server's settings are.
fn pretend_to_be_old(server: &Postgres, database: &str) {
    server.sql(
        database,
        "CREATE SCHEMA old;
         CREATE FUNCTION old.current_setting(name text) RETURNS text LANGUAGE sql STABLE AS $$
             SELECT CASE name WHEN 'server_version_num' THEN '140011' WHEN 'server_version' THEN '14.11'
                 ELSE pg_catalog.current_setting(name) END $$;
         DROP ROLE IF EXISTS aged;
         CREATE ROLE aged LOGIN SUPERUSER;
         ALTER ROLE aged SET search_path = old, public, pg_catalog",
    );
}

#[test]
fn nothing_starts_on_a_server_off_loopback_without_a_password() {
    for ([kind, url], _) in SETTINGS {
        for open in ["redis://10.0.0.5:6379", "redis://user@10.0.0.5:6379", "redis://user:@cache.example:6379"] {
            says(&refused(&[(kind, "redis"), (url, open)]), &["exit 2", "no password", "expected redis://user:password@host:port"]);
        }
    }
    const REPLICA: &str = "QUICKCOMM_API__RECORD__REPLICA_URL";
    let fine = "postgres://me:hunter2@10.0.0.7/calls";
    for open in ["postgres://me@10.0.0.7/calls", "postgres://me:@db.example/calls", "postgres://me@127.0.0.1,10.0.0.7/calls"] {
        says(&refused(&[(RECORD, open)]), &["exit 2", "api.record.url", "no password is given"]);
        says(&refused(&[(RECORD, fine), (REPLICA, open)]), &["exit 2", "api.record.replica_url", "no password is given"]);
    }
}
