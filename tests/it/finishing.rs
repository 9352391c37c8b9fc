//! After the last word: a call is summed up, its result is published, and whoever is to be told is told once, signed.

use crate::{
    calls::{all, play},
    scripted::{Scripted, Seen},
    support::{Server, demo_calls, eventually, models},
};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    time::Duration,
};

/// Takes every request; gives out what was said.
pub fn receiver() -> (String, mpsc::Receiver<String>) {
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

/// Plays the shortest call and waits until it has come to its end.
async fn finished_call(quickcomm: &Server) -> (String, Value) {
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
    let row = tokio::time::timeout(Duration::from_secs(120), done).await.expect("it comes to its end");
    (id, row)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_language_model_sums_a_call_up_in_the_words_of_those_who_spoke() {
    if models().is_none() {
        return;
    }
    let llm = Scripted::start(Seen::answer).await;
    let data = tempfile::tempdir().unwrap();
    let (url, model) = (llm.url(), ("QUICKCOMM_INFERENCE__LLM__MODEL", "scripted"));
    let quickcomm = Server::start(data.path(), &[], &[("QUICKCOMM_INFERENCE__LLM__URL", url.as_str()), model]);
    let (id, _) = finished_call(&quickcomm).await;
    let summary = quickcomm.get(&format!("/v1/conversations/{id}/summary")).await;
    assert_eq!(summary["quality"], "full", "{summary}");
    let items = summary["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|item| item["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["reason", "outcome"], "{summary}");
    let said: Vec<String> = all(&quickcomm, &format!("/v1/conversations/{id}/utterances"))
        .await
        .iter()
        .map(|row| row["text"].as_str().unwrap().into())
        .collect();
    for item in items {
        assert_eq!(item["tier"], "llm");
        assert!(said.iter().any(|turn| turn.contains(item["text"].as_str().unwrap())), "{item} is none of {said:?}");
    }
    let asked = llm.seen().into_iter().filter(|seen| seen.schema().get("actions").is_some()).count();
    assert_eq!(asked, 1, "once, when the call had ended");
    assert!(quickcomm.stop());
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
    let (id, row) = finished_call(&quickcomm).await;
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

/// Its conversation came to its end in another process, which has no recordings.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_deletes_its_old_recordings_whoever_finished_their_calls() {
    let data = tempfile::tempdir().unwrap();
    let id = contracts::ConversationId::fresh();
    let folder = data.path().join("recordings").join(id.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let meta = serde_json::json!({
        "id": id, "state": "closed", "recorded": true, "source": "native", "resumable": true, "complete": false, "language": "en",
        "started_at": "2026-01-01T00:00:00Z", "channels": [],
    });
    std::fs::write(folder.join("meta.json"), meta.to_string()).unwrap();
    std::fs::write(folder.join("0.raw"), [0; 320]).unwrap();
    let file = std::fs::File::options().append(true).open(folder.join("meta.json")).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3 * 86_400)).unwrap();
    let quickcomm = Server::start(data.path(), &[], &[("QUICKCOMM_API__FINALIZE__KEEP_DAYS", "7")]);
    assert!(quickcomm.stop() && folder.exists(), "it is not old enough");
    let quickcomm = Server::start(data.path(), &[], &[("QUICKCOMM_API__FINALIZE__KEEP_RECORDINGS_DAYS", "2")]);
    eventually("it is deleted", Duration::from_secs(20), async || (!folder.exists()).then_some(())).await;
    assert!(quickcomm.stop());
}
