//! The whole record, from SQLite to PostgreSQL, for the one-binary user who grows.
//!
//! Invariants:
//! - the source is only read, so giving up at any moment costs nothing but time;
//! - what the source has erased is erased from the copy; a target that servers have written to since is no copy any more, and left alone;
//! - while a process writes, rounds of copying catch up with it; the last round runs on a record that nobody writes to, for at most the pause the
//!   operator allowed;
//! - it is done only when every row of both, in key order, has the same checksum.
//!
//! Conversations are copied whole: whatever changes below one changes its row, one of its channels' or one of its steps'. Dead letters come
//! along (`letters.rs`). The outbox does not: it speaks to listeners of a process that has ended.

mod letters;

use super::{
    OpenError, bookkeeping,
    database::Database,
    folder::Folder,
    migrations, operate,
    schema::{analysis_runs, channels, conversation_tags, conversations, finalize, insights, results, segments},
    sqlite,
    store::{self, Conn, StoreError, on_conn},
};
use crate::settings::RecordSettings;
use chrono::{NaiveDateTime, SubsecRound as _, TimeDelta, Utc};
use contracts::{CallError, ErrorKind, Retry};
use diesel::{
    ExpressionMethods as _, Insertable, OptionalExtension as _, QueryDsl as _, Queryable, RunQueryDsl as _, Selectable,
    SelectableHelper as _, dsl::sql, sql_types::BigInt,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Conversations that travel together.
const PAGE: usize = 50;
/// Rows of one statement; PostgreSQL takes 65 535 values at most.
const ROWS: usize = 500;
/// Clocks of writers and ours may differ by this much within one machine's record.
const SLACK: TimeDelta = TimeDelta::seconds(5);
/// Rounds beside a process that writes; then it should be stopped.
const MOST_ROUNDS: usize = 5;
/// In the target: everything that changed before has been copied. In µs since 1970.
const COPIED_UNTIL: &str = "copied_until";
/// In the target, from before the first row is copied: the last number that its outbox had given out. Only servers that write there take more.
const COPIED_ONTO: &str = "copied_onto";

/// What happens, for the operator to read while it does.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A process still writes: this many conversations were copied or copied again.
    Round {
        conversations: usize,
        took: Duration,
    },
    /// Nobody writes from here on.
    Pause {
        longest: Duration,
    },
    Comparing {
        conversations: usize,
    },
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Copied {
    /// A process still writes. Stop it and copy again: nobody will be able to write for about this long.
    NotYet { expected_pause: Duration },
    /// Both have the same rows.
    Equal { conversations: usize, rows: u64, checksum: String, pause: Duration },
}

/// Copies what the target does not have yet. `pause`: how long nobody may be able to write.
///
/// # Errors
/// What stands in the way; the source is as it was, and what has been copied stays.
pub async fn copy(
    data: PathBuf,
    target: RecordSettings,
    pause: Duration,
    tell: impl FnMut(Progress) + Send + 'static,
) -> Result<Copied, OpenError> {
    operate::apart(move || Copying::begin(&data, &target)?.run(&data, pause, tell)).await
}

struct Copying {
    source: Conn,
    target: Conn,
    name: String,
    /// Of conversations compared per second, as far as known.
    took_per_conversation: Duration,
}

impl Copying {
    fn begin(data: &Path, target: &RecordSettings) -> Result<Self, OpenError> {
        let Some(path) = Database::file_in(data) else {
            return Err(OpenError::Database { path: data.join("record.sqlite"), reason: "there is no record here to copy".into() });
        };
        let source = sqlite::look(&path).map_err(|reason| OpenError::Database { path, reason })?;
        let Some(server) = operate::server(target)? else {
            return Err(OpenError::Server { server: "the target".into(), reason: "expected the address of a PostgreSQL server".into() });
        };
        let name = server.to_string();
        let failed = |reason| OpenError::Server { server: name.clone(), reason };
        let mut target = operate::connect(&server).map_err(failed)?;
        let state = migrations::state(&mut target).map_err(failed)?;
        if !state.pending.is_empty() || !state.newer.is_empty() {
            return Err(failed("its schema is not this release's: `quickcomm db migrate` with this address brings it up to date".into()));
        }
        let mut copying = Self { source, target, name: name.clone(), took_per_conversation: Duration::ZERO };
        match copying.refusal().map_err(|e| copying.failure(&e))? {
            Some(reason) => Err(failed(reason.into())),
            None => Ok(copying),
        }
    }

    fn run(mut self, data: &Path, limit: Duration, mut tell: impl FnMut(Progress)) -> Result<Copied, OpenError> {
        let mut rounds = 0;
        // The lock of the folder says whether somebody writes.
        let folder = loop {
            match Folder::take(data) {
                Ok(folder) => break folder,
                Err(OpenError::Taken { .. }) if rounds < MOST_ROUNDS => {
                    let began = Instant::now();
                    let conversations = self.catch_up(None).map_err(|e| self.failure(&e))?;
                    tell(Progress::Round { conversations, took: began.elapsed() });
                    rounds += 1;
                    if began.elapsed() < Duration::from_secs(1) {
                        rounds = MOST_ROUNDS;
                    }
                }
                Err(OpenError::Taken { .. }) => {
                    let all = self.ids(None).map_err(|e| self.failure(&e))?.len() as u32;
                    return Ok(Copied::NotYet { expected_pause: Duration::from_secs(1) + self.took_per_conversation * all });
                }
                Err(error) => return Err(error),
            }
        };
        let began = Instant::now();
        tell(Progress::Pause { longest: limit });
        let until = began + limit;
        self.catch_up(Some(until)).map_err(|e| self.failure(&e))?;
        let all = self.ids(None).map_err(|e| self.failure(&e))?;
        tell(Progress::Comparing { conversations: all.len() });
        let (rows, checksum) = self.compare(&all, until).map_err(|e| self.failure(&e))?;
        if folder.unclean {
            drop(folder); // the next start still has a reason to look through the file
        } else {
            folder.leave();
        }
        Ok(Copied::Equal { conversations: all.len(), rows, checksum, pause: began.elapsed() })
    }

    fn failure(&self, error: &StoreError) -> OpenError {
        OpenError::Server { server: self.name.clone(), reason: format!("{error}; the record in SQLite is as it was") }
    }

    /// Why the target is not to be written to, if so. An empty one is the copy's own from now on.
    fn refusal(&mut self) -> Result<Option<&'static str>, StoreError> {
        let (until, kept) = self.standing()?;
        let (onto, now) = (bookkeeping::read(&mut self.target, COPIED_ONTO)?, announced(&mut self.target)?);
        if until.is_none() && onto.is_none() {
            if kept {
                return Ok(Some("it holds a record already; expected an empty one"));
            }
            bookkeeping::note(&mut self.target, COPIED_ONTO, now)?;
            return Ok(None);
        }
        let written = onto.unwrap_or(0) != now;
        Ok(written.then_some("servers have written there since it was copied: it is a record of its own by now; expected an empty one"))
    }

    /// Until when everything has been copied, and whether there is anything.
    fn standing(&mut self) -> Result<(Option<NaiveDateTime>, bool), StoreError> {
        let until = bookkeeping::read(&mut self.target, COPIED_UNTIL)?;
        let any: Option<String> = on_conn!(&mut self.target, |c: B| conversations::table.select(conversations::id).first(c).optional()?);
        Ok((until.and_then(chrono::DateTime::from_timestamp_micros).map(|at| at.naive_utc()), any.is_some()))
    }

    /// Takes from the target what has been erased from the source since it was copied.
    fn forget(&mut self, give_up: Option<Instant>) -> Result<(), StoreError> {
        let there = ids(&mut self.target, None)?;
        // After that: what a server has opened there took its number before it could be seen.
        if let Some(reason) = self.refusal()? {
            return Err(CallError::conflict(reason).into());
        }
        let here = self.ids(None)?;
        let gone: BTreeSet<Id> = there.difference(&here).cloned().collect();
        for page in &pages(&gone) {
            in_time(give_up)?;
            erase(&mut self.target, page)?;
        }
        Ok(())
    }

    /// Copies what has changed since the last time. Returns how many conversations that were.
    fn catch_up(&mut self, give_up: Option<Instant>) -> Result<usize, StoreError> {
        self.forget(give_up)?; // first: an external id may have been given to another one since
        let now = Utc::now().naive_utc();
        let since = self.standing()?.0.map(|until| until - SLACK);
        let changed = self.ids(since)?;
        let began = Instant::now();
        for page in &pages(&changed) {
            in_time(give_up)?;
            let rows = Rows::read(&mut self.source, page)?;
            store::begin_write(&mut self.target)?;
            rows.write(&mut self.target, page)?;
            store::commit(&mut self.target)?;
        }
        letters::catch_up(&mut self.source, &mut self.target, since, give_up)?;
        if !changed.is_empty() {
            self.took_per_conversation = began.elapsed() / changed.len() as u32;
        }
        bookkeeping::note(&mut self.target, COPIED_UNTIL, now.and_utc().timestamp_micros())?;
        if let Conn::Postgres(c) = &mut self.target {
            let c: &mut super::postgres::PgConn = c;
            // New rows are numbered after the copied ones.
            diesel::sql_query(
                "SELECT setval(pg_get_serial_sequence('segments', 'row_id'), (SELECT coalesce(max(row_id), 0) + 1 FROM segments), false)",
            )
            .execute(c)?;
        }
        Ok(changed.len())
    }

    /// Conversations of the source that changed at or after, in key order.
    fn ids(&mut self, since: Option<NaiveDateTime>) -> Result<BTreeSet<Id>, StoreError> {
        ids(&mut self.source, since)
    }

    /// Row by row, in key order. Returns how many there are and what they add up to.
    fn compare(&mut self, all: &BTreeSet<Id>, until: Instant) -> Result<(u64, String), StoreError> {
        let there = ids(&mut self.target, None)?;
        if there != *all {
            let detail = format!("the record has {} conversations and its copy {}", all.len(), there.len());
            return Err(CallError::conflict(detail).into());
        }
        let (mut digest, mut rows) = (Sha256::new(), 0);
        for page in &pages(all) {
            in_time(Some(until))?;
            let (from, to) = (Rows::read(&mut self.source, page)?, Rows::read(&mut self.target, page)?);
            let (ours, theirs) = (from.checksum(), to.checksum());
            if ours != theirs {
                let detail = format!("the copy differs from the record in the conversations {} to {}", page.1[0], page.1[page.1.len() - 1]);
                return Err(CallError::conflict(detail).into());
            }
            digest.update(ours);
            rows += from.count();
        }
        rows += letters::compare(&mut self.source, &mut self.target, &mut digest, until)?;
        Ok((rows, hex::encode(digest.finalize())))
    }
}

