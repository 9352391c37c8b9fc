//! Requests that share a transaction, and do not share their failures.

use super::super::{
    database::{Database, Use},
    schema::bookkeeping,
    store::{Conn, StoreError, on_conn},
    writer::{Effects, Writer},
};
use super::*;
use contracts::ErrorKind;
use diesel::{ExpressionMethods as _, QueryDsl as _, RunQueryDsl as _};
use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

/// A writer on a folder of its own that counts its transactions.
struct Bench {
    writer: Writer,
    database: Arc<Database>,
    transactions: Arc<AtomicUsize>,
    _dir: TempDir,
}

impl Bench {
    async fn start(on: On, queue: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // However slow this machine is: what a group takes is not a matter of time here.
        let settings = RecordSettings { queue, group_ms: 60_000, ..on.settings().record };
        let database = Arc::new(Database::take(dir.path(), &settings).expect("it is free"));
        let opening = database.clone();
        let conn = tokio::task::spawn_blocking(move || opening.open().expect("opens")).await.expect("no panic");
        let transactions = Arc::new(AtomicUsize::default());
        let counted = transactions.clone();
        let aftermath = Box::new(move |_: Effects| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let writer = Writer::start(conn, database.clone(), &settings, aftermath).expect("a thread");
        Self { writer, database, transactions, _dir: dir }
    }

    /// Holds the writer in a transaction of its own until the sender is dropped; what is asked meanwhile forms the next group.
    async fn hold(&self) -> (mpsc::Sender<()>, JoinHandle<Result<(), CallError>>) {
        let (release, held) = mpsc::channel::<()>();
        let (begun, beginning) = tokio::sync::oneshot::channel();
        let mut begun = Some(begun);
        let writer = self.writer.clone();
        let query = move |_: &mut Conn, _: &mut Effects| {
            begun.take().map(|begun| begun.send(()));
            let _ = held.recv(); // ends with an error when the test lets go
            Ok(())
        };
        let holding = tokio::spawn(async move { writer.ask(&cx(), usize::MAX / 2, query).await });
        beginning.await.expect("the writer takes it");
        (release, holding)
    }

    /// Seen from another connection: what is on disk.
    async fn names(&self) -> Vec<String> {
        let database = self.database.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut conn = database.connect(Use::Reading).expect("opens");
            on_conn!(&mut conn, |c: B| {
                let names = bookkeeping::table.filter(bookkeeping::tenant_id.eq("test")).order(bookkeeping::name);
                names.select(bookkeeping::name).load(c).expect("readable")
            })
        });
        reading.await.expect("no panic")
    }
}

fn put(conn: &mut Conn, name: &str) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::insert_into(bookkeeping::table)
            .values((
                bookkeeping::tenant_id.eq("test"),
                bookkeeping::name.eq(name),
                bookkeeping::value.eq(1),
                bookkeeping::updated_at.eq(Utc::now().naive_utc()),
            ))
            .execute(c)?
    });
    Ok(())
}

async fn what_waits_is_merged_into_one_transaction_and_on_disk_when_answered(on: On) {
    let bench = Bench::start(on, 1024).await;
    let (release, holding) = bench.hold().await;
    let cx = cx();
    // `join_all` asks up to thirty at once; of more it might leave some for after the release.
    let asks: Vec<_> = (0..30).map(|n| bench.writer.ask(&cx, 1, move |conn, _| put(conn, &format!("{n:02}")))).collect();
    let all = futures::future::join_all(asks);
    let (answers, ()) = tokio::join!(all, async { drop(release) });
    holding.await.expect("no panic").expect("released");
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(bench.names().await.len(), 30);
    assert_eq!(bench.transactions.load(Ordering::SeqCst), 2, "the held one and the group");
}

async fn a_group_takes_no_more_than_its_rows(on: On) {
    let bench = Bench::start(on, 1024).await;
    let (release, holding) = bench.hold().await;
    let cx = cx();
    let asks: Vec<_> = (0..8).map(|n| bench.writer.ask(&cx, 32, move |conn, _| put(conn, &format!("{n}")))).collect();
    let all = futures::future::join_all(asks);
    tokio::join!(all, async { drop(release) });
    holding.await.expect("no panic").expect("released");
    assert_eq!(bench.transactions.load(Ordering::SeqCst), 1 + 4, "64 rows each");
}

