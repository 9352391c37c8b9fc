//! The product on PostgreSQL: a call is heard and kept there, the API says what the tables say, and whoever cannot start is told what to do.

use crate::{
    calls::{play, recorded_text},
    support::{
        Server, demo_calls, models,
        postgres::{self, Postgres},
        texts,
    },
};
use serde_json::Value;
use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

/// `quickcomm db …` on this database.
fn db(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
    command.arg("db").args(arguments).env("QUICKCOMM_API__RECORD__URL", url);
    command.output().unwrap()
}

fn said(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn empty_database(server: &Postgres) -> (String, String) {
    let name = server.database("template0");
    (server.url("postgres", &name), name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_kept_on_postgres_and_found_as_the_api_says() {
    let (Some(_), Some(server)) = (models(), postgres::shared()) else { return };
    let (url, database) = empty_database(server);
    assert_eq!(db(&url, &["status"]).status.code(), Some(3), "steps are missing");
    assert_eq!(said(&db(&url, &["migrate", "--json"]))["ran"][0], "0001_the_record");
    let state = db(&url, &["status", "--json"]);
    assert_eq!((state.status.code(), &said(&state)["pending"]), (Some(0), &serde_json::json!([])));

    let data = tempfile::tempdir().unwrap();
    let quickcomm = Server::start(data.path(), &[], &[("QUICKCOMM_API__RECORD__URL", url.as_str())]);
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (call, id, events) = play(vec![call], &quickcomm.http).await.remove(0);
    let told = texts(&events, call.channels.len());
    for (channel, told) in told.iter().enumerate() {
        assert_eq!(recorded_text(&quickcomm, &id, channel as u64).await, *told, "the record differs from what the caller was told");
        let rows = server.sql(
            &database,
            &format!(
                "SELECT string_agg(text, ' ' ORDER BY start_ms, seq) FROM segments
                 WHERE tenant_id = 'default' AND conversation_id = '{id}' AND channel = {channel} AND kind = 'speech'"
            ),
        );
        assert_eq!(rows, *told, "the tables differ from what the API says");
    }
    // A word of the call is found by the index, and leads back to it.
    let word = told.iter().flat_map(|t| t.split(' ')).max_by_key(|w| w.len()).unwrap().trim_matches(|c: char| !c.is_alphanumeric());
    let found = quickcomm.get(&format!("/v1/search?q={word}")).await;
    assert!(found["data"].as_array().unwrap().iter().any(|hit| hit["conversation"]["id"] == id.as_str()), "{word}: {found}");
    assert!(!data.path().join("record.sqlite").exists(), "there is one record");
    assert!(quickcomm.stop(), "SIGTERM did not end in exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_moves_from_its_file_to_a_server_and_reads_the_same() {
    let (Some(_), Some(server)) = (models(), postgres::shared()) else { return };
    let (url, _) = empty_database(server);
    let data = tempfile::tempdir().unwrap();
    let here = data.path().to_str().unwrap();
    let quickcomm = Server::start(data.path(), &[], &[]);
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (call, id, _) = play(vec![call], &quickcomm.http).await.remove(0);
    assert!(db(&url, &["copy", "--data", here]).status.code() == Some(1), "the target has no schema yet");
    assert!(db(&url, &["migrate"]).status.success());
    let early = db(&url, &["copy", "--data", here, "--json"]);
    assert_eq!((early.status.code(), &said(&early)["equal"]), (Some(3), &Value::Bool(false)), "the server still writes");
    let mut before = vec![];
    for channel in 0..call.channels.len() {
        before.push(recorded_text(&quickcomm, &id, channel as u64).await);
    }
    assert!(quickcomm.stop());
    let done = said(&db(&url, &["copy", "--data", here, "--json"]));
    assert!(done["equal"] == true && done["rows"].as_u64() > Some(10), "{done}");

    let moved = Server::start(data.path(), &[], &[("QUICKCOMM_API__RECORD__URL", url.as_str())]);
    for (channel, before) in before.iter().enumerate() {
        assert_eq!(recorded_text(&moved, &id, channel as u64).await, *before);
    }
    assert!(moved.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_while_its_record_moves_to_another_server() {
    let (Some(_), Some(bin)) = (models(), postgres::installed()) else { return };
    let primary = Postgres::start(bin, postgres::Sync::Off);
    let (url, database) = empty_database(&primary);
    assert!(db(&url, &["migrate"]).status.success());
    let standby = primary.standby();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("quickcomm.toml");
    let names = |servers: &[&Postgres]| {
        let hosts = servers.iter().map(|server| server.socket().display().to_string().replace('/', "%2F"));
        let url = format!("url = \"postgres://postgres@{}/{database}\"\n", hosts.collect::<Vec<_>>().join(","));
        // Reads go to the one it moves to first.
        let replica = servers.get(1).map(|standby| format!("replica_url = \"{}\"\n", standby.url("postgres", &database)));
        std::fs::write(&file, format!("[api.record]\n{url}{}", replica.unwrap_or_default()))
    };
    names(&[&primary]).unwrap();
    let heard = [("QUICKCOMM_LOG__FILTER", "warn,quickcomm=info")];
    let quickcomm = Server::start(&folder.path().join("data"), &["--config", &file.to_string_lossy()], &heard);
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let playing = play(vec![call], &quickcomm.http);
    let (from, to) = (url.clone(), standby.url("postgres", &database));
    let step = |until: &'static str| {
        let (from, to, file) = (from.clone(), to.clone(), file.clone());
        tokio::task::spawn_blocking(move || {
            let file = file.to_string_lossy();
            let options = ["move", "--config", &file, "--from", &from, "--to", &to, "--until", until, "--json"];
            Command::new(env!("CARGO_BIN_EXE_quickcomm")).arg("db").args(options).output().unwrap()
        })
    };
    let moving = async {
        let asked = async || quickcomm.get("/v1/conversations").await["data"].as_array().is_some_and(|all| !all.is_empty());
        while !asked().await {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let early = step("promote").await.unwrap();
        let said = String::from_utf8_lossy(&early.stderr).into_owned();
        assert!(early.status.code() == Some(1) && said.contains("api.record.url does not name"), "{said}");
        names(&[&primary, &standby]).unwrap();
        while !quickcomm.log().contains("the record's server is looked for there from now on") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let elsewhere = [("QUICKCOMM_API__RECORD__REPLICA_URL", url.as_str())];
        let contrary = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
            .args(["db", "move", "--from", &from, "--to", &to, "--until", "reads"])
            .envs(elsewhere.into_iter().chain([("QUICKCOMM_API__RECORD__URL", url.as_str())]))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&contrary.stderr).into_owned();
        assert!(contrary.status.code() == Some(1) && said.contains("api.record.replica_url sends reads to"), "{said}");
        let reads = step("reads").await.unwrap();
        let said = String::from_utf8_lossy(&reads.stdout).into_owned();
        assert!(reads.status.success() && said.contains("servers read there by"), "{said}{}", String::from_utf8_lossy(&reads.stderr));
        step("promote").await.unwrap()
    };
    let (mut played, moved) = tokio::join!(playing, moving);
    let said = String::from_utf8_lossy(&moved.stdout).into_owned();
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {said}{}", String::from_utf8_lossy(&moved.stderr)));
    assert!(last["moved"] == true && last["pause_ms"].as_u64() <= Some(2_000), "{said}");
    let (call, id, events) = played.remove(0);
    for (channel, told) in texts(&events, call.channels.len()).iter().enumerate() {
        assert_eq!(recorded_text(&quickcomm, &id, channel as u64).await, *told, "the record differs from what the caller was told");
    }
    let kept = |server: &Postgres| server.sql(&database, "SELECT count(*) FROM segments").parse::<u64>().unwrap();
    assert!(kept(&standby) > kept(&primary), "the rest of the call is on the new server alone");
    assert!(quickcomm.stop());
}

#[test]
fn a_move_that_is_told_to_stop_in_its_pause_opens_the_primary_again() {
    let Some(bin) = postgres::installed() else { return };
    let primary = Postgres::start(bin, postgres::Sync::Off);
    let (url, database) = empty_database(&primary);
    assert!(db(&url, &["migrate"]).status.success());
    let standby = primary.standby();
    let to = standby.url("postgres", &database);
    let hosts = [&primary, &standby].map(|server| server.socket().display().to_string().replace('/', "%2F")).join(",");
    let both = format!("postgres://postgres@{hosts}/{database}");
    let settings = primary.socket().join("data/postgresql.auto.conf");
    let closed = || std::fs::read_to_string(&settings).unwrap().contains("default_transaction_read_only");
    for signal in ["-TERM", "-INT", "-HUP"] {
        let stuck = primary.stuck(&database); // the pause goes on as long as it lives
        let mut moving = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
            .args(["db", "move", "--from", &url, "--to", &to, "--until", "promote", "--pause-at-most", "60000"])
            .env("QUICKCOMM_API__RECORD__URL", &both)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while !closed() && moving.try_wait().unwrap().is_none() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Command::new("kill").args([signal, &moving.id().to_string()]).status().unwrap();
        let ended = moving.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(1) && said.contains("it was told to stop; writes go on at"), "{signal}: {said}");
        assert!(!closed(), "{signal}: {said}");
        drop(stuck);
        assert_eq!(primary.sql("postgres", "SHOW default_transaction_read_only"), "off");
    }
}

#[test]
fn a_start_without_its_database_says_what_was_tried_and_what_to_do() {
    let Some(server) = postgres::shared() else { return };
    let data = tempfile::tempdir().unwrap();
    let refused = |url: &str| {
        let refused = Server::try_start(data.path(), &[], &[("QUICKCOMM_API__RECORD__URL", url)]);
        let text = refused.err().unwrap_or_else(|| panic!("it started on {url}"));
        assert!(!text.contains("hunter2"), "{text}");
        text
    };
    let (url, _) = empty_database(server);
    let unmade = refused(&url);
    assert!(unmade.contains("exit 1") && unmade.contains("`quickcomm db migrate`"), "{unmade}");
    let nobody = refused("postgres://me:hunter2@127.0.0.1:1/calls");
    assert!(nobody.contains("postgres://me@127.0.0.1:1/calls") && nobody.contains("is PostgreSQL running there"), "{nobody}");
    let open = refused("postgres://me@db.example/calls");
    assert!(open.contains("exit 2") && open.contains("api.record.url") && open.contains("no password"), "{open}");

    let shown = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
        .args(["serve", "--print-config"])
        .env("QUICKCOMM_API__RECORD__URL", "postgres://me:hunter2@db.example/calls")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("postgres://me:****@db.example/calls") && !shown.contains("hunter2"), "{shown}");
}
