//! Connections: which database, on which threads, and how its errors read.
//!
//! Invariants:
//! - a connection never leaves its thread: one thread writes (`writer.rs`), a few read, all named `record-…`;
//! - a caller that gives up leaves nothing behind: its query ends on its thread and the answer is dropped;
//! - every query body is written once, against [`Conn`], and expanded per backend by `on_conn!`.
//!
//! PostgreSQL becomes a second arm of [`Conn`], a blocking wrapper around its async connection; the bodies stay as they are.

use super::folder::Folder;
use contracts::{CallCx, CallError, ErrorKind, Retry};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use diesel::{
    Connection as _, RunQueryDsl as _, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _},
    sql_types::Text,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use libsqlite3_sys as _; // linked from its own sources, so that every machine runs the same SQLite
use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const SQLITE: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");
/// Reads that may wait for a thread; beyond this many a caller is told to come back.
const WAITING_READS: usize = 512;

/// An open connection.
pub(super) enum Conn {
    Sqlite(SqliteConnection),
}

/// Expands `body` once per backend, with the concrete connection and the name of its backend.
macro_rules! on_conn {
    ($conn:expr, |$c:ident: $b:ident| $body:expr) => {
        match $conn {
            $crate::record::store::Conn::Sqlite($c) => {
                #[allow(dead_code)]
                type $b = diesel::sqlite::Sqlite;
                $body
            }
        }
    };
}
pub(super) use on_conn;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Decided before anything was written.
    #[error(transparent)]
    Refused(#[from] CallError),
    #[error(transparent)]
    Database(#[from] diesel::result::Error),
    /// A row that this release cannot have written.
    #[error("the record holds {0}, which cannot be read")]
    Damaged(String),
}

impl StoreError {
    pub(super) fn damaged(what: &str, value: impl std::fmt::Display) -> Self {
        Self::Damaged(format!("the {what} {value}"))
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        let text = match error {
            StoreError::Refused(refusal) => return refusal,
            StoreError::Damaged(_) => return Self::internal(error.to_string()),
            StoreError::Database(error) => error.to_string(),
        };
        // SQLite's own words; diesel passes no code on.
        let passing = [
            ("disk is full", "the disk that holds the record is full"),
            ("readonly database", "the record cannot be written: its files are read-only"),
            ("disk I/O error", "the disk that holds the record failed"),
            ("database is locked", "another process holds the record's database"),
        ];
        for (theirs, ours) in passing {
            if text.contains(theirs) {
                return Self::new(ErrorKind::Unavailable, Retry::After(Duration::from_secs(1)), ours);
            }
        }
        Self::internal(format!("the record's database failed: {text}"))
    }
}

/// Opens one more connection to the database in `folder`.
pub(super) fn connect(folder: &Folder) -> Result<Conn, String> {
    let path = folder.database();
    let path = path.to_str().ok_or_else(|| format!("the path {} is not valid UTF-8", path.display()))?;
    let mut conn = SqliteConnection::establish(path).map_err(|e| e.to_string())?;
    // FULL: a commit is on disk before it is answered. The cache is per connection, in KiB.
    conn.batch_execute(
        "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -8000; PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(|e| e.to_string())?;
    Ok(Conn::Sqlite(conn))
}

/// Brings the schema up to this release. Returns the names of the migrations that ran.
pub(super) fn migrate(conn: &mut Conn) -> Result<Vec<String>, String> {
    let Conn::Sqlite(c) = conn;
    let known = c.applied_migrations().map_err(|e| e.to_string())?;
    let ours: Vec<String> = diesel::migration::MigrationSource::<diesel::sqlite::Sqlite>::migrations(&SQLITE)
        .map_err(|e| e.to_string())?
        .iter()
        .map(|m| m.name().version().to_string())
        .collect();
    if let Some(newer) = known.iter().map(ToString::to_string).find(|v| !ours.contains(v)) {
        return Err(format!("the record was written by a newer release (its schema has step {newer}); run that release or a later one"));
    }
    let ran = c.run_pending_migrations(SQLITE).map_err(|e| e.to_string())?;
    Ok(ran.iter().map(ToString::to_string).collect())
}

#[derive(diesel::QueryableByName)]
struct Verdict {
    #[diesel(sql_type = Text, column_name = quick_check)]
    verdict: String,
}

/// Looks through the whole file; what it finds wrong, in SQLite's words.
pub(super) fn check_integrity(conn: &mut Conn) -> Result<(), String> {
    let Conn::Sqlite(c) = conn;
    let rows: Vec<Verdict> = diesel::sql_query("PRAGMA quick_check(5)").load(c).map_err(|e| e.to_string())?;
    match rows.first() {
        Some(row) if row.verdict == "ok" => Ok(()),
        _ => Err(rows.into_iter().map(|r| r.verdict).collect::<Vec<_>>().join("; ")),
    }
}

/// Moves the log into the database, as far as no reader needs it, so that the next start has nothing to replay.
pub(super) fn checkpoint(conn: &mut Conn) {
    let Conn::Sqlite(c) = conn;
    if let Err(error) = c.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)") {
        tracing::warn!(%error, "the write-ahead log could not be folded into the database");
    }
}

