//! `quickcomm split --private`, which is `make split`: Redis, PostgreSQL and HAProxy come along, hold what is said, and go with it.

use crate::{
    calls::all,
    split::{Split, runs},
    support::{ROOT, demo_calls, eventually, feed::Reader, get, models, postgres, script_text, texts, words},
};
use platform::testing::RedisServer;
use quickcomm::cli::demo::speak;
use std::{
    collections::BTreeSet,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Whether what comes along is there; else it has been said loudly what is skipped.
fn servers(names: &[&str]) -> bool {
    let missing: Vec<_> = names
        .iter()
        .filter(|name| Command::new(name).arg("-v").stdout(Stdio::null()).env("PATH", "/usr/sbin:/usr/bin").status().is_err())
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: no {missing:?}; `.ci/need` installs them");
    }
    missing.is_empty() && postgres::installed().is_some()
}

/// A folder that the user postgres can reach.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn pids<const N: usize>(lines: &[serde_json::Value; N]) -> [u32; N] {
    std::array::from_fn(|n| u32::try_from(lines[n]["pid"].as_u64().unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn private_servers_keep_what_is_said_and_stop_with_the_split_however_it_ends() {
    if models().is_none() || !servers(&["redis-server"]) {
        return;
    }
    let folder = folder();
    let start = || Split::start_with(folder.path(), &["--private"], &[]);
    let mut split = start();
    let ground = pids(&split.wait_for_all(["redis", "postgres"], "ready"));
    let front = split.front();
    split.wait_for("api", "ready");
    let shortest = |name: &String| quickcomm::calls::load(name).unwrap().script.duration_s as u64;
    let name = quickcomm::calls::names().into_iter().min_by_key(shortest).unwrap();
    // As `make demo` plays it.
    let mut demo = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
    demo.args(["demo", "--json", "--url", &front, &name]).current_dir(ROOT);
    let demo = tokio::task::spawn_blocking(move || demo.output().unwrap()).await.unwrap();
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
    let started: serde_json::Value = serde_json::from_slice(demo.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    let id = started["conversation"].as_str().unwrap().to_owned();
    let said = all(&front, &format!("/v1/conversations/{id}/utterances")).await;
    assert!(said.len() > 5, "{said:?}");
    assert_eq!(split.interrupt(), Some(0));
    assert!(!ground.iter().any(|pid| runs(*pid)), "{ground:?} outlive it");
    assert!(!folder.path().join("record.sqlite").exists(), "there is one record");

    // Again, on what they have stored; and then it is killed.
    let mut split = start();
    let ground = pids(&split.wait_for_all(["redis", "postgres"], "ready"));
    let front = split.front();
    split.wait_for("api", "ready");
    assert_eq!(all(&front, &format!("/v1/conversations/{id}/utterances")).await, said);
    split.kill();
    eventually("the servers end after those who stand on them", Duration::from_secs(60), async || {
        (!ground.iter().any(|pid| runs(*pid))).then_some(())
    })
    .await;
    let log = std::fs::read_to_string(folder.path().join("split/api.log")).unwrap();
    assert!(log.contains("stopped") && !log.contains("ERROR"), "the api process had its database to the end: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy_a_killed_api_node_costs_no_reader_its_call() {
    if models().is_none() || !servers(&["redis-server", "haproxy"]) {
        return;
    }
    let folder = folder();
    let mut split = Split::start_with(folder.path(), &["--private", "--balanced"], &[]);
    let servers = pids(&split.wait_for_all(["redis", "postgres", "haproxy"], "ready"));
    let front = split.front();
    let nodes = split.wait_for_all(["api-1", "api-2"], "ready");
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (id, mut events) = speak(&call, &front, None).await.unwrap();
    let id = id.to_string();
    let hearing = tokio::spawn(async move {
        let mut seen = vec![];
        while let Some(event) = events.recv().await {
            seen.push(event.expect("the call goes on"));
        }
        seen
    });
    // Reads as a page would, one after the other, from the first final on.
    let (asked, failed, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let reading = tokio::spawn({
        let (asked, failed, enough, url) = (asked.clone(), failed.clone(), enough.clone(), format!("{front}/v1/conversations/{id}"));
        async move {
            while !enough.load(Ordering::Relaxed) {
                let answer = reqwest::get(&url).await;
                asked.fetch_add(1, Ordering::Relaxed);
                if !answer.is_ok_and(|answer| answer.status().is_success()) {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });

    let mut reader = Reader::of(&id);
    reader.connect(&front).await;
    while reader.utterances.len() < 3 {
        reader.hear().await.expect("the node lives");
    }
    let mut here = 0;
    for (n, node) in nodes.iter().enumerate() {
        let mut direct = Reader::of(&id);
        direct.connect(&format!("http://{}", node["at"].as_str().unwrap())).await;
        here = if direct.epoch == reader.epoch { n } else { here };
    }
    Command::new("kill").args(["-9", &pids(&nodes)[here].to_string()]).status().unwrap();
    while reader.hear().await.is_some() {}
    let shown = reader.utterances.clone();
    assert!(!reader.connect(&front).await, "it is another node");
    assert!(shown.iter().all(|(id, text)| reader.utterances.get(id) == Some(text)), "what was shown stays");
    while reader.state == "live" {
        reader.hear().await.expect("the node lives");
    }
    let seen = hearing.await.unwrap();
    enough.store(true, Ordering::Relaxed);
    reading.await.unwrap();
    let (asked, failed) = (asked.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    println!("{failed} of {asked} reads failed while one of two nodes was killed");
    assert!(asked > 200 && failed <= 1, "{failed} of {asked} reads failed: only the one under way may");

    let rows = all(&front, &format!("/v1/conversations/{id}/utterances")).await;
    assert!(rows.iter().all(|row| row["kind"] == "speech"), "there is a gap: {rows:?}");
    let recorded: BTreeSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!((recorded.len(), reader.utterances.len()), (rows.len(), rows.len()));
    assert!(reader.utterances.keys().all(|id| recorded.contains(id.as_str())), "the screen shows what the record has");
    let told = texts(&seen, call.channels.len()).join(" ");
    assert!(!told.is_empty());
    let heard = |channel: u8| {
        let mut spoken: Vec<_> = rows.iter().filter(|row| row["channel"] == u64::from(channel)).collect();
        spoken.sort_by_key(|row| row["start_ms"].as_u64());
        spoken.iter().filter_map(|row| row["text"].as_str()).collect::<Vec<_>>().join(" ")
    };
    for channel in 0..2u8 {
        let (errors, of) = words::errors(&script_text(&call, channel), &heard(channel));
        assert!(errors * 100 <= of * 8, "channel {channel}: {errors} errors in {of} words");
    }
    assert_eq!(get(&front, &format!("/v1/conversations/{id}")).await["state"], "complete");
    assert_eq!(split.interrupt(), Some(1), "a loss is no success");
    assert!(!servers.iter().any(|pid| runs(*pid)), "{servers:?} outlive it");
}

#[test]
fn what_cannot_be_brought_along_is_said_with_what_to_do() {
    let split = |data: &Path, options: &[&str], path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
        command.args(["split", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"]).arg(data).args(options);
        let refused = command.env("PATH", path).current_dir(ROOT).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "it started");
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    let open = folder();
    let unshared = split(open.path(), &["--balanced"], "/usr/bin:/bin");
    assert!(unshared.contains("--balanced needs a bus and a record") && unshared.contains("--private"), "{unshared}");
    let nothing = split(open.path(), &["--private"], "/nowhere");
    assert!(nothing.contains("no redis-server is installed") && nothing.contains("apt-get install redis-server"), "{nothing}");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if is_root && RedisServer::start(&[]).is_some() && postgres::installed().is_some() {
        let closed = tempfile::tempdir().unwrap();
        let alone = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(closed.path(), alone).unwrap(); // root's alone
        let refused = split(closed.path(), &["--private"], "/usr/sbin:/usr/bin:/sbin:/bin");
        assert!(refused.contains("the user postgres cannot reach") && refused.contains("--data"), "{refused}");
    }
}
