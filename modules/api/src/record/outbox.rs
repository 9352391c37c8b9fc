//! What has been stored, told to whoever shows it.
//!
//! Invariants:
//! - outbox rows are announced in their order, each at least once, across restarts: the cursor moves after the announcement;
//! - a row is passed only when no transaction can still put another before it: late commits are delayed, never skipped;
//! - a watermark is signalled after its transaction; only the newest of a channel, because it says everything the older ones said;
//! - where the database goes on from an earlier state, because a standby took the primary's place that lacked rows, transactions are numbered
//!   again from there: the place among them is read again, and everybody who follows is told to read afresh;
//! - nothing here delays the writer.
//!
//! With SQLite's one writer, the order of ids is the order of commits. On PostgreSQL it is not, and a reader that goes on after the highest id
//! misses what commits late: there the order is (transaction, id), read below the oldest transaction that still runs.
//!
//! Every process that shares a PostgreSQL server hears all changes; the one that holds the lock also keeps the cursor and tidies up. It deletes
//! rows, a second's at a time: at 1000 a second that takes 30 ms, and the table stays at 12 MiB. Partitions to drop would save less than they cost.

use super::{
    Change, ChangeRows, Position, Record, bookkeeping, conversations,
    fresh::{self, History},
    insights,
    schema::outbox,
    store::{Conn, StoreError, on_conn},
    transcript,
    writer::Effects,
};
use crate::metrics as names;
use bytes::Bytes;
use chrono::{NaiveDateTime, Utc};
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, InsightId, TenantId, UtteranceId,
    conversation::{Conversation, RecordEvent},
    signal::{self, Committed},
};
use diesel::{
    QueryDsl as _, Queryable, RunQueryDsl as _,
    dsl::sql,
    sql_types::{BigInt, Bool, Text},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{
        Notify,
        broadcast::{self, error::RecvError},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Rows read at once.
const BATCH: i64 = 256;
/// Changes a subscriber may be behind.
pub(super) const BACKLOG: usize = 4_096;
/// How often the cursor is stored. A crash repeats what was announced since; readers know a change by what it says.
const CURSOR_EVERY: Duration = Duration::from_secs(1);
const CURSOR: &str = "outbox_cursor";
const CURSOR_XID: &str = "outbox_cursor_xid";
/// On a shared server other processes commit unheard; they are looked for at least this often.
const SHARED_POLL: Duration = Duration::from_millis(200);
/// Something is committed that an older transaction holds back.
const HELD_BACK_POLL: Duration = Duration::from_millis(10);
/// A change that waits longer than this is told to the operator.
const OVERDUE: Duration = Duration::from_secs(5);
/// How long rows stay for processes that follow, on a shared server, by this process's clock: those of who wrote them need not agree.
const KEPT: Duration = Duration::from_secs(60);
/// Of the advisory lock of the process that keeps the cursor.
const LEADER: i64 = 0x5143_4f55_5442_4f58;

/// Where the writer leaves what must be told.
#[derive(Default)]
pub(super) struct Announcer {
    watermarks: Mutex<HashMap<(ConversationId, ChannelIndex), Committed>>,
    wake: Notify,
}

impl Announcer {
    pub(super) fn stored(&self, effects: Effects) {
        if effects.watermarks.is_empty() && !effects.announced {
            return;
        }
        let mut watermarks = self.watermarks.lock();
        for mark in effects.watermarks {
            watermarks.insert((mark.conversation, mark.channel), mark);
        }
        drop(watermarks);
        self.wake.notify_one();
    }

    /// Tells the producer where its channel stands, although nothing has moved.
    pub(super) fn remind(&self, mark: Committed) {
        self.stored(Effects { watermarks: vec![mark], ..Effects::default() });
    }
}

/// A place in the order of announcements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Number of the transaction; 0 on SQLite, whose transactions follow one another.
    pub(super) xid: i64,
    pub(super) id: i64,
}

#[derive(Clone, Debug, Queryable)]
pub(super) struct Entry {
    xid: i64,
    id: i64,
    tenant_id: String,
    conversation_id: String,
    kind: String,
    subject: String,
    created_at: NaiveDateTime,
    /// Nothing can come before it any more.
    pub(super) settled: bool,
}

impl Entry {
    pub(super) fn place(&self) -> Place {
        Place { xid: self.xid, id: self.id }
    }
    fn age(&self) -> Duration {
        (Utc::now().naive_utc() - self.created_at).to_std().unwrap_or_default()
    }
}

/// Where databases differ: how the order of commits is spelt. Transaction and id of a [`Place`] go into the gaps.
trait Order {
    const XID: &'static str;
    const BY: &'static str;
    const AFTER: (&'static str, &'static str, &'static str);
    const UP_TO: (&'static str, &'static str, &'static str);
    const SETTLED: &'static str;
}

impl Order for diesel::sqlite::Sqlite {
    const XID: &'static str = "0";
    const BY: &'static str = "outbox.id";
    const AFTER: (&'static str, &'static str, &'static str) = ("(0 = ", " AND outbox.id > ", ")");
    const UP_TO: (&'static str, &'static str, &'static str) = ("(0 = ", " AND outbox.id <= ", ")");
    const SETTLED: &'static str = "1";
}

impl Order for diesel::pg::Pg {
    const XID: &'static str = "outbox.xid::text::bigint";
    const BY: &'static str = "outbox.xid, outbox.id";
    const AFTER: (&'static str, &'static str, &'static str) = ("((outbox.xid, outbox.id) > (", "::text::xid8, ", "))");
    const UP_TO: (&'static str, &'static str, &'static str) = ("((outbox.xid, outbox.id) <= (", "::text::xid8, ", "))");
    const SETTLED: &'static str = "(outbox.xid < pg_snapshot_xmin(pg_current_snapshot()))";
}

/// [`Order::AFTER`] or [`Order::UP_TO`] with a place in it; a macro, because the type has no short name.
macro_rules! beside {
    ($parts:expr, $place:expr) => {
        sql::<Bool>($parts.0).bind::<BigInt, _>($place.xid).sql($parts.1).bind::<BigInt, _>($place.id).sql($parts.2)
    };
}

/// Announces until `stop`, then what is left.
pub(super) async fn relay(record: &Record, stop: &CancellationToken) {
    let mut relay = Relay::start(record).await;
    let mut poll = Duration::from_millis(record.settings.relay_poll_ms);
    if record.database.is_shared() {
        poll = poll.min(SHARED_POLL);
    }
    loop {
        let stopping = stop.is_cancelled();
        relay.signal_watermarks().await;
        let mut wait = poll;
        match relay.announce().await {
            Ok(Batch::Full) => continue,
            Ok(Batch::HeldBack) => wait = HELD_BACK_POLL,
            Ok(Batch::Done) => {}
            Err(error) => relay.complain(&error),
        }
        if stopping || Instant::now() >= relay.tidy_at {
            relay.tidy().await;
        }
        if stopping {
            return;
        }
        // Cancel-safe: nothing is taken while waiting, and a notification is kept.
        tokio::select! {
            () = record.announcer.wake.notified() => {}
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Relay<'a> {
    record: &'a Record,
    /// Everything up to here has been announced by this process, or by one before it. `None`: the database has not said yet.
    cursor: Option<Place>,
    /// What the database knows of it.
    stored: Place,
    /// Of the cursor.
    trail: Trail,
    /// Rows up to here are gone, as far as this process knows.
    cleared: Option<Place>,
    tidy_at: Instant,
    /// This process keeps the cursor.
    leads: bool,
    /// Of the database when its history was read; it may be another's after that.
    turns: u64,
    complain_at: Instant,
    alarm_at: Instant,
}

/// Where somebody was, and up to where that was [`KEPT`] ago.
#[derive(Default)]
struct Trail {
    lately: VecDeque<(Instant, Place)>,
    before: Option<Place>,
}

impl Trail {
    fn is_at(&mut self, now: Instant, place: Place) {
        self.lately.push_back((now, place));
        while let Some((_, place)) = self.lately.front().filter(|(when, _)| now.duration_since(*when) >= KEPT) {
            self.before = Some(*place);
            self.lately.pop_front();
        }
    }
}

enum Batch {
    /// There may be more.
    Full,
    /// The next rows wait for a transaction that was begun before theirs.
    HeldBack,
    Done,
}

impl<'a> Relay<'a> {
    async fn start(record: &'a Record) -> Self {
        let now = Instant::now();
        let stored = Place::default();
        let mut relay = Self {
            record,
            cursor: None,
            stored,
            trail: Trail::default(),
            cleared: None,
            tidy_at: now,
            leads: false,
            turns: 0,
            complain_at: now,
            alarm_at: now + OVERDUE,
        };
        if let Err(error) = relay.find_place().await {
            relay.complain(&error);
        }
        relay
    }

    /// Everybody goes on where the last one that kept the cursor stood, so nothing is missed whoever died when.
    async fn find_place(&mut self) -> Result<Place, CallError> {
        let database = self.record.database.clone();
        let read = self.record.relay.read("outbox_cursor", move |conn| {
            let turns = database.turns();
            Ok((turns, fresh::history(conn)?, lead(conn)?, read_cursor(conn)?))
        });
        let (turns, history, leads, cursor) = read.await?;
        (self.turns, self.leads, self.cursor, self.stored) = (turns, leads, Some(cursor), cursor);
        self.trail = Trail::default();
        self.cleared = None;
        self.begin(history);
        Ok(cursor)
    }

    /// From here on it is this history that is told.
    fn begin(&self, history: History) {
        let is_another = self.record.history.send_if_modified(|known| std::mem::replace(known, history) != history);
        if is_another {
            self.record.database.read_there_again();
            warn!(?history, "a standby has taken the primary's place, and may lack what was stored last: everybody reads afresh");
            let _ = self.record.changes.send(None); // an error only says that nobody listens
        }
    }

    async fn signal_watermarks(&self) {
        let marks = std::mem::take(&mut *self.record.announcer.watermarks.lock());
        for mark in marks.into_values() {
            let payload = serde_json::to_vec(&mark).expect("a watermark is ids and numbers");
            if let Err(error) = self.record.bus.signal(signal::COMMITTED, Bytes::from(payload)).await {
                warn!(conversation = %mark.conversation, %error, "a watermark was not signalled; its producer will ask");
            }
        }
    }

    async fn announce(&mut self) -> Result<Batch, CallError> {
        let cursor = match self.cursor {
            Some(cursor) => cursor,
            None => self.find_place().await?,
        };
        let (database, turns, history) = (self.record.database.clone(), self.turns, *self.record.history.borrow());
        let read = self.record.relay.read("outbox", move |conn| {
            // On the connection that is read from: it may have been made just now.
            let now = database.turns();
            if now != turns && fresh::history(conn)? != history {
                return Ok(None);
            }
            Ok(Some((now, read_changes(conn, cursor)?)))
        });
        let Some((turns, (entries, changes))) = read.await? else {
            self.cursor = None;
            return Ok(Batch::Full);
        };
        self.turns = turns;
        if self.record.database.read_there_again() {
            warn!("reads were answered by a standby, which may lack what was stored last: everybody reads afresh");
            let _ = self.record.changes.send(None); // an error only says that nobody listens
        }
        self.watch_age(entries.first().map(Entry::age));
        let settled = entries.iter().take_while(|e| e.settled).count();
        let Some(last) = entries[..settled].last() else {
            return Ok(if entries.is_empty() { Batch::Done } else { Batch::HeldBack });
        };
        self.cursor = Some(last.place());
        metrics::histogram!(names::OUTBOX_SECONDS).record(entries[0].age().as_secs_f64());
        metrics::counter!(names::CHANGES_TOTAL).increment(changes.len() as u64);
        if self.record.database.is_shared() {
            // Before anybody is told, and without waiting: who is told may ask at once.
            self.record.cache.void(history.announced(&changes));
        }
        for change in changes {
            let _ = self.record.changes.send(Some(Arc::new(change)));
        }
        Ok(match (settled < entries.len(), entries.len() as i64 == BATCH) {
            (true, _) => Batch::HeldBack,
            (false, true) => Batch::Full,
            (false, false) => Batch::Done,
        })
    }

    /// A change that cannot be announced means stale screens and caches, and only a person can end what holds it back.
    fn watch_age(&mut self, oldest: Option<Duration>) {
        let age = oldest.unwrap_or_default();
        metrics::gauge!(names::OUTBOX_OLDEST).set(age.as_secs_f64());
        if age > OVERDUE && Instant::now() >= self.alarm_at {
            self.alarm_at = Instant::now() + OVERDUE;
            let look = match self.record.database.is_shared() {
                true => "look for a transaction that does not end (pg_stat_activity, oldest xact_start)",
                false => "look for why its file cannot be read",
            };
            error!(age_s = age.as_secs(), "changes wait to be announced: {look}");
        }
    }

    fn complain(&mut self, error: &CallError) {
        if Instant::now() >= self.complain_at {
            self.complain_at = Instant::now() + OVERDUE;
            warn!(%error, "changes could not be announced; trying again");
        }
    }

    /// Of who leads: stores the cursor and clears what lies behind it.
    async fn tidy(&mut self) {
        self.tidy_at = Instant::now() + CURSOR_EVERY;
        let led = self.leads;
        match self.record.relay.read("outbox_lead", lead).await {
            Ok(leads) => self.leads = leads,
            Err(error) => return self.complain(&error),
        }
        if self.leads && !led {
            tracing::info!("this process keeps the outbox's cursor from now on");
        }
        let Some(cursor) = self.cursor else { return };
        self.trail.is_at(Instant::now(), cursor);
        let behind = match self.record.database.is_shared() {
            true => self.trail.before,
            false => Some(cursor),
        };
        if !self.leads || cursor == self.stored && behind == self.cleared {
            return;
        }
        let (cx, history) = (CallCx::new(Duration::from_secs(5)), *self.record.history.borrow());
        match self.record.writer.ask(&cx, 1, move |conn, _| write_cursor(conn, history, cursor, behind)).await {
            Ok(true) => (self.stored, self.cleared) = (cursor, behind),
            Ok(false) => {} // this is found out, and the place with it, before the next announcement
            Err(error) => warn!(%error, "the outbox cursor could not be stored; a restart would repeat announcements"),
        }
    }
}

/// Whether this process keeps the cursor. On a shared server the lock goes with the connection it was taken on.
fn lead(conn: &mut Conn) -> Result<bool, StoreError> {
    let Conn::Postgres(c) = conn else { return Ok(true) };
    let c: &mut super::postgres::PgConn = c;
    // Taking it again would succeed, and be counted.
    let held = format!(
        "EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() AND database = \
         (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid::bigint = {} AND objid::bigint = {})",
        LEADER >> 32,
        LEADER & 0xffff_ffff
    );
    Ok(diesel::select(sql::<Bool>(&format!("CASE WHEN {held} THEN true ELSE pg_try_advisory_lock({LEADER}) END"))).get_result(c)?)
}

pub(super) fn read_cursor(conn: &mut Conn) -> Result<Place, StoreError> {
    let mut one = |name| Ok::<_, StoreError>(bookkeeping::read(conn, name)?.unwrap_or(0));
    Ok(Place { xid: one(CURSOR_XID)?, id: one(CURSOR)? })
}

/// What this read sees of the changes.
pub(super) fn position(conn: &mut Conn) -> Result<Position, StoreError> {
    if let Conn::Postgres(c) = conn {
        let c: &mut super::postgres::PgConn = c;
        let snapshot: String = diesel::select(sql::<Text>("pg_current_snapshot()::text")).get_result(c)?;
        return Position::of_snapshot(&snapshot).ok_or_else(|| StoreError::damaged("snapshot", snapshot));
    }
    let newest: Option<i64> = on_conn!(conn, |c: B| outbox::table.select(diesel::dsl::max(outbox::id)).first(c)?);
    // Rows up to the cursor are deleted once they have been announced.
    Ok(Position::UpTo(newest.unwrap_or(0).max(read_cursor(conn)?.id)))
}

impl Position {
    /// `xmin:xmax:running,running`, as PostgreSQL writes it.
    fn of_snapshot(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':').skip(1);
        let end = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Some(Self::Ended { end, running })
    }
}

/// Not where another history goes on, whose transactions have other numbers: everything new there would lie behind the cursor.
pub(super) fn write_cursor(conn: &mut Conn, history: History, cursor: Place, behind: Option<Place>) -> Result<bool, StoreError> {
    if fresh::history(conn)? != history {
        return Ok(false);
    }
    bookkeeping::note(conn, CURSOR_XID, cursor.xid)?;
    bookkeeping::note(conn, CURSOR, cursor.id)?;
    if let Some(behind) = behind {
        on_conn!(conn, |c: B| diesel::delete(outbox::table.filter(beside!(<B as Order>::UP_TO, behind))).execute(c)?);
    }
    Ok(true)
}

/// The next rows after a place, whether or not they may be passed.
pub(super) fn read_entries(conn: &mut Conn, after: Place) -> Result<Vec<Entry>, StoreError> {
    on_conn!(conn, |c: B| {
        Ok(outbox::table
            .filter(beside!(<B as Order>::AFTER, after))
            .order(sql::<BigInt>(<B as Order>::BY))
            .limit(BATCH)
            .select((
                sql::<BigInt>(<B as Order>::XID),
                outbox::id,
                outbox::tenant_id,
                outbox::conversation_id,
                outbox::kind,
                outbox::subject,
                outbox::created_at,
                sql::<Bool>(<B as Order>::SETTLED),
            ))
            .load(c)?)
    })
}

/// The next rows of the outbox, and what the settled ones announce, as it stands now.
fn read_changes(conn: &mut Conn, cursor: Place) -> Result<(Vec<Entry>, Vec<Change>), StoreError> {
    let entries = read_entries(conn, cursor)?;
    let settled: Vec<&Entry> = entries.iter().take_while(|e| e.settled).collect();
    let mut changes: Vec<Change> = Vec::with_capacity(settled.len());
    let tenants: BTreeSet<&str> = settled.iter().map(|e| e.tenant_id.as_str()).collect();
    for tenant in tenants {
        let of: Vec<&Entry> = settled.iter().copied().filter(|e| e.tenant_id == tenant).collect();
        changes.extend(changes_of(conn, &TenantId::new(tenant), &of)?);
    }
    changes.sort_by_key(|c| (c.xid, c.id));
    Ok((entries, changes))
}

fn changes_of(conn: &mut Conn, tenant: &TenantId, entries: &[&Entry]) -> Result<Vec<Change>, StoreError> {
    let subjects = |kind: &str| -> Vec<String> { entries.iter().filter(|e| e.kind == kind).map(|e| e.subject.clone()).collect() };
    let named: BTreeSet<String> = entries.iter().map(|e| e.conversation_id.clone()).collect();
    let named: Vec<String> = named.into_iter().collect();
    let conversations: HashMap<ConversationId, _> =
        conversations::by_ids(conn, tenant, &named)?.into_iter().map(|row| (row.id, row)).collect();
    let utterances: HashMap<UtteranceId, _> =
        transcript::by_ids(conn, tenant, &subjects("utterance"))?.into_iter().map(|row| (row.id, row)).collect();
    let insights: HashMap<InsightId, _> =
        insights::by_ids(conn, tenant, &subjects("insight"))?.into_iter().map(|found| (found.0.id, found)).collect();

    let mut changes = Vec::with_capacity(entries.len());
    for entry in entries {
        // What has been erased since is announced no more.
        let Some(conversation) = conversations.get(&conversations::id_of(&entry.conversation_id)?) else { continue };
        let (event, rows) = match entry.kind.as_str() {
            "conversation" => (RecordEvent::Changed(conversation.conversation(tenant)), ChangeRows::Conversation(conversation.clone())),
            "utterance" => {
                let Some(utterance) = utterances.get(&conversations::id_of(&entry.subject)?) else { continue };
                (utterance.event(), ChangeRows::Utterance { utterance: utterance.clone(), conversation: conversation.clone() })
            }
            "insight" => {
                let Some((insight, superseded)) = insights.get(&conversations::id_of(&entry.subject)?) else { continue };
                let rows =
                    ChangeRows::Insight { insight: insight.clone(), superseded: superseded.clone(), conversation: conversation.clone() };
                (RecordEvent::Insight(insight.insight()), rows)
            }
            other => {
                warn!(kind = other, "an announcement of a newer release was passed over");
                continue;
            }
        };
        changes.push(Change { xid: entry.xid, id: entry.id, tenant: tenant.clone(), conversation: conversation.id, event, rows });
    }
    Ok(changes)
}

impl super::ConversationRow {
    /// As the contract says it.
    pub fn conversation(&self, tenant: &TenantId) -> Conversation {
        Conversation {
            tenant: tenant.clone(),
            id: self.id,
            external_id: self.external_id.clone(),
            title: self.title.clone(),
            source: self.source.clone(),
            language: self.language.clone(),
            tags: self.tags.clone(),
            state: self.state,
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }
}

/// What goes to subscribers. `None`: what was told or read before may not be what there is.
pub(super) type News = Option<Arc<Change>>;

/// A place to hear changes from now on.
pub(super) fn channel() -> broadcast::Sender<News> {
    broadcast::channel(BACKLOG).0
}

/// Changes from some moment on.
pub struct Changes(pub(super) broadcast::Receiver<News>);

/// Why the next change is not the one that follows the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    #[error("it fell {0} changes behind")]
    Behind(u64),
    /// What was told before may not be there any more, or not have been read, and what is there now may not have been told.
    #[error("a standby has taken the primary's place, or answered for it, and may lack what was stored last")]
    Another,
    #[error("there will be no more")]
    Closed,
}

impl Changes {
    /// The next one. Cancel-safe.
    ///
    /// # Errors
    /// After all but `Closed` a reader reads afresh, and goes on.
    pub async fn recv(&mut self) -> Result<Arc<Change>, Missed> {
        match self.0.recv().await {
            Ok(Some(change)) => Ok(change),
            Ok(None) => Err(Missed::Another),
            Err(RecvError::Lagged(missed)) => Err(Missed::Behind(missed)),
            Err(RecvError::Closed) => Err(Missed::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cleared_up_to_where_the_cursor_was_a_minute_ago() {
        let mut trail = Trail::default();
        let begun = Instant::now();
        let mut at = |second: u64, id: i64| {
            trail.is_at(begun + Duration::from_secs(second), Place { xid: 0, id });
            trail.before.map(|place| place.id)
        };
        assert_eq!(at(0, 10), None);
        assert_eq!(at(30, 20), None);
        assert_eq!(at(59, 30), None, "nobody knows how long it had been there when this process came");
        assert_eq!(at(60, 40), Some(10));
        assert_eq!(at(95, 40), Some(20));
        assert_eq!(at(155, 40), Some(40), "all of it, once nothing has happened for a minute");
    }
}
