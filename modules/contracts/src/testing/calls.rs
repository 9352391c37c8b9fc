//! The way a call takes: what must be the same whether a module is next door, behind a pipe, or in another process.
//!
//! Needs fakes, because only they fail, panic and hang on demand; run it in every [`Place`] that applies the rules of a call. The cases
//! named "divergence" are those in which an in-process call and plain gRPC were seen to differ.

use super::{Behavior, FakeAudio, FakeConversations, FakeInference, Place};
use crate::{
    Audio, CallCx, CallError, ChannelIndex, ConversationId, Conversations, Encoding, Epoch, ErrorKind, Inference, Origin, Retry, SamplePos,
    SampleRate, TenantId, UtteranceId,
    audio::{CREDIT, ChannelSpec, MAX_MESSAGE_BYTES, Role, SegmentBody, Session, SpeechEvent, StreamSpec, UNREAD_EVENTS, Word},
    call_cx::{MAX_DEPTH, RouteKey},
    conversation::{Attach, OpenConversation, RecordEvent, Segment},
    inference::{Analyze, Summarize, Task, Utterance},
};
use bytes::Bytes;
use futures::StreamExt;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// What a promise of "at once" means on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// Panics with the first difference.
pub async fn call_suite(place: &dyn Place) {
    every_error_arrives_as_it_was_said(place).await;
    an_endless_detail_does_not_break_the_answer(place).await;
    a_panic_is_an_answer_and_the_module_lives_on(place).await;
    without_time_a_call_does_not_begin(place).await;
    a_deadline_ends_the_call_on_both_sides(place).await;
    giving_up_ends_the_call_on_both_sides(place).await;
    dropping_a_call_ends_it_on_the_other_side(place).await;
    one_size_limit_for_requests_and_answers(place).await;
    a_circle_of_calls_is_refused(place).await;
    the_context_arrives(place).await;
    a_summary_keeps_order_and_its_error_is_last(place).await;
    a_summary_ends_when_nobody_wants_it(place).await;
    a_watch_outlives_its_deadline_and_not_its_reader(place).await;
    admission_is_answered_before_audio(place).await;
    audio_arrives_whole_in_order_and_every_encoding(place).await;
    an_unread_event_holds_the_sender(place).await;
    a_slow_listener_costs_credit_and_nothing_else(place).await;
    a_failing_session_says_so_to_both_halves(place).await;
    dropping_any_part_of_a_session_frees_it(place).await;
    hundreds_of_sessions_live_side_by_side(place).await;
    hundreds_of_callers_hang_up_at_once(place).await;
}

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

fn utterances(conversation: ConversationId, texts: &[&str]) -> Vec<Utterance> {
    let said = |(seq, text): (usize, &&str)| Utterance {
        id: UtteranceId::of(conversation, ChannelIndex(1), Epoch(1), seq as u64),
        conversation,
        channel: ChannelIndex(1),
        role: Role::Customer,
        start_ms: seq as u64 * 1000,
        end_ms: seq as u64 * 1000 + 900,
        words: text.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 1, confidence: 0.25 }).collect(),
    };
    texts.iter().enumerate().map(said).collect()
}

fn analysis(texts: &[&str]) -> Analyze {
    let conversation = ConversationId::fresh();
    Analyze { conversation, tasks: vec![Task::Intent], utterances: utterances(conversation, texts), context: vec![] }
}

fn opening(id: ConversationId) -> OpenConversation {
    let channel = ChannelSpec { index: ChannelIndex(0), role: Role::Agent, encoding: Encoding::Mulaw, rate: SampleRate::HZ_8000 };
    OpenConversation {
        id,
        external_id: None,
        title: None,
        source: "native".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![channel],
        started_at: chrono::DateTime::UNIX_EPOCH,
    }
}

fn stream() -> StreamSpec {
    StreamSpec { partials: None, ..StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000) }
}

/// `ms` of 16 kHz linear audio that is not silence.
fn sound(ms: usize) -> Bytes {
    (0..ms * 16).flat_map(|n| (n as i16).to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Waits until `condition` holds; panics when it does not hold soon.
async fn soon(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(2)).await;
    }
}

