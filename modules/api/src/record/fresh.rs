//! How new a read is, and what a change makes old: what the cache in front of the record compares.
//!
//! Invariants:
//! - a read's stamp is taken before what it sees is fixed, so it never claims more than it has seen;
//! - SQLite's one writer counts its commits, and says so before it answers: whoever is told of a commit reads it;
//! - a standby that takes a primary's place may lack what was committed last, and gives the numbers of those transactions out again: nothing that
//!   is kept from before is looked at any more ([`History`]);
//! - on PostgreSQL a version is the oldest transaction still running (its snapshot's xmin) on whichever server was read, so a replica that
//!   lags says so by itself; a change's floor is one above its transaction, set by the relay, which passes nothing that may be preceded.

use super::{
    Change,
    postgres::PgConn,
    store::{Conn, StoreError},
};
use chrono::Utc;
use contracts::{ConversationId, TenantId};
use diesel::{
    QueryableByName, RunQueryDsl as _,
    dsl::sql,
    sql_types::{BigInt, Integer},
};
use platform::cache::{Mark, Scope, Stamp, Void};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

/// Counts the commits of this process; begins at the time in µs, so that it is above every earlier run's.
pub(super) struct Commits(AtomicU64);

impl Commits {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(Utc::now().timestamp_micros().unsigned_abs()))
    }

    pub(super) fn count(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn so_far(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = Integer)]
    timeline: i32,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    standby: bool,
}

/// A server's timeline, its place in the log, and whether it is a standby. The control file learns of a new timeline at the next checkpoint
/// only, the names of log files at once, but a standby has none to name.
pub(super) const PLACE: &str = "
    SELECT pg_is_in_recovery() AS standby,
        CASE WHEN pg_is_in_recovery()
            THEN greatest((SELECT timeline_id FROM pg_control_checkpoint()), coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END AS timeline,
        (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_insert_lsn() END
            - '0/0')::bigint AS at";

fn place(c: &mut PgConn) -> Result<Place, StoreError> {
    Ok(diesel::sql_query(PLACE).get_result(c)?)
}

/// Everything committed up to here is seen by whoever reads from now on. Outside a transaction.
pub(super) fn mark(conn: &mut Conn, commits: &Commits) -> Result<Mark, StoreError> {
    let Conn::Postgres(c) = conn else { return Ok(Mark { timeline: 0, at: commits.so_far() }) };
    let place = place(c)?;
    // A commit is in a primary's log a moment before others see it, so only what is below the end of the log is surely seen.
    let at = if place.standby { place.at } else { place.at - 1 };
    Ok(Mark { timeline: place.timeline as u32, at: at as u64 })
}

/// Whoever reads at this mark or later sees everything whose commit was answered before this was asked. Of a primary.
pub(super) fn token(conn: &mut Conn, commits: &Commits) -> Result<Mark, StoreError> {
    let Conn::Postgres(c) = conn else { return Ok(Mark { timeline: 0, at: commits.so_far() }) };
    let place = place(c)?;
    Ok(Mark { timeline: place.timeline as u32, at: place.at as u64 })
}

/// The first thing a stamped read asks in its transaction.
pub(super) fn stamp(conn: &mut Conn, mark: Mark) -> Result<Stamp, StoreError> {
    let Conn::Postgres(c) = conn else { return Ok(Stamp { ver: mark.at, mark }) };
    let c: &mut PgConn = c;
    let xmin: i64 = diesel::select(sql::<BigInt>("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")).get_result(c)?;
    Ok(Stamp { ver: xmin as u64, mark })
}

/// Which course of events the database is on: its cluster, and how often a standby has taken over there. Transactions, ids and versions of
/// different ones cannot be compared. A file of this process has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    cluster: i64,
    timeline: i32,
}

/// The history of the server that this connection has reached.
pub(super) fn history(conn: &mut Conn) -> Result<History, StoreError> {
    let Conn::Postgres(c) = conn else { return Ok(History::default()) };
    let c: &mut PgConn = c;
    let cluster = diesel::select(sql::<BigInt>("(SELECT system_identifier FROM pg_control_system())")).get_result(c)?;
    Ok(History { cluster, timeline: place(c)?.timeline })
}

impl History {
    /// What is kept of one conversation.
    pub(crate) fn conversation(self, tenant: &TenantId, id: ConversationId) -> Scope {
        self.scope(tenant, &id.to_string())
    }

    /// What is kept of the lists of conversations.
    pub(crate) fn lists(self, tenant: &TenantId) -> Scope {
        self.scope(tenant, "lists")
    }

    fn scope(self, tenant: &TenantId, name: &str) -> Scope {
        Scope::new(tenant.as_str(), format!("{:x}.{}/{name}", self.cluster, self.timeline))
    }

    /// Of a transaction that has just been committed here. Without a floor it says only that what is kept is old.
    pub(super) fn touched(self, of: &BTreeSet<(TenantId, ConversationId)>, floor: u64) -> Vec<Void> {
        let tenants: BTreeSet<&TenantId> = of.iter().map(|(tenant, _)| tenant).collect();
        let scopes = of.iter().map(|(tenant, id)| self.conversation(tenant, *id)).chain(tenants.into_iter().map(|t| self.lists(t)));
        scopes.map(|scope| Void { scope, floor }).collect()
    }

    /// Of changes of a shared server, in the order of their transactions.
    pub(super) fn announced(self, changes: &[Change]) -> Vec<Void> {
        let mut voids: std::collections::BTreeMap<Scope, u64> = Default::default();
        for change in changes {
            for scope in [self.conversation(&change.tenant, change.conversation), self.lists(&change.tenant)] {
                let floor = voids.entry(scope).or_default();
                *floor = (*floor).max(change.xid as u64 + 1);
            }
        }
        voids.into_iter().map(|(scope, floor)| Void { scope, floor }).collect()
    }
}
