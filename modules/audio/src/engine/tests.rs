//! The engine with its real models. Without them these tests say so and pass.

use super::*;
use contracts::{
    Encoding, ErrorKind, SamplePos, SampleRate,
    audio::{Endpointing, EventRx, Frame, FrameTx, HeardSegment, SegmentBody, SpeechEvent},
    testing::{Sound, audio_suite},
};
use decode::file::{self, Limits};
use faults::Place;
use std::{ops::ControlFlow, path::PathBuf, sync::OnceLock};

/// Walks up from the crate to a folder that has `what`.
fn find(what: &str) -> Option<PathBuf> {
    let here = std::env::var_os("QUICKCOMM_ROOT").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.ancestors().map(|p| p.join(what)).find(|p| p.exists())
}

fn models() -> Option<PathBuf> {
    let models = std::env::var_os("QUICKCOMM_MODELS").map(PathBuf::from).or_else(|| find(".quickcomm/models"));
    if models.is_none() {
        eprintln!("SKIPPED: no models; `make models` fetches them");
    }
    models
}

fn runtime(models: &Path) -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::load(models).unwrap()).clone()
}

fn started(settings: &EngineSettings) -> Option<Engine> {
    let models = models()?;
    Some(Engine::start(&runtime(&models), &models, settings).unwrap())
}

/// One engine for all tests that only look at what they are told.
fn shared() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| started(&EngineSettings { workers: 2, max_load: 1.0, ..Default::default() })).as_ref()
}

fn recording(name: &str) -> (SampleRate, Vec<Vec<f32>>) {
    let path = find("tests/fixtures").unwrap().join(name);
    let decoded = file::path(&path, Limits::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    (decoded.rate, decoded.channels)
}

fn linear16(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect()
}

#[test]
fn frames_scored_together_have_the_scores_they_have_alone() {
    let Some(models) = models() else { return };
    let model = ModelDir::open(&models.join("silero-vad"), Kind::Vad).unwrap();
    let mut vad = Vad::open(&runtime(&models), &model).unwrap();
    let (_, channels) = recording("formats/pcm16_16k_mono.wav");
    let channels: Vec<&[f32]> = (0..3).map(|n| &channels[0][n * 8_000..]).collect();
    let fresh = || (0..3).map(|_| vad::Memory::default()).collect::<Vec<_>>();
    let (mut alone, mut together) = (fresh(), fresh());
    for at in (0..16_000).step_by(vad::FRAME) {
        for (memory, channel) in together.iter_mut().zip(&channels) {
            vad.put(memory, &channel[at..at + vad::FRAME]);
        }
        vad.run().unwrap();
        let scores: Vec<f32> = together.iter_mut().enumerate().map(|(place, memory)| vad.take(place, memory)).collect();
        for ((memory, channel), score) in alone.iter_mut().zip(&channels).zip(scores) {
            let expected = vad.score(memory, &channel[at..at + vad::FRAME]).unwrap();
            assert!((score - expected).abs() < 1e-3, "{score} instead of {expected} at {at}");
        }
    }
}

async fn open(engine: &Engine, spec: &StreamSpec) -> (FrameTx, EventRx) {
    let session = engine.open(CallCx::new(Duration::from_secs(60)), spec.clone()).await.unwrap();
    (session.frames, session.events)
}

/// Reads to the end and checks that the segments partition the channel up to `end`.
async fn read(mut events: EventRx, spec: &StreamSpec, end: u64) -> Vec<SpeechEvent> {
    let mut seen = vec![];
    let mut next = (spec.first_seq, spec.start);
    while let Some(event) = tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("events go on or end") {
        let event = event.unwrap();
        if let SpeechEvent::Segment(HeardSegment { seq, start, end, .. }) = &event {
            assert_eq!((*seq, *start), next);
            next = (seq + 1, *end);
        }
        seen.push(event);
    }
    assert_eq!(next.1, SamplePos(end));
    seen
}

/// Every session gives its slot back.
async fn empty(engine: &Engine) {
    let began = Instant::now();
    while engine.sessions() > 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "{} sessions are still open", engine.sessions());
        tokio::task::yield_now().await;
    }
}

