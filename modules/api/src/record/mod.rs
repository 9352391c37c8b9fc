//! The record: what was said and what it meant, kept so that it survives kill -9.
//!
//! Invariants:
//! - a channel's committed ranges are contiguous, never overlap, and carry one epoch at a time (`commit.rs`);
//! - one thread writes; what waits for it is merged into one transaction, and each request has its own answer (`writer.rs`);
//! - whatever is stored is announced after its transaction, in order, at least once (`outbox.rs`);
//! - SQLite and PostgreSQL run the same query bodies (`store.rs`); where they differ is named in `search.rs` and `outbox.rs`.
//!
//! Deliberately absent: sockets, models, audio. Only this folder names diesel and the databases' drivers.

mod bookkeeping;
mod commit;
mod contract;
mod conversations;
mod copy;
mod cursor;
mod database;
mod dead_letters;
mod finalize;
mod folder;
mod fresh;
mod insights;
mod memory;
mod migrations;
pub mod operate;
mod outbox;
mod postgres;
mod readers;
mod reconcile;
mod recorder;
mod relocate;
mod replica;
mod rows;
mod schema;
mod search;
mod sqlite;
mod store;
mod talk;
#[cfg(test)]
mod tests;
mod tls;
mod transcript;
mod trouble;
mod writer;

use crate::settings::{RecordSettings, Settings};
use chrono::{DateTime, Utc};
use contracts::{
    CallCx, CallError, ConversationId, InsightId, TenantId,
    audio::Role,
    conversation::{ConversationState, RecordEvent},
    inference::Task,
};
pub use cursor::{Cut, DEFAULT_LIMIT, MAX_LIMIT};
use database::{Database, Use};
pub use dead_letters::{DeadLetterRow, Replayed};
pub use finalize::{Claim, Finding, Follow, Outcome, Quality, Score, Step};
use fresh::{Commits, History};
pub use migrations::State as SchemaState;
use outbox::Announcer;
pub use outbox::{Changes, Missed};
use platform::{
    bus::Bus,
    cache::{Front, Mark, Stamp},
};
use readers::Readers;
use replica::Replica;
pub use rows::{
    ChannelRow, ChannelTalk, ConversationRow, EvidenceRow, Finalization, HitConversation, HitUtterance, InsightRow, LabelRow, Page,
    ProvenanceRow, ResultRow, SearchHit, SnippetPart, SummaryRow, TalkMetrics, TopLabel, UtteranceKind, UtteranceRow, WordRow,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
pub use talk::talk_metrics;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use writer::{Effects, Writer};

/// Of one conversation, read at once.
pub const MOST_UTTERANCES: usize = 10_000;
/// On one wall.
pub const MOST_TILES: usize = 500;

/// Which conversations to list; every field narrows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConversationFilter {
    pub state: Option<ConversationState>,
    /// Started at or after.
    pub from: Option<DateTime<Utc>>,
    /// Started before.
    pub to: Option<DateTime<Utc>>,
    pub tag: Option<String>,
    /// Name of the conversation's top intent.
    pub intent: Option<String>,
    pub sentiment: Option<String>,
}

/// Where to search; every field narrows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchFilter {
    pub role: Option<Role>,
    /// The conversation is in this state.
    pub state: Option<ConversationState>,
    /// The conversation started at or after.
    pub from: Option<DateTime<Utc>>,
    /// The conversation started before.
    pub to: Option<DateTime<Utc>>,
}

/// Something that has been stored, with the rows a reader needs to show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The transaction it was stored in; 0 on SQLite. Changes are announced by (xid, id).
    pub xid: i64,
    /// Differs from every other change's; what one process stores has rising ones.
    pub id: i64,
    pub tenant: TenantId,
    pub conversation: ConversationId,
    pub event: RecordEvent,
    pub rows: ChangeRows,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ChangeRows {
    /// Opened, closed.
    Conversation(ConversationRow),
    /// Speech or gap. `conversation` has the counts as they are now.
    Utterance { utterance: UtteranceRow, conversation: ConversationRow },
    /// `superseded`: the insights this one has taken the place of. `conversation` has intent and sentiment as they are now.
    Insight { insight: InsightRow, superseded: Vec<InsightId>, conversation: ConversationRow },
}

