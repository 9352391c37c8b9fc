//! A process that stops while it is busy: what its callers see.

#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

use contracts::{
    CallCx, CallError, Encoding, ErrorKind, Retry, SampleRate,
    audio::{CREDIT, Session, SpeechEvent, StreamSpec},
    testing::{Behavior, FakeAudio, FakeInference},
};
use fabric::{Services, connect, serve};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const GRACE: Duration = Duration::from_millis(600);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

#[track_caller]
fn goes_elsewhere(error: &CallError) {
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
}

/// Samples that were taken, and the end of what came back as text, without a hole, before the session was told to go.
async fn stream(address: &str) -> (u64, u64) {
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let Session { mut frames, mut events, .. } = connect::audio(address).unwrap().open(cx(), spec).await.unwrap();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        // 30 ms at a time, in real time: most of the time a piece of a segment is pending.
        while frames.send(vec![7; 240].into()).await.is_ok() {
            sent += 240;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        sent
    });
    let mut end = 0;
    loop {
        match events.next().await {
            Some(Ok(SpeechEvent::Segment(segment))) => {
                assert_eq!(segment.start.0, end, "no hole and no overlap");
                end = segment.end.0;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                goes_elsewhere(&error);
                assert!(error.detail.contains("draining"), "{error}");
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
    let server = serve("127.0.0.1:0", services).await.unwrap().grace(GRACE);
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
        sessions.spawn(async move { stream(&address).await });
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
    assert!(begun.elapsed() < GRACE + GRACE / 2, "{:?}", begun.elapsed());
    assert_eq!((ear.running(), fake.running()), (0, 0), "nothing is left behind");
}