async fn inference(place: &dyn Place) -> (FakeInference, Arc<dyn Inference>) {
    let fake = FakeInference::default();
    let handle = place.inference(fake.clone()).await;
    (fake, handle)
}

async fn record(place: &dyn Place) -> (FakeConversations, Arc<dyn Conversations>) {
    let fake = FakeConversations::default();
    let handle = place.conversations(fake.clone()).await;
    (fake, handle)
}

async fn hearing(place: &dyn Place, fake: FakeAudio) -> (FakeAudio, Arc<dyn Audio>) {
    let handle = place.audio(fake.clone()).await;
    (fake, handle)
}

async fn every_error_arrives_as_it_was_said(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let (kept, record) = record(place).await;
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    for kind in ErrorKind::ALL {
        for retry in [Retry::Never, Retry::Safe, Retry::After(Duration::from_millis(1250))] {
            for origin in [Origin::Callee, Origin::Transport, Origin::Policy] {
                let said = CallError::new(kind, retry, "no model for “sv” (ÄÖÜ)").from(origin);
                let behavior = Behavior::Fail(said.clone());
                fake.behave(behavior.clone());
                assert_eq!(handle.tiers(cx()).await, Err(said.clone()));
                kept.behave(behavior.clone());
                assert_eq!(record.watch(cx(), ConversationId::fresh()).await.err(), Some(said.clone()), "before a stream has begun");
                ear.behave(behavior);
                assert_eq!(audio.open(cx(), stream()).await.err(), Some(said));
            }
        }
    }
    let said = CallError::conflict("epoch 3 is older than 4");
    kept.behave(Behavior::Fail(said.clone()));
    let id = ConversationId::fresh();
    assert_eq!(record.open(cx(), opening(id)).await, Err(said.clone()));
    assert_eq!(record.attach(cx(), Attach { conversation: id, channel: ChannelIndex(0) }).await, Err(said.clone()));
    assert_eq!(record.commit(cx(), vec![]).await, Err(said.clone()));
    assert_eq!(record.record(cx(), vec![]).await, Err(said.clone()));
    assert_eq!(record.conversation(cx(), id).await, Err(said));
}

async fn an_endless_detail_does_not_break_the_answer(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    fake.behave(Behavior::Fail(CallError::invalid("é".repeat(1 << 20))));
    let error = handle.tiers(cx()).await.expect_err("it fails");
    assert_eq!(error.kind, ErrorKind::InvalidInput);
    assert!(error.detail.starts_with('é') && error.detail.len() < 8192, "{} bytes of detail", error.detail.len());
}

/// Divergence 2: a panic unwound into the caller's task here, and was `CANCELLED` from there.
async fn a_panic_is_an_answer_and_the_module_lives_on(place: &dyn Place) {
    let panicked = |error: CallError| {
        assert_eq!((error.kind, error.retry), (ErrorKind::Panicked, Retry::Never), "{error:?}");
        assert!(error.detail.contains("it broke"), "{error:?}");
    };
    let (fake, handle) = inference(place).await;
    fake.behave(Behavior::Panic("it broke".into()));
    panicked(handle.analyze(cx(), analysis(&["hello"])).await.expect_err("a panic is no insight"));
    let request = Summarize { conversation: ConversationId::fresh(), utterances: utterances(ConversationId::fresh(), &["a", "b"]) };
    panicked(handle.summarize(cx(), request.clone()).await.err().expect("a panic opens no stream"));
    fake.behave(Behavior::Answer);
    fake.behave_midway(Behavior::Panic("it broke".into()));
    let mut summary = handle.summarize(cx(), request).await.expect("the first item is well");
    assert!(summary.next().await.expect("the first item").is_ok());
    panicked(summary.next().await.expect("the panic").expect_err("the second item panics"));
    assert!(summary.next().await.is_none(), "an error is the last item");
    assert!(handle.analyze(cx(), analysis(&["hello"])).await.is_ok(), "the module lives on");

    let (kept, record) = record(place).await;
    kept.behave(Behavior::Panic("it broke".into()));
    panicked(record.commit(cx(), vec![]).await.expect_err("a panic commits nothing"));
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    ear.behave(Behavior::Panic("it broke".into()));
    panicked(audio.open(cx(), stream()).await.err().expect("a panic opens no session"));
    ear.behave(Behavior::Answer);
    assert!(audio.open(cx(), stream()).await.is_ok());
}

