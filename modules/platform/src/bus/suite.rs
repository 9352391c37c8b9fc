//! What every bus must pass. Each case gets a bus of its own from `make(capacity)`.

use super::{Bus, BusError, Consumer, Delivery, Heard, NewEntry};
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

fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    deliveries.iter().map(|d| number(&d.payload)).collect()
}

/// True when `future` is still waiting after a while; a wrong answer arrives at once, so this costs little and proves enough.
async fn waits<T>(future: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_millis(100), future).await.is_err()
}

/// What is delivered next, and to which of the two.
async fn either(consumers: &mut [Box<dyn Consumer>; 2], max: usize) -> (usize, Vec<Delivery>) {
    let [one, two] = consumers;
    // Both are cancel-safe by their contract.
    tokio::select! {
        got = one.next(max) => (0, got.unwrap()),
        got = two.next(max) => (1, got.unwrap()),
    }
}

/// For one case: one that hangs is a failure with a name.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run<B: Bus>(make: impl AsyncFn(usize) -> Arc<B>) {
    macro_rules! cases {
        ($($case:ident($capacity:expr)),* $(,)?) => { $(
            let bus = make($capacity).await;
            tokio::time::timeout(PATIENCE, $case(bus)).await.unwrap_or_else(|_| panic!("{} hangs", stringify!($case)));
        )* };
    }
    cases! {
        keys_keep_their_order_and_go_to_one_consumer_at_a_time(100),
        every_group_reads_everything(100),
        what_was_not_acknowledged_comes_again(100),
        an_entry_that_fails_is_counted_and_holds_up_only_its_key(100),
        what_is_set_aside_holds_nobody_up_and_comes_again_when_its_reader_is_lost(100),
        work_is_spread_over_consumers(100_000),
        a_full_stream_refuses_all_of_a_batch(3),
        a_waiting_consumer_is_woken(100),
        an_acknowledgement_of_something_else_does_nothing(100),
        signals_reach_those_who_listen_and_losses_are_counted(100),
        the_trace_travels_along(100),
        closing_waits_for_consumers_that_have_gone(100),
    }
}

async fn keys_keep_their_order_and_go_to_one_consumer_at_a_time(bus: Arc<impl Bus>) {
    let mut both = [bus.consume(STREAM, "g").await.unwrap(), bus.consume(STREAM, "g").await.unwrap()];
    bus.publish(STREAM, vec![entry("a", 1), entry("a", 2), entry("b", 3)]).await.unwrap();
    let mut got = vec![];
    let mut holder = None;
    while got.len() < 2 {
        let (who, deliveries) = either(&mut both, 1).await;
        let n = number(&deliveries[0].payload);
        got.push(n);
        match n {
            1 => holder = Some((who, deliveries[0].id)),
            _ => both[who].ack(&[deliveries[0].id]).await.unwrap(),
        }
    }
    got.sort_unstable();
    assert_eq!(got, [1, 3], "2 has the key that is being worked on, and 3 has not");
    assert!(waits(either(&mut both, 10)).await);
    let (who, id) = holder.unwrap();
    both[who].ack(&[id]).await.unwrap();
    assert_eq!(numbers(&either(&mut both, 10).await.1), [2]);
}

async fn every_group_reads_everything(bus: Arc<impl Bus>) {
    bus.publish(STREAM, vec![entry("a", 1)]).await.unwrap();
    let mut early = bus.consume(STREAM, "early").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 2)]).await.unwrap();
    let mut late = bus.consume(STREAM, "late").await.unwrap();
    for consumer in [&mut early, &mut late] {
        let got = consumer.next(10).await.unwrap();
        assert_eq!(numbers(&got), [1, 2]);
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

async fn an_entry_that_fails_is_counted_and_holds_up_only_its_key(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, vec![entry("bad", 1), entry("bad", 2), entry("good", 3)]).await.unwrap();
    for attempt in 1..=3 {
        let mut got = one.next(1).await.unwrap();
        if number(&got[0].payload) == 3 {
            one.ack(&[got[0].id]).await.unwrap();
            got = one.next(1).await.unwrap();
        }
        assert_eq!((number(&got[0].payload), got[0].attempt), (1, attempt), "it comes before what follows it");
        one.nack(&[got[0].id]).await.unwrap();
    }
    drop(one);
    let mut two = bus.consume(STREAM, "g").await.unwrap();
    let mut left = vec![];
    while left.len() < 2 {
        for delivery in two.next(10).await.unwrap() {
            left.extend((number(&delivery.payload) != 3).then_some((number(&delivery.payload), delivery.attempt)));
            two.ack(&[delivery.id]).await.unwrap();
        }
    }
    assert_eq!(left, [(1, 4), (2, 1)], "the count goes along to another consumer; what never went out has none");
}