/// Begins a transaction: one state of the record for all reads in it.
fn begin(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| Ok(AnsiTransactionManager::begin_transaction(&mut *c)?))
}

/// Begins a transaction that will write: it takes the write lock at once instead of failing half way.
pub(super) fn begin_write(conn: &mut Conn) -> Result<(), StoreError> {
    let Conn::Sqlite(c) = conn;
    Ok(AnsiTransactionManager::begin_transaction_sql(c, "BEGIN IMMEDIATE")?)
}

pub(super) fn commit(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| Ok(AnsiTransactionManager::commit_transaction(&mut *c)?))
}

pub(super) fn roll_back(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| Ok(AnsiTransactionManager::rollback_transaction(&mut *c)?))
}

type Query = Box<dyn FnOnce(&mut Conn) + Send>;

/// The reading threads. They end when this is dropped.
pub(super) struct Readers {
    queries: Option<Sender<Query>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(folder: &Arc<Folder>, count: usize) -> Result<Self, String> {
        let (queries, waiting) = crossbeam_channel::bounded::<Query>(WAITING_READS);
        let mut threads = Vec::with_capacity(count);
        for n in 0..count {
            let mut conn = connect(folder)?;
            let Conn::Sqlite(c) = &mut conn;
            c.batch_execute("PRAGMA query_only = ON").map_err(|e| e.to_string())?;
            let (waiting, folder) = (waiting.clone(), folder.clone());
            let thread = thread::Builder::new().name(format!("record-read-{n}")).spawn(move || serve(conn, &waiting, &folder));
            threads.push(thread.map_err(|e| format!("a reading thread could not be started: {e}"))?);
        }
        Ok(Self { queries: Some(queries), threads })
    }

    /// Runs `query` in a transaction of its own: it sees one state of the record, however many statements it has.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        name: &'static str,
        query: impl FnOnce(&mut Conn) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CallError> {
        let asked = Instant::now();
        let (reply, answer) = oneshot::channel();
        let run: Query = Box::new(move |conn| {
            if reply.is_closed() {
                return; // the caller gave up while this waited
            }
            let result = begin(conn).and_then(|()| {
                let result = query(conn);
                commit(conn)?;
                result
            });
            let _ = reply.send(result); // a caller that gave up needs no answer
        });
        let queries = self.queries.as_ref().expect("the queue is taken only by drop");
        match queries.try_send(run) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(CallError::busy(Duration::from_millis(200), "too many reads are waiting")),
            Err(TrySendError::Disconnected(_)) => return Err(CallError::unavailable("the record's reading threads are gone")),
        }
        let result = answer.await.map_err(|_| CallError::internal(format!("the read {name:?} panicked")))?;
        metrics::histogram!(crate::metrics::READ_SECONDS, "read" => name).record(asked.elapsed().as_secs_f64());
        result.map_err(Into::into)
    }
}

fn serve(mut conn: Conn, waiting: &Receiver<Query>, folder: &Folder) {
    while let Ok(query) = waiting.recv() {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| query(&mut conn)));
        if ran.is_err() {
            // The panic left the connection in an unknown state; its message went through the panic hook.
            match connect(folder) {
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

/// Waits for `answer` as long as the call lives.
pub(super) async fn within<T>(cx: &CallCx, answer: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::select! {
        biased; // an answer that is there is given, also when the deadline has just passed
        result = answer => result,
        () = cx.cancel.cancelled() => Err(CallError::cancelled()),
        () = tokio::time::sleep_until(cx.deadline) => Err(CallError::deadline()),
    }
}
