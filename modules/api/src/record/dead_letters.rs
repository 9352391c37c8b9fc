//! Entries of the bus that were given up: kept whole, looked at by a person, and put back.
//!
//! Invariants:
//! - a letter's id follows from what it is, so one that is given up twice is one row, with the newest reason;
//! - a replay is marked after the bus has taken the entry, and done once: what is repeated after a crash is found to be a duplicate by its
//!   readers.

use super::{
    Record,
    recorder::Source,
    schema::dead_letters,
    store::{Conn, StoreError, on_conn},
};
use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime, Utc};
use contracts::{
    CallCx, CallError, ErrorKind, Retry, TenantId,
    signal::{self, DeadLetter},
};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, RunQueryDsl as _, Selectable, SelectableHelper as _,
};
use platform::bus::NewEntry;
use serde::Serialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const BUDGET: Duration = Duration::from_secs(10);
/// Listed at once.
const MOST: i64 = 1_000;
/// Streams an entry can go back to.
const STREAMS: [&str; 2] = [signal::UTTERANCES, signal::INSIGHTS];

/// A dead letter as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadLetterRow {
    pub id: String,
    pub died_at: DateTime<Utc>,
    /// When it was put back.
    pub replayed_at: Option<DateTime<Utc>>,
    #[serde(flatten)]
    pub letter: DeadLetter,
}

/// What a replay did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replayed {
    pub id: String,
    /// False: it had been replayed before, and nothing was done.
    pub replayed: bool,
    pub replayed_at: DateTime<Utc>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
struct Entry {
    id: String,
    stream: String,
    entry_key: String,
    payload: Vec<u8>,
    error: String,
    attempts: i64,
    trace: String,
    version: String,
    died_at: NaiveDateTime,
    replayed_at: Option<NaiveDateTime>,
}

impl Entry {
    fn row(self) -> Result<DeadLetterRow, StoreError> {
        Ok(DeadLetterRow {
            id: self.id,
            died_at: self.died_at.and_utc(),
            replayed_at: self.replayed_at.map(|at| at.and_utc()),
            letter: DeadLetter {
                stream: self.stream,
                key: self.entry_key,
                payload: self.payload,
                error: self.error,
                attempts: self.attempts as u32,
                trace: self.trace.parse().map_err(|_| StoreError::damaged("trace of a dead letter", &self.trace))?,
                version: self.version,
            },
        })
    }
}

/// Keeps what other processes have given up, until `stop`, then what is waiting.
pub(super) async fn collect(record: &Record, stop: &CancellationToken) {
    let Some(mut source) = Source::join(record, signal::DEAD, stop).await else { return };
    while let Some(entries) = source.next().await {
        let letters = source.parse_letters(entries).await;
        let (ids, letters): (Vec<_>, Vec<_>) = letters.into_iter().unzip();
        match record.bury(letters).await {
            Ok(()) => source.ack(&ids).await,
            Err(error) => source.return_all(&ids, error).await,
        }
    }
}

impl Record {
    /// Keeps these; what is known already gets its newest reason.
    pub(super) async fn bury(&self, letters: Vec<DeadLetter>) -> Result<(), CallError> {
        if letters.is_empty() {
            return Ok(());
        }
        let cx = CallCx::new(BUDGET);
        self.writer.ask(&cx, letters.len(), move |conn, _| letters.iter().try_for_each(|letter| store_letter(conn, letter))).await
    }

    /// Newest first; with `all` also what has been replayed. At most 1000.
    pub async fn dead_letters(&self, tenant: &TenantId, all: bool) -> Result<Vec<DeadLetterRow>, CallError> {
        let tenant = tenant.clone();
        let read = move |conn: &mut Conn| {
            let entries: Vec<Entry> = on_conn!(conn, |c: B| {
                let mut query = dead_letters::table
                    .filter(dead_letters::tenant_id.eq(tenant.as_str()))
                    .order((dead_letters::died_at.desc(), dead_letters::id.desc()))
                    .limit(MOST)
                    .select(Entry::as_select())
                    .into_boxed::<B>();
                if !all {
                    query = query.filter(dead_letters::replayed_at.is_null());
                }
                query.load(c)?
            });
            entries.into_iter().map(Entry::row).collect()
        };
        self.readers.read("dead_letters", read).await
    }

