//! Where the record is kept: a file in the data folder, or a PostgreSQL server.
//!
//! Invariant: whichever it is, the data folder belongs to one process, because recordings are kept there.

use super::{OpenError, folder::Folder, migrations, postgres::Server, sqlite, store::Conn};
use crate::settings::RecordSettings;
use std::path::{Path, PathBuf};
use tracing::info;

pub(super) struct Database {
    folder: Folder,
    server: Option<Server>,
    replica: Option<Server>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Reading,
    /// Reads from the replica.
    Following,
    /// Reads what must be announced, and holds the lock that says who does.
    Relaying,
    Writing,
    /// Takes as long as it takes.
    Migrating,
}

impl Database {
    /// Takes the data folder; connects to nothing yet.
    pub(super) fn take(data: &Path, settings: &RecordSettings) -> Result<Self, OpenError> {
        let wrong = |server: &'static str| move |reason| OpenError::Server { server: server.into(), reason };
        let server = Server::of(settings).map_err(wrong("api.record.url"))?;
        let replica = Server::replica(settings).map_err(wrong("api.record.replica_url"))?;
        Ok(Self { folder: Folder::take(data)?, server, replica })
    }

    pub(super) fn connect(&self, purpose: Use) -> Result<Conn, String> {
        let server = if purpose == Use::Following { &self.replica } else { &self.server };
        match server {
            None => Ok(Conn::Sqlite(sqlite::connect(&self.folder, purpose)?)),
            Some(server) => Ok(Conn::Postgres(Box::new(server.connect(purpose)?))),
        }
    }

    /// The connection that will write, after looking whether this database can be worked with. SQLite's schema is brought up to date, because
    /// nobody else works with it; PostgreSQL's is an operator's step (`quickcomm db migrate`).
    pub(super) fn open(&self) -> Result<Conn, OpenError> {
        let failed = |reason| self.failure(reason);
        let mut conn = self.connect(Use::Writing).map_err(failed)?;
        match &mut conn {
            Conn::Sqlite(c) => {
                let path = self.folder.database();
                if self.folder.unclean {
                    info!(path = %path.display(), "the last run did not stop in order: looking through the record");
                    sqlite::check_integrity(c).map_err(|findings| OpenError::Damaged { path, findings })?;
                }
                for step in migrations::apply(&mut conn).map_err(failed)? {
                    info!(step, "schema step done");
                }
            }
            Conn::Postgres(c) => {
                Server::check(c).and_then(|()| Server::check_rights(c)).map_err(failed)?;
                let state = migrations::state(&mut conn).map_err(failed)?;
                state.refuse_newer().map_err(failed)?;
                if !state.pending.is_empty() {
                    let reason = format!("its schema lacks {}: `quickcomm db migrate` brings it up to date", state.pending.join(", "));
                    return Err(self.failure(reason));
                }
            }
        }
        Ok(conn)
    }

    pub(super) fn failure(&self, reason: String) -> OpenError {
        match &self.server {
            // Where the damage is in what says which tables there are, nothing can be looked through.
            None if reason.contains("malformed") => OpenError::Damaged { path: self.folder.database(), findings: reason },
            None => OpenError::Database { path: self.folder.database(), reason },
            Some(server) => OpenError::Server { server: server.to_string(), reason },
        }
    }

    /// The file, or the server without its password.
    pub(super) fn name(&self) -> String {
        match &self.server {
            None => self.folder.database().display().to_string(),
            Some(server) => server.to_string(),
        }
    }

    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    pub(super) fn replica(&self) -> Option<&Server> {
        self.replica.as_ref()
    }

    pub(super) fn is_shared(&self) -> bool {
        self.server.is_some()
    }

    /// Everything is stored: tidies up and gives the folder free.
    pub(super) fn leave(&self, mut conn: Conn) {
        sqlite::checkpoint(&mut conn);
        drop(conn);
        self.folder.leave();
    }

    /// Whether there is a SQLite record in `data`, and where.
    pub(super) fn file_in(data: &Path) -> Option<PathBuf> {
        Some(data.join("record.sqlite")).filter(|path| path.is_file())
    }
}
