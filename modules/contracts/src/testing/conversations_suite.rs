//! What every `Conversations` keeps. Each case makes its own conversation, so one record serves them all.

use crate::{
    CallCx, ChannelIndex, ConversationId, Conversations, Encoding, Epoch, ErrorKind, InsightId, RunId, SamplePos, SampleRate, TenantId,
    TraceCx, UtteranceId,
    audio::{ChannelSpec, Role, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, Attached, Close, CommitOutcome, ConversationState, OpenConversation, RecordEvent, Segment},
    inference::{Evidence, Insight, Label, Provenance, Task, Tier},
};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use std::{sync::Arc, time::Duration};

/// Panics with the first promise that is not kept.
pub async fn conversations_suite(record: Arc<dyn Conversations>) {
    let record = &*record;
    opening_a_known_id_returns_what_is_there(record).await;
    what_does_not_exist_is_not_found(record).await;
    attaching_raises_the_epoch_and_says_where_to_go_on(record).await;
    a_batch_is_stored_segment_by_segment(record).await;
    a_duplicate_changes_nothing(record).await;
    an_older_epoch_is_refused_and_its_commits_stay(record).await;
    a_hole_in_the_numbers_asks_for_what_is_missing(record).await;
    a_range_that_does_not_continue_is_never_stored(record).await;
    channels_do_not_disturb_each_other(record).await;
    silence_moves_the_watermark_and_a_gap_is_shown(record).await;
    a_newer_run_supersedes_and_a_repeated_record_is_not_new(record).await;
    closing_is_idempotent_and_final(record).await;
    a_watcher_sees_everything_from_now_on(record).await;
    tenants_do_not_see_each_other(record).await;
}

/// One conversation of the suite: a mu-law channel of an agent, a linear one of a customer.
struct Call<'a> {
    record: &'a dyn Conversations,
    id: ConversationId,
}

const AGENT: ChannelIndex = ChannelIndex(0);
const CUSTOMER: ChannelIndex = ChannelIndex(1);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

/// Whole milliseconds: a record may keep no more.
fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_767_000_000_000 + ms).expect("a time of this century")
}

fn opening(id: ConversationId) -> OpenConversation {
    let channel = |index, role, encoding, rate| ChannelSpec { index, role, encoding, rate };
    OpenConversation {
        id,
        external_id: Some(format!("call-{id}")),
        title: Some("Where is my parcel? “Ärger”".into()),
        source: "native".into(),
        language: "en".into(),
        tags: vec!["suite".into(), "two words".into()],
        channels: vec![
            channel(AGENT, Role::Agent, Encoding::Mulaw, SampleRate::HZ_8000),
            channel(CUSTOMER, Role::Customer, Encoding::Linear16, SampleRate::HZ_16000),
        ],
        started_at: at(0),
    }
}

impl<'a> Call<'a> {
    async fn begin(record: &'a dyn Conversations) -> Self {
        let id = ConversationId::fresh();
        let opened = record.open(cx(), opening(id)).await.expect("a new conversation opens");
        assert_eq!((opened.id, opened.state, opened.ended_at), (id, ConversationState::Live, None));
        Self { record, id }
    }

    async fn attach(&self, channel: ChannelIndex) -> Attached {
        self.record.attach(cx(), Attach { conversation: self.id, channel }).await.expect("a live channel can be attached to")
    }

    async fn commit(&self, segments: impl Into<Vec<Segment>>) -> Vec<CommitOutcome> {
        let segments = segments.into();
        let sent = segments.len();
        let outcomes = self.record.commit(cx(), segments).await.expect("a commit has an outcome per segment");
        assert_eq!(outcomes.len(), sent, "one outcome per segment, in their order");
        outcomes
    }

    async fn view(&self) -> crate::conversation::ConversationView {
        self.record.conversation(cx(), self.id).await.expect("an open conversation can be read")
    }

    /// Where a channel stands, without attaching.
    async fn standing(&self, channel: ChannelIndex) -> Attached {
        let view = self.view().await;
        view.channels.iter().find(|c| c.spec.index == channel).expect("the channel it was opened with").attached
    }

    fn segment(&self, channel: ChannelIndex, epoch: Epoch, seq: u64, range: std::ops::Range<u64>, body: SegmentBody) -> Segment {
        Segment {
            conversation: self.id,
            channel,
            epoch,
            seq,
            start: SamplePos(range.start),
            end: SamplePos(range.end),
            body,
            trace: TraceCx::root(),
        }
    }