    /// # Errors
    /// `NotFound`.
    pub async fn dead_letter(&self, tenant: &TenantId, id: &str) -> Result<DeadLetterRow, CallError> {
        let (tenant, wanted) = (tenant.clone(), id.to_owned());
        let read = move |conn: &mut Conn| {
            let entry: Option<Entry> = on_conn!(conn, |c: B| {
                dead_letters::table.find((tenant.as_str(), &wanted)).select(Entry::as_select()).first(c).optional()?
            });
            entry.ok_or_else(|| CallError::not_found(format!("no dead letter {wanted}")))?.row()
        };
        self.readers.read("dead_letter", read).await
    }

    /// Puts it back on its stream, unless that has been done.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the bus does not take it: then nothing has changed.
    pub async fn replay(&self, tenant: &TenantId, id: &str) -> Result<Replayed, CallError> {
        let row = self.dead_letter(tenant, id).await?;
        if let Some(replayed_at) = row.replayed_at {
            return Ok(Replayed { id: row.id, replayed: false, replayed_at });
        }
        let (letter, died_at) = (row.letter, row.died_at.naive_utc());
        let stream = STREAMS.into_iter().find(|known| *known == letter.stream);
        let stream =
            stream.ok_or_else(|| CallError::conflict(format!("{id} stood on {}, which this release does not know", letter.stream)))?;
        // The tree of its trace goes on.
        let entry = NewEntry { key: letter.key, payload: Bytes::from(letter.payload), trace: letter.trace.child() };
        let refused = |error| CallError::new(ErrorKind::Unavailable, Retry::Safe, format!("the bus does not take {id}: {error}"));
        self.bus.publish(stream, vec![entry]).await.map_err(refused)?;
        let now = Utc::now();
        let (tenant, wanted) = (tenant.clone(), id.to_owned());
        let mark = move |conn: &mut Conn, _: &mut super::writer::Effects| {
            on_conn!(conn, |c: B| {
                // Not if it has died again meanwhile.
                diesel::update(dead_letters::table.find((tenant.as_str(), &wanted)).filter(dead_letters::died_at.eq(died_at)))
                    .set(dead_letters::replayed_at.eq(Some(now.naive_utc())))
                    .execute(c)?
            });
            Ok(())
        };
        self.writer.ask(&CallCx::new(BUDGET), 1, mark).await?;
        Ok(Replayed { id: id.into(), replayed: true, replayed_at: now })
    }
}

fn store_letter(conn: &mut Conn, letter: &DeadLetter) -> Result<(), StoreError> {
    let tenant = TenantId::default();
    let values = (
        dead_letters::tenant_id.eq(tenant.as_str()),
        dead_letters::id.eq(letter.id()),
        dead_letters::stream.eq(&letter.stream),
        dead_letters::entry_key.eq(&letter.key),
        dead_letters::payload.eq(&letter.payload),
        dead_letters::error.eq(&letter.error),
        dead_letters::attempts.eq(i64::from(letter.attempts)),
        dead_letters::trace.eq(letter.trace.to_string()),
        dead_letters::version.eq(&letter.version),
        dead_letters::died_at.eq(Utc::now().naive_utc()),
    );
    on_conn!(conn, |c: B| {
        // One that dies again after its replay waits to be looked at again.
        diesel::insert_into(dead_letters::table)
            .values(values)
            .on_conflict((dead_letters::tenant_id, dead_letters::id))
            .do_update()
            .set((
                dead_letters::error.eq(&letter.error),
                dead_letters::attempts.eq(i64::from(letter.attempts)),
                dead_letters::died_at.eq(Utc::now().naive_utc()),
                dead_letters::replayed_at.eq(None::<NaiveDateTime>),
            ))
            .execute(c)?;
    });
    Ok(())
}
