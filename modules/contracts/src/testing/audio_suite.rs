//! What every `Audio` keeps, whatever it hears.

use crate::{
    Audio, CallCx, ErrorKind, SamplePos,
    audio::{EventRx, Frame, HeardSegment, SegmentBody, Session, SpeechEvent, StreamSpec},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// What the suite plays: encoded audio of one channel, at least a second, best with a few words in it.
#[derive(Clone)]
pub struct Sound {
    pub spec: StreamSpec,
    pub data: Bytes,
}

impl Sound {
    /// Two seconds of linear 16-bit noise at 16 kHz, in which nobody says anything.
    pub fn noise() -> Self {
        let spec = StreamSpec::live(crate::Encoding::Linear16, crate::SampleRate::HZ_16000);
        let mut state = 1u32;
        let sample = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as i16 / 64).to_le_bytes()
        };
        Self { spec, data: (0..32_000).flat_map(sample).collect::<Vec<u8>>().into() }
    }

    fn width(&self) -> usize {
        self.spec.encoding.bytes_per_sample()
    }

    fn samples(&self) -> u64 {
        (self.data.len() / self.width()) as u64
    }

    /// The first `samples` of it.
    fn part(&self, samples: u64) -> Bytes {
        self.data.slice(..samples as usize * self.width())
    }
}

/// Longer than any promise takes on a busy machine; a case that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

/// Panics with the first promise that is not kept.
pub async fn audio_suite(audio: Arc<dyn Audio>, sound: Sound) {
    let audio = &*audio;
    opening_does_not_wait_for_audio(audio, &sound).await;
    a_language_nobody_knows_is_refused(audio, &sound).await;
    segments_partition_the_channel(audio, &sound).await;
    a_stream_may_begin_anywhere(audio, &sound).await;
    a_hole_is_a_gap_and_overlap_is_dropped(audio, &sound).await;
    every_finalize_is_answered(audio, &sound).await;
    finishing_at_once_ends_the_events(audio, &sound).await;
    a_torn_sample_is_refused_and_the_session_lives(audio, &sound).await;
    dropping_a_half_ends_the_other(audio, &sound).await;
    a_session_asked_to_move_goes_on(audio, &sound).await;
    a_stream_moved_at_a_segment_loses_and_doubles_nothing(audio, &sound).await;
}

async fn open(audio: &dyn Audio, spec: &StreamSpec) -> Session {
    let opened = timeout(PATIENCE, audio.open(cx(), spec.clone())).await.expect("`open` answers at once");
    opened.unwrap_or_else(|error| panic!("{spec:?} was refused: {error}"))
}

/// Reads to the end; every event has to follow from the ones before.
async fn read(mut events: EventRx, spec: &StreamSpec) -> Vec<SpeechEvent> {
    let mut seen = vec![];
    let mut next = (spec.first_seq, spec.start);
    while let Some(event) = timeout(PATIENCE, events.next()).await.expect("the events go on or end") {
        let event = event.expect("a session that was finished ends well");
        match &event {
            SpeechEvent::Segment(HeardSegment { seq, start, end, body }) => {
                assert_eq!((*seq, *start), next, "a segment continues the one before");
                assert!(end > start, "{seq} is empty");
                if let SegmentBody::Speech(spoken) = body {
                    assert!(*start <= spoken.from && spoken.from <= spoken.to && spoken.to <= *end, "{seq}: voiced outside of itself");
                    assert!((0.0..=1.0).contains(&spoken.confidence), "{seq}: confidence {}", spoken.confidence);
                    assert!(spoken.words.iter().all(|w| w.start_ms <= w.end_ms), "{seq}: a word ends before it begins");
                }
                next = (seq + 1, *end);
            }
            SpeechEvent::Partial { seq, words, stable_words, start, end, .. } => {
                assert!(*seq >= next.0, "a partial of segment {seq} after that segment");
                assert!(*stable_words <= words.len() && start <= end);
            }
            SpeechEvent::Retracted { seq } => assert!(*seq + 1 >= next.0, "segment {seq} is long done"),
            SpeechEvent::Started { .. } | SpeechEvent::Flushed { .. } | SpeechEvent::Handover => {}
        }
        seen.push(event);
    }
    seen
}