fn text(events: &[SpeechEvent]) -> String {
    let spoken = events.iter().filter_map(|event| match event {
        SpeechEvent::Segment(HeardSegment { body: SegmentBody::Speech(spoken), .. }) => Some(spoken.text()),
        _ => None,
    });
    spoken.collect::<Vec<_>>().join(" ")
}

fn bare(text: &str) -> Vec<String> {
    let letters = |w: &str| w.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split([' ', '-']).map(letters).filter(|w| !w.is_empty()).collect()
}

/// Hears samples as a live stream of `piece`s, sent as fast as they are taken.
async fn hear(engine: &Engine, spec: &StreamSpec, data: &[u8], piece: usize) -> Vec<SpeechEvent> {
    let (mut frames, events) = open(engine, spec).await;
    let send = async {
        for piece in data.chunks(piece) {
            frames.send(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
        }
        frames.finish();
    };
    let end = spec.start.0 + (data.len() / spec.encoding.bytes_per_sample()) as u64;
    futures::join!(send, read(events, spec, end)).1
}

#[tokio::test]
async fn it_keeps_what_audio_promises() {
    let Some(engine) = started(&EngineSettings { workers: 2, ..Default::default() }) else { return };
    let engine = Arc::new(engine);
    audio_suite(engine.clone(), Sound::noise()).await;
    let (rate, channels) = recording("formats/pcm16_16k_mono.wav");
    let spec = StreamSpec::live(Encoding::Linear16, rate);
    audio_suite(engine.clone(), Sound { spec, data: linear16(&channels[0]).into() }).await;
    empty(&engine).await;
}

#[tokio::test]
async fn a_call_is_heard_nearly_word_for_word() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/billing_dispute.wav");
    let call = std::fs::read_to_string(find("tests/fixtures").unwrap().join("calls/billing_dispute.json")).unwrap();
    let call: serde_json::Value = serde_json::from_str(&call).unwrap();
    for (channel, samples) in channels.iter().enumerate() {
        let spec = StreamSpec::live(Encoding::Linear16, rate);
        let events = hear(engine, &spec, &linear16(samples), 320).await;
        let heard = bare(&text(&events));
        let turns = call["turns"].as_array().unwrap().iter().filter(|t| t["channel"] == channel);
        let said = bare(&turns.map(|t| format!("{} ", t["text"].as_str().unwrap())).collect::<String>());
        let missing = said.iter().filter(|w| !heard.contains(w)).count();
        assert!(missing * 20 <= said.len(), "{missing} of {} words are missing:\n{said:?}\n{heard:?}", said.len());
        assert!(heard.len().abs_diff(said.len()) * 20 <= said.len(), "{} words instead of {}", heard.len(), said.len());
    }
}

#[tokio::test]
async fn what_a_partial_calls_stable_stays() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/sales_question.flac");
    let spec = StreamSpec::live(Encoding::Linear16, rate);
    let data = linear16(&channels[1][..rate.hz() as usize * 20]);
    let (mut frames, events) = open(engine, &spec).await;
    // Four times as fast as people speak: faster than that, an utterance is over before there is a partial of it.
    let mut clock = tokio::time::interval(Duration::from_millis(10));
    let send = async {
        for piece in data.chunks(rate.hz() as usize * 2 / 25) {
            clock.tick().await;
            frames.send(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
        }
        frames.finish();
    };
    let events = futures::join!(send, read(events, &spec, data.len() as u64 / 2)).1;
    let mut partials = 0;
    let mut stable: (u64, u32, Vec<String>) = (0, 0, vec![]);
    for event in &events {
        let SpeechEvent::Partial { seq, rev, words, stable_words, start, end } = event else { continue };
        partials += 1;
        let words: Vec<String> = words.iter().map(|w| w.text.clone()).collect();
        if *seq == stable.0 {
            assert!(*rev > stable.1 && words.starts_with(&stable.2), "{words:?} after {:?}", stable.2);
        }
        assert!(start < end);
        stable = (*seq, *rev, words[..*stable_words].to_vec());
    }
    assert!(partials > 3, "{partials} partials");
}