async fn without_time_a_call_does_not_begin(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let late = || CallCx::new(Duration::ZERO);
    assert_eq!(handle.analyze(late(), analysis(&["hello"])).await, Err(CallError::deadline()));
    assert_eq!(audio.open(late(), stream()).await.err(), Some(CallError::deadline()));
    let cancelled = cx();
    cancelled.cancel.cancel();
    assert_eq!(handle.analyze(cancelled, analysis(&["hello"])).await, Err(CallError::cancelled()));
    assert!(fake.seen().is_empty() && ear.seen().is_empty(), "nobody was called");
}

/// Divergence 3: locally nothing enforced a deadline, and from there it was `CANCELLED`, like a panic.
async fn a_deadline_ends_the_call_on_both_sides(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let budget = Duration::from_millis(300);
    fake.behave(Behavior::Hang);
    let begun = Instant::now();
    assert_eq!(handle.analyze(CallCx::new(budget), analysis(&["hello"])).await, Err(CallError::deadline()));
    let took = begun.elapsed();
    assert!(took >= budget && took < budget + AT_ONCE, "a budget of {budget:?} took {took:?}");
    soon("the module stops working", AT_ONCE, || fake.running() == 0).await;
    ear.behave(Behavior::Hang);
    assert_eq!(audio.open(CallCx::new(budget), stream()).await.err(), Some(CallError::deadline()));
    soon("the module stops opening", AT_ONCE, || ear.running() == 0).await;
    fake.behave(Behavior::Slow(Duration::from_millis(50)));
    assert!(handle.analyze(CallCx::new(Duration::from_secs(5)), analysis(&["hello"])).await.is_ok(), "slow is not late");
}

async fn giving_up_ends_the_call_on_both_sides(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    fake.behave(Behavior::Hang);
    let context = cx();
    let cancel = context.cancel.clone();
    let call = tokio::spawn(async move { handle.analyze(context, analysis(&["hello"])).await });
    soon("the call begins", PATIENCE, || fake.running() == 1).await;
    let begun = Instant::now();
    cancel.cancel();
    assert_eq!(call.await.expect("no panic"), Err(CallError::cancelled()));
    soon("the module stops working", AT_ONCE.saturating_sub(begun.elapsed()), || fake.running() == 0).await;
}

/// Divergence 6, the one thing that already matched.
async fn dropping_a_call_ends_it_on_the_other_side(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    fake.behave(Behavior::Hang);
    let call = tokio::spawn(async move { handle.analyze(cx(), analysis(&["hello"])).await });
    soon("the call begins", PATIENCE, || fake.running() == 1).await;
    call.abort();
    soon("the module stops working", AT_ONCE, || fake.running() == 0).await;
}

/// Divergence 4: 5 MiB passed locally and failed remotely.
async fn one_size_limit_for_requests_and_answers(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let too_large = |error: CallError| {
        assert_eq!((error.kind, error.retry, error.origin), (ErrorKind::TooLarge, Retry::Never, Origin::Policy), "{error:?}");
        assert!(error.detail.contains(&MAX_MESSAGE_BYTES.to_string()), "it names the limit: {error:?}");
    };
    let fits = "x".repeat(MAX_MESSAGE_BYTES - 1000);
    let insights = handle.analyze(cx(), analysis(&[&fits])).await.expect("just below the limit");
    assert_eq!(insights[0].labels[0].name.len(), fits.len(), "and it arrives whole");
    let seen = fake.seen().len();
    let excess = "x".repeat(MAX_MESSAGE_BYTES);
    too_large(handle.analyze(cx(), analysis(&[&excess])).await.expect_err("above the limit"));
    assert_eq!(fake.seen().len(), seen, "it was not asked");
    // Each answer repeats the word: two utterances fit into the request, and three tasks of them not into the answer.
    let word = "x".repeat(MAX_MESSAGE_BYTES / 3);
    let twice = Analyze { tasks: vec![Task::Intent, Task::Sentiment], ..analysis(&[&word, &word]) };
    too_large(handle.analyze(cx(), twice).await.expect_err("the answer is above the limit"));
    assert!(handle.tiers(cx()).await.is_ok(), "the way is still open");

    let (_, record) = record(place).await;
    let opened = OpenConversation { title: Some(excess), ..opening(ConversationId::fresh()) };
    too_large(record.open(cx(), opened).await.expect_err("above the limit"));
    let (_, audio) = hearing(place, FakeAudio::default()).await;
    let spec = StreamSpec { language: "en".repeat(MAX_MESSAGE_BYTES), ..stream() };
    too_large(audio.open(cx(), spec).await.err().expect("above the limit"));
}