fn segments(events: &[SpeechEvent]) -> Vec<&HeardSegment> {
    events.iter().filter_map(|event| if let SpeechEvent::Segment(segment) = event { Some(segment) } else { None }).collect()
}

fn last_end(events: &[SpeechEvent]) -> Option<SamplePos> {
    segments(events).last().map(|segment| segment.end)
}

async fn opening_does_not_wait_for_audio(audio: &dyn Audio, sound: &Sound) {
    let session = open(audio, &sound.spec).await;
    assert!(!session.info.credit.is_zero() && !session.info.model.name.is_empty(), "{:?}", session.info);
    assert_eq!(session.frames.position(), sound.spec.start);
}

async fn a_language_nobody_knows_is_refused(audio: &dyn Audio, sound: &Sound) {
    let spec = StreamSpec { language: "tlh-no-such".into(), ..sound.spec.clone() };
    assert_eq!(audio.open(cx(), spec).await.err().map(|error| error.kind), Some(ErrorKind::InvalidInput));
}

async fn segments_partition_the_channel(audio: &dyn Audio, sound: &Sound) {
    for partials in [None, Some(Duration::from_millis(100))] {
        let spec = StreamSpec { partials, ..sound.spec.clone() };
        let mut session = open(audio, &spec).await;
        let events = session.events;
        let send = async {
            session.frames.send(sound.data.clone()).await.expect("an open session takes audio");
            session.frames.finish();
        };
        let ((), events) = tokio::join!(send, read(events, &spec));
        assert_eq!(last_end(&events), Some(spec.start + sound.samples()), "the tail is flushed to the last sample");
        let shown = events.iter().any(|event| matches!(event, SpeechEvent::Partial { .. }));
        assert!(partials.is_some() || !shown, "partials were not asked for");
    }
}

async fn a_stream_may_begin_anywhere(audio: &dyn Audio, sound: &Sound) {
    let spec = StreamSpec { start: SamplePos(123_457), first_seq: 41, ..sound.spec.clone() };
    let Session { mut frames, events, .. } = open(audio, &spec).await;
    let send = async {
        frames.send(sound.part(sound.samples() / 2)).await.expect("an open session takes audio");
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, &spec));
    assert_eq!(last_end(&events), Some(spec.start + sound.samples() / 2));
}

async fn a_hole_is_a_gap_and_overlap_is_dropped(audio: &dyn Audio, sound: &Sound) {
    let half = sound.samples() / 2;
    let spec = &sound.spec;
    let Session { mut frames, events, .. } = open(audio, spec).await;
    let hole = (spec.start + half, spec.start + half + 800);
    let send = async {
        frames.send(sound.part(half)).await.expect("the beginning");
        frames.send_at(Frame { pos: spec.start, data: sound.part(half) }).await.expect("all of it again");
        frames.send_at(Frame { pos: hole.1, data: sound.part(half) }).await.expect("beyond a hole");
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, spec));
    let gaps: Vec<_> = segments(&events).into_iter().filter(|s| matches!(s.body, SegmentBody::Gap { .. })).collect();
    assert!(matches!(gaps[..], [gap] if (gap.start, gap.end) == hole), "{gaps:?}, expected one over {hole:?}");
    assert_eq!(last_end(&events), Some(hole.1 + half));
}

async fn every_finalize_is_answered(audio: &dyn Audio, sound: &Sound) {
    let Session { mut frames, events, .. } = open(audio, &sound.spec).await;
    let part = sound.samples() / 2;
    let send = async {
        frames.finalize(7); // nothing is pending
        frames.send(sound.part(part)).await.expect("an open session takes audio");
        frames.finalize(8);
        frames.finalize(9);
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, &sound.spec));
    let tokens: Vec<_> = events.iter().filter_map(|e| if let SpeechEvent::Flushed { token } = e { Some(*token) } else { None }).collect();
    assert_eq!(tokens, [7, 8, 9]);
    let flushed = events.iter().position(|e| *e == SpeechEvent::Flushed { token: 8 }).expect("it was just seen");
    assert_eq!(last_end(&events[..flushed]), Some(sound.spec.start + part), "everything before a finalize comes before its answer");
}

