//! The threads that read.
//!
//! Invariants:
//! - a read sees one state of the record, however many statements it has;
//! - a caller that gives up leaves nothing behind: its query ends on its thread and the answer is dropped;
//! - a connection that has gone is replaced before a query begins, so a database that was restarted is noticed by nobody who asks later;
//! - when the writer has found the database somewhere else, the next read follows it there.

use super::{
    database::{Database, Use},
    fresh::{self, Commits},
    store::{self, Conn, StoreError},
};
use contracts::CallError;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use platform::cache::{Mark, Stamp};
use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Reads that may wait for a thread; beyond this many a caller is told to come back.
const WAITING_READS: usize = 512;

struct Query {
    /// Its mark is wanted.
    stamped: bool,
    run: Run,
}

type Run = Box<dyn FnOnce(&mut Conn, Result<Mark, StoreError>) + Send>;

/// The reading threads. They end when this is dropped.
pub(super) struct Readers {
    queries: Option<Sender<Query>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(database: &Arc<Database>, purpose: Use, count: usize, commits: &Arc<Commits>) -> Result<Self, String> {
        let name = match purpose {
            Use::Relaying => "relay",
            Use::Following => "replica",
            Use::Reading | Use::Writing | Use::Migrating => "read",
        };
        let (queries, waiting) = crossbeam_channel::bounded::<Query>(WAITING_READS);
        let mut threads = Vec::with_capacity(count);
        for n in 0..count {
            let conn = database.connect(purpose)?;
            let (waiting, database, commits) = (waiting.clone(), database.clone(), commits.clone());
            let thread = thread::Builder::new()
                .name(format!("record-{name}-{n}"))
                .spawn(move || serve(conn, &waiting, &database, purpose, &commits));
            threads.push(thread.map_err(|e| format!("a reading thread could not be started: {e}"))?);
        }
        Ok(Self { queries: Some(queries), threads })
    }

    /// Runs `query` in a transaction of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        name: &'static str,
        query: impl FnOnce(&mut Conn) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CallError> {
        self.ask(name, false, move |conn, _| query(conn)).await
    }

    /// The same, and how new what it read is.
    pub(super) async fn read_stamped<T: Send + 'static>(
        &self,
        name: &'static str,
        query: impl FnOnce(&mut Conn) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<(Stamp, T), CallError> {
        let stamped = move |conn: &mut Conn, mark| {
            let stamp = fresh::stamp(conn, mark)?;
            Ok((stamp, query(conn)?))
        };
        self.ask(name, true, stamped).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        name: &'static str,
        stamped: bool,
        query: impl FnOnce(&mut Conn, Mark) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CallError> {
        let asked = Instant::now();
        let (reply, answer) = oneshot::channel();
        let run: Run = Box::new(move |conn, begun| {
            if reply.is_closed() {
                let _ = begun.and_then(|_| store::roll_back(conn)); // the caller gave up while this waited
                return;
            }
            let result = begun.and_then(|mark| match query(conn, mark) {
                Ok(value) => store::commit(conn).map(|()| value),
                Err(error) => {
                    let _ = store::roll_back(conn); // where this fails too, the next read finds out
                    Err(error)
                }
            });
            let _ = reply.send(result); // a caller that gave up needs no answer
        });
        let queries = self.queries.as_ref().expect("the queue is taken only by drop");
        match queries.try_send(Query { stamped, run }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(CallError::busy(Duration::from_millis(200), "too many reads are waiting")),
            Err(TrySendError::Disconnected(_)) => return Err(CallError::unavailable("the record's reading threads are gone")),
        }
        let result = answer.await.map_err(|_| CallError::internal(format!("the read {name:?} panicked")))?;
        metrics::histogram!(crate::metrics::READ_SECONDS, "read" => name).record(asked.elapsed().as_secs_f64());
        result.map_err(Into::into)
    }
}

fn serve(mut conn: Conn, waiting: &Receiver<Query>, database: &Database, purpose: Use, commits: &Commits) {
    let begin = |conn: &mut Conn, stamped: bool| {
        // Before the transaction: what it sees is fixed by its first statement.
        let mark = if stamped { fresh::mark(conn, commits)? } else { Mark::default() };
        store::begin(conn).map(|()| mark)
    };
    let mut turns = database.turns();
    while let Ok(Query { stamped, run }) = waiting.recv() {
        if purpose == Use::Reading && database.turns() != turns {
            turns = database.turns();
            if let Ok(fresh) = database.connect(purpose) {
                conn = fresh; // else the old one answers as long as it can
            }
        }
        let begun = begin(&mut conn, stamped).or_else(|_| {
            // The connection went while nobody asked, or the last query left it in a bad state.
            conn = database.connect(purpose).map_err(StoreError::Unreachable)?;
            begin(&mut conn, stamped)
        });
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut conn, begun)));
        if ran.is_err() {
            // The panic left the connection in an unknown state; its message went through the panic hook.
            match database.connect(purpose) {
                Ok(fresh) => conn = fresh,
                Err(error) => tracing::error!(%error, "a reading connection could not be opened again"),
            }
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queries.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic inside a query was caught and reported
        }
    }
}