type Id = (String, String);
/// Conversations of one tenant.
type Page = (String, Vec<String>);

fn ids(conn: &mut Conn, since: Option<NaiveDateTime>) -> Result<BTreeSet<Id>, StoreError> {
    on_conn!(conn, |c: B| {
        let mut changed = conversations::table.select((conversations::tenant_id, conversations::id)).into_boxed::<B>();
        let mut moved = channels::table.select((channels::tenant_id, channels::conversation_id)).into_boxed::<B>();
        let mut finished = finalize::table.select((finalize::tenant_id, finalize::conversation_id)).into_boxed::<B>();
        if let Some(since) = since {
            finished = finished.filter(finalize::updated_at.ge(since));
            changed = changed.filter(conversations::updated_at.ge(since));
            moved = moved.filter(channels::updated_at.ge(since));
        }
        let mut ids: BTreeSet<Id> = changed.load::<Id>(c)?.into_iter().collect();
        ids.extend(moved.load::<Id>(c)?);
        ids.extend(finished.load::<Id>(c)?);
        Ok(ids)
    })
}

/// The last number that the target's outbox has given out; 0: none. It stays when what took it has been announced and is gone.
fn announced(target: &mut Conn) -> Result<i64, StoreError> {
    let Conn::Postgres(c) = target else { unreachable!("the target is a server") };
    let c: &mut super::postgres::PgConn = c;
    let last = sql::<BigInt>("coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0)");
    Ok(diesel::select(last).get_result(c)?)
}

