//! What an operator does to the record's database from outside: looks at its schema, brings it up to date, moves it (`copy.rs`).
//!
//! Invariant: works beside a running process, except on SQLite's file, which belongs to one process at a time.

use super::{
    OpenError,
    database::{Database, Use},
    folder::Folder,
    migrations::{self, State},
    postgres::Server,
    sqlite,
    store::Conn,
};
pub use super::{
    copy::{Copied, Progress, copy},
    relocate::{Passed, Plan, Relocated, Stage, abort as abort_relocation, relocate},
};
use crate::settings::RecordSettings;
use std::path::{Path, PathBuf};

/// A database's name, without its password, and which steps its schema has had.
#[derive(Clone, Debug)]
pub struct Schema {
    pub database: String,
    pub state: State,
}

/// Which steps the schema has had. Changes nothing, and makes no database.
pub async fn schema(data: PathBuf, settings: RecordSettings) -> Result<Schema, OpenError> {
    apart(move || {
        let Some(server) = server(&settings)? else {
            let path = data.join("record.sqlite");
            let database = path.display().to_string();
            let Some(mut conn) = Database::file_in(&data).map(|path| sqlite::look(&path)).transpose().map_err(|e| of_file(&data, e))?
            else {
                return Ok(Schema { database, state: migrations::nothing().map_err(|e| of_file(&data, e))? });
            };
            return Ok(Schema { database, state: migrations::state(&mut conn).map_err(|e| of_file(&data, e))? });
        };
        let of_server = |reason| OpenError::Server { server: server.to_string(), reason };
        let mut conn = connect(&server).map_err(of_server)?;
        Ok(Schema { database: server.to_string(), state: migrations::state(&mut conn).map_err(of_server)? })
    })
    .await
}

/// Brings the schema up to this release; returns the names of the steps that ran.
pub async fn migrate(data: PathBuf, settings: RecordSettings) -> Result<Vec<String>, OpenError> {
    apart(move || {
        let Some(server) = server(&settings)? else {
            let folder = Folder::take(&data)?;
            let mut conn = Conn::Sqlite(sqlite::connect(&folder, Use::Migrating).map_err(|e| of_file(&data, e))?);
            let ran = migrations::apply(&mut conn).map_err(|e| of_file(&data, e))?;
            sqlite::checkpoint(&mut conn);
            if !folder.unclean {
                folder.leave();
            }
            return Ok(ran);
        };
        let of_server = |reason| OpenError::Server { server: server.to_string(), reason };
        let mut conn = connect(&server).map_err(of_server)?;
        migrations::apply(&mut conn).map_err(of_server)
    })
    .await
}

pub(super) fn server(settings: &RecordSettings) -> Result<Option<Server>, OpenError> {
    Server::of(settings).map_err(|reason| OpenError::Server { server: "api.record.url".into(), reason })
}

pub(super) fn connect(server: &Server) -> Result<Conn, String> {
    let mut conn = server.connect(Use::Migrating)?;
    Server::check(&mut conn)?;
    Ok(Conn::Postgres(Box::new(conn)))
}

fn of_file(data: &Path, reason: String) -> OpenError {
    OpenError::Database { path: data.join("record.sqlite"), reason }
}

/// The hosts of the record's server; none where that is SQLite.
///
/// # Errors
/// What is wrong with the address.
pub fn hosts(settings: &RecordSettings) -> Result<Vec<String>, OpenError> {
    Ok(server(settings)?.map(|server| server.addresses()).unwrap_or_default())
}

/// The host of the replica that servers with these settings read from; none where they name none.
///
/// # Errors
/// What is wrong with the address.
pub fn replica_hosts(settings: &RecordSettings) -> Result<Vec<String>, OpenError> {
    let replica = Server::replica(settings).map_err(|reason| OpenError::Server { server: "api.record.replica_url".into(), reason })?;
    Ok(replica.map(|server| server.addresses()).unwrap_or_default())
}

/// On a thread that may block.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, OpenError> + Send + 'static) -> Result<T, OpenError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(OpenError::Thread(std::io::Error::other(panic))))
}
