//! Cache first, in one process: who reads the database, who waits, and what they get.

use super::*;
use contracts::{CallError, Retry};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, advance},
};

fn key() -> Key {
    Scope::new("tenant", "conv_1").part("row")
}

fn loaded(ver: u64) -> Loaded {
    Loaded { stamp: Stamp { ver, mark: Mark { timeline: 0, at: ver } }, body: Some(ver.to_string().into()) }
}

async fn read(front: &Front, ver: u64) -> Answer {
    front.read(key(), None, async || Ok(loaded(ver))).await.unwrap()
}

fn void(front: &Front, floor: u64) {
    front.void(vec![Void { scope: key().scope, floor }]);
}

/// Somebody who reads what takes until `go`.
async fn slow_reader(front: &Arc<Front>, ver: u64) -> (tokio::task::JoinHandle<Answer>, Arc<Notify>) {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let reading = tokio::spawn({
        let (front, begun, go) = (front.clone(), begun.clone(), go.clone());
        async move {
            let load = async || {
                begun.notify_one();
                go.notified().await;
                Ok(loaded(ver))
            };
            front.read(key(), None, load).await.unwrap()
        }
    });
    begun.notified().await;
    (reading, go)
}

#[tokio::test]
async fn a_thousand_readers_cost_one_read_of_the_database() {
    let front = Front::memory();
    let loads = AtomicU64::new(0);
    for round in 1..=10 {
        let load = async || {
            loads.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(loaded(round))
        };
        let answers = futures::future::join_all((0..1_000).map(|_| front.read(key(), None, load))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().stamp.ver == round));
        assert_eq!(loads.load(Ordering::SeqCst), round);
        void(&front, round + 1);
    }
}

#[tokio::test]
async fn a_change_is_seen_at_once_also_beside_a_reader_who_set_out_before_it() {
    let front = Front::memory();
    let (slow, go) = slow_reader(&front, 1).await;
    void(&front, 2); // stored and announced
    assert_eq!(read(&front, 2).await.stamp.ver, 2, "nobody waits for what is older");
    go.notify_one();
    assert_eq!(slow.await.unwrap().stamp.ver, 1, "it asked before the change");
    let after = read(&front, 3).await;
    assert_eq!((after.stamp.ver, after.from), (2, From::Shared), "and has not put what it read");
}