/// From the target; what hangs on them goes with them.
fn erase(target: &mut Conn, (tenant, ids): &Page) -> Result<(), StoreError> {
    let Conn::Postgres(c) = target else { unreachable!("the target is a server") };
    let c: &mut super::postgres::PgConn = c;
    diesel::delete(conversations::table.filter(conversations::tenant_id.eq(tenant)).filter(conversations::id.eq_any(ids))).execute(c)?;
    Ok(())
}

fn pages(ids: &BTreeSet<Id>) -> Vec<Page> {
    let mut pages: Vec<Page> = vec![];
    for (tenant, id) in ids {
        match pages.last_mut() {
            Some((of, page)) if of == tenant && page.len() < PAGE => page.push(id.clone()),
            _ => pages.push((tenant.clone(), vec![id.clone()])),
        }
    }
    pages
}

fn in_time(until: Option<Instant>) -> Result<(), StoreError> {
    match until {
        Some(until) if Instant::now() >= until => {
            let detail = "the pause that was allowed is over: start the server as before, and allow a longer one";
            Err(CallError::new(ErrorKind::DeadlineExceeded, Retry::Never, detail).into())
        }
        _ => Ok(()),
    }
}

/// As PostgreSQL keeps it, so that both sides compare equal.
trait Fit {
    fn fit(&mut self) {}
}
impl Fit for String {}
impl Fit for i64 {}
impl Fit for f64 {}
impl Fit for bool {}
impl Fit for Option<String> {}
impl Fit for Option<i64> {}
impl Fit for Option<f64> {}

