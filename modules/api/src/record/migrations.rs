//! The schema's steps, carried in the binary.
//!
//! Each works while the release before it still writes: expand, move, contract (`tests/migrations.rs` reads them for what locks a table long).
//! So that a process of that release may also be started anew meanwhile, or be gone back to, the database says which releases that holds for.

use super::{
    bookkeeping,
    postgres::PgConn,
    store::{Conn, on_conn},
};
use diesel::{
    QueryableByName, RunQueryDsl as _,
    connection::SimpleConnection as _,
    migration::{Migration, MigrationSource as _},
    sql_types::{Bool, Text},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use tracing::info;

const SQLITE: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");
/// Releases that know this step still work with the schema as ours leaves it. A step that contracts raises it, to the last one before it that
/// brought what is used instead.
const OLDEST: i64 = 3;
/// What the database says of that.
const OLDEST_NAME: &str = "oldest_step_to_know";
/// Of the advisory lock that lets one process at a time change the schema.
const ALONE: i64 = 0x5143_5343_4845_4d41;

/// Which steps a database has had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub applied: Vec<String>,
    pub pending: Vec<String>,
    /// Steps this release does not know: a newer one has been here.
    pub newer: Vec<String>,
    /// This release works with them all the same.
    pub fits: bool,
}

impl State {
    pub(super) fn refuse_newer(&self) -> Result<(), String> {
        match self.newer.last() {
            None => Ok(()),
            Some(step) if self.fits => {
                info!(step, "a newer release has brought the schema up to date; this one still works with it");
                Ok(())
            }
            Some(step) => {
                Err(format!("the record was written by a newer release (its schema has step {step}); run that release or a later one"))
            }
        }
    }
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

#[derive(QueryableByName)]
struct Flag {
    #[diesel(sql_type = Bool)]
    flag: bool,
}

fn ask(c: &mut PgConn, question: &str) -> Result<bool, String> {
    let row: Flag = diesel::sql_query(format!("SELECT {question} AS flag")).get_result(c).map_err(|e| e.to_string())?;
    Ok(row.flag)
}

/// Reads only, so that it works with the rights of a process that serves.
pub(super) fn state(conn: &mut Conn) -> Result<State, String> {
    let ours: Vec<(String, String)> = match conn {
        Conn::Sqlite(_) => names::<diesel::sqlite::Sqlite>(&SQLITE)?,
        Conn::Postgres(_) => names::<diesel::pg::Pg>(&POSTGRES)?,
    };
    let begun = match conn {
        Conn::Sqlite(c) => {
            let found: Vec<Version> =
                diesel::sql_query("SELECT name AS version FROM sqlite_master WHERE name = '__diesel_schema_migrations'")
                    .load(c)
                    .map_err(|e| e.to_string())?;
            !found.is_empty()
        }
        Conn::Postgres(c) => ask(c, "to_regclass('__diesel_schema_migrations') IS NOT NULL")?,
    };
    let known: Vec<Version> = match begun {
        false => vec![],
        true => on_conn!(conn, |c: B| diesel::sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version").load(c))
            .map_err(|e| e.to_string())?,
    };
    let newer: Vec<String> =
        known.iter().filter(|k| !ours.iter().any(|(version, _)| *version == k.version)).map(|k| k.version.clone()).collect();
    let last: Option<i64> = ours.last().and_then(|(version, _)| version.parse().ok());
    let oldest = match newer.is_empty() {
        true => None,
        false => bookkeeping::read(conn, OLDEST_NAME).unwrap_or_default(), // one that cannot say does not fit
    };
    let fits = newer.is_empty() || oldest.zip(last).is_some_and(|(oldest, last)| oldest <= last);
    let (applied, pending): (Vec<_>, Vec<_>) = ours.into_iter().partition(|(version, _)| known.iter().any(|k| k.version == *version));
    let names = |steps: Vec<(String, String)>| steps.into_iter().map(|(_, name)| name).collect();
    Ok(State { applied: names(applied), pending: names(pending), newer, fits })
}

/// Of a SQLite database that is not there yet.
pub(super) fn nothing() -> Result<State, String> {
    let names = names::<diesel::sqlite::Sqlite>(&SQLITE)?;
    Ok(State { pending: names.into_iter().map(|(_, name)| name).collect(), fits: true, ..State::default() })
}

/// Versions and names, in order.
fn names<DB: diesel::backend::Backend>(steps: &EmbeddedMigrations) -> Result<Vec<(String, String)>, String>
where
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    let mut steps: Vec<Box<dyn Migration<DB>>> = steps.migrations().map_err(|e| e.to_string())?;
    steps.sort_by_key(|step| step.name().version().as_owned());
    Ok(steps.iter().map(|step| (step.name().version().to_string(), step.name().to_string())).collect())
}

/// Brings the schema up to this release. Returns the names of the steps that ran.
pub(super) fn apply(conn: &mut Conn) -> Result<Vec<String>, String> {
    if let Conn::Postgres(c) = conn
        && !ask(c, &format!("pg_try_advisory_lock({ALONE})"))?
    {
        return Err("another process is bringing its schema up to date: wait until it has finished".into());
    }
    let ran = state(conn).and_then(|state| {
        state.refuse_newer()?;
        match conn {
            Conn::Sqlite(c) => c.run_pending_migrations(SQLITE).map(drop).map_err(|e| e.to_string())?,
            Conn::Postgres(c) => {
                let c: &mut PgConn = c;
                c.run_pending_migrations(POSTGRES).map(drop).map_err(|e| e.to_string())?;
            }
        }
        let said = bookkeeping::read(conn, OLDEST_NAME).map_err(|e| e.to_string())?;
        if said.is_none_or(|said| said < OLDEST) {
            bookkeeping::note(conn, OLDEST_NAME, OLDEST).map_err(|e| e.to_string())?;
        }
        Ok(state.pending)
    });
    if let Conn::Postgres(c) = conn {
        let _ = c.batch_execute(&format!("SELECT pg_advisory_unlock({ALONE})")); // goes with the connection in any case
    }
    ran
}
