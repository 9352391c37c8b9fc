//! After the last word: a call is summed up, its result is published, and whoever is to be told is told once, signed.

use crate::{
    calls::play,
    support::{Server, demo_calls, models},
};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    time::Duration,
};

/// Takes every request; gives out what was said.
fn receiver() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/finished", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let (mut text, mut buffer) = (String::new(), [0; 65536]);
            loop {
                let read = socket.read(&mut buffer).unwrap_or(0);
                text += &String::from_utf8_lossy(&buffer[..read]);
                let whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| serde_json::from_str::<Value>(body).is_ok());
                if whole || read == 0 {
                    break;
                }
            }
            let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            let _ = tell.send(text);
        }
    });
    (url, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_comes_to_a_result_and_the_webhook_is_told() {
    if models().is_none() {
        return;
    }
    let (url, told) = receiver();
    let data = tempfile::tempdir().unwrap();
    let settings = [
        ("QUICKCOMM_API__FINALIZE__WEBHOOK_URL", url.as_str()),
        ("QUICKCOMM_API__FINALIZE__WEBHOOK_SECRET", "a secret of more than 24 characters"),
        ("QUICKCOMM_API__FINALIZE__WEBHOOK_PRIVATE", "true"),
    ];
    let quickcomm = Server::start(data.path(), &[], &settings);
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (_, id, _) = play(vec![call], &quickcomm.http).await.remove(0);
    let done = async {
        loop {
            let row = quickcomm.get(&format!("/v1/conversations/{id}")).await;
            if row["finalization"] == "done" {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let row = tokio::time::timeout(Duration::from_secs(60), done).await.expect("it comes to its end");
    assert_eq!(row["state"], "complete");
    let summary = quickcomm.get(&format!("/v1/conversations/{id}/summary")).await;
    assert_eq!(summary["quality"], "full", "{summary}");
    assert!(summary["items"].as_array().is_some_and(|items| !items.is_empty()), "{summary}");
    let said = tokio::task::spawn_blocking(move || told.recv_timeout(Duration::from_secs(10)).unwrap()).await.unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("webhook-signature: v1,") && head.contains("webhook-timestamp: "), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["type"], &body["data"]["conversation"]["id"]), (&"conversation.finalized".into(), &id.as_str().into()));
    assert_eq!(body["data"]["result"]["summary"], summary["items"]);
    assert!(quickcomm.stop());
}
