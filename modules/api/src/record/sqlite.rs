//! SQLite: one file in the data folder.

use super::{database::Use, folder::Folder, store::Conn};
use diesel::{Connection as _, RunQueryDsl as _, SqliteConnection, connection::SimpleConnection as _, sql_types::Text};
use libsqlite3_sys as _; // linked from its own sources, so that every machine runs the same SQLite
use std::path::Path;

/// Opens one more connection to the database in `folder`.
pub(super) fn connect(folder: &Folder, purpose: Use) -> Result<SqliteConnection, String> {
    let path = folder.database();
    let path = path.to_str().ok_or_else(|| format!("the path {} is not valid UTF-8", path.display()))?;
    let mut conn = SqliteConnection::establish(path).map_err(|e| e.to_string())?;
    // FULL: a commit is on disk before it is answered. The cache is per connection, in KiB.
    conn.batch_execute(
        "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -8000; PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(|e| e.to_string())?;
    if matches!(purpose, Use::Reading | Use::Following | Use::Relaying) {
        conn.batch_execute("PRAGMA query_only = ON").map_err(|e| e.to_string())?;
    }
    Ok(conn)
}

/// Opens a database that is there, beside whoever works on it, without changing anything.
pub(super) fn look(path: &Path) -> Result<Conn, String> {
    let path = path.to_str().ok_or_else(|| format!("the path {} is not valid UTF-8", path.display()))?;
    let mut conn = SqliteConnection::establish(path).map_err(|e| e.to_string())?;
    conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA query_only = ON; PRAGMA temp_store = MEMORY;").map_err(|e| e.to_string())?;
    Ok(Conn::Sqlite(conn))
}

#[derive(diesel::QueryableByName)]
struct Verdict {
    #[diesel(sql_type = Text, column_name = quick_check)]
    verdict: String,
}

/// Looks through the whole file; what it finds wrong, in SQLite's words.
pub(super) fn check_integrity(conn: &mut SqliteConnection) -> Result<(), String> {
    let rows: Vec<Verdict> = diesel::sql_query("PRAGMA quick_check(5)").load(conn).map_err(|e| e.to_string())?;
    match rows.first() {
        Some(row) if row.verdict == "ok" => Ok(()),
        _ => Err(rows.into_iter().map(|r| r.verdict).collect::<Vec<_>>().join("; ")),
    }
}

/// Moves the log into the database, as far as no reader needs it, so that the next start has nothing to replay.
pub(super) fn checkpoint(conn: &mut Conn) {
    let Conn::Sqlite(c) = conn else { return };
    if let Err(error) = c.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)") {
        tracing::warn!(%error, "the write-ahead log could not be folded into the database");
    }
}