#[tokio::test]
async fn when_the_one_who_reads_is_called_off_or_fails_another_does_it() {
    let front = Front::memory();
    let begun = Arc::new(Notify::new());
    let gone = tokio::spawn({
        let (front, begun) = (front.clone(), begun.clone());
        async move {
            let load = async || {
                begun.notify_one();
                std::future::pending().await
            };
            front.read(key(), None, load).await
        }
    });
    begun.notified().await;
    let waiting = tokio::spawn({
        let front = front.clone();
        async move { read(&front, 2).await }
    });
    tokio::task::yield_now().await;
    gone.abort();
    assert_eq!(waiting.await.unwrap().stamp.ver, 2);

    let front = Front::memory();
    let refused = front.read(key(), None, async || Err(CallError::unavailable("away"))).await.unwrap_err();
    assert_eq!(refused.detail, "away");
    assert_eq!(read(&front, 3).await.stamp.ver, 3, "a failure is not kept");
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_given_while_the_database_is_away_and_not_for_ever() {
    let front = Front::memory();
    read(&front, 1).await;
    let away = async || Err(CallError::unavailable("away"));
    let gone = async || Err(CallError::new(contracts::ErrorKind::Internal, Retry::Never, "broken"));
    let (mut fresh, mut stale) = (0, 0);
    let refused = loop {
        match front.read(key(), None, away).await {
            Ok(answer) if answer.from == From::Shared => fresh += 1,
            Ok(answer) => {
                assert_eq!((answer.stamp.ver, answer.from), (1, From::Stale));
                assert_eq!(front.read(key(), None, gone).await.unwrap_err().detail, "broken", "what will not pass is told");
                stale += 1;
            }
            Err(error) => break error,
        }
        advance(Duration::from_secs(1)).await;
    };
    assert_eq!(refused.detail, "away");
    assert!((269..=331).contains(&fresh) && (29..=31).contains(&stale), "{fresh} s fresh, {stale} s stale");
}

#[tokio::test(start_paused = true)]
async fn what_has_just_ended_is_given_after_a_moment_to_those_who_wait_while_one_reads_it_anew() {
    let front = Front::memory();
    read(&front, 1).await;
    let away = async || Err(CallError::unavailable("away"));
    while front.read(key(), None, away).await.unwrap().from != From::Stale {
        advance(Duration::from_secs(1)).await;
    }
    let (reading, go) = slow_reader(&front, 2).await;
    let begun = Instant::now();
    let waiting = (0..100).map(|_| front.read(key(), None, async || panic!("one reads it already")));
    for answer in futures::future::join_all(waiting).await {
        let answer = answer.unwrap();
        assert_eq!((answer.stamp.ver, answer.from), (1, From::Stale));
    }
    assert!((50..100).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let asked = Some(Mark { timeline: 0, at: 2 });
    let must_see = front.read(key(), asked, async || Ok(loaded(2)));
    let (must_see, ()) = tokio::join!(must_see, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        go.notify_one();
    });
    assert_eq!(must_see.unwrap().stamp.ver, 2, "who has written waits");
    assert_eq!(reading.await.unwrap().stamp.ver, 2);
    assert_eq!(read(&front, 0).await.stamp.ver, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_anew_before_it_ends_keeps_nobody_waiting() {
    let cache = Arc::new(Memory::with_capacity(1 << 20));
    let Look::Fill { lease, .. } = cache.look(&key(), None).await.unwrap() else { panic!("nobody has it") };
    // What takes that long is read anew by the next who comes.
    let kept = NewValue { stamp: loaded(1).stamp, body: loaded(1).body, took: Duration::from_secs(10_000_000), ttl: TTL };
    assert_eq!(cache.put(&key(), lease, kept).await.unwrap(), Put::Kept);
    let front = Arc::new(Front::on(Some(cache), None, 8));
    let (reading, go) = slow_reader(&front, 2).await;
    let begun = Instant::now();
    let meanwhile = read(&front, 0).await;
    assert_eq!((meanwhile.stamp.ver, meanwhile.from, begun.elapsed()), (1, From::Shared, Duration::ZERO));
    go.notify_one();
    assert_eq!(reading.await.unwrap().stamp.ver, 2);
}

#[tokio::test(start_paused = true)]
async fn that_there_is_none_is_known_for_five_seconds_and_a_change_ends_it() {
    let front = Front::memory();
    let none = async || Ok(Loaded { stamp: Stamp { ver: 1, mark: Mark::default() }, body: None });
    assert!(front.read(key(), None, none).await.unwrap().body.is_none());
    assert!(read(&front, 1).await.body.is_none());
    advance(NEGATIVE_TTL).await;
    assert!(read(&front, 1).await.body.is_some());
    void(&front, 2);
    front.read(key(), None, none).await.unwrap();
    void(&front, 3);
    assert!(read(&front, 3).await.body.is_some());
}

#[tokio::test]
async fn who_has_written_is_given_nothing_older() {
    let front = Front::memory();
    read(&front, 5).await;
    let asked = |at| Some(Mark { timeline: 0, at });
    let get = async |at, ver| front.read(key(), asked(at), async || Ok(loaded(ver))).await.unwrap();
    assert_eq!(get(5, 0).await.from, From::Shared);
    let newer = get(6, 6).await;
    assert_eq!((newer.stamp.ver, newer.from), (6, From::Database));
    assert_eq!(read(&front, 0).await.stamp.ver, 6, "and it is kept for the others");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_read_the_database_at_once() {
    let front = Arc::new(Front::on(Some(Arc::new(Memory::with_capacity(1 << 20))), None, 3));
    let (most, now, go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let reads: Vec<_> = (0..20)
        .map(|n| {
            let (front, most, now, go) = (front.clone(), most.clone(), now.clone(), go.clone());
            tokio::spawn(async move {
                let load = async || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    go.acquire().await.unwrap().forget();
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(loaded(1))
                };
                front.read(Scope::new("tenant", n.to_string()).part("row"), None, load).await
            })
        })
        .collect();
    // Those who wait are told to come back instead of for ever.
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    go.add_permits(20);
    let (mut served, mut refused) = (0, 0);
    for read in reads {
        match read.await.unwrap() {
            Ok(_) => served += 1,
            Err(error) => {
                assert_eq!(error.kind, contracts::ErrorKind::Busy, "{error:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((most.load(Ordering::SeqCst), served, refused), (3, 3, 17));
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn without_a_cache_every_read_asks_the_database() {
    let front = Front::on(None, None, 8);
    for ver in 1..=3 {
        let answer = read(&front, ver).await;
        assert_eq!((answer.stamp.ver, answer.from), (ver, From::Database));
    }
}
