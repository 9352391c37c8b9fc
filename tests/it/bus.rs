//! The demo calls through processes that stand on one Redis: record and callers' sockets here, understanding there. Also while that Redis dies,
//! forgets everything, or is not there at all.

use crate::{
    calls::{all, play, recorded_text},
    support::{ROOT, Server, demo_calls, eventually, models, texts, words},
};
use platform::testing::RedisServer;
use serde_json::Value;
use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

const CALLS: usize = 2;

/// Record and sockets in one process, understanding in another.
struct House {
    front: Server,
    understands: Server,
}

impl House {
    fn start(folder: &Path, redis: &RedisServer) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let socket = |name: &str| format!("unix:{}", folder.join(name).display());
        let (front, inference, url) = (socket("front.sock"), socket("inference.sock"), redis.url());
        let at = |endpoint: &str| format!("[\"{endpoint}\"]");
        let bus = [("QUICKCOMM_BUS__KIND", "redis"), ("QUICKCOMM_BUS__URL", url.as_str())];
        let (of_front, of_inference) = (at(&front), at(&inference));
        let mut env = vec![("QUICKCOMM_MODULES__API__MODE", "remote"), ("QUICKCOMM_MODULES__API__ENDPOINTS", of_front.as_str())];
        env.extend(bus);
        let understands = Server::start(&folder.join("i"), &["--roles", "inference", "--grpc", &inference], &env);
        let mut env =
            vec![("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"), ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", of_inference.as_str())];
        env.extend(bus);
        let front = Server::start(&folder.join("f"), &["--roles", "api,audio", "--grpc", &front], &env);
        Self { front, understands }
    }

    fn stop(self) {
        for server in [self.front, self.understands] {
            assert!(server.stop(), "SIGTERM did not end in exit code 0");
        }
    }
}

/// What the record holds of each call: its texts by channel. No insight stands twice, and with `understood` each utterance has its own.
async fn rows(front: &Server, understood: bool) -> Vec<[String; 2]> {
    let calls: Vec<_> = demo_calls().into_iter().take(CALLS).collect();
    let mut kept = vec![];
    for (call, id, events) in play(calls, &front.http).await {
        let told = texts(&events, call.channels.len());
        let recorded = [recorded_text(front, &id, 0).await, recorded_text(front, &id, 1).await];
        assert_eq!(told, recorded, "{}: the record has what the caller was told", call.script.title);
        eventually("every utterance has its insights, once", Duration::from_secs(40), async || {
            let said = all(front, &format!("/v1/conversations/{id}/utterances")).await;
            let spoken: BTreeSet<&str> = said.iter().filter(|u| u["kind"] == "speech").filter_map(|u| u["id"].as_str()).collect();
            let insights = front.get(&format!("/v1/conversations/{id}/insights")).await["data"].as_array()?.clone();
            let of: Vec<(&str, &str)> = insights.iter().filter_map(|i| Some((i["utterance_id"].as_str()?, i["task"].as_str()?))).collect();
            let once: BTreeSet<_> = of.iter().collect();
            assert_eq!(once.len(), of.len(), "an insight stands twice");
            let all_have = spoken.len() * 2 == of.len() && of.iter().all(|(utterance, _)| spoken.contains(utterance));
            (all_have || !understood).then_some(())
        })
        .await;
        kept.push(recorded);
    }
    kept
}

/// The same words, but for the noise of two runs on a busy machine.
fn same(ours: &[[String; 2]], theirs: &[[String; 2]]) {
    for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
        let (errors, of) = words::errors(theirs, ours);
        assert!(errors * 100 <= of * 3, "{errors} of {of} words differ:\n{theirs}\n{ours}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_redis_leave_the_same_rows_as_in_one_process_also_when_it_dies_or_forgets() {
    if models().is_none() {
        return;
    }
    let (Some(redis), Some(mut mortal)) = (RedisServer::start(&["--appendonly", "yes"]), RedisServer::start(&["--appendonly", "yes"]))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let alone = Server::start(&folder.path().join("one"), &[], &[]);
    let house = House::start(&folder.path().join("two"), &redis);
    let struck = House::start(&folder.path().join("struck"), &mortal);

    let faults = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        mortal.ask::<String>(&["FLUSHALL"]);
        tokio::time::sleep(Duration::from_secs(6)).await;
        mortal.kill();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let shown = struck.front.get("/v1/admin/status").await.to_string();
        mortal.start_again();
        shown
    };
    // A turn that was committed and that Redis forgot before it was understood stays without insight until it is reconciled.
    let (expected, over_redis, under_faults, shown) =
        tokio::join!(rows(&alone, true), rows(&house.front, true), rows(&struck.front, false), faults);
    same(&over_redis, &expected);
    same(&under_faults, &expected);
    assert!(shown.contains("what is said is kept until it is back"), "{shown}");
    let status = house.front.get("/v1/admin/status").await;
    let bus = status["modules"].as_array().unwrap().iter().find(|m| m["name"] == "bus").expect("the bus is shown").clone();
    assert_eq!((bus["detail"].as_str(), bus["endpoint"].as_str()), (Some("serving"), Some(redis.url().as_str())));
    assert!(alone.stop());
    house.stop();
    struck.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_worked_on_is_listed_shown_and_put_back_by_the_command_line() {
    if models().is_none() {
        return;
    }
    let Some(redis) = RedisServer::start(&[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let house = House::start(folder.path(), &redis);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    redis.ask::<String>(&["XADD", "utterances:{7}", "*", "key", "conv_x", "payload", "no segment", "trace", trace, "at", "1"]);
    let dlq = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
        let output = command.arg("dlq").args(arguments).args(["--admin", &house.front.admin]).current_dir(ROOT).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let id = eventually("it is listed", Duration::from_secs(20), async || {
        let listed: Value = serde_json::from_str(&dlq(&["list", "--json"]).1).ok()?;
        listed["data"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let (_, shown, _) = dlq(&["show", &id]);
    assert!(shown.contains("no segment") && shown.contains(trace) && shown.contains("utterances"), "{shown}");
    let (code, said, _) = dlq(&["replay", &id]);
    assert_eq!((code, said.as_str()), (Some(0), format!("{id} is back on its stream\n").as_str()));
    // It is no better now: both of its readers give it up again, and it is still one letter.
    eventually("it has died again", Duration::from_secs(20), async || {
        let listed: Value = serde_json::from_str(&dlq(&["list", "--json"]).1).ok()?;
        (listed["data"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let (code, _, error) = dlq(&["show", "dead_0"]);
    assert!(code == Some(1) && error.contains("no dead letter dead_0"), "{code:?} {error}");
    house.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_redis_is_not_there_says_what_it_tried() {
    let folder = tempfile::tempdir().unwrap();
    let env = [("QUICKCOMM_BUS__KIND", "redis"), ("QUICKCOMM_BUS__URL", "redis://127.0.0.1:1")];
    let said = Server::try_start(folder.path(), &[], &env).err().expect("it does not start");
    assert!(said.contains("no Redis answers at redis://127.0.0.1:1") && said.contains("redis-server"), "{said}");
}