    fn insight(&self, utterance: UtteranceId, config: &str, label: &str) -> Insight {
        let run = RunId::live(self.id, Task::Intent.name(), config);
        Insight {
            id: InsightId::of(run, utterance),
            run,
            conversation: self.id,
            utterance,
            task: Task::Intent,
            labels: vec![Label { name: label.into(), score: 0.75 }],
            abstained: None,
            evidence: vec![Evidence { utterance, word_from: 0, word_to: 1 }],
            provenance: Provenance {
                tier: Tier::Local,
                model: "suite 1".into(),
                degraded_from: Some(Tier::Llm),
                config_hash: config.into(),
                latency_ms: 7,
                prompt: Some("turn@1 suite".into()),
                late: true,
            },
        }
    }
}

fn speech(text: &str, range: std::ops::Range<u64>) -> SegmentBody {
    let words = text.split(' ').enumerate();
    SegmentBody::Speech(Spoken {
        words: words
            .map(|(n, word)| Word { text: word.into(), start_ms: n as u32 * 10, end_ms: n as u32 * 10 + 9, confidence: 0.5 })
            .collect(),
        from: SamplePos(range.start),
        to: SamplePos(range.end),
        confidence: 0.5,
        speech_final: true,
        word_times: WordTimes::Estimated,
        model: "suite 1".into(),
        decode_ms: 3,
    })
}

fn texts(view: &crate::conversation::ConversationView) -> Vec<String> {
    view.utterances.iter().map(|u| u.text()).collect()
}

use CommitOutcome::{Ahead, Committed, Duplicate, Mismatch, Stale};

async fn opening_a_known_id_returns_what_is_there(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let first = call.view().await;
    assert_eq!(first.conversation.title.as_deref(), Some("Where is my parcel? “Ärger”"));
    assert_eq!(first.conversation.tags, ["suite", "two words"]);
    assert_eq!(first.conversation.started_at, at(0));
    assert_eq!(first.channels.iter().map(|c| c.spec.clone()).collect::<Vec<_>>(), opening(call.id).channels);
    let again = record.open(cx(), OpenConversation { title: Some("other".into()), ..opening(call.id) }).await;
    assert_eq!(again.as_ref(), Ok(&first.conversation), "opening again changes nothing");
}

async fn what_does_not_exist_is_not_found(record: &dyn Conversations) {
    let nobody = ConversationId::fresh();
    let kind = |e: crate::CallError| e.kind;
    assert_eq!(record.conversation(cx(), nobody).await.map_err(kind), Err(ErrorKind::NotFound));
    assert_eq!(record.attach(cx(), Attach { conversation: nobody, channel: AGENT }).await.map_err(kind), Err(ErrorKind::NotFound));
    assert_eq!(record.watch(cx(), nobody).await.err().map(kind), Some(ErrorKind::NotFound));
    let close = Close { conversation: nobody, state: ConversationState::Complete, ended_at: at(1), heard: vec![] };
    assert_eq!(record.close(cx(), close).await.map_err(kind), Err(ErrorKind::NotFound));
    let call = Call::begin(record).await;
    let channel = ChannelIndex(7);
    assert_eq!(record.attach(cx(), Attach { conversation: call.id, channel }).await.map_err(kind), Err(ErrorKind::NotFound));
}

async fn attaching_raises_the_epoch_and_says_where_to_go_on(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let first = call.attach(AGENT).await;
    assert_eq!((first.safe, first.next_seq), (SamplePos::ZERO, 0));
    call.commit([call.segment(AGENT, first.epoch, 0, 0..800, speech("hello", 0..800))]).await;
    let second = call.attach(AGENT).await;
    assert!(second.epoch > first.epoch, "{second:?} after {first:?}");
    assert_eq!((second.safe, second.next_seq), (SamplePos(800), 1));
}

async fn a_batch_is_stored_segment_by_segment(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let batch = [
        call.segment(AGENT, epoch, 0, 0..800, speech("one", 0..800)),
        call.segment(AGENT, epoch, 0, 0..800, speech("one", 0..800)),
        call.segment(AGENT, Epoch(epoch.0.wrapping_sub(1)), 1, 800..900, speech("old", 800..900)),
        call.segment(AGENT, epoch, 1, 800..1600, speech("two words", 800..1600)),
        call.segment(AGENT, epoch, 3, 2400..3200, speech("four", 2400..3200)),
        call.segment(AGENT, epoch, 2, 1600..2400, speech("three", 1600..2400)),
    ];
    let ahead = Ahead { next_seq: 2, safe: SamplePos(1600) };
    assert_eq!(call.commit(batch).await, [Committed, Duplicate, Stale, Committed, ahead, Committed]);
    assert_eq!(call.commit([]).await, []);
    let view = call.view().await;
    assert_eq!(texts(&view), ["one", "two words", "three"]);
    let second = &view.utterances[1];
    assert_eq!(second.id, UtteranceId::of(call.id, AGENT, epoch, 1), "the id follows from the place");
    assert_eq!((second.conversation, second.channel, second.role), (call.id, AGENT, Role::Agent));
    assert_eq!((second.start_ms, second.end_ms), (100, 200), "8 kHz");
    assert_eq!(second.words[1], Word { text: "words".into(), start_ms: 10, end_ms: 19, confidence: 0.5 });
}