#[tokio::test]
async fn every_format_and_rate_says_the_same() {
    let Some(engine) = shared() else { return };
    let manifest = std::fs::read_to_string(find("tests/fixtures").unwrap().join("formats/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    for format in manifest["formats"].as_array().unwrap() {
        let name = format["file"].as_str().unwrap();
        let (rate, channels) = recording(&format!("formats/{name}"));
        assert_eq!(u64::from(rate.hz()), format["rate"].as_u64().unwrap());
        assert_eq!(channels.len() as u64, format["channels"].as_u64().unwrap());
        let expected = bare(format["text"].as_str().unwrap());
        for samples in &channels {
            let events = hear(engine, &StreamSpec::live(Encoding::Linear16, rate), &linear16(samples), 1000).await;
            let heard = bare(&text(&events));
            assert!(heard == expected || (channels.len() == 2 && heard.is_empty()), "{name}: {heard:?}");
        }
    }
}

#[tokio::test]
async fn frames_of_one_byte_are_as_good_as_any() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("formats/mulaw_8k_mono.wav");
    // The file is decoded already: any encoding of one byte a sample will do.
    let mulaw: Vec<u8> = channels[0].iter().map(|s| to_mulaw(*s)).collect();
    let spec = StreamSpec { partials: None, ..StreamSpec::live(Encoding::Mulaw, rate) };
    let single = text(&hear(engine, &spec, &mulaw, 1).await);
    assert_eq!(single, text(&hear(engine, &spec, &mulaw, 160).await));
    assert_eq!(bare(&single), bare("Please hold the line for a moment."));
}

/// The byte whose value is nearest.
fn to_mulaw(sample: f32) -> u8 {
    let mut all = vec![];
    decode::samples(Encoding::Mulaw, &(0..=255).collect::<Vec<u8>>(), &mut all);
    (0..=255u8).min_by(|a, b| (all[*a as usize] - sample).abs().total_cmp(&(all[*b as usize] - sample).abs())).unwrap()
}

#[tokio::test]
async fn a_last_word_cut_off_by_hanging_up_is_heard() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/billing_dispute.wav");
    // "… How can I help you with your bill?" ends at 4.421 s.
    let until = (4.421 * f64::from(rate.hz())) as usize;
    let events = hear(engine, &StreamSpec::live(Encoding::Linear16, rate), &linear16(&channels[0][..until]), 320).await;
    assert_eq!(bare(&text(&events)).last().map(String::as_str), Some("bill"), "{}", text(&events));
}

#[tokio::test]
async fn a_finalize_closes_what_is_open_at_once() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/billing_dispute.wav");
    let spec = StreamSpec { endpointing: Endpointing::Off, ..StreamSpec::live(Encoding::Linear16, rate) };
    let (mut frames, mut events) = open(engine, &spec).await;
    let until = (4.45 * f64::from(rate.hz())) as usize;
    let data = linear16(&channels[0][..until]);
    let send = async {
        frames.send(data.into()).await.unwrap();
        frames.finalize(5);
        frames.finalize(6);
        frames
    };
    let receive = async {
        let mut segments = vec![];
        loop {
            match events.next().await.unwrap().unwrap() {
                SpeechEvent::Segment(segment) => segments.push(segment),
                SpeechEvent::Flushed { token: 6 } => return segments,
                _ => {}
            }
        }
    };
    let (_frames, segments) = futures::join!(send, receive);
    let last = segments.last().unwrap();
    assert_eq!(last.end.0, until as u64);
    assert!(segments.iter().any(|s| matches!(&s.body, SegmentBody::Speech(spoken) if spoken.text().contains("bill"))), "{segments:?}");
}

