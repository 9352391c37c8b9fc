//! A process that stops while it is busy: what its callers see.

use contracts::{
    Audio, CallCx, CallError, ConversationId, Encoding, ErrorKind, Retry, SamplePos, SampleRate,
    audio::{CREDIT, Session, SpeechEvent, StreamSpec},
    route::{Dial, Mode, Routes},
    testing::{Behavior, FakeAudio, FakeInference},
};
use fabric::{
    Drain, Services, connect,
    route::{Dials, Place},
    serve,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_millis(600);
/// Samples of 30 ms.
const PIECE: u64 = 240;

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

fn spec(start: u64, first_seq: u64) -> StreamSpec {
    StreamSpec { start: SamplePos(start), first_seq, ..StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000) }
}

/// A process that hears.
struct Ears {
    fake: FakeAudio,
    address: String,
    stop: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Ears {
    async fn start(drain: Drain) -> Self {
        let fake = FakeAudio::default();
        let services = Services { audio: Some(Arc::new(fake.clone())), ..Default::default() };
        let server = serve("127.0.0.1:0", services).await.unwrap().drain(drain);
        let (address, stop) = (server.address().to_owned(), CancellationToken::new());
        Self { fake, address, ended: tokio::spawn(server.run(stop.clone())), stop }
    }
}

#[track_caller]
fn goes_elsewhere(error: &CallError) {
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
}

/// Who stays although told to move: samples that were taken, and the end of what came back as text, without a hole, before it was ended.
async fn stay(address: &str) -> (u64, u64) {
    let Session { mut frames, mut events, .. } = connect::audio(address).unwrap().open(cx(), spec(0, 0)).await.unwrap();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        // In real time: most of the time a piece of a segment is pending.
        while frames.send(vec![7; PIECE as usize].into()).await.is_ok() {
            sent += PIECE;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        sent
    });
    let (mut end, mut told) = (0, false);
    loop {
        match events.next().await {
            Some(Ok(SpeechEvent::Segment(segment))) => {
                assert_eq!(segment.start.0, end, "no hole and no overlap");
                end = segment.end.0;
            }
            Some(Ok(SpeechEvent::Handover)) => told = true,
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                goes_elsewhere(&error);
                assert!(told && error.detail.contains("draining"), "{error}");
                break;
            }
            None => panic!("a session that is not finished does not end well"),
        }
    }
    (sending.await.unwrap(), end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_process_finishes_what_it_took_and_sends_the_rest_elsewhere() {
    let (ear, fake) = (FakeAudio::default(), FakeInference::default());
    fake.behave(Behavior::Slow(Duration::from_millis(30)));
    let services = Services { audio: Some(Arc::new(ear.clone())), inference: Some(Arc::new(fake.clone())), conversations: None };
    let server = serve("127.0.0.1:0", services).await.unwrap().drain(Drain::within(LIMIT));
    let (address, stop) = (server.address().to_owned(), CancellationToken::new());
    let ended = tokio::spawn(server.run(stop.clone()));
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let handle = connect::inference(&address).unwrap();
        callers.spawn(async move {
            let mut answered = 0u32;
            loop {
                match handle.tiers(cx()).await {
                    Ok(_) => answered += 1,
                    Err(error) => return (answered, error),
                }
            }
        });
    }
    let mut sessions = JoinSet::new();
    for _ in 0..8 {
        let address = address.clone();
        sessions.spawn(async move { stay(&address).await });
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let begun = Instant::now();
    stop.cancel();
    let late = connect::inference(&address).unwrap().tiers(cx()).await.unwrap_err();
    goes_elsewhere(&late);
    while let Some(caller) = callers.join_next().await {
        let (answered, error) = caller.unwrap();
        assert!(answered > 0);
        goes_elsewhere(&error);
    }
    while let Some(session) = sessions.join_next().await {
        let (sent, end) = session.unwrap();
        let credit = 8 * CREDIT.as_millis() as u64;
        assert!(end > 0 && end + credit >= sent, "text until {end} of {sent} samples");
    }
    ended.await.unwrap().unwrap();
    assert!(begun.elapsed() < LIMIT + LIMIT / 2, "{:?}", begun.elapsed());
    assert_eq!((ear.running(), fake.running()), (0, 0), "nothing is left behind");
}

/// A caller who moves when told, as ingest does: where an utterance ends, it goes on in another session. Ends after `samples`; says how
/// often it moved.
async fn follow(hearing: Arc<dyn Audio>, samples: u64) -> usize {
    let id = ConversationId::fresh();
    let (mut end, mut seq, mut moves) = (0, 0, 0);
    loop {
        let opened = hearing.open(cx().for_conversation(id), spec(end, seq)).await;
        let Session { mut frames, mut events, .. } = opened.expect("whoever does not stop takes the stream");
        let mut told = false;
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                () = tokio::time::sleep(Duration::from_millis(10)) => {
                    if frames.position().0 < samples {
                        frames.send(vec![7; PIECE as usize].into()).await.expect("a session that has not ended takes audio");
                    }
                    continue;
                }
            };
            match event.expect("a session goes on until its caller moves").expect("nobody sees an error") {
                SpeechEvent::Segment(segment) => {
                    assert_eq!((segment.start.0, segment.seq), (end, seq), "no hole and no overlap");
                    (end, seq) = (segment.end.0, seq + 1);
                    if end == samples {
                        return moves;
                    }
                    if told {
                        break;
                    }
                }
                SpeechEvent::Handover => told = true,
                _ => {}
            }
        }
        moves += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_streams_of_a_process_that_stops_go_on_in_another_one() {
    let (one, other) = (Ears::start(Drain::default()).await, Ears::start(Drain::default()).await);
    let place = Place { dial: Dial { mode: Mode::Remote, ..Dial::default() }, endpoints: vec![one.address.clone(), other.address.clone()] };
    let mut dials = Dials::default();
    let connect = Arc::new(|endpoint: &str| Ok((connect::audio(endpoint)?, connect::health(endpoint)?)));
    let hearing = dials.audio(None, &place, connect).unwrap();
    let mut streams = JoinSet::new();
    let seconds = 3;
    for _ in 0..16 {
        streams.spawn(follow(hearing.clone(), seconds * 8000));
    }
    while one.fake.running() + other.fake.running() < 16 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let there = one.fake.running();
    assert!((1..16).contains(&there), "they are shared: {there} of 16");
    // Whoever does not move keeps it from ending while the others do.
    let stays = connect::audio(&one.address).unwrap().open(cx(), spec(0, 0)).await.unwrap();
    let begun = Instant::now();
    one.stop.cancel();
    // Who comes now is sent on without waiting for the next look at the endpoints' health.
    for _ in 0..16 {
        assert_eq!(follow(hearing.clone(), 800).await, 0);
    }
    let moves: usize = streams.join_all().await.into_iter().sum();
    assert_eq!(moves, there, "each moved once, and the others not at all");
    let seen = &dials.views()[0].targets;
    assert!(seen.iter().all(|target| target.recent.failed == 0), "leaving is no failure: {seen:?}");
    assert_eq!(one.fake.running(), 1, "and it has not ended yet");
    drop(stays);
    one.ended.await.unwrap().unwrap();
    assert!(begun.elapsed() < Drain::default().sessions, "when the last one is gone it does not wait: {:?}", begun.elapsed());
    other.stop.cancel();
    other.ended.await.unwrap().unwrap();
}
