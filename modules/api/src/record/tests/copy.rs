//! A record that outgrows its file: copied while calls go on, then once more while nobody writes, until both are equal.

use super::super::operate::{Copied, Progress, copy};
use super::*;
use contracts::signal::{DeadLetter, UTTERANCES};
use std::sync::Mutex;

/// Talks for a while on a new conversation, with insights that supersede each other.
async fn talk(running: &Running, turns: u64) -> Call {
    let call = running.call_named(Some("“Ärger”"), &["vip", "two words"]).await;
    continue_from(running, &call, 0..turns).await;
    call
}

async fn continue_from(running: &Running, call: &Call, turns: Range<u64>) {
    for n in turns {
        let said = call.says(CUSTOMER, n, n * 1000..n * 1000 + 1000, "I was charged twice for the café");
        running.commit(std::slice::from_ref(&said)).await;
        let insights = ["a", "b"].map(|config| call.insight(said.utterance_id(), Task::Intent, config, Some(("billing", 0.9))));
        running.record.record(cx(), insights.to_vec()).await.expect("recorded");
    }
}

/// Nobody can read it, so it dies again when it is put back.
fn letter(n: u64) -> DeadLetter {
    let trace = TraceCx { trace_id: u128::from(n) + 1, span_id: n + 1, sampled: true };
    let payload = bytes::Bytes::from(vec![0, 255, n as u8, (n >> 8) as u8]);
    DeadLetter::new(UTTERANCES, &format!("conv_{n}"), &payload, trace, 4, "“no segment”")
}

#[tokio::test]
async fn a_record_is_copied_beside_its_writer_and_equal_when_that_has_stopped() {
    if !On::Postgres.is_here() {
        return;
    }
    let running = Running::start(On::Sqlite).await;
    let mut calls = vec![];
    for _ in 0..60 {
        calls.push(talk(&running, 3).await);
    }
    running.close(&calls[0], ConversationState::Complete).await;
    // One of them is a segment that is there by now.
    let said = calls[1].says(CUSTOMER, 0, 0..1000, "I was charged twice for the café");
    let payload = bytes::Bytes::from(serde_json::to_vec(&said).expect("plain data"));
    let known = DeadLetter::new(UTTERANCES, &calls[1].id.to_string(), &payload, said.trace, 4, "panicked");
    let letters: Vec<DeadLetter> = (0..1_100).map(letter).chain([known.clone()]).collect();
    for some in letters.chunks(100) {
        running.record.bury(some.to_vec()).await.expect("kept");
    }
    let target = On::Postgres.settings();
    let data = running.folder.path().to_owned();
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let copying = async |pause: Duration| {
        let told = told.clone();
        let tell = move |progress| told.lock().expect("nobody panics with it").push(progress);
        copy(data.clone(), target.record.clone(), pause, tell).await
    };
    let begun = copying(Duration::from_secs(60)).await.expect("it can be read");
    assert!(matches!(begun, Copied::NotYet { .. }), "a process still writes: {begun:?}");

    // What happens after the copy is copied the next time, and nothing else.
    continue_from(&running, &calls[7], 3..5).await;
    let late = talk(&running, 2).await;
    let tenant = TenantId::default();
    assert!(running.record.replay(&tenant, &known.id()).await.expect("the bus takes it").replayed);
    let again = DeadLetter { error: "and again".into(), ..letter(7) };
    running.record.bury(vec![again.clone(), letter(5_000)]).await.expect("kept");
    let _folder = running.end().await;
    let too_short = copying(Duration::ZERO).await.expect_err("no time at all");
    assert!(too_short.to_string().contains("allow a longer one"), "{too_short}");
    let done = copying(Duration::from_secs(60)).await.expect("nobody writes");
    let Copied::Equal { conversations, rows, checksum, pause } = &done else { panic!("{done:?}") };
    assert_eq!((*conversations, checksum.len()), (61, 64));
    assert!(*rows > 61 * 10 && *pause < Duration::from_secs(60), "{rows} rows in {pause:?}");
    let told = told.lock().expect("nobody panics with it").clone();
    assert!(matches!(told[0], Progress::Round { conversations: 60, .. }), "{told:?}");
    assert!(told.contains(&Progress::Pause { longest: Duration::from_secs(60) }), "{told:?}");

    // The record goes on where it was, on its new place.
    let moved = Running::with(target.clone()).await;
    let kept = async |letter: &DeadLetter| moved.record.dead_letter(&tenant, &letter.id()).await.expect("it came along");
    let put_back = kept(&known).await;
    assert!(put_back.replayed_at.is_some() && put_back.letter == known, "{put_back:?}");
    assert_eq!(kept(&again).await.letter, again);
    let last = kept(&letter(5_000)).await;
    assert_eq!((last.replayed_at, &last.letter), (None, &letter(5_000)));
    assert!(moved.record.replay(&tenant, &last.id).await.expect("the bus takes it").replayed, "it is put back from there");
    let rows = moved.record.transcript(&TenantId::default(), calls[7].id).await.expect("readable");
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    continue_from(&moved, &late, 2..4).await;
    let found = moved.record.search(&TenantId::default(), "cafe", &SearchFilter::default(), &Cut::default()).await.expect("a page");
    assert_eq!(found.data[0].conversation.id, late.id, "what came last is newest");
    moved.end().await;

    // Not over a record of another origin.
    let other = Running::start(On::Postgres).await;
    other.call().await;
    let refused = copy(data.clone(), other.settings.record.clone(), Duration::from_secs(9), |_| {}).await.expect_err("it holds a record");
    assert!(refused.to_string().contains("holds a record already"), "{refused}");
    other.end().await;
}

