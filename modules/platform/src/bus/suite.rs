//! What every bus must pass. Each case gets a bus of its own from `make(capacity)`.

use super::{Bus, BusError, Heard, NewEntry};
use bytes::Bytes;
use contracts::TraceCx;
use std::{sync::Arc, time::Duration};

const STREAM: &str = "suite";

fn entry(key: &str, n: u32) -> NewEntry {
    NewEntry { key: key.into(), payload: Bytes::from(n.to_string()), trace: TraceCx::root() }
}

fn number(payload: &Bytes) -> u32 {
    std::str::from_utf8(payload).expect("the suite writes digits").parse().expect("the suite writes digits")
}

/// True when `future` is still waiting after a while; a wrong answer arrives at once, so this costs little and proves enough.
async fn waits<T>(future: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_millis(30), future).await.is_err()
}

pub async fn run<B: Bus>(make: impl Fn(usize) -> Arc<B>) {
    keys_keep_their_order_and_go_to_one_consumer_at_a_time(make(100)).await;
    every_group_reads_everything(make(100)).await;
    what_was_not_acknowledged_comes_again(make(100)).await;
    a_full_stream_refuses_all_of_a_batch(make(3)).await;
    a_waiting_consumer_is_woken(make(100)).await;
    signals_reach_those_who_listen_and_losses_are_counted(make(100)).await;
    the_trace_travels_along(make(100)).await;
}

async fn keys_keep_their_order_and_go_to_one_consumer_at_a_time(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "g").await.unwrap();
    let mut two = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 1), entry("a", 2), entry("b", 3)]).await.unwrap();
    let first = one.next(1).await.unwrap();
    assert_eq!(number(&first[0].payload), 1);
    let second = two.next(10).await.unwrap();
    assert_eq!(second.iter().map(|d| number(&d.payload)).collect::<Vec<_>>(), [3], "2 has the key that the other consumer is working on");
    assert!(waits(two.next(10)).await);
    one.ack(&[first[0].id]).await.unwrap();
    let third = two.next(10).await.unwrap();
    assert_eq!(number(&third[0].payload), 2);
}

async fn every_group_reads_everything(bus: Arc<impl Bus>) {
    bus.publish(STREAM, vec![entry("a", 1)]).await.unwrap();
    let mut early = bus.consume(STREAM, "early").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 2)]).await.unwrap();
    let mut late = bus.consume(STREAM, "late").await.unwrap();
    for consumer in [&mut early, &mut late] {
        let got = consumer.next(10).await.unwrap();
        assert_eq!(got.iter().map(|d| number(&d.payload)).collect::<Vec<_>>(), [1, 2]);
        consumer.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
        assert!(waits(consumer.next(10)).await);
    }
}

async fn what_was_not_acknowledged_comes_again(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 1), entry("a", 2)]).await.unwrap();
    let got = one.next(10).await.unwrap();
    assert_eq!((got.len(), got[0].attempt), (2, 1));
    one.nack(&[got[0].id]).await.unwrap();
    drop(one);
    let mut two = bus.consume(STREAM, "g").await.unwrap();
    let again = two.next(10).await.unwrap();
    assert_eq!(again.iter().map(|d| (number(&d.payload), d.attempt)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
}

async fn a_full_stream_refuses_all_of_a_batch(bus: Arc<impl Bus>) {
    let mut consumer = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 1), entry("a", 2)]).await.unwrap();
    let refused = bus.publish(STREAM, vec![entry("a", 3), entry("a", 4)]).await;
    assert!(matches!(refused, Err(BusError::Full { .. })));
    let got = consumer.next(10).await.unwrap();
    assert_eq!(got.len(), 2, "half of a refused batch went in");
    consumer.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    bus.publish(STREAM, vec![entry("a", 3), entry("a", 4)]).await.unwrap();
}

async fn a_waiting_consumer_is_woken(bus: Arc<impl Bus>) {
    let mut consumer = bus.consume(STREAM, "g").await.unwrap();
    let waiting = tokio::spawn(async move { consumer.next(10).await.map(|got| got.len()) });
    tokio::task::yield_now().await;
    bus.publish(STREAM, vec![entry("a", 1)]).await.unwrap();
    let woken = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("the consumer was not woken");
    assert_eq!(woken.unwrap().unwrap(), 1);
}

async fn signals_reach_those_who_listen_and_losses_are_counted(bus: Arc<impl Bus>) {
    bus.signal("t", Bytes::from_static(b"nobody hears this")).await.unwrap();
    let mut listener = bus.listen("t").await.unwrap();
    bus.signal("t", Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(listener.next().await, Some(Heard::Signal(Bytes::from_static(b"hello"))));
    for _ in 0..10_000 {
        bus.signal("t", Bytes::from_static(b"flood")).await.unwrap();
    }
    let Some(Heard::Missed(lost)) = listener.next().await else { panic!("a slow listener was not told what it missed") };
    let mut heard = 0;
    while !waits(listener.next()).await {
        heard += 1;
    }
    assert_eq!(heard + lost, 10_000);
}

async fn the_trace_travels_along(bus: Arc<impl Bus>) {
    let mut consumer = bus.consume(STREAM, "g").await.unwrap();
    let sent = entry("a", 1);
    let trace = sent.trace;
    bus.publish(STREAM, vec![sent]).await.unwrap();
    assert_eq!(consumer.next(1).await.unwrap()[0].trace, trace);
}
