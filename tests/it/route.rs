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
    let server = Server::start(&folder.path().join("f"), &["--config", &file.to_string_lossy()], &[]);

    let (done, said) = command(&server, &["inference", "--remote", "25"]);
    assert!(!done && said.contains(&socket) && said.contains("No such file"), "it says who was tried and why it failed: {said}");
    assert_eq!(route(&server, "inference").await["dial"]["mode"], "local");

    let there = Server::start(&folder.path().join("i"), &["--roles", "inference", "--grpc", &socket], &[]);
    let (done, said) = command(&server, &["inference", "--remote", "25", "--dry-run"]);
    assert!(done && said.contains("nothing has changed"), "{said}");
    assert_eq!(route(&server, "inference").await["version"], 1);
    let (done, said) = command(&server, &["inference", "--remote", "25", "--shadow", "5"]);
    assert!(done && said.contains("25 % remote, 5 % shadowed"), "{said}");
    let (done, said) = command(&server, &["inference", "--undo"]);
    assert!(done && said.contains("to local"), "{said}");

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
    drop(there);
    let metrics = reqwest::get(format!("{}/metrics", server.admin)).await.unwrap().text().await.unwrap();
    for line in ["quickcomm_route_version{module=\"inference\"} 5", "quickcomm_route_changes_total{module=\"inference\",by=\"file\"} 1"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
