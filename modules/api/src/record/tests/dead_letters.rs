use super::*;
use contracts::signal::{DEAD, DeadLetter, INSIGHTS, UTTERANCES};
use platform::bus::NewEntry;

on_both! {
    an_entry_that_cannot_be_read_is_kept_whole_with_why_and_where_it_came_from,
    a_letter_from_another_process_is_one_row_and_goes_back_once,
}

async fn letters(running: &Running, count: usize) -> Vec<DeadLetterRow> {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..1_000 {
        look.tick().await;
        let found = running.record.dead_letters(&TenantId::default(), false).await.expect("listed");
        if found.len() == count {
            return found;
        }
    }
    panic!("there are not {count} dead letters");
}

fn entry(key: &str, payload: &'static [u8], trace: TraceCx) -> NewEntry {
    NewEntry { key: key.into(), payload: payload.into(), trace }
}

async fn an_entry_that_cannot_be_read_is_kept_whole_with_why_and_where_it_came_from(on: On) {
    let running = Running::start(on).await;
    let trace = TraceCx::root();
    running.bus.publish(UTTERANCES, vec![entry("conv_1", b"no segment", trace)]).await.expect("taken");
    running.bus.publish(INSIGHTS, vec![entry("conv_1", b"{}", trace)]).await.expect("taken");
    let found = letters(&running, 2).await;
    let letter = &found.iter().find(|row| row.letter.stream == UTTERANCES).expect("the segment").letter;
    assert_eq!((letter.payload.as_slice(), letter.key.as_str(), letter.attempts, letter.trace), (&b"no segment"[..], "conv_1", 1, trace));
    assert!(letter.error.contains("Syntax error") && !letter.error.contains("segment"), "{}", letter.error);
    running.end().await;
}

async fn a_letter_from_another_process_is_one_row_and_goes_back_once(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let segment = call.says(AGENT, 0, 0..1000, "hello there");
    let (key, trace) = (call.id.to_string(), segment.trace);
    let payload = bytes::Bytes::from(serde_json::to_vec(&segment).expect("plain data"));
    let letter = DeadLetter::new(UTTERANCES, &key, &payload, trace, 4, "panicked: on purpose");
    for _ in 0..3 {
        let payload = serde_json::to_vec(&letter).expect("plain data").into();
        running.bus.publish(DEAD, vec![NewEntry { key: key.clone(), payload, trace }]).await.expect("taken");
    }
    let found = letters(&running, 1).await;
    assert_eq!(found[0].letter, letter);
    let mut reader = running.bus.consume(UTTERANCES, "test").await.expect("joined");
    let tenant = TenantId::default();
    let first = running.record.replay(&tenant, &found[0].id).await.expect("replayed");
    let again = running.record.replay(&tenant, &found[0].id).await.expect("answered");
    assert!(first.replayed && !again.replayed && first.replayed_at.timestamp_millis() == again.replayed_at.timestamp_millis());
    let back = reader.next(10).await.expect("it is back");
    assert_eq!((back.len(), &back[0].payload, &back[0].key), (1, &payload, &key));
    assert_eq!(back[0].trace.trace_id, trace.trace_id, "its tree goes on");
    letters(&running, 0).await;
    assert_eq!(running.record.dead_letters(&tenant, true).await.expect("listed").len(), 1);
    assert_eq!(running.record.replay(&tenant, "dead_0").await.expect_err("unknown").kind, contracts::ErrorKind::NotFound);
    running.end().await;
}