/// Which changes a read has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Of one writer, whose ids follow its commits.
    UpTo(i64),
    /// All that was stored by transactions before `end`, but those that were still running.
    Ended { end: i64, running: Vec<i64> },
}

impl Position {
    /// Whether what was read shows this change. One that it does not show will be announced.
    pub fn contains(&self, change: &Change) -> bool {
        match self {
            Self::UpTo(id) => change.id <= *id,
            Self::Ended { end, running } => change.xid < *end && !running.contains(&change.xid),
        }
    }
}

/// One conversation, read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub position: Position,
    pub conversation: ConversationRow,
    /// Speech and gaps, by start; at most [`MOST_UTTERANCES`].
    pub utterances: Vec<UtteranceRow>,
    /// Current ones, oldest first.
    pub insights: Vec<InsightRow>,
}

/// Why the record cannot be opened; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("a QuickComm is already running on the data folder {folder}{}", if .by.is_empty() { String::new() } else { format!(" ({by})") })]
    Taken { folder: PathBuf, by: String },
    #[error("cannot {doing} the data folder {folder}")]
    Folder {
        folder: PathBuf,
        doing: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("cannot open the record {path}: {reason}")]
    Database { path: PathBuf, reason: String },
    #[error("cannot use the record's database {server}: {reason}")]
    Server { server: String, reason: String },
    #[error("the record {path} is damaged: {findings}; restore it from a copy, or move it away to start with an empty one")]
    Damaged { path: PathBuf, findings: String },
    #[error("cannot start a thread for the record")]
    Thread(#[source] io::Error),
}

/// What is wrong with the addresses of the record's databases, if anything, and which setting; they are not tried.
pub(crate) fn check_addresses(settings: &RecordSettings) -> Result<(), (&'static str, String)> {
    if let Some(ca) = &settings.ca {
        tls::Tls::with(Some(ca)).map_err(|problem| ("ca", problem))?;
    }
    let primary = postgres::Server::of(settings).map_err(|problem| ("url", problem))?;
    let replica = postgres::Server::replica(settings).map_err(|problem| ("replica_url", problem))?;
    if replica.is_some() && primary.is_none() {
        return Err(("replica_url", "there is no server it could follow; expected api.record.url, too".into()));
    }
    if settings.ca.is_some() && ![&primary, &replica].into_iter().flatten().any(postgres::Server::is_encrypted) {
        return Err(("ca", "no address asks for TLS, so nobody would be checked; expected ?sslmode=verify-full in api.record.url".into()));
    }
    Ok(())
}

/// How the record does, for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Serving,
    /// It can be read; why nothing can be stored.
    TakesNoWrites(String),
    /// Why it does not answer.
    Silent(String),
}

/// For a write that only finds out whether it can be done.
const PROBE: std::time::Duration = std::time::Duration::from_secs(1);

/// The record of this process. Also the contract [`contracts::Conversations`].
pub struct Record {
    settings: RecordSettings,
    bus: Arc<dyn Bus>,
    cache: Arc<Front>,
    commits: Arc<Commits>,
    database: Arc<Database>,
    readers: Readers,
    /// The standby that takes reads, if there is one now.
    replica: watch::Sender<Option<Arc<Replica>>>,
    /// One connection of its own, which holds the lock of who announces.
    relay: Readers,
    writer: Writer,
    announcer: Arc<Announcer>,
    changes: broadcast::Sender<outbox::News>,
    /// Of the database, as far as the relay knows.
    history: Arc<watch::Sender<History>>,
}

impl Record {
    /// Opens the record in the folder `data`, alone: a second opener is refused. Where the settings name a PostgreSQL server, the folder is
    /// for recordings only. Waits while SQLite's schema is brought up to date.
    ///
    /// What changes is voided in a cache of its own.
    pub async fn open(data: &Path, bus: Arc<dyn Bus>, settings: &Settings) -> Result<Arc<Self>, OpenError> {
        Self::open_behind(Front::memory(), data, bus, settings).await
    }