async fn what_is_set_aside_holds_nobody_up_and_comes_again_when_its_reader_is_lost(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, (1..=4).map(|n| entry("a", n)).collect()).await.unwrap();
    let mut ids = vec![];
    for n in 1..=3 {
        let got = one.next(1).await.unwrap();
        assert_eq!(numbers(&got), [n]);
        assert!(waits(one.next(1)).await, "{n} is being worked on");
        one.set_aside(&[got[0].id, got[0].id]).await.unwrap();
        ids.push(got[0].id);
    }
    let fourth = one.next(10).await.unwrap();
    assert_eq!(numbers(&fourth), [4]);
    one.ack(&[ids[1]]).await.unwrap();
    bus.publish(STREAM, vec![entry("a", 5)]).await.unwrap();
    assert!(waits(one.next(1)).await, "what was set aside was nobody's turn, and that of 4 is not over");
    one.ack(&[fourth[0].id]).await.unwrap();
    let fifth = one.next(10).await.unwrap();
    assert_eq!(numbers(&fifth), [5]);
    one.ack(&[fifth[0].id]).await.unwrap();
    one.nack(&[ids[2]]).await.unwrap();
    assert_eq!(one.next(10).await.unwrap().iter().map(|d| (number(&d.payload), d.attempt)).collect::<Vec<_>>(), [(3, 2)]);
    drop(one);
    let mut two = bus.consume(STREAM, "g").await.unwrap();
    let again = two.next(10).await.unwrap();
    assert_eq!((numbers(&again), again[0].attempt), (vec![1, 3], 2));
}

async fn work_is_spread_over_consumers(bus: Arc<impl Bus>) {
    let mut both = [bus.consume(STREAM, "g").await.unwrap(), bus.consume(STREAM, "g").await.unwrap()];
    let mut share = [0, 0];
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    for round in 0.. {
        bus.publish(STREAM, (0..64).map(|n| entry(&format!("{round}/{n}"), n)).collect()).await.unwrap();
        let mut left = 64;
        while left > 0 {
            let (who, got) = either(&mut both, 8).await;
            left -= got.len();
            share[who] += got.len();
            both[who].ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
        }
        if share.iter().all(|n| *n >= 64) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "one of the two gets nothing: {share:?}");
    }
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

async fn an_acknowledgement_of_something_else_does_nothing(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "one").await.unwrap();
    let mut two = bus.consume(STREAM, "two").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 1)]).await.unwrap();
    let got = one.next(1).await.unwrap();
    two.ack(&[got[0].id]).await.unwrap(); // not its own
    assert_eq!(numbers(&two.next(1).await.unwrap()), [1]);
    one.ack(&[got[0].id]).await.unwrap();
    one.ack(&[got[0].id]).await.unwrap(); // twice
    assert!(waits(one.next(1)).await);
}

async fn signals_reach_those_who_listen_and_losses_are_counted(bus: Arc<impl Bus>) {
    bus.signal("t", Bytes::from_static(b"nobody hears this")).await.unwrap();
    let mut listener = bus.listen("t").await.unwrap();
    bus.signal("t", Bytes::from_static(b"hello")).await.unwrap();
    let mut first = listener.next().await;
    if first == Some(Heard::Signal(Bytes::from_static(b"nobody hears this"))) {
        first = listener.next().await; // signals are not waited for: it was still on its way
    }
    assert_eq!(first, Some(Heard::Signal(Bytes::from_static(b"hello"))));
    let (mut heard, mut missed) = (0, 0);
    let mut other = bus.listen("t").await.unwrap();
    for _ in 0..10_000 {
        bus.signal("t", Bytes::from_static(b"flood")).await.unwrap();
    }
    // Somebody else has seen the last of them, so the slow listener has been passed by all of them.
    let all = async |listener: &mut Box<dyn super::Listener>, heard: &mut u64, missed: &mut u64| {
        while *heard + *missed < 10_000 {
            match listener.next().await.expect("the bus is up") {
                Heard::Signal(_) => *heard += 1,
                Heard::Missed(lost) => *missed += lost,
            }
        }
        assert_eq!(*heard + *missed, 10_000);
    };
    let patience = Duration::from_secs(20);
    let (mut others_heard, mut others_missed) = (0, 0);
    tokio::time::timeout(patience, all(&mut other, &mut others_heard, &mut others_missed)).await.expect("some were not accounted for");
    tokio::time::timeout(patience, all(&mut listener, &mut heard, &mut missed)).await.expect("some were not accounted for");
    assert!(missed > 0, "10000 signals wait for a listener that does not listen");
}

async fn the_trace_travels_along(bus: Arc<impl Bus>) {
    let mut consumer = bus.consume(STREAM, "g").await.unwrap();
    let sent = entry("a", 1);
    let trace = sent.trace;
    bus.publish(STREAM, vec![sent]).await.unwrap();
    assert_eq!(consumer.next(1).await.unwrap()[0].trace, trace);
}

async fn closing_waits_for_consumers_that_have_gone(bus: Arc<impl Bus>) {
    let mut one = bus.consume(STREAM, "g").await.unwrap();
    bus.publish(STREAM, vec![entry("a", 1)]).await.unwrap();
    assert_eq!(one.next(1).await.unwrap().len(), 1);
    drop(one);
    tokio::time::timeout(Duration::from_secs(10), bus.close()).await.expect("nothing is left to wait for");
}
