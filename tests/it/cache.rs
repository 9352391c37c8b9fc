//! Reads of the real binary with a cache on Redis: who answered is said, what was written is read, and without that Redis nobody waits.

use crate::support::{ROOT, Server, eventually, models};
use platform::testing::RedisServer;
use reqwest::Client;
use serde_json::Value;
use std::{
    path::Path,
    time::{Duration, Instant},
};

struct Got {
    status: u16,
    cache: String,
    body: Value,
}

async fn get(server: &Server, path: &str, consistency: Option<&str>) -> Got {
    let mut request = Client::new().get(format!("{}{path}", server.http));
    if let Some(mark) = consistency {
        request = request.header("x-consistency", mark);
    }
    let answer = request.send().await.unwrap();
    let head = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let (status, cache) = (answer.status().as_u16(), head("x-cache"));
    Got { status, cache, body: serde_json::from_str(&answer.text().await.unwrap()).unwrap() }
}

/// Posts a recording; its conversation, and the mark of what was stored.
async fn post(server: &Server, recording: &Path) -> (String, String) {
    let body = std::fs::read(recording).unwrap();
    let answer = Client::new().post(format!("{}/v1/listen?multichannel=true", server.http)).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let head = |name: &str| answer.headers().get(name).unwrap_or_else(|| panic!("{name}")).to_str().unwrap().to_owned();
    (head("quickcomm-conversation"), head("x-consistency"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_from_a_cache_on_redis_and_without_it() {
    let (Some(_), Some(mut redis)) = (models(), RedisServer::start(&[])) else { return };
    let recording = std::fs::read_dir(Path::new(ROOT).join("tests/fixtures/calls")).unwrap().flatten().map(|entry| entry.path());
    let recording = recording.filter(|path| path.extension().is_some_and(|e| e == "wav" || e == "flac")).min().unwrap();
    let url = redis.url();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[("QUICKCOMM_CACHE__KIND", "redis"), ("QUICKCOMM_CACHE__URL", &url)]);

    let (id, mark) = post(&server, &recording).await;
    let paths = ["", "/utterances", "/insights"].map(|part| format!("/v1/conversations/{id}{part}"));
    let shown = get(&server, &paths[0], Some(&mark)).await;
    assert_eq!((shown.status, &shown.body["source"]), (200, &Value::from("file")));
    let said = get(&server, &paths[1], Some(&mark)).await;
    assert!(said.body["data"].as_array().is_some_and(|said| !said.is_empty()), "{}", said.body);
    eventually("its meaning is there as well", Duration::from_secs(60), async || {
        let meant = get(&server, &paths[2], None).await;
        meant.body["data"].as_array().is_some_and(|meant| !meant.is_empty()).then_some(())
    })
    .await;
    eventually("this process has it at hand", Duration::from_secs(20), async || {
        (get(&server, &paths[0], None).await.cache == "first").then_some(())
    })
    .await;
    assert_eq!(get(&server, "/v1/conversations", None).await.body["data"][0]["id"], id.as_str());
    let kept: Vec<String> = redis.ask(&["KEYS", "cache:*"]);
    assert!(kept.iter().any(|key| key.contains(&id)), "{kept:?}");
    assert!(server.metric("quickcomm_cache_fills_total").await > 0.0);

    redis.kill();
    let (another, mark) = post(&server, &recording).await;
    let begun = Instant::now();
    for _ in 0..50 {
        for path in [format!("/v1/conversations/{another}"), format!("/v1/conversations/{another}/utterances"), "/v1/conversations".into()]
        {
            let got = get(&server, &path, Some(&mark)).await;
            assert_eq!(got.status, 200, "{path}: {}", got.body);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?} for 150 reads", begun.elapsed());
    assert_eq!(get(&server, "/v1/conversations", None).await.body["data"][0]["id"], another.as_str(), "what was kept before is not given");
    redis.start_again();
    eventually("it is used again", Duration::from_secs(20), async || {
        get(&server, &format!("/v1/conversations/{another}"), None).await;
        let kept: Vec<String> = redis.ask(&["KEYS", "cache:*"]);
        kept.iter().any(|key| key.contains(&another)).then_some(())
    })
    .await;
    assert!(server.stop(), "SIGTERM did not end in exit code 0");
}

#[test]
fn a_start_without_its_cache_says_what_was_tried_and_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let refused =
        |env: &[(&str, &str)]| Server::try_start(data.path(), &[], env).err().unwrap_or_else(|| panic!("it started with {env:?}"));
    let kind = ("QUICKCOMM_CACHE__KIND", "redis");
    let none = refused(&[kind]);
    assert!(none.contains("exit 2") && none.contains("cache") && none.contains("redis://127.0.0.1:6379"), "{none}");
    let open = refused(&[kind, ("QUICKCOMM_CACHE__URL", "redis://10.0.0.5:6379")]);
    assert!(open.contains("exit 2") && open.contains("no password"), "{open}");
    let nobody = refused(&[kind, ("QUICKCOMM_CACHE__URL", "redis://127.0.0.1:1")]);
    assert!(nobody.contains("exit 1") && nobody.contains("cache.url") && nobody.contains("no Redis answers"), "{nobody}");
}