#[tokio::test]
async fn any_frames_with_holes_and_repetitions_are_partitioned() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/technical_help.wav");
    let data = linear16(&channels[1]);
    let mut state = 42u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..4 {
        let start = random(1000);
        let spec = StreamSpec { start: SamplePos(start), first_seq: 7, ..StreamSpec::live(Encoding::Linear16, rate) };
        let (mut frames, events) = open(engine, &spec).await;
        let mut sends = vec![];
        let mut at = 0u64;
        let all = data.len() as u64 / 2;
        let mut reached = 0;
        while at < all {
            let length = (1 + random(if round % 2 == 0 { 500 } else { 9000 })).min(all - at);
            sends.push((at, length));
            reached = reached.max(at + length);
            at = match random(40) {
                0 => at + length + random(5000),
                1 => (at + length).saturating_sub(random(3000)).max(at / 2),
                _ => at + length,
            };
        }
        let send = async {
            for (at, length) in sends {
                let bytes = bytes::Bytes::copy_from_slice(&data[at as usize * 2..(at + length) as usize * 2]);
                frames.send_at(Frame { pos: SamplePos(start + at), data: bytes }).await.unwrap();
            }
            frames.finish();
        };
        let events = futures::join!(send, read(events, &spec, start + reached)).1;
        assert!(!text(&events).is_empty());
    }
}