async fn finishing_at_once_ends_the_events(audio: &dyn Audio, sound: &Sound) {
    let session = open(audio, &sound.spec).await;
    session.frames.finish();
    let events = read(session.events, &sound.spec).await;
    assert_eq!(segments(&events).len(), 0);
}

async fn a_torn_sample_is_refused_and_the_session_lives(audio: &dyn Audio, sound: &Sound) {
    if sound.width() == 1 {
        return; // every byte is a sample
    }
    let Session { mut frames, events, .. } = open(audio, &sound.spec).await;
    let torn = frames.send(sound.data.slice(..sound.width() + 1)).await;
    assert_eq!(torn.map_err(|error| error.kind), Err(ErrorKind::InvalidInput));
    let send = async {
        frames.send(sound.part(sound.samples() / 4)).await.expect("whole samples are still taken");
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, &sound.spec));
    assert_eq!(last_end(&events), Some(sound.spec.start + sound.samples() / 4));
}

async fn dropping_a_half_ends_the_other(audio: &dyn Audio, sound: &Sound) {
    let Session { mut frames, events, .. } = open(audio, &sound.spec).await;
    drop(events);
    let refused = async {
        loop {
            if let Err(error) = frames.send(sound.data.clone()).await {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, refused).await.expect("nobody listens: sending ends");
    assert_eq!(error.kind, ErrorKind::Unavailable);

    let Session { frames, mut events, .. } = open(audio, &sound.spec).await;
    drop(frames);
    let ended = async { while let Some(Ok(_)) = events.next().await {} };
    timeout(PATIENCE, ended).await.expect("nobody speaks: the events end");
}

async fn a_session_asked_to_move_goes_on(audio: &dyn Audio, sound: &Sound) {
    let Session { mut frames, mut events, .. } = open(audio, &sound.spec).await;
    let mover = events.mover();
    mover.ask();
    mover.ask();
    let asked = timeout(PATIENCE, events.next()).await.expect("it is told at once");
    assert_eq!(asked, Some(Ok(SpeechEvent::Handover)));
    let send = async {
        frames.send(sound.data.clone()).await.expect("the session goes on");
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, &sound.spec));
    assert!(!events.contains(&SpeechEvent::Handover), "it is told once");
    assert_eq!(last_end(&events), Some(sound.spec.start + sound.samples()));
    assert!(mover.is_over());
}

async fn a_stream_moved_at_a_segment_loses_and_doubles_nothing(audio: &dyn Audio, sound: &Sound) {
    let Session { mut frames, mut events, .. } = open(audio, &sound.spec).await;
    let send = async {
        frames.send(sound.part(sound.samples() / 2)).await.expect("an open session takes audio");
        frames.finalize(1);
        std::future::pending().await
    };
    let hear = async {
        loop {
            if let SpeechEvent::Segment(segment) = events.next().await.expect("it goes on").expect("it goes on") {
                return segment;
            }
        }
    };
    let first = async {
        tokio::select! { segment = hear => segment, segment = send => segment }
    };
    let segment = timeout(PATIENCE, first).await.expect("a finalize is answered");
    drop((frames, events));
    let spec = StreamSpec { start: segment.end, first_seq: segment.seq + 1, ..sound.spec.clone() };
    let Session { mut frames, events, .. } = open(audio, &spec).await;
    let rest = sound.data.slice(segment.end.since(sound.spec.start) as usize * sound.width()..);
    let send = async {
        frames.send(rest).await.expect("an open session takes audio");
        frames.finish();
    };
    let ((), events) = tokio::join!(send, read(events, &spec));
    assert_eq!(last_end(&events), Some(sound.spec.start + sound.samples()));
}