async fn a_duplicate_changes_nothing(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let segment = call.segment(AGENT, epoch, 0, 0..800, speech("once", 0..800));
    assert_eq!(call.commit([segment.clone()]).await, [Committed]);
    let before = call.view().await;
    let retold = Segment { body: speech("twice", 0..800), ..segment };
    assert_eq!(call.commit([retold]).await, [Duplicate]);
    assert_eq!(call.view().await, before);
}

async fn an_older_epoch_is_refused_and_its_commits_stay(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let old = call.attach(AGENT).await.epoch;
    let first = call.segment(AGENT, old, 0, 0..800, speech("kept", 0..800));
    assert_eq!(call.commit([first.clone()]).await, [Committed]);
    let new = call.attach(AGENT).await.epoch;
    assert_eq!(call.commit([call.segment(AGENT, old, 1, 800..1600, speech("late", 800..1600))]).await, [Stale]);
    assert_eq!(call.commit([first]).await, [Duplicate], "what is there is there, whoever repeats it");
    assert_eq!(call.commit([call.segment(AGENT, new, 1, 800..1600, speech("mine", 800..1600))]).await, [Committed]);
    assert_eq!(texts(&call.view().await), ["kept", "mine"]);
}

async fn a_hole_in_the_numbers_asks_for_what_is_missing(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let ahead = call.segment(AGENT, epoch, 1, 800..1600, speech("second", 800..1600));
    assert_eq!(call.commit([ahead.clone()]).await, [Ahead { next_seq: 0, safe: SamplePos::ZERO }]);
    assert_eq!(texts(&call.view().await), Vec::<String>::new());
    assert_eq!(call.commit([call.segment(AGENT, epoch, 0, 0..800, speech("first", 0..800)), ahead]).await, [Committed, Committed]);
}

async fn a_range_that_does_not_continue_is_never_stored(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let of = |seq, range: std::ops::Range<u64>| call.segment(AGENT, epoch, seq, range.clone(), speech("cut", range));
    assert_eq!(call.commit([of(0, 0..800)]).await, [Committed]);
    for (wrong, why) in [
        (of(0, 0..900), "same seq, other end"),
        (of(1, 700..1600), "overlaps what is committed"),
        (of(1, 900..1600), "leaves a hole"),
        (of(1, 800..800), "empty"),
    ] {
        assert_eq!(call.commit([wrong]).await, [Mismatch], "{why}");
    }
    let stands = call.standing(AGENT).await;
    assert_eq!((stands.next_seq, stands.safe), (1, SamplePos(800)));
    assert_eq!(call.commit([of(1, 800..1600)]).await, [Committed], "the right one is still taken");
}

async fn channels_do_not_disturb_each_other(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let (agent, customer) = (call.attach(AGENT).await.epoch, call.attach(CUSTOMER).await.epoch);
    call.attach(AGENT).await;
    let batch = [
        call.segment(AGENT, agent, 0, 0..800, speech("stale", 0..800)),
        call.segment(CUSTOMER, customer, 0, 0..1600, speech("fresh", 0..1600)),
    ];
    assert_eq!(call.commit(batch).await, [Stale, Committed]);
    let view = call.view().await;
    assert_eq!((view.utterances[0].role, view.utterances[0].end_ms), (Role::Customer, 100), "16 kHz");
    assert_eq!(call.standing(AGENT).await.safe, SamplePos::ZERO);
}

async fn silence_moves_the_watermark_and_a_gap_is_shown(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let gap = SegmentBody::Gap { reason: "the caller was away".into() };
    let batch = [call.segment(AGENT, epoch, 0, 0..8000, SegmentBody::Silence), call.segment(AGENT, epoch, 1, 8000..16000, gap)];
    assert_eq!(call.commit(batch).await, [Committed, Committed]);
    let view = call.view().await;
    assert_eq!(texts(&view), Vec::<String>::new());
    assert_eq!(view.gaps.len(), 1);
    let gap = &view.gaps[0];
    assert_eq!((gap.channel, gap.start_ms, gap.end_ms, gap.reason.as_str()), (AGENT, 1000, 2000, "the caller was away"));
    assert_eq!(call.standing(AGENT).await.safe, SamplePos(16000));
}