async fn a_circle_of_calls_is_refused(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    assert!(handle.tiers(CallCx { depth: MAX_DEPTH, ..cx() }).await.is_ok());
    let error = handle.tiers(CallCx { depth: MAX_DEPTH + 1, ..cx() }).await.expect_err("deeper is a circle");
    assert_eq!((error.kind, error.retry, error.origin), (ErrorKind::Internal, Retry::Never, Origin::Policy));
    assert_eq!(fake.seen().len(), 1);
}

async fn the_context_arrives(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let (kept, record) = record(place).await;
    let conversation = ConversationId::fresh();
    let sent = CallCx {
        tenant: TenantId::new("Käse & Söhne"),
        key: RouteKey::Conversation(conversation),
        attempt: 2,
        depth: 3,
        shadow: true,
        ..CallCx::new(Duration::from_secs(5))
    };
    handle.tiers(sent.clone()).await.expect("an answer");
    record.open(sent.clone(), opening(conversation)).await.expect("an answer");
    drop(audio.open(sent.clone(), stream()).await.expect("a session"));
    for got in [fake.seen(), kept.seen(), ear.seen()].concat() {
        assert_eq!((&got.tenant, got.key, got.attempt, got.depth, got.shadow), (&sent.tenant, sent.key, 2, 3, true));
        assert_eq!(got.trace.trace_id, sent.trace.trace_id);
        let drift = got.deadline.max(sent.deadline) - got.deadline.min(sent.deadline);
        assert!(drift < Duration::from_millis(500), "the deadline moved by {drift:?}");
    }
}

