//! A standby takes the record's place, and lacks what came last.

use super::support::*;
use crate::ingest::IngestSettings;
use contracts::{
    CallError, ConversationId,
    conversation::ConversationState,
    testing::{Behavior, FakeConversations},
};
use platform::bus::Memory;
use std::{sync::Arc, time::Duration};

/// Sends a call from `from` to `to`, and waits until so many of its utterances are committed.
async fn speak(house: &House, caller: &mut Caller, id: ConversationId, part: std::ops::Range<usize>, said: usize) {
    caller.audio(0, part.start, &call()[part]).await;
    soon(async {
        while house.said(id, 0).len() < said {
            caller.until("safe").await;
        }
    })
    .await
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it does not stand still")
}

/// Ends of the pauses after the first and the second utterance.
const FIRST: usize = 900 * MS;
const SECOND: usize = 1800 * MS;

async fn hang_up(mut caller: Caller) {
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(soon(caller.rest()).await.1, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_the_standby_lacks_are_published_again() {
    let house = house().await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    speak(&house, &mut caller, id, 0..FIRST, 1).await;
    let standby = house.record.standby();
    speak(&house, &mut caller, id, FIRST..SECOND, 2).await;
    house.record.promote(standby);
    assert_eq!(house.said(id, 0), WORDS[..1]);
    caller.audio(0, SECOND, &call()[SECOND..]).await;
    hang_up(caller).await;
    assert_eq!(house.said(id, 0), WORDS, "nothing is missing, nothing is there twice");
    assert_eq!(house.end(id, 0), call().len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_attaching_the_standby_lacks_is_attached_again() {
    let (bus, record) = (Arc::new(Memory::default()), FakeConversations::default());
    let folder = || Arc::new(tempfile::tempdir().unwrap());
    let first = House::on(settings(), record.clone(), folder(), bus.clone()).await;
    let mut caller = first.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    speak(&first, &mut caller, id, 0..FIRST, 1).await;
    let standby = record.standby();
    // The caller goes on at another process.
    let house = House::on(settings(), record.clone(), folder(), bus).await;
    let mut caller = house.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
    let safe = caller.message().await["channels"][0]["safe"].as_u64().unwrap() as usize;
    speak(&house, &mut caller, id, safe..SECOND, 2).await;
    let opened = house.ear.opened.lock().len();
    record.promote(standby);
    speak(&house, &mut caller, id, SECOND..call().len(), 3).await;
    hang_up(caller).await;
    assert_eq!(house.said(id, 0), WORDS);
    assert_eq!(house.end(id, 0), call().len() as u64);
    assert!(house.view(id).await.channels[0].attached.epoch.0 >= 1 << 20, "it was attached to on the standby");
    let again = &house.ear.opened.lock()[opened..];
    assert!(again.iter().all(|stream| stream.start.0 as usize >= SECOND - 100 * MS), "what is remembered is not heard again: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_standby_has_never_heard_of_is_opened_again() {
    let house = house().await;
    let standby = house.record.standby();
    let mut caller = house.connect(&format!("{PATH}&title=Lost%20and%20found")).await.unwrap();
    let id = id_of(&caller.message().await);
    speak(&house, &mut caller, id, 0..FIRST, 1).await;
    house.record.promote(standby);
    assert!(house.said(id, 0).is_empty());
    caller.audio(0, FIRST, &call()[FIRST..]).await;
    hang_up(caller).await;
    assert_eq!(house.said(id, 0), WORDS);
    assert_eq!(house.view(id).await.conversation.title.as_deref(), Some("Lost and found"));
    assert_eq!(house.until_closed(id).await, ConversationState::Complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_standby_lacks_of_a_call_that_waits_to_be_closed_is_heard_again() {
    let house = house().await;
    let mut caller = house.connect(&format!("{PATH}&endpointing=300")).await.unwrap();
    let id = id_of(&caller.message().await);
    // Ends where its last utterance does, so that closing has nothing left to commit.
    let sound = [quiet(200), loud(300), quiet(300), loud(200), quiet(300)].concat();
    caller.audio(0, 0, &sound[..800 * MS]).await;
    soon(async {
        while house.said(id, 0).is_empty() {
            caller.until("safe").await; // the first may be of the silence before it
        }
    })
    .await;
    let standby = house.record.standby();
    caller.audio(0, 800 * MS, &sound[800 * MS..]).await;
    soon(async {
        while house.end(id, 0) < sound.len() as u64 {
            caller.until("safe").await;
        }
    })
    .await;
    house.record.behave(Behavior::Fail(CallError::unavailable("it fails over")));
    let asked = house.record.seen().len();
    caller.text(r#"{"type":"close"}"#).await;
    soon(house.record.called(asked + 2)).await;
    house.record.promote(standby);
    house.record.behave(Behavior::Answer);
    assert_eq!(house.said(id, 0), ["200 300 400"]);
    assert_ne!(soon(caller.rest()).await.1, 1000, "it is told that this is not over");
    assert_eq!(house.until_closed(id).await, ConversationState::Complete);
    assert_eq!(house.said(id, 0), ["200 300 400", "800 900"]);
}

/// What is left of a call whose close and last two utterances the standby lacks, or all of it.
async fn closed_and_lost(recordings: bool, from: usize) -> (House, ConversationId) {
    let house = house_with(IngestSettings { recordings, look_again_ms: 1000, ..settings() }).await;
    let nothing = house.record.standby();
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    speak(&house, &mut caller, id, 0..FIRST, 1).await;
    let standby = if from == 0 { nothing } else { house.record.standby() };
    caller.audio(0, FIRST, &call()[FIRST..]).await;
    hang_up(caller).await;
    let before = house.view(id).await.conversation;
    assert_eq!(before.state, ConversationState::Complete);
    house.record.promote(standby);
    assert_eq!(house.said(id, 0), WORDS[..from]);
    soon(async {
        while house.record.standby().knows(id) != Some(ConversationState::Complete) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(house.view(id).await.conversation, before, "as it was");
    (house, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_the_standby_lacks_is_made_good_from_the_recording() {
    for from in [1, 0] {
        let (house, id) = closed_and_lost(true, from).await;
        assert_eq!(house.said(id, 0), WORDS);
        assert_eq!(house.end(id, 0), call().len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_recording_what_the_standby_lacks_of_a_closed_call_is_a_gap() {
    let (house, id) = closed_and_lost(false, 1).await;
    let said = house.said(id, 0);
    assert_eq!((said[0].as_str(), said.len()), (WORDS[0], 2));
    assert!(said[1].contains("nothing was recorded"), "{said:?}");
}