/// Microseconds.
impl Fit for NaiveDateTime {
    fn fit(&mut self) {
        *self = self.trunc_subsecs(6);
    }
}
impl Fit for Option<NaiveDateTime> {
    fn fit(&mut self) {
        self.iter_mut().for_each(Fit::fit);
    }
}

/// Fractions in our JSON were `f32` once; read from text they may be off in the last place of an `f64`.
impl Fit for serde_json::Value {
    fn fit(&mut self) {
        match self {
            Self::Array(items) => items.iter_mut().for_each(Fit::fit),
            Self::Object(fields) => fields.values_mut().for_each(Fit::fit),
            Self::Number(number) if number.is_f64() => {
                if let Some(exact) = number.as_f64().and_then(|n| serde_json::Number::from_f64(f64::from(n as f32))) {
                    *number = exact;
                }
            }
            _ => {}
        }
    }
}

macro_rules! row {
    ($name:ident of $table:ident { $($column:ident: $kind:ty,)+ }) => {
        #[derive(Clone, Debug, Queryable, Selectable, Insertable, Serialize)]
        #[diesel(table_name = $table, treat_none_as_default_value = false)]
        struct $name { $($column: $kind,)+ }
        impl Fit for $name {
            fn fit(&mut self) {
                $(self.$column.fit();)+
            }
        }
    };
}

row!(ConversationCopy of conversations {
    tenant_id: String, id: String, external_id: Option<String>, title: Option<String>, source: String, language: String,
    tags: serde_json::Value, state: String, started_at: NaiveDateTime, ended_at: Option<NaiveDateTime>,
    intent: Option<String>, intent_score: Option<f64>, intent_tier: Option<String>,
    sentiment: Option<String>, sentiment_score: Option<f64>, sentiment_tier: Option<String>,
    created_at: NaiveDateTime, updated_at: NaiveDateTime, version: i64, finalization: Option<String>,
});
row!(TagCopy of conversation_tags { tenant_id: String, tag: String, conversation_id: String, });
row!(ChannelCopy of channels {
    tenant_id: String, conversation_id: String, channel: i64, role: String, encoding: String, rate: i64, epoch: i64, next_seq: i64,
    safe_pos: i64, utterances: i64, created_at: NaiveDateTime, updated_at: NaiveDateTime, version: i64, closed_pos: Option<i64>,
});
row!(SegmentCopy of segments {
    row_id: i64, tenant_id: String, conversation_id: String, channel: i64, epoch: i64, seq: i64, utterance_id: String, kind: String,
    start_pos: i64, end_pos: i64, start_ms: i64, end_ms: i64, text: String, words: serde_json::Value, confidence: f64, speech_final: bool,
    word_times: String, model: String, decode_ms: i64, reason: Option<String>, trace_id: String, created_at: NaiveDateTime,
});
row!(RunCopy of analysis_runs {
    tenant_id: String, id: String, conversation_id: String, task: String, trigger: String, model: String, config_hash: String,
    created_at: NaiveDateTime,
});
row!(InsightCopy of insights {
    tenant_id: String, id: String, run_id: String, conversation_id: String, utterance_id: String, task: String, role: Option<String>,
    start_ms: Option<i64>, label: Option<String>, score: Option<f64>, labels: serde_json::Value, abstained: Option<String>,
    evidence: serde_json::Value, tier: String, model: String, degraded_from: Option<String>, config_hash: String, latency_ms: i64,
    prompt: Option<String>, late: bool, superseded_by: Option<String>, created_at: NaiveDateTime,
});
row!(StepCopy of finalize {
    tenant_id: String, conversation_id: String, step: String, attempt: i64, next_at: Option<NaiveDateTime>, fence: i64, input_hash: String,
    payload: serde_json::Value, outcome: Option<String>, created_at: NaiveDateTime, updated_at: NaiveDateTime,
});
row!(ResultCopy of results {
    tenant_id: String, conversation_id: String, version: i64, quality: String, summary: serde_json::Value, input_hash: String,
    created_at: NaiveDateTime, updated_at: NaiveDateTime,
});