async fn a_summary_keeps_order_and_its_error_is_last(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    let conversation = ConversationId::fresh();
    let texts: Vec<String> = (0..500).map(|n| format!("item {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let request = Summarize { conversation, utterances: utterances(conversation, &texts) };
    let summary = handle.summarize(cx(), request.clone()).await.expect("a summary");
    let items: Vec<_> = summary.map(|item| item.expect("a good item").text).collect().await;
    assert_eq!(items, texts);
    let said = CallError::busy(Duration::from_secs(2), "the model is full");
    fake.behave_midway(Behavior::Fail(said.clone()));
    let items: Vec<_> = handle.summarize(cx(), request).await.expect("it begins").collect().await;
    assert_eq!(items.len(), 2, "an error is the last item");
    assert_eq!(items[1], Err(said));
}

async fn a_summary_ends_when_nobody_wants_it(place: &dyn Place) {
    let (fake, handle) = inference(place).await;
    fake.behave_midway(Behavior::Hang);
    let conversation = ConversationId::fresh();
    let request = Summarize { conversation, utterances: utterances(conversation, &["first", "second"]) };
    let mut dropped = handle.summarize(cx(), request.clone()).await.expect("it begins");
    assert!(dropped.next().await.expect("the first item").is_ok());
    assert_eq!(fake.running(), 1);
    drop(dropped);
    soon("a dropped summary ends", AT_ONCE, || fake.running() == 0).await;

    let budget = Duration::from_millis(300);
    let begun = Instant::now();
    let mut late = handle.summarize(CallCx::new(budget), request.clone()).await.expect("it begins");
    assert!(late.next().await.expect("the first item").is_ok());
    assert_eq!(late.next().await, Some(Err(CallError::deadline())), "the deadline holds to the last item");
    assert!(begun.elapsed() < budget + AT_ONCE, "{:?}", begun.elapsed());
    soon("a late summary ends", AT_ONCE, || fake.running() == 0).await;

    let context = cx();
    let mut unwanted = handle.summarize(context.clone(), request).await.expect("it begins");
    assert!(unwanted.next().await.expect("the first item").is_ok());
    context.cancel.cancel();
    assert_eq!(unwanted.next().await, Some(Err(CallError::cancelled())));
    soon("an unwanted summary ends", AT_ONCE, || fake.running() == 0).await;
}

async fn a_watch_outlives_its_deadline_and_not_its_reader(place: &dyn Place) {
    let (fake, record) = record(place).await;
    let id = ConversationId::fresh();
    record.open(cx(), opening(id)).await.expect("it opens");
    let epoch = record.attach(cx(), Attach { conversation: id, channel: ChannelIndex(0) }).await.expect("it attaches").epoch;
    let budget = Duration::from_millis(100);
    let mut watch = record.watch(CallCx::new(budget), id).await.expect("it is watched");
    let waited = timeout(2 * budget, watch.next()).await;
    assert!(waited.is_err(), "the deadline is for the opening: {waited:?}");
    for seq in 0..100 {
        let segment = Segment {
            conversation: id,
            channel: ChannelIndex(0),
            epoch,
            seq,
            start: SamplePos(seq * 80),
            end: SamplePos(seq * 80 + 80),
            body: SegmentBody::Gap { reason: seq.to_string() },
            trace: crate::TraceCx::root(),
        };
        record.commit(cx(), vec![segment]).await.expect("it commits");
    }
    for seq in 0..100 {
        let told = timeout(PATIENCE, watch.next()).await.expect("what is committed is told");
        assert!(matches!(&told, Some(Ok(RecordEvent::Gap(gap))) if gap.reason == seq.to_string()), "{told:?}");
    }
    assert_eq!(fake.running(), 1);
    drop(watch);
    soon("a watch ends with its reader", AT_ONCE, || fake.running() == 0).await;
    let context = cx();
    let mut watch = record.watch(context.clone(), id).await.expect("it is watched");
    context.cancel.cancel();
    assert_eq!(watch.next().await, Some(Err(CallError::cancelled())));
    assert!(watch.next().await.is_none());
}

/// Divergence 5: an implementation that waits for its first frame hangs the opener.
async fn admission_is_answered_before_audio(place: &dyn Place) {
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let begun = Instant::now();
    let session = audio.open(cx(), stream()).await.expect("a session");
    assert!(begun.elapsed() < AT_ONCE * 5, "opening took {:?}", begun.elapsed());
    assert_eq!((session.info.credit, session.info.model.name.as_str()), (CREDIT, "fake"));
    let full = CallError::busy(Duration::from_secs(3), "all 64 channels are taken");
    ear.behave(Behavior::Fail(full.clone()));
    assert_eq!(audio.open(cx(), stream()).await.err(), Some(full));
    ear.behave(Behavior::Answer);
    let swedish = StreamSpec { language: "sv".into(), ..stream() };
    assert_eq!(audio.open(cx(), swedish).await.err().map(|e| e.kind), Some(ErrorKind::InvalidInput));
}

/// Everything a finished session told, with what it was told about.
async fn play(audio: &dyn Audio, spec: StreamSpec, data: Bytes) -> Vec<SpeechEvent> {
    let Session { mut frames, mut events, .. } = audio.open(cx(), spec).await.expect("a session");
    let send = async {
        let mut rest = data;
        while !rest.is_empty() {
            let frame = rest.split_to(rest.len().min(640));
            frames.send(frame).await.expect("an open session takes audio");
        }
        frames.finish(); // the half-close: what is pending must come out
    };
    let read = async {
        let mut seen = vec![];
        while let Some(event) = events.next().await {
            seen.push(event.expect("a good session"));
        }
        seen
    };
    timeout(PATIENCE, async { tokio::join!(send, read).1 }).await.expect("a session that was finished ends")
}

async fn audio_arrives_whole_in_order_and_every_encoding(place: &dyn Place) {
    let (_, audio) = hearing(place, FakeAudio::default()).await;
    for encoding in Encoding::ALL {
        let spec = StreamSpec { start: SamplePos(77), first_seq: 5, ..StreamSpec::live(encoding, SampleRate::HZ_48000) };
        let width = encoding.bytes_per_sample();
        // A prime number of samples: the last segment is a torn one, and must come all the same.
        let data: Bytes = (0..50_021 * width).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
        let events = play(&*audio, spec.clone(), data.clone()).await;
        let mut at = (spec.first_seq, spec.start);
        for event in &events {
            let SpeechEvent::Segment(segment) = event else { continue };
            assert_eq!((segment.seq, segment.start), at);
            let SegmentBody::Speech(spoken) = &segment.body else { panic!("{segment:?}") };
            let range = (segment.start.since(spec.start) as usize * width)..(segment.end.since(spec.start) as usize * width);
            assert_eq!(spoken.text(), FakeAudio::hears(&data[range]), "segment {}: other bytes were heard", segment.seq);
            at = (segment.seq + 1, segment.end);
        }
        assert_eq!(at.1, spec.start + 50_021, "{encoding:?}: the tail is flushed");
    }
}

/// Divergence 1: over plain gRPC a sender was 32 minutes of audio ahead of a reader who did not read.
async fn an_unread_event_holds_the_sender(place: &dyn Place) {
    let cut = Duration::from_millis(20);
    let (ear, audio) = hearing(place, FakeAudio::default().cut(cut)).await;
    let Session { mut frames, mut events, .. } = audio.open(cx(), stream()).await.expect("a session");
    let mut sent = 0;
    while timeout(Duration::from_millis(200), frames.send(sound(20))).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "nothing holds the sender");
    }
    let ahead = SampleRate::HZ_16000.time_of(frames.position().0);
    // Two events a cut (speech begins, and its segment); then the implementation stops, and credit is what is left.
    let unread = cut * (UNREAD_EVENTS as u32).div_ceil(2);
    let limit = unread + CREDIT + cut;
    assert!(ahead <= limit, "the sender is {ahead:?} ahead of a reader who does not read; {limit:?} is the most");
    assert!(ahead >= CREDIT, "it was held before its credit was used: {ahead:?}");
    // The reader comes back: nothing was lost, and the sender goes on.
    let target = frames.position() + 16_000;
    let send = async {
        while frames.position() < target {
            frames.send(sound(20)).await.expect("the session goes on");
        }
        frames.finish();
    };
    let read = async {
        let mut end = SamplePos::ZERO;
        while let Some(event) = events.next().await {
            if let SpeechEvent::Segment(segment) = event.expect("the session goes on") {
                assert_eq!(segment.start, end);
                end = segment.end;
            }
        }
        end
    };
    let ((), end) = timeout(PATIENCE, async { tokio::join!(send, read) }).await.expect("a reader who reads frees the sender");
    assert!(end >= target, "{end} of {target}");
    soon("a finished session is freed", AT_ONCE, || ear.running() == 0).await;
}