async fn a_newer_run_supersedes_and_a_repeated_record_is_not_new(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(CUSTOMER).await.epoch;
    let segment = call.segment(CUSTOMER, epoch, 0, 0..1600, speech("cancel it", 0..1600));
    call.commit([segment.clone()]).await;
    let utterance = segment.utterance_id();
    let older = call.insight(utterance, "config a", "praise");
    let sentiment = Insight { task: Task::Sentiment, run: RunId::live(call.id, "sentiment", "s"), ..older.clone() };
    let sentiment = Insight { id: InsightId::of(sentiment.run, utterance), ..sentiment };
    assert_eq!(record.record(cx(), vec![older.clone(), sentiment.clone()]).await, Ok(2));
    assert_eq!(record.record(cx(), vec![older.clone(), sentiment.clone()]).await, Ok(0), "repeated");
    let newer = call.insight(utterance, "config b", "cancellation");
    assert_eq!(record.record(cx(), vec![newer.clone()]).await, Ok(1));
    let mut current = call.view().await.insights;
    current.sort_by_key(|i| i.task);
    assert_eq!(current, [newer, sentiment], "one per task and utterance: the newest");
}

async fn closing_is_idempotent_and_final(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    let kept = call.segment(AGENT, epoch, 0, 0..800, speech("bye", 0..800));
    call.commit([kept.clone()]).await;
    let close = Close { conversation: call.id, state: ConversationState::Complete, ended_at: at(5000), heard: vec![] };
    let closed = record.close(cx(), close.clone()).await.expect("a live conversation closes");
    assert_eq!((closed.state, closed.ended_at), (ConversationState::Complete, Some(at(5000))));
    let again = Close { state: ConversationState::Abandoned, ended_at: at(9000), ..close };
    assert_eq!(record.close(cx(), again).await, Ok(closed.clone()), "the first close counts");
    assert_eq!(call.commit([call.segment(AGENT, epoch, 1, 800..1600, speech("late", 800..1600))]).await, [Stale]);
    assert_eq!(call.commit([kept]).await, [Duplicate]);
    let attach = record.attach(cx(), Attach { conversation: call.id, channel: AGENT }).await;
    assert_eq!(attach.map_err(|e| e.kind), Err(ErrorKind::Conflict), "nobody attaches to a closed conversation");
    let live = Call::begin(record).await;
    let reopen = Close { conversation: live.id, state: ConversationState::Live, ended_at: at(1), heard: vec![] };
    assert_eq!(record.close(cx(), reopen).await.map_err(|e| e.kind), Err(ErrorKind::InvalidInput), "live is no way to end");
}

async fn a_watcher_sees_everything_from_now_on(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let epoch = call.attach(AGENT).await.epoch;
    call.commit([call.segment(AGENT, epoch, 0, 0..800, speech("before", 0..800))]).await;
    let mut watch = record.watch(cx(), call.id).await.expect("a conversation can be watched");
    let gap = SegmentBody::Gap { reason: "lost".into() };
    let said = call.segment(AGENT, epoch, 1, 800..1600, speech("after", 800..1600));
    call.commit([said.clone(), call.segment(AGENT, epoch, 2, 1600..2400, gap)]).await;
    call.commit([said.clone()]).await; // a duplicate is no news
    let insight = call.insight(said.utterance_id(), "config", "intent");
    record.record(cx(), vec![insight.clone()]).await.expect("an insight of a live conversation");
    let close = Close { conversation: call.id, state: ConversationState::Abandoned, ended_at: at(300), heard: vec![] };
    record.close(cx(), close).await.expect("a live conversation closes");
    let mut seen = vec![];
    while !matches!(seen.last(), Some(RecordEvent::Changed(c)) if c.state == ConversationState::Abandoned) {
        let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("every committed thing is told");
        seen.push(event.expect("the watch goes on").expect("no error"));
    }
    // A record may also tell that a row changed in other ways; what was said and meant comes once and in order.
    seen.retain(|event| !matches!(event, RecordEvent::Changed(_)));
    assert!(
        matches!(&seen[..], [RecordEvent::Utterance(u), RecordEvent::Gap(g), RecordEvent::Insight(i)]
        if u.text() == "after" && u.id == said.utterance_id() && g.start_ms == 200 && *i == insight),
        "{seen:?}"
    );
}

async fn tenants_do_not_see_each_other(record: &dyn Conversations) {
    let call = Call::begin(record).await;
    let stranger = || CallCx { tenant: TenantId::new("stranger"), ..cx() };
    let kind = |e: crate::CallError| e.kind;
    assert_eq!(record.conversation(stranger(), call.id).await.map_err(kind), Err(ErrorKind::NotFound));
    let attach = Attach { conversation: call.id, channel: AGENT };
    assert_eq!(record.attach(stranger(), attach).await.map_err(kind), Err(ErrorKind::NotFound));
}