/// All there is of some conversations, in key order.
struct Rows {
    conversations: Vec<ConversationCopy>,
    tags: Vec<TagCopy>,
    channels: Vec<ChannelCopy>,
    segments: Vec<SegmentCopy>,
    runs: Vec<RunCopy>,
    insights: Vec<InsightCopy>,
    steps: Vec<StepCopy>,
    results: Vec<ResultCopy>,
}

impl Rows {
    /// As of one moment.
    fn read(conn: &mut Conn, page: &Page) -> Result<Self, StoreError> {
        store::begin(conn)?;
        let rows = Self::load(conn, page);
        store::roll_back(conn)?; // nothing was written
        rows
    }

    fn load(conn: &mut Conn, (tenant, ids): &Page) -> Result<Self, StoreError> {
        macro_rules! load {
            ($c:ident, $table:ident, $row:ident, $of:ident, $by:expr) => {{
                let mut rows: Vec<$row> = $table::table
                    .filter($table::tenant_id.eq(tenant))
                    .filter($table::$of.eq_any(ids))
                    .order($by)
                    .select($row::as_select())
                    .load($c)?;
                rows.iter_mut().for_each(Fit::fit);
                rows
            }};
        }
        on_conn!(conn, |c: B| {
            Ok(Self {
                conversations: load!(c, conversations, ConversationCopy, id, conversations::id),
                tags: load!(c, conversation_tags, TagCopy, conversation_id, (conversation_tags::tag, conversation_tags::conversation_id)),
                channels: load!(c, channels, ChannelCopy, conversation_id, (channels::conversation_id, channels::channel)),
                segments: load!(c, segments, SegmentCopy, conversation_id, segments::row_id),
                runs: load!(c, analysis_runs, RunCopy, conversation_id, analysis_runs::id),
                insights: load!(c, insights, InsightCopy, conversation_id, insights::id),
                steps: load!(c, finalize, StepCopy, conversation_id, (finalize::conversation_id, finalize::step)),
                results: load!(c, results, ResultCopy, conversation_id, results::conversation_id),
            })
        })
    }

    /// In place of what the target has of these conversations.
    fn write(&self, conn: &mut Conn, page: &Page) -> Result<(), StoreError> {
        erase(conn, page)?;
        let Conn::Postgres(c) = conn else { unreachable!("the target is a server") };
        let c: &mut super::postgres::PgConn = c;
        macro_rules! insert {
            ($($table:ident $rows:ident,)+) => {
                $(for rows in self.$rows.chunks(ROWS) {
                    diesel::insert_into($table::table).values(rows).execute(c)?;
                })+
            };
        }
        insert! {
            conversations conversations, conversation_tags tags, channels channels, segments segments, analysis_runs runs, insights insights,
            finalize steps, results results,
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        let Self { conversations, tags, channels, segments, runs, insights, steps, results } = self;
        let heads = conversations.len() + tags.len() + channels.len() + steps.len() + results.len();
        (heads + segments.len() + runs.len() + insights.len()) as u64
    }

    fn checksum(&self) -> [u8; 32] {
        let Self { conversations, tags, channels, segments, runs, insights, steps, results } = self;
        let text = serde_json::to_vec(&(conversations, tags, channels, segments, runs, insights, steps, results))
            .expect("rows are text and numbers");
        Sha256::digest(text).into()
    }
}
