//! The one thread that writes: it merges what waits into one transaction and answers each request by itself.
//!
//! Invariants:
//! - an answer is sent after its transaction is on disk;
//! - a request that fails is rolled back alone: its group is tried again with a savepoint for each;
//! - a connection lost at COMMIT leaves open whether it happened: the requests run again, find by their keys what they have stored, and are
//!   answered as if for the first time ([`Settle`]);
//! - nothing is delayed for company: a group is what waited while the transaction before it was being written.
//!
//! Deliberately absent: what the requests do.

use super::{
    database::{Database, Use},
    insights::Recorded,
    store::{self, Conn, StoreError},
    trouble::Trouble,
};
use crate::{metrics as names, settings::RecordSettings};
use contracts::{
    CallCx, CallError, ConversationId, TenantId,
    conversation::{Attached, CommitOutcome, Conversation},
    signal::Committed,
};
use std::{
    collections::BTreeSet,
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
    /// Conversations that read differently now.
    pub(super) touched: BTreeSet<(TenantId, ConversationId)>,
}

/// Told after each transaction, on the writing thread: must not block.
pub(super) type Aftermath = Box<dyn Fn(Effects) + Send>;

/// What a request answers when it ran twice because nobody knows whether the first run was stored. `self` is what the first one would have
/// answered.
pub(super) trait Settle: Sized {
    fn settle(self, again: Self) -> Self {
        again
    }
}

impl Settle for () {}
impl Settle for Conversation {}
/// The epoch was raised twice; the newer one counts.
impl Settle for Attached {}

impl Settle for Vec<CommitOutcome> {
    fn settle(self, again: Self) -> Self {
        let settle = |(first, again)| match (first, again) {
            (CommitOutcome::Committed, CommitOutcome::Duplicate) => CommitOutcome::Committed,
            (_, again) => again,
        };
        self.into_iter().zip(again).map(settle).collect()
    }
}

impl Settle for Vec<Recorded> {
    fn settle(self, again: Self) -> Self {
        let settle = |(first, again)| if (first, again) == (Recorded::New, Recorded::Known) { Recorded::New } else { again };
        self.into_iter().zip(again).map(settle).collect()
    }
}

/// One request on its way through the writer.
trait Work: Send {
    fn rows(&self) -> usize;
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// May be called again after a rollback.
    fn run(&mut self, conn: &mut Conn, effects: &mut Effects) -> Result<(), StoreError>;
    /// The run before may have been stored.
    fn note_unknown(&mut self);
    fn answer(self: Box<Self>, failure: Option<CallError>);
}

struct Request<F, T> {
    rows: usize,
    asked: Instant,
    query: F,
    result: Option<Result<T, CallError>>,
    /// Of a run that may have been stored.
    unknown: Option<T>,
    reply: oneshot::Sender<Result<T, CallError>>,
}

