//! What has been stored, told to whoever shows it.
//!
//! Invariants:
//! - outbox rows are announced in their order, each at least once, across restarts: the cursor moves after the announcement;
//! - a watermark is signalled after its transaction; only the newest of a channel, because it says everything the older ones said;
//! - nothing here delays the writer.
//!
//! With SQLite's one writer, the order of ids is the order of commits. On PostgreSQL it is not: there the relay must read below the
//! oldest running transaction.

use super::{
    Change, ChangeRows, Record, conversations, insights,
    schema::{bookkeeping, outbox},
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
use diesel::{ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, RunQueryDsl as _};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast},
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
/// The relay's cursor belongs to the database, not to a tenant.
const EVERYONE: &str = "";
const CURSOR: &str = "outbox_cursor";

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
        self.stored(Effects { watermarks: vec![mark], announced: false });
    }
}

#[derive(Clone, Debug, Queryable)]
struct Entry {
    id: i64,
    tenant_id: String,
    conversation_id: String,
    kind: String,
    subject: String,
    created_at: NaiveDateTime,
}

/// Announces until `stop`, then what is left.
pub(super) async fn relay(record: &Record, stop: &CancellationToken) {
    let mut relay = match Relay::start(record).await {
        Ok(relay) => relay,
        Err(error) => {
            error!(%error, "the relay cannot read its cursor and announces from the oldest row kept");
            Relay { record, cursor: 0, stored: 0, store_at: Instant::now() }
        }
    };
    let poll = Duration::from_millis(record.settings.relay_poll_ms);
    loop {
        let stopping = stop.is_cancelled();
        relay.signal_watermarks().await;
        match relay.announce().await {
            Ok(true) => continue, // a full batch: there is more
            Ok(false) => {}
            Err(error) => warn!(%error, "changes could not be announced; trying again"),
        }
        if stopping || Instant::now() >= relay.store_at {
            relay.store_cursor().await;
        }
        if stopping {
            return;
        }
        // Cancel-safe: nothing is taken while waiting, and a notification is kept.
        tokio::select! {
            () = record.announcer.wake.notified() => {}
            () = stop.cancelled() => {}
            () = tokio::time::sleep(poll) => {}
        }
    }
}

struct Relay<'a> {
    record: &'a Record,
    /// Everything up to here has been announced by this process or an earlier one.
    cursor: i64,
    /// What the database knows of it.
    stored: i64,
    store_at: Instant,
}

impl<'a> Relay<'a> {
    async fn start(record: &'a Record) -> Result<Self, CallError> {
        let cursor = record.readers.read("outbox_cursor", read_cursor).await?;
        Ok(Self { record, cursor, stored: cursor, store_at: Instant::now() })
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

    /// One batch. True when there may be more.
    async fn announce(&mut self) -> Result<bool, CallError> {
        let cursor = self.cursor;
        let (entries, changes) = self.record.readers.read("outbox", move |conn| read_changes(conn, cursor)).await?;
        let Some(last) = entries.last() else { return Ok(false) };
        self.cursor = last.id;
        let oldest = entries.iter().map(|e| e.created_at).min();
        if let Some(waited) = oldest.and_then(|at| (Utc::now().naive_utc() - at).to_std().ok()) {
            metrics::histogram!(names::OUTBOX_SECONDS).record(waited.as_secs_f64());
        }
        metrics::counter!(names::CHANGES_TOTAL).increment(changes.len() as u64);
        for change in changes {
            let _ = self.record.changes.send(Arc::new(change)); // an error only says that nobody listens
        }
        Ok(entries.len() as i64 == BATCH)
    }

    /// Also clears what lies behind the cursor.
    async fn store_cursor(&mut self) {
        self.store_at = Instant::now() + CURSOR_EVERY;
        if self.stored == self.cursor {
            return;
        }
        let cursor = self.cursor;
        let cx = CallCx::new(Duration::from_secs(5));
        match self.record.writer.ask(&cx, 1, move |conn, _| write_cursor(conn, cursor)).await {
            Ok(()) => self.stored = cursor,
            Err(error) => warn!(%error, "the outbox cursor could not be stored; a restart would repeat announcements"),
        }
    }
}

fn read_cursor(conn: &mut Conn) -> Result<i64, StoreError> {
    let cursor: Option<i64> =
        on_conn!(conn, |c: B| bookkeeping::table.find((EVERYONE, CURSOR)).select(bookkeeping::value).first(c).optional()?);
    Ok(cursor.unwrap_or(0))
}

/// The newest change: all up to it are stored, and later ones have higher ids.
pub(super) fn position(conn: &mut Conn) -> Result<i64, StoreError> {
    let newest: Option<i64> = on_conn!(conn, |c: B| outbox::table.select(diesel::dsl::max(outbox::id)).first(c)?);
    // Rows up to the cursor are deleted once they have been announced.
    Ok(newest.unwrap_or(0).max(read_cursor(conn)?))
}

fn write_cursor(conn: &mut Conn, cursor: i64) -> Result<(), StoreError> {
    let now = Utc::now().naive_utc();
    on_conn!(conn, |c: B| {
        diesel::insert_into(bookkeeping::table)
            .values((
                bookkeeping::tenant_id.eq(EVERYONE),
                bookkeeping::name.eq(CURSOR),
                bookkeeping::value.eq(cursor),
                bookkeeping::updated_at.eq(now),
            ))
            .on_conflict((bookkeeping::tenant_id, bookkeeping::name))
            .do_update()
            .set((bookkeeping::value.eq(cursor), bookkeeping::updated_at.eq(now)))
            .execute(c)?;
        diesel::delete(outbox::table.filter(outbox::id.le(cursor))).execute(c)?;
    });
    Ok(())
}

/// The next rows of the outbox, and what they announce, as it stands now.
fn read_changes(conn: &mut Conn, cursor: i64) -> Result<(Vec<Entry>, Vec<Change>), StoreError> {
    let entries: Vec<Entry> = on_conn!(conn, |c: B| {
        outbox::table
            .filter(outbox::id.gt(cursor))
            .order(outbox::id)
            .limit(BATCH)
            .select((outbox::id, outbox::tenant_id, outbox::conversation_id, outbox::kind, outbox::subject, outbox::created_at))
            .load(c)?
    });
    let mut changes: Vec<Change> = Vec::with_capacity(entries.len());
    let tenants: BTreeSet<&str> = entries.iter().map(|e| e.tenant_id.as_str()).collect();
    for tenant in tenants {
        let of: Vec<&Entry> = entries.iter().filter(|e| e.tenant_id == tenant).collect();
        changes.extend(changes_of(conn, &TenantId::new(tenant), &of)?);
    }
    changes.sort_by_key(|c| c.id);
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
        changes.push(Change { id: entry.id, tenant: tenant.clone(), conversation: conversation.id, event, rows });
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

/// A place to hear changes from now on.
pub(super) fn channel() -> broadcast::Sender<Arc<Change>> {
    broadcast::channel(BACKLOG).0
}