#[tokio::test]
async fn noise_music_and_silence_are_not_text() {
    let Some(engine) = shared() else { return };
    let mut state = 7u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let seconds = |s: u32| 0..s * 16_000;
    let tau = std::f32::consts::TAU;
    let at = |i: u32| i as f32 / 16_000.0;
    let chord = |t: f32| {
        // Four bars of a tune with overtones, as hold music has them.
        let root = [261.6, 220.0, 174.6, 196.0][(t / 1.2) as usize % 4];
        let decay = (-(t % 0.3) * 6.0).exp();
        [1.0f32, 1.25, 1.5, 2.0, 3.0].iter().map(|h| (tau * root * h * t).sin() / h).sum::<f32>() * 0.12 * decay
    };
    let mut brown = 0.0;
    let sounds: Vec<(&str, Vec<f32>)> = vec![
        ("silence", vec![0.0; 160_000]),
        ("white noise", seconds(10).map(|_| 0.1 * noise()).collect()),
        ("quiet noise", seconds(10).map(|_| 0.004 * noise()).collect()),
        (
            "brown noise",
            seconds(10)
                .map(|_| {
                    brown = 0.98 * brown + 0.05 * noise();
                    brown
                })
                .collect(),
        ),
        ("a dial tone", seconds(10).map(|i| 0.2 * ((tau * 350.0 * at(i)).sin() + (tau * 440.0 * at(i)).sin())).collect()),
        ("a busy tone", seconds(10).map(|i| if at(i) % 1.0 < 0.5 { 0.3 * (tau * 425.0 * at(i)).sin() } else { 0.0 }).collect()),
        ("a tune", seconds(12).map(|i| chord(at(i))).collect()),
        ("clicks", seconds(10).map(|i| if i % 4000 < 20 { 0.8 } else { 0.0 }).collect()),
        ("hum", seconds(10).map(|i| 0.2 * (tau * 50.0 * at(i)).sin() + 0.05 * (tau * 150.0 * at(i)).sin()).collect()),
    ];
    for (name, samples) in sounds {
        let events = hear(engine, &StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000), &linear16(&samples), 640).await;
        assert_eq!(text(&events), "", "{name}");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_sender() {
    let Some(engine) = shared() else { return };
    let (rate, channels) = recording("calls/billing_dispute.wav");
    let data: bytes::Bytes = linear16(&channels[1]).into();
    let spec = StreamSpec {
        pace: Pace::Batch,
        endpointing: Endpointing::Silence(Duration::from_millis(100)),
        ..StreamSpec::live(Encoding::Linear16, rate)
    };
    let (mut frames, mut events) = open(engine, &spec).await;
    // Nobody reads: a call over and over, until no more is taken, also by a machine that has other things to do.
    const PATIENCE: Duration = Duration::from_secs(4);
    let call = |n: usize| data.slice(n * 32_000 % (data.len() - 32_000)..).slice(..32_000);
    let mut seconds = 0;
    while tokio::time::timeout(PATIENCE, frames.send(call(seconds))).await.is_ok_and(|sent| sent.is_ok()) {
        seconds += 1;
        assert!(seconds < 1200, "twenty calls went in unread");
    }
    let stopped = frames.position();
    let mut read = 0;
    while tokio::time::timeout(PATIENCE, events.next()).await.is_ok_and(|e| e.is_some()) {
        read += 1;
    }
    assert!((10..200).contains(&read), "{read} events were kept");
    // Reading made room.
    tokio::time::timeout(Duration::from_secs(20), frames.send(data.slice(..(rate.hz() as usize * 2)))).await.unwrap().unwrap();
    assert!(frames.position() > stopped);
}

#[tokio::test]
async fn admission_says_why_and_an_abandoned_session_makes_room() {
    let Some(engine) = started(&EngineSettings { workers: 1, max_sessions: 1, ..Default::default() }) else { return };
    let spec = StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000);
    let first = open(&engine, &spec).await;
    let refused = engine.open(CallCx::new(Duration::from_secs(1)), spec.clone()).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Busy);
    assert!(matches!(refused.retry, contracts::Retry::After(_)), "{refused:?}");
    drop(first);
    empty(&engine).await;
    open(&engine, &spec).await;

    let foreign = engine.open(CallCx::new(Duration::from_secs(1)), StreamSpec { language: "de".into(), ..spec.clone() }).await;
    let refused = foreign.map(|_| ()).unwrap_err();
    assert!(refused.kind == ErrorKind::InvalidInput && refused.detail.contains("en"), "{refused}");
    let late = engine.open(CallCx::new(Duration::ZERO), spec).await.map(|_| ()).unwrap_err();
    assert_eq!(late.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_its_session() {
    let Some(engine) = shared() else { return };
    let cx = CallCx::new(Duration::from_secs(60));
    let mut session = engine.open(cx.clone(), StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000)).await.unwrap();
    cx.cancel.cancel();
    let end = tokio::time::timeout(Duration::from_secs(5), session.events.next()).await.unwrap();
    assert_eq!(end.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
}

/// Sends sound until its session ends, and says how it did.
async fn ends(mut frames: FrameTx, mut events: EventRx, data: &[u8]) -> CallError {
    let send = async {
        for piece in data.chunks(640).cycle() {
            if frames.send(bytes::Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
        }
    };
    let end = async {
        loop {
            if let Err(error) = events.next().await.expect("an error comes before the end") {
                return error;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), futures::future::join(send, end)).await.expect("it ends").1
}

/// A neighbor on the same thread, in the middle of its call, beside a session that makes each part of the engine panic.
#[tokio::test]
async fn a_panic_anywhere_costs_the_session_it_belongs_to_and_its_neighbor_does_not_notice() {
    let Some(engine) = started(&EngineSettings { workers: 1, ..Default::default() }) else { return };
    let (rate, channels) = recording("formats/pcm16_16k_mono.wav");
    let data = linear16(&channels[0]);
    let spec = StreamSpec { partials: None, ..StreamSpec::live(Encoding::Linear16, rate) };
    for place in [Place::Decode, Place::Detector, Place::Recognizer] {
        let (mut frames, events) = open(&engine, &spec).await;
        frames.send(bytes::Bytes::copy_from_slice(&data[..6400])).await.unwrap();
        while frames.consumed() < frames.position() {
            tokio::task::yield_now().await;
        }
        let (bad_frames, bad_events) = open(&engine, &spec).await;
        engine.floor.faults.arm(place, 1);
        let error = ends(bad_frames, bad_events, &data).await;
        assert_eq!((error.kind, engine.floor.faults.is_spent()), (ErrorKind::Panicked, true), "{place:?}: {error}");
        let rest = async {
            frames.send(bytes::Bytes::copy_from_slice(&data[6400..])).await.unwrap();
            frames.finish();
        };
        let events = futures::join!(rest, read(events, &spec, data.len() as u64 / 2)).1;
        assert_eq!(bare(&text(&events)), bare("Please hold the line for a moment."), "after a panic in the {place:?}");
    }
}

#[tokio::test]
async fn a_thread_that_panics_is_back_and_the_other_one_does_not_notice() {
    let Some(engine) = started(&EngineSettings { workers: 2, steal: false, ..Default::default() }) else { return };
    let (rate, channels) = recording("formats/pcm16_16k_mono.wav");
    let data = linear16(&channels[0]);
    let spec = StreamSpec::live(Encoding::Linear16, rate);
    let opened = [open(&engine, &spec).await, open(&engine, &spec).await];
    assert_eq!(engine.floor.doors.iter().map(|door| door.sessions.load(Ordering::Relaxed)).collect::<Vec<_>>(), [1, 1]);
    engine.floor.faults.arm(Place::Thread, 1);
    let heard = opened.map(|(mut frames, mut events)| {
        let data = data.clone();
        tokio::spawn(async move {
            let send = async {
                for piece in data.chunks(640) {
                    if frames.send(bytes::Bytes::copy_from_slice(piece)).await.is_err() {
                        return;
                    }
                }
                frames.finish();
            };
            let hear = async {
                let mut heard = vec![];
                while let Some(event) = events.next().await {
                    heard.push(event?);
                }
                Ok::<_, CallError>(heard)
            };
            tokio::time::timeout(Duration::from_secs(60), futures::future::join(send, hear)).await.expect("both end").1
        })
    });
    let mut heard = futures::future::join_all(heard).await.into_iter().map(|task| task.unwrap()).collect::<Vec<_>>();
    heard.sort_by_key(Result::is_err);
    let lost = heard.pop().unwrap().unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Panicked, "{lost}");
    assert_eq!(bare(&text(&heard.pop().unwrap().expect("its neighbor was not touched"))), bare("Please hold the line for a moment."));
    assert!(engine.floor.doors.iter().all(|door| !door.closed.load(Ordering::Relaxed)), "both threads live");
    for _ in 0..2 {
        let events = hear(&engine, &spec, &data, 640).await;
        assert_eq!(bare(&text(&events)), bare("Please hold the line for a moment."), "the session is opened again, on either thread");
    }
    engine.shutdown();
    assert_eq!(engine.sessions(), 0, "no place is lost");
}

#[tokio::test]
async fn a_model_that_panics_again_and_again_is_given_up_and_said_so() {
    let Some(engine) = started(&EngineSettings { workers: 1, ..Default::default() }) else { return };
    let spec = StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000);
    engine.floor.faults.arm(Place::Detector, 100);
    let (_, channels) = recording("formats/pcm16_16k_mono.wav");
    let data = linear16(&channels[0]);
    let mut panics = 0;
    let refused = loop {
        match engine.open(CallCx::new(Duration::from_secs(60)), spec.clone()).await {
            Ok(session) => match ends(session.frames, session.events, &data).await.kind {
                ErrorKind::Panicked => panics += 1,
                kind => assert_eq!(kind, ErrorKind::Unavailable, "opened while the thread was ending"),
            },
            Err(refused) => break refused,
        }
    };
    assert_eq!((panics, refused.kind), (platform::supervision::RESTARTS + 1, ErrorKind::Unavailable), "{refused}");
    let why = tokio::time::timeout(Duration::from_secs(5), engine.lost()).await.expect("whoever looks after it is told");
    assert!(why.contains("its speech detector panicked, 6 times in a row"), "{why}");
}

#[tokio::test]
async fn stopping_ends_open_sessions_as_unavailable() {
    let Some(engine) = started(&EngineSettings { workers: 1, ..Default::default() }) else { return };
    let (_frames, mut events) = open(&engine, &StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000)).await;
    engine.shutdown();
    assert_eq!(events.next().await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    let after = engine.open(CallCx::new(Duration::from_secs(1)), StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000)).await;
    assert_eq!(after.map(|_| ()).unwrap_err().kind, ErrorKind::Unavailable);
}

