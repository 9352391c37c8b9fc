//! Connections: one type for both databases, how a transaction is spelt, and how errors read.
//!
//! Invariants:
//! - a connection never leaves its thread: one thread writes (`writer.rs`), a few read (`readers.rs`), all named `record-…`;
//! - every query body is written once, against [`Conn`], and expanded per backend by `on_conn!`.

use super::postgres::PgConn;
use contracts::{CallCx, CallError, ErrorKind, Retry};
use diesel::{
    Connection, SqliteConnection,
    connection::{AnsiTransactionManager, TransactionManager as _},
    result::{DatabaseErrorKind, Error as DieselError},
};
use std::time::Duration;

/// An open connection.
pub(super) enum Conn {
    Sqlite(SqliteConnection),
    Postgres(Box<PgConn>),
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
            $crate::record::store::Conn::Postgres($c) => {
                #[allow(dead_code)]
                type $b = diesel::pg::Pg;
                let $c: &mut $crate::record::postgres::PgConn = $c;
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
    Database(#[from] DieselError),
    /// A row that this release cannot have written.
    #[error("the record holds {0}, which cannot be read")]
    Damaged(String),
    /// There is no connection, and for the moment no way to one.
    #[error("{0}")]
    Unreachable(String),
}

impl StoreError {
    pub(super) fn damaged(what: &str, value: impl std::fmt::Display) -> Self {
        Self::Damaged(format!("the {what} {value}"))
    }

    /// The connection has gone, so what it was doing may have happened or not.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Database(error) => is_lost(error),
            Self::Refused(_) | Self::Damaged(_) => false,
        }
    }

    /// The server has become read-only: it is a standby, or its place has been taken.
    pub(super) fn is_fenced(&self) -> bool {
        match self {
            Self::Database(DieselError::DatabaseError(kind, said)) => {
                matches!(kind, DatabaseErrorKind::ReadOnlyTransaction) || said.message().contains("in a read-only transaction")
            }
            _ => false,
        }
    }

    /// Somebody else was at the same rows, who has ended by now: the same may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Database(DieselError::DatabaseError(kind, said)) => {
                matches!(kind, DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::SerializationFailure)
                    || said.message().contains("deadlock")
            }
            _ => false,
        }
    }
}

fn is_lost(error: &DieselError) -> bool {
    match error {
        DieselError::BrokenTransactionManager => true,
        DieselError::RollbackErrorOnCommit { rollback_error, commit_error } => is_lost(rollback_error) || is_lost(commit_error),
        DieselError::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, _) => true,
        // PostgreSQL says farewell in words when it is stopped.
        DieselError::DatabaseError(_, said) => said.message().contains("terminating connection"),
        _ => false,
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        if error.is_lost() {
            let detail = format!("the record's database does not answer ({error}); sending the same again is safe");
            return Self::new(ErrorKind::Unavailable, Retry::After(Duration::from_secs(1)), detail);
        }
        let text = match &error {
            StoreError::Refused(refusal) => return refusal.clone(),
            StoreError::Damaged(_) | StoreError::Unreachable(_) => return Self::internal(error.to_string()),
            StoreError::Database(DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _)) => {
                "the record's database takes no writes: it is a standby, or is being moved".into()
            }
            StoreError::Database(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => {
                "another process changed the same rows at the same time".into()
            }
            StoreError::Database(error) => error.to_string(),
        };
        // The databases' own words; diesel passes no code on.
        if ["disk is full", "No space left on device"].iter().any(|full| text.contains(full)) {
            return Self::spool_full(Duration::from_secs(1), "the disk that holds the record is full");
        }
        let passing = [
            ("readonly database", "the record cannot be written: its files are read-only"),
            ("disk I/O error", "the disk that holds the record failed"),
            ("database is locked", "another process holds the record's database"),
            ("takes no writes", "the record's database takes no writes: it is a standby, or is being moved"),
            ("at the same time", "another process changed the same rows at the same time"),
            ("deadlock detected", "another process changed the same rows at the same time"),
            ("canceling statement", "the record's database took too long"),
            ("too many connections", "the record's database has no connection left"),
            ("remaining connection slots", "the record's database has no connection left"),
        ];
        for (theirs, ours) in passing {
            if text.contains(theirs) {
                return Self::new(ErrorKind::Unavailable, Retry::After(Duration::from_secs(1)), ours);
            }
        }
        Self::internal(format!("the record's database failed: {text}"))
    }
}

fn begin_on<C: Connection>(c: &mut C) -> Result<(), StoreError> {
    Ok(C::TransactionManager::begin_transaction(c)?)
}

fn commit_on<C: Connection>(c: &mut C) -> Result<(), StoreError> {
    Ok(C::TransactionManager::commit_transaction(c)?)
}

fn roll_back_on<C: Connection>(c: &mut C) -> Result<(), StoreError> {
    Ok(C::TransactionManager::rollback_transaction(c)?)
}

/// Begins a transaction: one state of the record for all reads in it. Within a transaction: a savepoint.
pub(super) fn begin(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| begin_on(c))
}

/// Begins a transaction that will write. SQLite takes the write lock at once instead of failing half way.
pub(super) fn begin_write(conn: &mut Conn) -> Result<(), StoreError> {
    match conn {
        Conn::Sqlite(c) => Ok(AnsiTransactionManager::begin_transaction_sql(c, "BEGIN IMMEDIATE")?),
        Conn::Postgres(c) => begin_on::<PgConn>(c),
    }
}

/// Of a savepoint: lets it go, its changes stay in the transaction.
pub(super) fn commit(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| commit_on(c))
}

/// Of a savepoint: back to it.
pub(super) fn roll_back(conn: &mut Conn) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| roll_back_on(c))
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