    /// The same with the cache that readers of this process ask first; its upkeep is its owner's.
    pub async fn open_behind(cache: Arc<Front>, data: &Path, bus: Arc<dyn Bus>, settings: &Settings) -> Result<Arc<Self>, OpenError> {
        let (data, settings) = (data.to_owned(), settings.record.clone());
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&data, bus, settings, cache)).await;
        opened.unwrap_or_else(|panic| Err(OpenError::Thread(io::Error::other(panic))))
    }

    fn open_blocking(data: &Path, bus: Arc<dyn Bus>, settings: RecordSettings, cache: Arc<Front>) -> Result<Arc<Self>, OpenError> {
        let database = Arc::new(Database::take(data, &settings)?);
        let mut conn = database.open()?;
        let failed = |reason| database.failure(reason);
        let history = fresh::history(&mut conn).map_err(|error| failed(error.to_string()))?;
        let history = Arc::new(watch::Sender::new(history));
        let commits = Arc::new(Commits::new());
        let readers = Readers::start(&database, Use::Reading, settings.readers, &commits).map_err(failed)?;
        let relay = Readers::start(&database, Use::Relaying, 1, &commits).map_err(failed)?;
        let replica = watch::Sender::new(database.replica().map(Replica::new));
        let announcer = Arc::new(Announcer::default());
        let (told, voiding, counting, of) = (announcer.clone(), cache.clone(), commits.clone(), history.clone());
        let shared = database.is_shared();
        let aftermath = Box::new(move |effects: Effects| {
            // Before the answers: who has written reads what he wrote. On a shared server the relay says which version counts.
            let floor = if shared { 0 } else { counting.count() };
            voiding.void(of.borrow().touched(&effects.touched, floor));
            told.stored(effects);
        });
        let writer = Writer::start(conn, database.clone(), &settings, aftermath).map_err(OpenError::Thread)?;
        let changes = outbox::channel();
        Ok(Arc::new(Self { settings, bus, cache, commits, database, readers, replica, relay, writer, announcer, changes, history }))
    }

    /// Runs recorder and relay until `stop`, then stores what is waiting on the bus and announces it.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let stored = CancellationToken::new();
        let store = async {
            tokio::join!(
                recorder::utterances(&self, &stop),
                recorder::insights(&self, &stop),
                dead_letters::collect(&self, &stop),
                reconcile::run(&self, &stop),
            );
            stop.cancelled().await; // a bus that ended early does not silence what is committed by call
            stored.cancel();
        };
        tokio::join!(store, outbox::relay(&self, &stored), replica::watch(&self, &stored));
    }

    /// Waits until every write asked for is on disk, then takes no more and frees the data folder. After [`Record::run`] has ended.
    pub async fn drain(&self) {
        if tokio::time::timeout(std::time::Duration::from_secs(30), self.writer.stop()).await.is_err() {
            warn!("the record's writer did not end within 30 s");
        }
    }

    /// Connections are made to the hosts that these settings name, from now on; nothing is interrupted.
    ///
    /// # Errors
    /// What is wrong with the address, without its password.
    pub fn readdress(&self, settings: &RecordSettings) -> Result<(), String> {
        self.database.readdress(settings)
    }

    /// Reads that may be behind go to the standby that these settings name, from now on; none: to the primary.
    ///
    /// # Errors
    /// What is wrong with the address, without its password.
    pub fn read_from(&self, settings: &RecordSettings) -> Result<(), String> {
        self.database.follow(settings)?;
        self.replica.send_replace(self.database.replica().map(Replica::new));
        Ok(())
    }

    fn replica(&self) -> Option<Arc<Replica>> {
        self.replica.borrow().clone()
    }

    /// The server that other processes share, without its password; `None` for a file of this process.
    pub fn shared_at(&self) -> Option<String> {
        self.database.is_shared().then(|| self.database.name())
    }

    /// Whether the database answers and takes writes. Where the last write failed a while ago, one is tried.
    pub async fn probe(&self) -> Standing {
        if let Err(silent) = self.readers.read("probe", |_| Ok(())).await {
            return Standing::Silent(silent.to_string());
        }
        if self.writer.trouble.wants_a_try() {
            let try_it = |conn: &mut store::Conn, _: &mut Effects| bookkeeping::note(conn, "probe", 0);
            let _ = self.writer.ask(&CallCx::new(PROBE), 1, try_it).await; // the writer remembers how it ended
        }
        self.writer.trouble.now().map_or(Standing::Serving, Standing::TakesNoWrites)
    }

    /// The file, or the server without its password.
    pub fn name(&self) -> String {
        self.database.name()
    }

    /// Every change from now on. A reader that falls 4096 behind is told so, and should read a fresh snapshot.
    pub fn subscribe(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    /// What names everything that is kept of the database.
    pub(crate) fn history(&self) -> History {
        *self.history.borrow()
    }

    /// More changes at once than any reader keeps up with, all like this one.
    #[cfg(test)]
    pub(crate) fn flood(&self, change: &Arc<Change>) {
        for _ in 0..5000 {
            let _ = self.changes.send(Some(change.clone()));
        }
    }

    /// A conversation whole, and from which change on to follow it.
    pub async fn snapshot(&self, tenant: &TenantId, id: ConversationId) -> Result<Snapshot, CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| {
            Ok(Snapshot {
                position: outbox::position(conn)?,
                conversation: conversations::row(conn, &tenant, id)?,
                utterances: transcript::page(conn, &tenant, id, None, MOST_UTTERANCES)?.data,
                insights: insights::of_conversation(conn, &tenant, id, false, None)?,
            })
        };
        self.readers.read("snapshot", read).await
    }

    /// What readers of this process ask first.
    pub fn cache(&self) -> &Arc<Front> {
        &self.cache
    }

    /// Whoever shows this reads everything whose writing has been answered by now.
    pub async fn token(&self) -> Result<Mark, CallError> {
        let commits = self.commits.clone();
        self.readers.read("token", move |conn| fresh::token(conn, &commits)).await
    }

    /// A standby answers reads, and its primary nobody: what is read, and what the cache got that way, may lack what was stored last.
    pub fn may_lack_the_last(&self) -> bool {
        self.database.reads_elsewhere() || self.replica().is_some_and(|replica| replica.is_alone())
    }

    /// From whoever is new enough, and how new what was read is.
    async fn read_routed<T: Send + 'static>(
        &self,
        name: &'static str,
        at_least: Option<Mark>,
        query: impl FnOnce(&mut store::Conn) -> Result<T, store::StoreError> + Clone + Send + 'static,
    ) -> Result<(Stamp, T), CallError> {
        if let Some(replica) = self.replica()
            && let Some(readers) = replica.readers_for(at_least).await
        {
            match readers.read_stamped(name, query.clone()).await {
                Err(error) if replica.failed(&error) => warn!(%error, "the replica did not answer a read: the primary is asked"),
                answer => return answer,
            }
        }
        self.readers.read_stamped(name, query).await
    }

    /// One conversation; `None`: there is none. What is read has seen everything up to `at_least`, here and below.
    pub async fn row_since(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        at_least: Option<Mark>,
    ) -> Result<(Stamp, Option<ConversationRow>), CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| match conversations::find(conn, &tenant, id)? {
            Some(_) => Ok(Some(conversations::row(conn, &tenant, id)?)),
            None => Ok(None),
        };
        self.read_routed("row", at_least, read).await
    }

    /// Speech and gaps, by start; `None`: there is no such conversation.
    pub async fn utterances_since(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        cut: &Cut,
        at_least: Option<Mark>,
    ) -> Result<(Stamp, Option<Page<UtteranceRow>>), CallError> {
        let (after, limit) = (transcript::place(cut)?, cut.limit()?);
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| match conversations::find(conn, &tenant, id)? {
            Some(_) => Ok(Some(transcript::page(conn, &tenant, id, after, limit)?)),
            None => Ok(None),
        };
        self.read_routed("utterances", at_least, read).await
    }

    /// Oldest first; `None`: there is no such conversation.
    pub async fn insights_since(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        superseded: bool,
        task: Option<Task>,
        at_least: Option<Mark>,
    ) -> Result<(Stamp, Option<Vec<InsightRow>>), CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| match conversations::find(conn, &tenant, id)? {
            Some(_) => Ok(Some(insights::of_conversation(conn, &tenant, id, superseded, task)?)),
            None => Ok(None),
        };
        self.read_routed("insights", at_least, read).await
    }

    /// Newest first.
    pub async fn list(&self, tenant: &TenantId, filter: &ConversationFilter, cut: &Cut) -> Result<Page<ConversationRow>, CallError> {
        Ok(self.list_since(tenant, filter, cut, None).await?.1)
    }

    /// Newest first.
    pub async fn list_since(
        &self,
        tenant: &TenantId,
        filter: &ConversationFilter,
        cut: &Cut,
        at_least: Option<Mark>,
    ) -> Result<(Stamp, Page<ConversationRow>), CallError> {
        let (after, limit) = (conversations::place(cut)?, cut.limit()?);
        if [&filter.tag, &filter.intent, &filter.sentiment].into_iter().flatten().any(|name| name.contains('\0')) {
            return Err(CallError::invalid("a filter contains a zero character"));
        }
        let (tenant, filter) = (tenant.clone(), filter.clone());
        self.read_routed("list", at_least, move |conn: &mut store::Conn| conversations::list(conn, &tenant, &filter, after, limit)).await
    }

    /// # Errors
    /// `NotFound`, as for all reads of one conversation.
    pub async fn row(&self, tenant: &TenantId, id: ConversationId) -> Result<ConversationRow, CallError> {
        let tenant = tenant.clone();
        self.readers.read("row", move |conn| conversations::row(conn, &tenant, id)).await
    }

    /// Live ones, and those that ended at or after `since`; newest first, at most [`MOST_TILES`].
    pub async fn wall(&self, tenant: &TenantId, since: DateTime<Utc>) -> Result<Vec<ConversationRow>, CallError> {
        let tenant = tenant.clone();
        self.readers.read("wall", move |conn| conversations::wall(conn, &tenant, since, MOST_TILES)).await
    }

    /// Speech and gaps, by start.
    pub async fn utterances(&self, tenant: &TenantId, id: ConversationId, cut: &Cut) -> Result<Page<UtteranceRow>, CallError> {
        let (after, limit) = (transcript::place(cut)?, cut.limit()?);
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| {
            conversations::find(conn, &tenant, id)?.ok_or_else(|| conversations::unknown(id))?;
            transcript::page(conn, &tenant, id, after, limit)
        };
        self.readers.read("utterances", read).await
    }

    /// All of a conversation's, speech and gaps, by start; at most [`MOST_UTTERANCES`].
    pub async fn transcript(&self, tenant: &TenantId, id: ConversationId) -> Result<Vec<UtteranceRow>, CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| {
            conversations::find(conn, &tenant, id)?.ok_or_else(|| conversations::unknown(id))?;
            Ok(transcript::page(conn, &tenant, id, None, MOST_UTTERANCES)?.data)
        };
        self.readers.read("transcript", read).await
    }

    /// Oldest first. Superseded ones only when asked for.
    pub async fn insights(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        superseded: bool,
        task: Option<Task>,
    ) -> Result<Vec<InsightRow>, CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| {
            conversations::find(conn, &tenant, id)?.ok_or_else(|| conversations::unknown(id))?;
            insights::of_conversation(conn, &tenant, id, superseded, task)
        };
        self.readers.read("insights", read).await
    }

    /// Newest first. Every word must occur; the last one may be a beginning.
    pub async fn search(&self, tenant: &TenantId, q: &str, filter: &SearchFilter, cut: &Cut) -> Result<Page<SearchHit>, CallError> {
        search::words(q)?; // refused before it waits
        let (before, limit) = (search::place(cut)?, cut.limit()?);
        let (tenant, q, filter) = (tenant.clone(), q.to_owned(), filter.clone());
        let read = move |conn: &mut store::Conn| search::page(conn, &tenant, &search::words(&q)?, &filter, before, limit);
        self.readers.read("search", read).await
    }

    /// Talk metrics as far as the conversation is committed.
    pub async fn metrics(&self, tenant: &TenantId, id: ConversationId) -> Result<TalkMetrics, CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut store::Conn| {
            let row = conversations::row(conn, &tenant, id)?;
            let said = transcript::page(conn, &tenant, id, None, MOST_UTTERANCES)?.data;
            Ok(talk_metrics(id, row.duration_ms, &row.channels, &said))
        };
        self.readers.read("metrics", read).await
    }
}
