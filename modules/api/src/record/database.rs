//! Where the record is kept: a file in the data folder, or a PostgreSQL server.
//!
//! Invariant: whichever it is, the data folder belongs to one process, because recordings are kept there.

use super::{OpenError, folder::Folder, migrations, postgres::Server, sqlite, store::Conn};
use crate::settings::RecordSettings;
use parking_lot::RwLock;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tracing::info;

pub(super) struct Database {
    folder: Folder,
    /// Replaced when the settings name other hosts.
    server: RwLock<Option<Server>>,
    /// Rises when whatever writes has been connected anew: readers then look where the database is, too.
    turns: AtomicU64,
    /// The standby that takes reads; replaced likewise.
    replica: RwLock<Option<Server>>,
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

impl Use {
    /// As the server's list of sessions shows it: who moves the database ends writers and leaves readers alone.
    pub(super) fn named(self, config: &tokio_postgres::Config) -> tokio_postgres::Config {
        let mut config = config.clone();
        config.application_name(match self {
            Self::Reading | Self::Following => READER,
            Self::Relaying => "quickcomm relay",
            Self::Writing => "quickcomm write",
            Self::Migrating => "quickcomm db",
        });
        config
    }
}

/// A session that only reads.
pub(super) const READER: &str = "quickcomm read";

impl Database {
    /// Takes the data folder; connects to nothing yet.
    pub(super) fn take(data: &Path, settings: &RecordSettings) -> Result<Self, OpenError> {
        let wrong = |server: &'static str| move |reason| OpenError::Server { server: server.into(), reason };
        let server = Server::of(settings).map_err(wrong("api.record.url"))?;
        let replica = Server::replica(settings).map_err(wrong("api.record.replica_url"))?;
        Ok(Self { folder: Folder::take(data)?, server: RwLock::new(server), turns: AtomicU64::new(0), replica: RwLock::new(replica) })
    }

    pub(super) fn connect(&self, purpose: Use) -> Result<Conn, String> {
        let server = if purpose == Use::Following { self.replica() } else { self.server() };
        let Some(server) = server else { return Ok(Conn::Sqlite(sqlite::connect(&self.folder, purpose)?)) };
        let conn = server.connect(purpose)?;
        if matches!(purpose, Use::Writing | Use::Relaying) {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Conn::Postgres(Box::new(conn)))
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    /// After a transaction: whether commits may wait for their standby again.
    pub(super) fn mend(&self, conn: &mut Conn) {
        if let (Conn::Postgres(conn), Some(server)) = (conn, &*self.server.read()) {
            server.mend(conn);
        }
    }

    /// Commits do not wait for the standby they should wait for.
    pub(super) fn is_alone(&self) -> bool {
        self.server.read().as_ref().is_some_and(Server::is_alone)
    }

    /// Reads are answered by a host that takes no writes: they may lack what was stored last.
    pub(super) fn reads_elsewhere(&self) -> bool {
        self.server.read().as_ref().is_some_and(|server| server.reads_elsewhere().load(Ordering::SeqCst))
    }

    /// There is one that does: the next read goes to it. Says whether they were answered elsewhere.
    pub(super) fn read_there_again(&self) -> bool {
        let elsewhere = self.server.read().as_ref().is_some_and(|server| server.reads_elsewhere().swap(false, Ordering::SeqCst));
        if elsewhere {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
        elsewhere
    }

    /// The hosts that connections are made to from now on.
    ///
    /// # Errors
    /// What is wrong with the address, or that this record is not on a server.
    pub(super) fn readdress(&self, settings: &RecordSettings) -> Result<(), String> {
        let new = Server::of(settings)?;
        let mut server = self.server.write();
        if server.is_none() || new.is_none() {
            return Err("a record moves between its file and a server only by `quickcomm db copy` and a restart".into());
        }
        *server = new.zip(server.take()).map(|(new, before)| new.goes_on_from(&before));
        self.turns.fetch_add(1, Ordering::SeqCst);
        Ok(())
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
        match &*self.server.read() {
            // Where the damage is in what says which tables there are, nothing can be looked through.
            None if reason.contains("malformed") => OpenError::Damaged { path: self.folder.database(), findings: reason },
            None => {
                let reason = match self.folder.try_disk() {
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                        format!("the disk that holds the record is full ({reason}): make room there")
                    }
                    _ => reason,
                };
                OpenError::Database { path: self.folder.database(), reason }
            }
            Some(server) => OpenError::Server { server: server.to_string(), reason },
        }
    }

    /// The file, or the server without its password.
    pub(super) fn name(&self) -> String {
        match &*self.server.read() {
            None => self.folder.database().display().to_string(),
            Some(server) => server.to_string(),
        }
    }

    pub(super) fn server(&self) -> Option<Server> {
        self.server.read().clone()
    }

    pub(super) fn replica(&self) -> Option<Server> {
        self.replica.read().clone()
    }

    /// The standby that takes reads from now on.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub(super) fn follow(&self, settings: &RecordSettings) -> Result<(), String> {
        *self.replica.write() = Server::replica(settings)?;
        Ok(())
    }

    pub(super) fn is_shared(&self) -> bool {
        self.server.read().is_some()
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