async fn a_slow_listener_costs_credit_and_nothing_else(place: &dyn Place) {
    // It hears at half the speed of speech, so a sender in a hurry is held back to that.
    let (_, audio) = hearing(place, FakeAudio::default().slow(Duration::from_secs(2))).await;
    let begun = Instant::now();
    let Session { mut frames, events, .. } = audio.open(cx(), stream()).await.expect("a session");
    frames.send(sound(600)).await.expect("an open session takes audio");
    let took = begun.elapsed();
    // 600 ms on 400 ms of credit: 200 ms had to be heard first.
    assert!(took >= Duration::from_millis(350) && took < Duration::from_millis(1200), "{took:?}");
    frames.finish();
    drop(events);
}

async fn a_failing_session_says_so_to_both_halves(place: &dyn Place) {
    let said = CallError::new(ErrorKind::Internal, Retry::Safe, "the recognizer is gone");
    let (ear, audio) = hearing(place, FakeAudio::default().failing_after(Duration::from_millis(150), said.clone())).await;
    let Session { mut frames, mut events, .. } = audio.open(cx(), stream()).await.expect("a session");
    let send = async {
        loop {
            if let Err(error) = frames.send(sound(20)).await {
                return error;
            }
        }
    };
    let read = async {
        loop {
            if let Err(error) = events.next().await.expect("the error comes before the end") {
                return error;
            }
        }
    };
    let (sender, reader) = timeout(PATIENCE, async { tokio::join!(send, read) }).await.expect("both halves are told");
    assert_eq!((&sender, &reader), (&said, &said));
    assert!(events.next().await.is_none(), "an error is said once");
    soon("a failed session is freed", AT_ONCE, || ear.running() == 0).await;

    let (ear, audio) = hearing(place, FakeAudio::default().panicking_after(Duration::from_millis(40), "on purpose")).await;
    let Session { mut frames, mut events, .. } = audio.open(cx(), stream()).await.expect("a session");
    let _ = timeout(PATIENCE, frames.send(sound(400))).await.expect("a dead session takes no audio, and says so");
    let end = async {
        loop {
            if let Err(error) = events.next().await.expect("the error comes before the end") {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, end).await.expect("the reader is told");
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe));
    soon("a dead session is freed", AT_ONCE, || ear.running() == 0).await;
}

