//! The one thread that writes: it merges what waits into one transaction and answers each request by itself.
//!
//! Invariants:
//! - an answer is sent after its transaction is on disk;
//! - a request that fails is rolled back alone: the group is tried again, one transaction per request;
//! - nothing is delayed for company: a group is what waited while the transaction before it was being written.
//!
//! Deliberately absent: what the requests do.

use super::{
    folder::Folder,
    store::{self, Conn, StoreError},
};
use crate::{metrics as names, settings::RecordSettings};
use contracts::{CallCx, CallError, signal::Committed};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// What a request does besides its rows, made known when its transaction is on disk.
#[derive(Default)]
pub(super) struct Effects {
    /// Where channels stand now.
    pub(super) watermarks: Vec<Committed>,
    /// There are new rows in the outbox.
    pub(super) announced: bool,
}

/// Told after each transaction, on the writing thread: must not block.
pub(super) type Aftermath = Box<dyn Fn(Effects) + Send>;

/// One request on its way through the writer.
trait Work: Send {
    fn rows(&self) -> usize;
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// May be called again after a rollback.
    fn run(&mut self, conn: &mut Conn, effects: &mut Effects) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, failure: Option<CallError>);
}

struct Request<F, T> {
    rows: usize,
    asked: Instant,
    query: F,
    result: Option<Result<T, CallError>>,
    reply: oneshot::Sender<Result<T, CallError>>,
}

impl<F, T> Work for Request<F, T>
where
    F: FnMut(&mut Conn, &mut Effects) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn rows(&self) -> usize {
        self.rows
    }
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
    fn run(&mut self, conn: &mut Conn, effects: &mut Effects) -> Result<(), StoreError> {
        self.result = None;
        self.result = Some(match (self.query)(conn, effects) {
            Ok(value) => Ok(value),
            Err(StoreError::Refused(refusal)) => Err(refusal),
            Err(other) => return Err(other),
        });
        Ok(())
    }
    fn answer(self: Box<Self>, failure: Option<CallError>) {
        metrics::histogram!(names::WRITE_SECONDS).record(self.asked.elapsed().as_secs_f64());
        let result = match failure {
            Some(error) => Err(error),
            None => self.result.unwrap_or_else(|| Err(CallError::internal("the request was never run"))),
        };
        let _ = self.reply.send(result); // a caller that gave up needs no answer
    }
}

enum Order {
    Do(Box<dyn Work>),
    /// Finish what came before, tidy up and end.
    Stop,
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Writer {
    orders: mpsc::Sender<Order>,
    /// True, or its sender gone, when the thread has ended.
    ended: watch::Receiver<bool>,
}

impl Writer {
    pub(super) fn start(conn: Conn, folder: Arc<Folder>, settings: &RecordSettings, aftermath: Aftermath) -> std::io::Result<Self> {
        let (orders, queue) = mpsc::channel(settings.queue);
        let (end, ended) = watch::channel(false);
        let group = Group { rows: settings.group_rows, time: Duration::from_millis(settings.group_ms) };
        thread::Builder::new().name("record-write".into()).spawn(move || {
            write(conn, &folder, queue, group, &aftermath);
            end.send_replace(true);
        })?;
        Ok(Self { orders, ended })
    }

    /// Runs `query` in the next transaction; `rows` is about how much it writes. It may run twice, after a rollback in between.
    ///
    /// The answer comes after the transaction is on disk. When the call's deadline passes first, it may still be stored.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        cx: &CallCx,
        rows: usize,
        query: impl FnMut(&mut Conn, &mut Effects) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { rows, asked: Instant::now(), query, result: None, reply };
        self.orders.try_send(Order::Do(Box::new(request))).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => CallError::busy(Duration::from_millis(100), "too many writes are waiting"),
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        store::within(cx, async { answer.await.unwrap_or_else(|_| Err(stopped())) }).await
    }

    /// Waits until everything asked before is on disk and the writer has ended. Later requests are refused.
    pub(super) async fn stop(&self) {
        let _ = self.orders.send(Order::Stop).await; // refused when it is ending already
        let _ = self.ended.clone().wait_for(|ended| *ended).await; // an error says that the thread is gone
    }
}

fn stopped() -> CallError {
    CallError::unavailable("the record is closing")
}

#[derive(Clone, Copy)]
struct Group {
    rows: usize,
    time: Duration,
}