async fn one_failing_request_does_not_fail_its_group(on: On) {
    let bench = Bench::start(on, 1024).await;
    let (release, holding) = bench.hold().await;
    let (cx, writer) = (cx(), &bench.writer);
    let good = |name: &'static str| writer.ask(&cx, 1, move |conn, _| put(conn, name));
    let broken = writer.ask(&cx, 1, |conn, _| {
        put(conn, "half of a failing request")?;
        put(conn, "half of a failing request") // breaks the primary key
    });
    let panicking = writer.ask(&cx, 1, |conn, _| -> Result<(), StoreError> {
        put(conn, "before a panic")?;
        panic!("in the middle of a group")
    });
    let refused = writer.ask(&cx, 1, |_, _| -> Result<(), StoreError> { Err(CallError::conflict("no").into()) });
    let (a, broken, b, panicking, refused, c, ()) =
        tokio::join!(good("a"), broken, good("b"), panicking, refused, good("c"), async { drop(release) });
    holding.await.expect("no panic").expect("released");
    assert_eq!((a, b, c), (Ok(()), Ok(()), Ok(())));
    assert_eq!(broken.expect_err("it broke a key").kind, ErrorKind::Internal);
    assert_eq!(panicking.expect_err("it panicked").kind, ErrorKind::Panicked);
    assert_eq!(refused.expect_err("it was refused").kind, ErrorKind::Conflict);
    assert_eq!(bench.names().await, ["a", "b", "c"], "nothing of a failed request stays");
    good("d").await.expect("the writer works on");
    assert_eq!(bench.names().await.len(), 4);
}

async fn a_caller_that_gave_up_before_its_turn_changes_nothing(on: On) {
    let bench = Bench::start(on, 1024).await;
    let (release, holding) = bench.hold().await;
    let late = bench.writer.ask(&CallCx::new(Duration::from_millis(20)), 1, |conn, _| put(conn, "too late")).await;
    assert_eq!(late.expect_err("its deadline has passed").kind, ErrorKind::DeadlineExceeded);
    drop(release);
    holding.await.expect("no panic").expect("released");
    bench.writer.stop().await;
    assert_eq!(bench.names().await, [""; 0]);
}

async fn a_full_queue_says_when_to_come_back(on: On) {
    let bench = Bench::start(on, 2).await;
    let (release, holding) = bench.hold().await;
    let cx = cx();
    let mut asks: Vec<_> = (0..5).map(|n| Box::pin(bench.writer.ask(&cx, 1, move |conn, _| put(conn, &format!("{n}"))))).collect();
    // Asked in order: the first two find room.
    for ask in &mut asks[..2] {
        assert!(futures::poll!(ask).is_pending());
    }
    for ask in asks.drain(2..) {
        let busy = ask.await.expect_err("there is no room");
        assert_eq!((busy.kind, busy.retry), (ErrorKind::Busy, contracts::Retry::After(Duration::from_millis(100))));
    }
    drop(release);
    holding.await.expect("no panic").expect("released");
    for ask in asks {
        ask.await.expect("what had room is stored");
    }
    assert_eq!(bench.names().await, ["0", "1"]);
}

async fn stopping_finishes_what_was_asked_and_refuses_the_rest(on: On) {
    let bench = Bench::start(on, 1024).await;
    let (release, holding) = bench.hold().await;
    let cx = cx();
    let mut before = Box::pin(bench.writer.ask(&cx, 1, |conn, _| put(conn, "before")));
    assert!(futures::poll!(&mut before).is_pending());
    let stopping = tokio::spawn({
        let writer = bench.writer.clone();
        async move { writer.stop().await }
    });
    drop(release);
    holding.await.expect("no panic").expect("released");
    before.await.expect("it was asked before the stop");
    stopping.await.expect("no panic");
    let after = bench.writer.ask(&cx, 1, |conn, _| put(conn, "after")).await;
    assert_eq!(after.expect_err("it has stopped").kind, ErrorKind::Unavailable);
    assert_eq!(bench.names().await, ["before"]);
    bench.writer.stop().await; // again is fine
}

on_both! {
    what_waits_is_merged_into_one_transaction_and_on_disk_when_answered,
    a_group_takes_no_more_than_its_rows,
    one_failing_request_does_not_fail_its_group,
    a_caller_that_gave_up_before_its_turn_changes_nothing,
    a_full_queue_says_when_to_come_back,
    stopping_finishes_what_was_asked_and_refuses_the_rest,
}