impl<F, T> Work for Request<F, T>
where
    F: FnMut(&mut Conn, &mut Effects) -> Result<T, StoreError> + Send,
    T: Settle + Send,
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
    fn note_unknown(&mut self) {
        self.unknown = self.result.take().and_then(Result::ok).or(self.unknown.take());
    }
    fn answer(self: Box<Self>, failure: Option<CallError>) {
        metrics::histogram!(names::WRITE_SECONDS).record(self.asked.elapsed().as_secs_f64());
        let result = match failure {
            Some(error) => Err(error),
            None => match (self.unknown, self.result) {
                (Some(first), Some(Ok(again))) => Ok(first.settle(again)),
                (_, Some(result)) => result,
                (_, None) => Err(CallError::internal("the request was never run")),
            },
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
    pub(super) trouble: Arc<Trouble>,
}

impl Writer {
    pub(super) fn start(conn: Conn, database: Arc<Database>, settings: &RecordSettings, aftermath: Aftermath) -> std::io::Result<Self> {
        let (orders, queue) = mpsc::channel(settings.queue);
        let (end, ended) = watch::channel(false);
        let group = Group { rows: settings.group_rows, time: Duration::from_millis(settings.group_ms) };
        let trouble: Arc<Trouble> = Arc::default();
        let found = trouble.clone();
        thread::Builder::new().name("record-write".into()).spawn(move || {
            let (looked, trouble) = (Instant::now(), &*found);
            let line = Line { conn, database: &database, aftermath: &aftermath, trouble, spent: false, down: None, looked };
            write(line, queue, group);
            end.send_replace(true);
        })?;
        Ok(Self { orders, ended, trouble })
    }

    /// Runs `query` in the next transaction; `rows` is about how much it writes. It may run twice, after a rollback in between.
    ///
    /// The answer comes after the transaction is on disk. When the call's deadline passes first, it may still be stored.
    pub(super) async fn ask<T: Settle + Send + 'static>(
        &self,
        cx: &CallCx,
        rows: usize,
        query: impl FnMut(&mut Conn, &mut Effects) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { rows, asked: Instant::now(), query, result: None, unknown: None, reply };
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

fn write(mut line: Line<'_>, mut queue: mpsc::Receiver<Order>, limit: Group) {
    let mut stopping = false;
    while !stopping {
        let first = match queue.blocking_recv() {
            Some(Order::Do(work)) => work,
            Some(Order::Stop) | None => break,
        };
        let mut next = Some(first);
        let started = Instant::now();
        let mut rows = 0;
        let group = line.serve(|| {
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
        if line.database.is_alone() && line.looked.elapsed() >= LOOK_FOR_STANDBY {
            line.looked = Instant::now();
            line.database.mend(&mut line.conn);
        }
        metrics::histogram!(names::GROUP_REQUESTS).record(group as f64);
        metrics::histogram!(names::TRANSACTION_SECONDS).record(started.elapsed().as_secs_f64());
    }
    queue.close();
    while let Ok(order) = queue.try_recv() {
        if let Order::Do(work) = order {
            work.answer(Some(stopped()));
        }
    }
    line.database.leave(line.conn);
}

/// How long requests wait for a database that has gone, from when that was noticed; then they are told so at once. It is restarted, or moved, in
/// less.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// While a standby is missing.
const LOOK_FOR_STANDBY: Duration = Duration::from_secs(1);
/// Between two attempts to connect again.
const RECONNECT: Duration = Duration::from_millis(100);

/// The writing connection, and what is needed to get a new one.
struct Line<'a> {
    conn: Conn,
    database: &'a Database,
    aftermath: &'a Aftermath,
    trouble: &'a Trouble,
    /// It is not to be used any more: its server takes no writes.
    spent: bool,
    /// Since when there is no connection, and when the last attempt to get one was made.
    down: Option<(Instant, Instant)>,
    /// When it was last asked whether the standby is back.
    looked: Instant,
}

type Works = Vec<Box<dyn Work>>;

impl Line<'_> {
    /// One transaction with all that `take` gives. Returns how many requests it served.
    fn serve(&mut self, mut take: impl FnMut() -> Option<Box<dyn Work>>) -> usize {
        let mut group: Works = vec![];
        if let Err(error) = self.begin_patiently() {
            while let Some(work) = take() {
                group.push(work);
            }
            let served = group.len();
            self.fail(group, error.into());
            return served;
        }
        let mut effects = Effects::default();
        let ran = guarded(|| {
            while let Some(work) = take() {
                if work.is_abandoned() {
                    continue;
                }
                group.push(work);
                let last = group.last_mut().expect("pushed just now");
                last.run(&mut self.conn, &mut effects)?;
            }
            Ok(())
        });
        let served = group.len();
        match ran.and_then(|()| self.commit(&mut group)) {
            Ok(()) => self.tell(effects, group),
            Err(failure) => {
                let lost = self.undo(&failure);
                if served == 1 && !lost && !failure.may_pass() {
                    // Nobody to spare: what failed once by itself fails again.
                    self.fail(group, failure);
                } else {
                    metrics::counter!(names::GROUPS_SPLIT).increment(1);
                    self.serve_apart(group);
                }
            }
        }
        served
    }

    /// Again, with a savepoint for each; where even that fails as a whole, each in a transaction of its own.
    fn serve_apart(&mut self, group: Works) {
        let mut group: Works = group.into_iter().filter(|work| !work.is_abandoned()).collect();
        if let Err(error) = self.begin_patiently() {
            return self.fail(group, error.into());
        }
        let mut effects = Effects::default();
        let mut failed: Vec<(usize, Failure)> = vec![];
        let ran = (|| -> Result<(), Failure> {
            for (n, work) in group.iter_mut().enumerate() {
                let mut own = Effects::default();
                guarded(|| store::begin(&mut self.conn))?;
                match guarded(|| work.run(&mut self.conn, &mut own)) {
                    Ok(()) => {
                        guarded(|| store::commit(&mut self.conn))?;
                        effects.take(own);
                    }
                    Err(failure) if failure.is_lost() || failure.is_fenced() => return Err(failure),
                    Err(failure) => {
                        guarded(|| store::roll_back(&mut self.conn))?;
                        failed.push((n, failure));
                    }
                }
            }
            Ok(())
        })();
        match ran.and_then(|()| self.commit(&mut group)) {
            Ok(()) => {
                let (mut kept, mut again): (Works, Works) = (vec![], vec![]);
                let mut failed = failed.into_iter().peekable();
                for (n, work) in group.into_iter().enumerate() {
                    match failed.next_if(|(m, _)| *m == n) {
                        Some((_, failure)) if failure.may_pass() => again.push(work),
                        Some((_, failure)) => self.fail(vec![work], failure),
                        None => kept.push(work),
                    }
                }
                self.tell(effects, kept);
                for work in again {
                    self.serve_alone(work);
                }
            }
            Err(failure) => {
                self.undo(&failure);
                for work in group {
                    self.serve_alone(work);
                }
            }
        }
    }

    fn serve_alone(&mut self, mut work: Box<dyn Work>) {
        if work.is_abandoned() {
            return;
        }
        if let Err(error) = self.begin_patiently() {
            return self.fail(vec![work], error.into());
        }
        let mut effects = Effects::default();
        let ran = guarded(|| work.run(&mut self.conn, &mut effects));
        let mut alone = vec![work];
        match ran.and_then(|()| self.commit(&mut alone)) {
            Ok(()) => self.tell(effects, alone),
            Err(failure) => {
                self.undo(&failure);
                self.fail(alone, failure);
            }
        }
    }

    fn tell(&self, effects: Effects, group: Works) {
        self.trouble.stored();
        (self.aftermath)(effects);
        for work in group {
            work.answer(None);
        }
    }

    fn fail(&self, group: Works, failure: Failure) {
        let passes = failure.may_pass();
        let error: CallError = failure.into();
        if !passes {
            self.trouble.failed(&error);
        }
        for work in group {
            work.answer(Some(error.clone()));
        }
    }

    /// Ends the transaction. A connection lost here leaves open whether it happened.
    fn commit(&mut self, group: &mut Works) -> Result<(), Failure> {
        let committed = guarded(|| store::commit(&mut self.conn));
        if committed.as_ref().is_err_and(Failure::is_lost) {
            metrics::counter!(names::COMMITS_UNKNOWN).increment(1);
            tracing::warn!(requests = group.len(), "the connection was lost at the commit: its requests run again");
            group.iter_mut().for_each(|work| work.note_unknown());
        }
        committed
    }

    /// Begins a transaction, on a new connection if the old one has gone meanwhile.
    fn begin(&mut self) -> Result<(), StoreError> {
        if !self.spent && guarded(|| store::begin_write(&mut self.conn)).is_ok() {
            return Ok(());
        }
        self.connect()?;
        store::begin_write(&mut self.conn)
    }

    /// The same, waiting for a database that is being restarted or moved.
    fn begin_patiently(&mut self) -> Result<(), StoreError> {
        loop {
            let result = self.begin();
            let waits = result.as_ref().is_err_and(StoreError::is_lost) && self.database.is_shared();
            if !waits || self.down.is_some_and(|(since, _)| since.elapsed() >= LONGEST_WAIT) {
                return result;
            }
            thread::park_timeout(RECONNECT);
        }
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        if self.down.is_some_and(|(_, tried)| tried.elapsed() < RECONNECT) {
            return Err(StoreError::Unreachable(format!("{} could not be reached just now", self.database.name())));
        }
        match self.database.connect(Use::Writing) {
            Ok(fresh) => {
                self.conn = fresh;
                self.spent = false;
                if let Some((since, _)) = self.down.take() {
                    let away_ms = since.elapsed().as_millis() as u64;
                    tracing::info!(database = self.database.name(), away_ms, "the record's database is back");
                }
                Ok(())
            }
            Err(reason) => {
                if self.down.is_none() {
                    tracing::error!(database = self.database.name(), reason, "the record's database cannot be reached; trying again");
                }
                let now = Instant::now();
                self.down = Some((self.down.map_or(now, |(since, _)| since), now));
                Err(StoreError::Unreachable(reason))
            }
        }
    }

    /// Back to before the transaction; where that fails too, or this server takes no writes any more, a new connection is needed, and true is
    /// returned.
    fn undo(&mut self, failure: &Failure) -> bool {
        match guarded(|| store::roll_back(&mut self.conn)) {
            Ok(()) if !failure.is_fenced() => false,
            _ => {
                self.spent = true;
                let _ = self.connect(); // the next transaction tries again
                true
            }
        }
    }
}

impl Effects {
    pub(super) fn touch(&mut self, tenant: &TenantId, id: ConversationId) {
        self.touched.insert((tenant.clone(), id));
    }

    fn take(&mut self, other: Self) {
        self.watermarks.extend(other.watermarks);
        self.announced |= other.announced;
        self.touched.extend(other.touched);
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Error(#[from] StoreError),
    #[error("{0}")]
    Panic(CallError),
}

impl Failure {
    fn is_lost(&self) -> bool {
        matches!(self, Self::Error(error) if error.is_lost())
    }
    fn may_pass(&self) -> bool {
        matches!(self, Self::Error(error) if error.may_pass())
    }
    fn is_fenced(&self) -> bool {
        matches!(self, Self::Error(error) if error.is_fenced())
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Error(error) => error.into(),
            Failure::Panic(error) => error,
        }
    }
}

fn guarded(step: impl FnOnce() -> Result<(), StoreError>) -> Result<(), Failure> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => Ok(result?),
        Err(payload) => Err(Failure::Panic(CallError::panicked(payload.as_ref()))),
    }
}
