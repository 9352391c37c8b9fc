//! What readers get: lists, pages, search, insights, metrics.

use super::*;
use contracts::ErrorKind;

fn tenant() -> TenantId {
    TenantId::default()
}

fn cut(limit: u32, cursor: Option<String>) -> Cut {
    Cut { cursor, limit: Some(limit) }
}

async fn a_list_is_newest_first_and_its_pages_meet(on: On) {
    let running = Running::start(on).await;
    let mut ids = vec![];
    for n in 0..7 {
        let call = running.call_named(Some(&format!("call {n}")), if n % 2 == 0 { &["vip", "even"] } else { &["odd"] }).await;
        ids.insert(0, call.id);
        if n == 3 {
            running.close(&call, ConversationState::Complete).await;
        }
    }
    let record = &running.record;
    let mut seen = vec![];
    let mut cursor = None;
    loop {
        let page = record.list(&tenant(), &ConversationFilter::default(), &cut(3, cursor)).await.expect("a page");
        assert!(page.data.len() <= 3);
        seen.extend(page.data.iter().map(|c| c.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);

    let titles = async |filter: ConversationFilter| -> Vec<String> {
        let page = record.list(&tenant(), &filter, &Cut::default()).await.expect("a page");
        page.data.into_iter().filter_map(|c| c.title).collect()
    };
    let of = ConversationFilter::default;
    assert_eq!(titles(ConversationFilter { tag: Some("odd".into()), ..of() }).await, ["call 5", "call 3", "call 1"]);
    assert_eq!(titles(ConversationFilter { state: Some(ConversationState::Complete), ..of() }).await, ["call 3"]);
    let early = record.row(&tenant(), ids[6]).await.expect("a row").started_at;
    assert_eq!(titles(ConversationFilter { to: Some(early), ..of() }).await, [""; 0]);
    assert_eq!(titles(ConversationFilter { from: Some(early), ..of() }).await.len(), 7);
    assert!(record.list(&TenantId::new("stranger"), &of(), &Cut::default()).await.expect("a page").data.is_empty());

    let wall = record.wall(&tenant(), Utc::now() - chrono::Duration::minutes(10)).await.expect("a wall");
    assert_eq!(wall.iter().map(|c| c.id).collect::<Vec<_>>(), ids);
    let wall = record.wall(&tenant(), Utc::now() + chrono::Duration::minutes(1)).await.expect("a wall");
    assert_eq!(wall.len(), 6, "the closed one has left");
    running.end().await;
}

async fn a_cursor_of_another_list_and_an_odd_limit_are_refused(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    running.call().await;
    let record = &running.record;
    let page = record.list(&tenant(), &ConversationFilter::default(), &cut(1, None)).await.expect("a page");
    let foreign = record.utterances(&tenant(), call.id, &cut(1, page.next_cursor)).await.expect_err("another list's");
    assert_eq!(foreign.kind, ErrorKind::InvalidInput);
    assert!(foreign.detail.contains("another list"), "{foreign}");
    assert_eq!(record.utterances(&tenant(), call.id, &cut(0, None)).await.expect_err("no rows at all").kind, ErrorKind::InvalidInput);
    let nobody = ConversationId::fresh();
    assert_eq!(record.utterances(&tenant(), nobody, &Cut::default()).await.expect_err("unknown").kind, ErrorKind::NotFound);
    assert_eq!(record.metrics(&tenant(), nobody).await.expect_err("unknown").kind, ErrorKind::NotFound);
    running.end().await;
}

async fn utterances_of_both_channels_come_by_start_with_the_gaps_between(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let gap = SegmentBody::Gap { reason: "lost".into() };
    running
        .commit(&[
            call.says(CUSTOMER, 0, 0..3000, "my bill is wrong"),
            call.segment(AGENT, 0, 0..500, SegmentBody::Silence),
            call.says(AGENT, 1, 500..1000, "hello"),
            call.segment(AGENT, 2, 1000..2000, gap),
            call.says(AGENT, 3, 2000..4000, "let me look"),
        ])
        .await;
    let mut seen = vec![];
    let mut cursor = None;
    loop {
        let page = running.record.utterances(&tenant(), call.id, &cut(2, cursor)).await.expect("a page");
        seen.extend(page.data);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let told: Vec<(u64, &str, UtteranceKind)> = seen.iter().map(|u| (u.start_ms, u.text.as_str(), u.kind)).collect();
    let speech = UtteranceKind::Speech;
    assert_eq!(
        told,
        [(0, "my bill is wrong", speech), (500, "hello", speech), (1000, "", UtteranceKind::Gap), (2000, "let me look", speech)]
    );
    assert_eq!((seen[0].role, seen[0].words.len(), seen[0].word_times), (Role::Customer, 4, WordTimes::Estimated));
    assert_eq!(seen[0].confidence, 0.9, "a float comes back as it went in");
    assert_eq!(seen[2].reason.as_deref(), Some("lost"));
    let json = serde_json::to_value(&seen[0]).expect("serializes");
    assert_eq!(
        (json["kind"].as_str(), json["role"].as_str(), json["word_times"].as_str()),
        (Some("speech"), Some("customer"), Some("estimated"))
    );
    running.end().await;
}

async fn search_finds_words_beginnings_and_forms_and_marks_them(on: On) {
    let running = Running::start(on).await;
    let call = running.call_named(Some("billing"), &[]).await;
    running
        .commit(&[
            call.says(CUSTOMER, 0, 0..3000, "You charged me twice for the café."),
            call.says(AGENT, 0, 0..3000, "I can refund the charge today."),
            call.segment(CUSTOMER, 1, 3000..4000, SegmentBody::Gap { reason: "charged with being lost".into() }),
        ])
        .await;
    let record = &running.record;
    let find = async |q: &str, filter: SearchFilter| -> Vec<String> {
        let page = record.search(&tenant(), q, &filter, &Cut::default()).await.expect("a page");
        page.data.into_iter().map(|h| h.utterance.text).collect()
    };
    let all = SearchFilter::default;
    let (twice, refund) = ("You charged me twice for the café.", "I can refund the charge today.");
    assert_eq!(find("charge", all()).await, [refund, twice], "newest first; a word's other forms count; gaps are not speech");
    assert_eq!(find("TWICE charged", all()).await, [twice], "all words, in any order and case");
    assert_eq!(find("cafe", all()).await, [twice], "accents do not matter");
    assert_eq!(find("ref", all()).await, [refund], "the last word may be a beginning");
    assert_eq!(find("ref the", all()).await, [""; 0], "only the last one");
    assert_eq!(find("charge", SearchFilter { role: Some(Role::Customer), ..all() }).await, [twice]);
    assert_eq!(find("charge", SearchFilter { to: Some(Utc::now() - chrono::Duration::hours(1)), ..all() }).await, [""; 0]);
    assert_eq!(find("charge", SearchFilter { state: Some(ConversationState::Live), ..all() }).await, [refund, twice]);
    assert_eq!(find("charge", SearchFilter { state: Some(ConversationState::Complete), ..all() }).await, [""; 0]);
    for odd in ["\"", "refund\" OR \"x", "a* NEAR(b", "text:refund", "(", "refund -today", "-- ;", "\u{0}refund"] {
        record.search(&tenant(), odd, &all(), &Cut::default()).await.unwrap_or_else(|e| panic!("{odd:?}: {e}"));
    }
    assert_eq!(record.search(&tenant(), "  ", &all(), &Cut::default()).await.expect_err("nothing asked").kind, ErrorKind::InvalidInput);
    assert!(record.search(&TenantId::new("stranger"), "charge", &all(), &Cut::default()).await.expect("a page").data.is_empty());

    let page = record.search(&tenant(), "charge twice", &all(), &Cut::default()).await.expect("a page");
    let hits: Vec<(&str, bool)> = page.data[0].snippet.iter().map(|p| (p.text.as_str(), p.hit)).collect();
    assert_eq!(hits, [("You ", false), ("charged", true), (" me ", false), ("twice", true), (" for the café.", false)]);
    assert_eq!((page.data[0].conversation.id, page.data[0].conversation.title.as_deref()), (call.id, Some("billing")));
    assert_eq!(page.data[0].utterance.role, Role::Customer);

    let first = record.search(&tenant(), "charge", &all(), &cut(1, None)).await.expect("a page");
    let second = record.search(&tenant(), "charge", &all(), &cut(1, first.next_cursor)).await.expect("a page");
    assert_eq!((second.data[0].utterance.text.as_str(), second.next_cursor), (twice, None));
    running.end().await;
}

async fn a_newer_insight_supersedes_and_the_older_one_stays_readable(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let (first, second) = (call.says(CUSTOMER, 0, 0..1000, "cancel it"), call.says(CUSTOMER, 1, 1000..2000, "thank you"));
    let agents = call.says(AGENT, 0, 0..1000, "cancel it, you say");
    running.commit(&[first.clone(), second.clone(), agents.clone()]).await;
    let record = &running.record;
    let old = call.insight(first.utterance_id(), Task::Intent, "a", Some(("praise", 0.95)));
    let new = call.insight(first.utterance_id(), Task::Intent, "b", Some(("cancellation", 0.8)));
    let weaker = call.insight(second.utterance_id(), Task::Intent, "a", Some(("thanks", 0.6)));
    let not_theirs = call.insight(agents.utterance_id(), Task::Intent, "a", Some(("greeting", 1.0)));
    let mut changes = record.subscribe();
    assert_eq!(record.record(cx(), vec![old.clone(), weaker.clone(), not_theirs]).await, Ok(3));
    assert_eq!(record.row(&tenant(), call.id).await.expect("a row").intent.expect("one is there").name, "praise");
    assert_eq!(record.record(cx(), vec![new.clone(), old.clone()]).await, Ok(1), "the older one, repeated, changes nothing");
    let row = record.row(&tenant(), call.id).await.expect("a row");
    assert_eq!(row.intent, Some(TopLabel { name: "cancellation".into(), score: 0.8, tier: Tier::Local }));

    let all = record.insights(&tenant(), call.id, true, Some(Task::Intent)).await.expect("a list");
    assert_eq!(all.len(), 4);
    assert_eq!(all.iter().find(|i| i.id == old.id).expect("kept").superseded_by, Some(new.id));
    let current = record.insights(&tenant(), call.id, false, None).await.expect("a list");
    assert!(current.iter().all(|i| i.superseded_by.is_none() && i.id != old.id));
    assert_eq!(current.iter().find(|i| i.id == new.id).expect("current").insight(), new, "as it was recorded");
    let superseded = loop {
        let change = changes.recv().await.expect("announced");
        if let ChangeRows::Insight { insight, superseded, .. } = &change.rows
            && insight.id == new.id
        {
            break superseded.clone();
        }
    };
    assert_eq!(superseded, [old.id]);

    // Sentiment: the customer's latest. An abstention is no sentiment, and takes an older one's place on its own utterance only.
    let angry = call.insight(first.utterance_id(), Task::Sentiment, "a", Some(("negative", 0.9)));
    let pleased = call.insight(second.utterance_id(), Task::Sentiment, "a", Some(("positive", 0.6)));
    assert_eq!(record.record(cx(), vec![pleased, angry]).await, Ok(2));
    let of = |name: &str| ConversationFilter { sentiment: Some(name.into()), ..ConversationFilter::default() };
    assert_eq!(record.row(&tenant(), call.id).await.expect("a row").sentiment.expect("one").name, "positive");
    assert_eq!(record.list(&tenant(), &of("positive"), &Cut::default()).await.expect("a page").data.len(), 1);
    let unsure = call.insight(second.utterance_id(), Task::Sentiment, "b", None);
    assert_eq!(record.record(cx(), vec![unsure]).await, Ok(1));
    assert_eq!(record.row(&tenant(), call.id).await.expect("a row").sentiment.expect("one").name, "negative");
    assert_eq!(record.list(&tenant(), &of("positive"), &Cut::default()).await.expect("a page").data, []);

    let nobody = Insight { conversation: ConversationId::fresh(), ..new };
    assert_eq!(record.record(cx(), vec![nobody]).await.expect_err("unknown").kind, ErrorKind::NotFound);
    running.end().await;
}

async fn talk_metrics_come_from_what_is_committed(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    running
        .commit(&[
            call.says(AGENT, 0, 0..2000, "one two three four"),
            call.segment(AGENT, 1, 2000..10_000, SegmentBody::Silence),
            call.segment(CUSTOMER, 0, 0..6000, SegmentBody::Silence),
            call.says(CUSTOMER, 1, 6000..7000, "five six"),
        ])
        .await;
    let m = running.record.metrics(&tenant(), call.id).await.expect("metrics");
    assert_eq!((m.duration_ms, m.silence_ms, m.overlap_ms), (10_000, 7_000, 0));
    assert_eq!((m.channels[0].talk_ms, m.channels[0].words, m.channels[0].words_per_minute), (2000, 4, 120.0));
    assert_eq!((m.channels[1].role, m.channels[1].turns), (Role::Customer, 1));
    running.end().await;
}

async fn an_external_id_belongs_to_one_conversation_of_its_tenant(on: On) {
    let running = Running::start(on).await;
    let named = |external: &str| OpenConversation { external_id: Some(external.into()), ..opening(ConversationId::fresh(), None, &[]) };
    let first = running.record.open(cx(), named("call-7")).await.expect("opens");
    let refused = running.record.open(cx(), named("call-7")).await.expect_err("the name is taken");
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.detail.contains("call-7") && refused.detail.contains(&first.id.to_string()), "{refused}");
    let elsewhere = CallCx { tenant: TenantId::new("other"), ..cx() };
    running.record.open(elsewhere, named("call-7")).await.expect("another tenant's names are its own");
    for (broken, word) in [
        (OpenConversation { channels: vec![], ..named("a") }, "channel"),
        (OpenConversation { title: Some("x".repeat(1001)), ..named("b") }, "title"),
        (OpenConversation { tags: vec!["t".into(); 33], ..named("c") }, "tags"),
        (named(""), "external id"),
        (named("a\0b"), "external id"),
    ] {
        let refused = running.record.open(cx(), broken).await.expect_err(word);
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        assert!(refused.detail.contains(word), "{refused}");
    }
    running.end().await;
}

on_both! {
    a_list_is_newest_first_and_its_pages_meet,
    a_cursor_of_another_list_and_an_odd_limit_are_refused,
    utterances_of_both_channels_come_by_start_with_the_gaps_between,
    search_finds_words_beginnings_and_forms_and_marks_them,
    a_newer_insight_supersedes_and_the_older_one_stays_readable,
    talk_metrics_come_from_what_is_committed,
    an_external_id_belongs_to_one_conversation_of_its_tenant,
}