#[test]
fn a_damaged_model_is_refused_by_name() {
    let Some(all) = models() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ["moonshine-tiny-en", "silero-vad"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        for entry in std::fs::read_dir(all.join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(name).join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(dir.path().join("silero-vad/silero_vad_op18_ifless.onnx"), b"cut off").unwrap();
    let start = |models: &Path| Engine::start(&runtime(&all), models, &EngineSettings::default());
    let damaged = start(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(damaged.contains("silero_vad_op18_ifless.onnx") && damaged.contains("2845718"), "{damaged}");
    std::fs::remove_dir_all(dir.path().join("moonshine-tiny-en")).unwrap();
    let missing = start(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("moonshine-tiny-en") && missing.contains("make models"), "{missing}");
}

#[test]
fn a_draft_saves_steps_and_keeps_the_words() {
    let Some(models) = models() else { return };
    let model = ModelDir::open(&models.join("moonshine-tiny-en"), Kind::Recognizer).unwrap();
    let mut recognizer = Moonshine::open(&runtime(&models), &model).unwrap();
    let (rate, channels) = recording("calls/billing_dispute.wav");
    let mut resampler = resample::Resampler::new(rate.hz()).unwrap();
    let mut pcm = vec![];
    resampler.push(&channels[0], &mut pcm).unwrap();
    let spoken = &pcm[8000..16_000 * 9 / 2];
    let plain = recognizer.transcribe(spoken).unwrap();
    assert!(plain.confidence > 0.5 && plain.confidence <= 1.0 && !plain.looped, "{plain:?}");
    let wrong = [&plain.tokens[..4], &[77, 78, 79]].concat();
    for draft in [plain.tokens.clone(), plain.tokens[..5].to_vec(), wrong, vec![5, 6, 7], vec![9; 400]] {
        let mut hearing = recognizer.begin(spoken, draft.clone());
        let mut steps = 0;
        let transcript = loop {
            steps += 1;
            if let Some((_, transcript)) = recognizer.step(&mut hearing).unwrap().pop() {
                break transcript;
            }
        };
        // Several tokens at once are quantized together: a near tie may fall the other way.
        let (heard, expected) = (bare(&transcript.text()), bare(&plain.text()));
        let missing = expected.iter().filter(|w| !heard.contains(w)).count();
        assert!(missing <= 1 && heard.len().abs_diff(expected.len()) <= 1, "{heard:?} with the draft {draft:?}");
        if draft == plain.tokens {
            assert!(steps < plain.tokens.len() + 2, "a right draft saved nothing");
        }
    }
}

#[test]
fn stretches_written_in_step_keep_their_words() {
    let Some(models) = models() else { return };
    let model = ModelDir::open(&models.join("moonshine-tiny-en"), Kind::Recognizer).unwrap();
    let mut recognizer = Moonshine::open(&runtime(&models), &model).unwrap();
    let (rate, channels) = recording("calls/billing_dispute.wav");
    let mut resampler = resample::Resampler::new(rate.hz()).unwrap();
    let mut pcm = vec![];
    resampler.push(&channels[1], &mut pcm).unwrap();
    let at = |from: f32, to: f32| &pcm[(from * 16_000.0) as usize..(to * 16_000.0) as usize];
    let stretches = [at(4.6, 10.9), at(15.0, 20.3), at(4.6, 15.0)];
    let alone: Vec<String> = stretches.iter().map(|s| recognizer.transcribe(s).unwrap().text()).collect();
    let mut hearing = recognizer.begin_together(&stretches, vec![]);
    let mut together = vec![String::new(); 3];
    while !hearing.is_over() {
        for (place, transcript) in recognizer.step(&mut hearing).unwrap() {
            together[place] = transcript.text();
        }
    }
    for (alone, together) in alone.iter().zip(&together) {
        let (alone, together) = (bare(alone), bare(together));
        let missing = alone.iter().filter(|w| !together.contains(w)).count();
        assert!(missing <= 1 && alone.len().abs_diff(together.len()) <= 1, "{alone:?} alone, {together:?} in step");
    }
}