fn write(mut conn: Conn, folder: &Folder, mut queue: mpsc::Receiver<Order>, limit: Group, aftermath: &Aftermath) {
    let mut stopping = false;
    while !stopping {
        let first = match queue.blocking_recv() {
            Some(Order::Do(work)) => work,
            Some(Order::Stop) | None => break,
        };
        let mut next = Some(first);
        let started = Instant::now();
        let mut rows = 0;
        let group = run(&mut conn, folder, aftermath, || {
            if let Some(work) = next.take() {
                rows += work.rows();
                return Some(work);
            }
            if stopping || rows >= limit.rows || started.elapsed() >= limit.time {
                return None;
            }
            match queue.try_recv() {
                Ok(Order::Do(work)) => {
                    rows += work.rows();
                    Some(work)
                }
                Ok(Order::Stop) => {
                    stopping = true;
                    None
                }
                Err(_) => None,
            }
        });
        metrics::histogram!(names::GROUP_REQUESTS).record(group as f64);
        metrics::histogram!(names::TRANSACTION_SECONDS).record(started.elapsed().as_secs_f64());
    }
    queue.close();
    while let Ok(order) = queue.try_recv() {
        if let Order::Do(work) = order {
            work.answer(Some(stopped()));
        }
    }
    store::checkpoint(&mut conn);
    drop(conn);
    folder.leave();
}

/// One transaction with all that `take` gives; if that fails, one for each. Returns how many requests it served.
fn run(conn: &mut Conn, folder: &Folder, aftermath: &Aftermath, mut take: impl FnMut() -> Option<Box<dyn Work>>) -> usize {
    let mut group: Vec<Box<dyn Work>> = vec![];
    let mut effects = Effects::default();
    let outcome = guarded(|| {
        store::begin_write(conn)?;
        while let Some(work) = take() {
            if work.is_abandoned() {
                continue;
            }
            group.push(work);
            let last = group.last_mut().expect("pushed just now");
            last.run(conn, &mut effects)?;
        }
        store::commit(conn)
    });
    let served = group.len();
    match outcome {
        Ok(()) => {
            aftermath(effects);
            for work in group {
                work.answer(None);
            }
        }
        Err(Failure::Error(error)) if served == 1 && !matches!(error, StoreError::Refused(_)) => {
            undo(conn, folder);
            let work = group.pop().expect("served counts the group");
            work.answer(Some(error.into()));
        }
        Err(failure) => {
            if served == 0 {
                // Not even a transaction could begin: whoever waits next learns it, or the disk is back by then.
                tracing::error!(%failure, "the record cannot begin a transaction");
                undo(conn, folder);
                if let Some(work) = take() {
                    work.answer(Some(failure.into()));
                }
                return 1;
            }
            metrics::counter!(names::GROUPS_SPLIT).increment(1);
            undo(conn, folder);
            for work in group {
                run_alone(conn, folder, aftermath, work);
            }
        }
    }
    served
}

fn run_alone(conn: &mut Conn, folder: &Folder, aftermath: &Aftermath, mut work: Box<dyn Work>) {
    let mut effects = Effects::default();
    let outcome = guarded(|| {
        store::begin_write(conn)?;
        work.run(conn, &mut effects)?;
        store::commit(conn)
    });
    match outcome {
        Ok(()) => {
            aftermath(effects);
            work.answer(None);
        }
        Err(failure) => {
            undo(conn, folder);
            work.answer(Some(failure.into()));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Error(#[from] StoreError),
    #[error("{0}")]
    Panic(CallError),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Error(error) => error.into(),
            Failure::Panic(error) => error,
        }
    }
}

fn guarded(transaction: impl FnOnce() -> Result<(), StoreError>) -> Result<(), Failure> {
    match catch_unwind(AssertUnwindSafe(transaction)) {
        Ok(result) => Ok(result?),
        Err(payload) => Err(Failure::Panic(CallError::panicked(payload.as_ref()))),
    }
}

/// Back to before the transaction; where that fails too, with a new connection.
fn undo(conn: &mut Conn, folder: &Folder) {
    match catch_unwind(AssertUnwindSafe(|| store::roll_back(conn))) {
        Ok(Ok(())) => {}
        _ => match store::connect(folder) {
            Ok(fresh) => *conn = fresh,
            Err(error) => tracing::error!(%error, "the writing connection could not be opened again"),
        },
    }
}