#[tokio::test]
async fn a_copy_that_differs_in_one_row_is_found() {
    let Some(server) = postgres::shared() else { return };
    let running = Running::start(On::Sqlite).await;
    let call = talk(&running, 3).await;
    let folder = running.end().await;
    let target = On::Postgres.settings();
    let copying = async || copy(folder.path().to_owned(), target.record.clone(), Duration::from_secs(60), |_| {}).await;
    assert!(matches!(copying().await, Ok(Copied::Equal { .. })));
    let database = target.record.url.expose().rsplit('/').next().expect("a name");
    // One that was cut off in its first round goes on.
    server.sql(database, "DELETE FROM bookkeeping WHERE name = 'copied_until'");
    assert!(matches!(copying().await, Ok(Copied::Equal { .. })));
    // Older than what is copied again because clocks differ.
    server.sql(database, "UPDATE bookkeeping SET value = value + 3600000000 WHERE name = 'copied_until'");
    server.sql(database, &format!("UPDATE segments SET text = text || '!' WHERE conversation_id = '{}' AND seq = 1", call.id));
    let refused = copying().await.expect_err("a sign was added");
    assert!(refused.to_string().contains("differs") && refused.to_string().contains(&call.id.to_string()), "{refused}");
    server.sql(database, "UPDATE segments SET text = rtrim(text, '!')");
    assert!(matches!(copying().await, Ok(Copied::Equal { .. })));
    server.sql(database, "INSERT INTO dead_letters VALUES ('default', 'dead_x', 's', 'k', 'p', 'e', 1, 't', 'v', now())");
    let refused = copying().await.expect_err("the file has no such letter");
    assert!(refused.to_string().contains("dead_x"), "{refused}");
}

#[tokio::test]
async fn what_is_erased_meanwhile_is_erased_from_the_copy_until_a_server_writes_there() {
    if !On::Postgres.is_here() {
        return;
    }
    let running = Running::start(On::Sqlite).await;
    let (kept, erased) = (talk(&running, 2).await, talk(&running, 2).await);
    running.close(&erased, ConversationState::Complete).await;
    let target = On::Postgres.settings();
    let data = running.folder.path().to_owned();
    let copying = async || copy(data.clone(), target.record.clone(), Duration::from_secs(60), |_| {}).await;
    let begun = copying().await.expect("it can be read");
    assert!(matches!(begun, Copied::NotYet { .. }), "a process still writes: {begun:?}");
    let step = running.record.claim_steps(&cx(), Utc::now(), 1).await.expect("claimed").remove(0);
    assert_eq!(step.conversation, erased.id);
    assert_eq!(running.record.settle_step(&cx(), &step, &Finding::Erase, Utc::now()).await, Ok(true));
    let _folder = running.end().await;
    let done = copying().await.expect("nobody writes");
    assert!(matches!(done, Copied::Equal { conversations: 1, .. }), "{done:?}");

    let tenant = TenantId::default();
    let moved = Running::with(target.clone()).await;
    let new = talk(&moved, 1).await;
    moved.end().await;
    let refused = copying().await.expect_err("it is more than a copy").to_string();
    assert!(refused.contains("servers have written there"), "{refused}");
    let moved = Running::with(target.clone()).await;
    for call in [&kept, &new] {
        moved.record.row(&tenant, call.id).await.expect("it is there");
    }
    moved.end().await;
}

#[tokio::test]
async fn an_insight_kept_below_a_better_one_is_copied_again_with_its_conversation() {
    let Some(server) = postgres::shared() else { return };
    let running = Running::start(On::Sqlite).await;
    let call = talk(&running, 1).await;
    let target = On::Postgres.settings();
    let data = running.folder.path().to_owned();
    let copying = async || copy(data.clone(), target.record.clone(), Duration::from_secs(60), |_| {}).await;
    assert!(matches!(copying().await, Ok(Copied::NotYet { .. })), "a process still writes");
    // Nothing is copied again only because clocks differ.
    let database = target.record.url.expose().rsplit('/').next().expect("a name");
    server.sql(database, "UPDATE bookkeeping SET value = value + 5000000 WHERE name = 'copied_until'");
    let said = call.says(CUSTOMER, 0, 0..1000, "I was charged twice for the café");
    let mut stand_in = call.insight(said.utterance_id(), Task::Intent, "c", Some(("outage", 0.9)));
    (stand_in.provenance.tier, stand_in.provenance.degraded_from) = (Tier::Rules, Some(Tier::Llm));
    running.record.record(cx(), vec![stand_in.clone()]).await.expect("recorded");
    let kept = running.record.insights(&TenantId::default(), call.id, true, None).await.expect("readable");
    assert!(kept.iter().any(|i| i.id == stand_in.id && i.superseded_by.is_some()), "{kept:?}");
    let _folder = running.end().await;
    let done = copying().await.expect("nobody writes");
    assert!(matches!(done, Copied::Equal { conversations: 1, .. }), "{done:?}");
}