async fn dropping_any_part_of_a_session_frees_it(place: &dyn Place) {
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let freed = async |what: &str| soon(what, AT_ONCE, || ear.running() == 0).await;

    drop(audio.open(cx(), stream()).await.expect("a session"));
    freed("both halves dropped").await;

    let Session { frames, events, .. } = audio.open(cx(), stream()).await.expect("a session");
    drop(frames);
    freed("the sender dropped without `finish`").await;
    drop(events);

    let Session { mut frames, events, .. } = audio.open(cx(), stream()).await.expect("a session");
    frames.send(sound(100)).await.expect("an open session takes audio");
    drop(events);
    freed("the reader dropped").await;
    let sent = timeout(PATIENCE, frames.send(sound(1000))).await.expect("nobody listens: sending ends");
    assert_eq!(sent.map_err(|e| e.kind), Err(ErrorKind::Unavailable));

    let (deaf, slow) = hearing(place, FakeAudio::default().slow(Duration::from_secs(1000))).await;
    let Session { mut frames, events, .. } = slow.open(cx(), stream()).await.expect("a session");
    frames.send(sound(100)).await.expect("an open session takes audio");
    frames.finish();
    drop(events);
    soon("the reader dropped after `finish`", AT_ONCE, || deaf.running() == 0).await;

    ear.behave(Behavior::Hang);
    let opening = tokio::spawn({
        let audio = audio.clone();
        async move { audio.open(cx(), stream()).await.map(|_| ()) }
    });
    soon("the opening begins", PATIENCE, || ear.running() == 1).await;
    opening.abort();
    freed("the opening dropped").await;
}

/// HTTP/2 libraries allow 200 streams on a connection, and few resets at once, unless told otherwise.
async fn hundreds_of_sessions_live_side_by_side(place: &dyn Place) {
    let (ear, audio) = hearing(place, FakeAudio::default()).await;
    let mut sessions = vec![];
    for _ in 0..300 {
        sessions.push(timeout(PATIENCE, audio.open(cx(), stream())).await.expect("nobody waits for a slot").expect("a session"));
    }
    assert_eq!(ear.running(), 300);
    let Session { mut frames, mut events, .. } = sessions.pop().expect("the last one");
    drop(sessions);
    soon("the others are freed", 5 * AT_ONCE, || ear.running() == 1).await;
    frames.send(sound(200)).await.expect("one goes on");
    frames.finish();
    let mut heard = 0;
    while let Some(event) = timeout(PATIENCE, events.next()).await.expect("one goes on") {
        heard += u32::from(matches!(event.expect("one goes on"), SpeechEvent::Segment(_)));
    }
    assert_eq!(heard, 2);
}

/// A server may take many resets for an attack and close the connection, with every session on it.
async fn hundreds_of_callers_hang_up_at_once(place: &dyn Place) {
    let (_, audio) = hearing(place, FakeAudio::default()).await;
    let Session { mut frames, mut events, .. } = audio.open(cx(), stream()).await.expect("a session");
    for patience in 1..20 {
        let mut calls = futures::future::join_all((0..100).map(|_| audio.open(cx(), stream())));
        for _ in 0..patience {
            if futures::poll!(&mut calls).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    frames.send(sound(200)).await.expect("the session goes on");
    frames.finish();
    while let Some(event) = timeout(PATIENCE, events.next()).await.expect("the session goes on") {
        event.expect("the session goes on");
    }
}
