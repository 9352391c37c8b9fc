//! The dial, turned in three ways: command, admin port, file.

use crate::support::{Server, eventually, models};
use serde_json::{Value, json};
use std::{fs, process::Command, time::Duration};

async fn route(server: &Server, module: &str) -> Value {
    let report: Value = reqwest::get(format!("{}/admin/routes", server.admin)).await.unwrap().json().await.unwrap();
    report["routes"].as_array().unwrap().iter().find(|route| route["module"] == module).expect("it has a dial").clone()
}

/// `quickcomm route`: whether it worked, and what it said.
fn command(server: &Server, arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_quickcomm")).arg("route").args(arguments).args(["--admin", &server.admin]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_is_turned_by_command_by_request_and_by_file() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("inference.sock").display());
    let file = folder.path().join("quickcomm.toml");
    let config = |route: &str| format!("[modules.inference]\n{route}\nendpoints = [\"{socket}\"]\n");
    fs::write(&file, config("mode = \"local\"")).unwrap();
    let server =
        Server::start(&folder.path().join("f"), &["--config", &file.to_string_lossy()], &[("QUICKCOMM_LOG__FILTER", "warn,fabric=info")]);

    let (done, said) = command(&server, &["inference", "--remote", "25"]);
    assert!(!done && said.contains(&socket) && said.contains("No such file"), "it says who was tried and why it failed: {said}");
    assert_eq!(route(&server, "inference").await["dial"]["mode"], "local");

    let there = Server::start(&folder.path().join("i"), &["--roles", "inference", "--grpc", &socket], &[]);
    let (done, said) = command(&server, &["inference", "--remote", "25", "--dry-run"]);
    assert!(done && said.contains("nothing has changed"), "{said}");
    assert_eq!(route(&server, "inference").await["version"], 1);
    let (done, said) = command(&server, &["inference", "--remote", "25", "--shadow", "5"]);
    assert!(done && said.contains("25 % remote, 5 % shadowed"), "{said}");
    let (done, said) = command(&server, &["inference", "--undo", "--by", "ana", "--reason", "the other machine is serviced"]);
    assert!(done && said.contains("to local"), "{said}");
    let (done, said) = command(&server, &["inference", "--forward", "--reason", "two\nlines"]);
    assert!(!done && said.contains("reason holds the control character"), "{said}");
    let (done, said) = command(&server, &["inference", "--by", "ana"]);
    assert!(!done && said.contains("nothing to turn"), "{said}");
    let too_long = json!({ "mode": "local", "by": "x".repeat(81) });
    let answer =
        reqwest::Client::new().put(format!("{}/admin/routes/inference", server.admin)).body(too_long.to_string()).send().await.unwrap();
    let (status, refused) = (answer.status(), answer.text().await.unwrap());
    assert!(status == 422 && refused.contains("by has 81 characters"), "{status} {refused}");

    let turned = server.turn("inference", json!({ "remote_percent": 100 })).await;
    assert_eq!((&turned["to"]["remote_percent"], &turned["version"]), (&json!(100), &json!(4)));
    eventually("the status page knows", Duration::from_secs(5), async || {
        let status = server.get("/v1/admin/status").await;
        let module = status["modules"].as_array()?.iter().find(|m| m["name"] == "inference")?.clone();
        (module["mode"] == "routed" && module["state"] == "ready" && module["endpoint"] == socket.as_str()).then_some(())
    })
    .await;

    fs::write(&file, config("mode = \"routed\"\nroute = { remote_percent = 50 }")).unwrap();
    eventually("the file is read again", Duration::from_secs(5), async || {
        (route(&server, "inference").await["dial"]["remote_percent"] == 50).then_some(())
    })
    .await;
    fs::write(&file, "[modules.inference]\nmode = \"nowhere\"\n").unwrap();
    eventually("a file that cannot be used is said so", Duration::from_secs(5), async || {
        server.log().contains("the configuration file is not usable").then_some(())
    })
    .await;
    assert_eq!(route(&server, "inference").await["dial"]["remote_percent"], 50, "and changes nothing");

    let (done, said) = command(&server, &["inference"]);
    assert!(done && said.contains("by file") && said.contains("by operator") && said.contains(&socket), "{said}");
    assert!(said.contains("by operator ana (the other machine is serviced)"), "{said}");
    let output = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["status", "--admin", &server.admin]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.lines().any(|line| line.contains("operator ana") && line.ends_with("the other machine is serviced")), "{said}");
    let status = server.get("/v1/admin/topology").await;
    assert!(status["changes"].as_array().unwrap().iter().any(|change| change["who"] == "ana"), "{status}");
    let log = server.log();
    assert!(log.lines().any(|line| line.contains("the dial was turned") && line.contains("ana") && line.contains("serviced")), "{log}");
    drop(there);
    let metrics = reqwest::get(format!("{}/metrics", server.admin)).await.unwrap().text().await.unwrap();
    for line in ["quickcomm_route_version{module=\"inference\"} 5", "quickcomm_route_changes_total{module=\"inference\",by=\"file\"} 1"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_tells_what_runs_where_and_turns_the_dial() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("inference.sock").display());
    let there = Server::start(&folder.path().join("i"), &["--roles", "inference", "--grpc", &socket], &[]);
    let endpoints = format!("[\"{socket}\"]");
    let server = Server::start(&folder.path().join("f"), &[], &[("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", &endpoints)]);
    let put = async |module: &str, wish: Value, origin: Option<&str>| {
        let request = reqwest::Client::new().put(format!("{}/v1/admin/routes/{module}", server.http)).body(wish.to_string());
        let request = origin.into_iter().fold(request, |request, origin| request.header("origin", origin));
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, refused) = put("inference", json!({ "remote_percent": 50 }), Some("http://elsewhere.example")).await;
    assert_eq!((status, &refused["code"]), (403, &json!("forbidden_origin")));
    let (status, dry) = put("inference", json!({ "remote_percent": 50, "dry_run": true }), Some(&server.http)).await;
    assert_eq!((status, &dry["dry_run"], &dry["version"]), (200, &json!(true), &json!(1)));
    let (status, turned) = put("inference", json!({ "remote_percent": 50, "version": 1 }), Some(&server.http)).await;
    assert_eq!((status, &turned["version"]), (200, &json!(2)), "{turned}");
    let (status, stale) = put("inference", json!({ "mode": "local", "version": 1 }), Some(&server.http)).await;
    assert_eq!((status, &stale["code"]), (409, &json!("stale_version")));
    let (status, refused) = put("audio", json!({ "remote_percent": 50 }), None).await;
    assert!(status == 409 && refused["detail"].as_str().unwrap().contains("names none"), "{refused}");

    let topology = eventually("enough was watched for a verdict", Duration::from_secs(20), async || {
        let topology = server.get("/v1/admin/topology").await;
        let mut modules =
            topology["modules"].as_array()?.iter().filter(|module| module["name"] != "record" && module["name"] != "recordings");
        let loaded = modules.all(|module| module["memory"]["loaded_bytes"].is_u64());
        (loaded && topology["process"]["window_s"].as_f64()? > 3.0).then_some(topology)
    })
    .await;
    let targets = topology["routes"].as_array().unwrap().iter().find(|r| r["module"] == "inference").unwrap()["targets"].clone();
    assert_eq!((&targets[0]["name"], &targets[1]["name"]), (&json!("local"), &json!(socket)), "both sides, side by side: {targets}");
    assert_eq!(topology["changes"][0]["to"], "50 % remote");
    assert!(topology["process"]["cpu"].as_f64().is_some() && topology["process"]["memory_bytes"].as_u64().unwrap() > 1_000_000);
    let memory = |name: &str| topology["modules"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap()["memory"].clone();
    assert!(memory("audio")["loaded_bytes"].as_u64().unwrap() > 20 << 20, "recognizers are large: {}", memory("audio"));
    assert!(memory("inference")["loaded_bytes"].as_u64().unwrap() > 5 << 20, "so is the classifier: {}", memory("inference"));
    assert!(memory("api")["held_bytes"].as_u64().unwrap() > 10_000, "SQLite has pages: {}", memory("api"));
    assert_eq!(memory("audio")["held_bytes"], 0, "nobody speaks");
    let all = topology["process"]["memory_bytes"].as_u64().unwrap();
    assert!((1..all).contains(&topology["process"]["shared_bytes"].as_u64().unwrap()), "{topology}");
    assert!(topology["hops"].as_array().unwrap().iter().any(|hop| hop["name"] == "decode" && hop["limit_ms"] == 150.0), "{topology}");
    assert!(!topology["bottleneck"]["sentence"].as_str().unwrap().contains("yet:"), "{topology}");

    let output = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["status", "--admin", &server.admin]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(&socket) && said.contains("decode") && said.contains("50 % remote"), "{said}");
    drop(there);
}
