//! Stored turns that nobody has understood, or only a lower rung: found here, where they are kept, and put on the bus again.
//!
//! Invariants:
//! - a turn is missing while a task has no current insight, or a pending one whose reason may pass; what was given up for good waits for a
//!   person among the dead letters, and is left to them;
//! - a turn is lowered while its current insight stands in for a better rung that has answered others since and is not away again, as far as
//!   the record knows. Whoever asked first tries again by itself while it lives (`inference/src/worker/upgrade.rs`), and is given the time to;
//! - so many in a round, those first that were tried less often, then the newest; pauses double up to eight times the first. A missing turn is
//!   tried for as long as it is missing, for whoever understands may be away for hours; a lowered one twice;
//! - where insights may have been lost on their way, because this process is new, the bus has forgotten what it held or the record goes on from
//!   an earlier state, it looks as soon as whoever has them may have brought them;
//! - putting one on the bus again changes nothing in the record: its segment is found to be a duplicate, and an insight that is there already
//!   has the same id.
//!
//! Looks at the newest turns only ([`WINDOW`]); two processes on one record may put the same turn on the bus.

use super::{
    Record,
    commit::rate_of,
    conversations::id_of,
    schema::{channels, heard_segments, insights, segments},
    store::{Conn, StoreError, on_conn},
};
use crate::{metrics as names, settings::RecordSettings};
use chrono::{NaiveDateTime, Utc};
use contracts::{
    CallError, ChannelIndex, Epoch, ErrorKind, SamplePos, TenantId, TraceCx,
    audio::{SegmentBody, Spoken, Word, WordTimes},
    conversation::Segment,
    inference::{Task, Tier, not_understood},
    signal::{AGAIN, UTTERANCES},
};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, JoinOnDsl as _, NullableExpressionMethods as _, QueryDsl as _, Queryable,
    RunQueryDsl as _, Selectable, SelectableHelper as _,
    dsl::{exists, max, not},
};
use platform::bus::NewEntry;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Segments looked back over, by the order in which they were stored.
const WINDOW: i64 = 20_000;
/// Turns known to be missing at once.
const MOST_MISSING: i64 = 1_000;
/// After something was lost: by then what was under way has come, and all that was stored before it is older than the second.
const SETTLES: Duration = Duration::from_secs(5);
const SETTLED_FOR: Duration = Duration::from_secs(3);
/// How often it is looked whether the bus has forgotten.
const NOTICE: Duration = Duration::from_secs(1);
/// Pauses double so often.
const DOUBLED: u32 = 3;
/// What the better rung does not like it will not like the next time: once, and once more in case it was away.
const MOST_TRIES_LOWERED: u32 = 2;

/// Looks every so often, and when something was lost, until `stop`.
pub(super) async fn run(record: &Record, stop: &CancellationToken) {
    let RecordSettings { reconcile_s, reconcile_after_s, reconcile_most, .. } = record.settings;
    if reconcile_s == 0 {
        return;
    }
    let usual = (Duration::from_secs(reconcile_s), Duration::from_secs(reconcile_after_s));
    let soon = (SETTLES.min(usual.0), SETTLED_FOR.min(usual.1));
    let (mut wait, mut after) = soon;
    let mut since = Instant::now();
    let mut tried = Tried::default();
    let (mut history, mut bus) = (record.history(), record.bus.epoch());
    loop {
        tokio::select! { () = tokio::time::sleep(NOTICE.min(wait)) => {}, () = stop.cancelled() => return }
        let before = (std::mem::replace(&mut history, record.history()), std::mem::replace(&mut bus, record.bus.epoch()));
        if before != (history, bus) {
            // What was put there before may be lost as well.
            tried = Tried::default();
            (wait, after) = soon;
            since = Instant::now();
        }
        if since.elapsed() < wait {
            continue;
        }
        since = Instant::now();
        match round(record, &mut tried, after).await {
            // There may be more of them.
            Ok(turns) if turns >= reconcile_most => told(turns),
            Ok(turns) => {
                told(turns);
                (wait, after) = usual;
            }
            Err(error) => warn!(%error, "turns that nobody has understood could not be looked for"),
        }
    }
}

fn told(turns: usize) {
    if turns > 0 {
        info!(turns, "turns that nobody had understood, or only a lower rung, were put on the bus again");
    }
}

/// What this process has put on the bus again.
#[derive(Default)]
pub(super) struct Tried {
    missing: Tries,
    lowered: Tries,
}

/// How often a turn, and when last. Those that are found no longer are forgotten.
#[derive(Default)]
struct Tries(HashMap<String, (u32, Instant)>);

impl Tries {
    /// Of what was found, up to `room` that are due, those that were tried less often first.
    fn due(&mut self, mut found: Vec<String>, most: Option<u32>, room: usize, pause: Duration) -> Vec<String> {
        let still: HashSet<&String> = found.iter().collect();
        self.0.retain(|utterance, _| still.contains(utterance));
        let now = Instant::now();
        let times = |utterance: &String| self.0.get(utterance).map_or(0, |(times, _)| *times);
        let is_due = |utterance: &String| match self.0.get(utterance) {
            None => true,
            Some((times, last)) => most.is_none_or(|most| *times < most) && now >= *last + pause * 2u32.pow((*times).min(DOUBLED)),
        };
        found.retain(is_due);
        found.sort_by_key(times); // stable
        found.truncate(room);
        found
    }

    fn note(&mut self, tried: &[String]) {
        let now = Instant::now();
        for utterance in tried {
            let times = self.0.get(utterance).map_or(0, |(times, _)| *times);
            self.0.insert(utterance.clone(), (times + 1, now));
        }
    }
}

/// Of turns that were stored so long ago, how many were put on the bus.
pub(super) async fn round(record: &Record, tried: &mut Tried, after: Duration) -> Result<usize, CallError> {
    let reconcile_most = record.settings.reconcile_most;
    let before = (Utc::now() - after).naive_utc();
    let tenant = TenantId::default();
    let asked = tenant.clone();
    let find = move |conn: &mut Conn| -> Result<_, StoreError> { Ok((missing(conn, &asked, before)?, lowered(conn, &asked, before)?)) };
    let (missing, lowered) = record.readers.read("not_understood", find).await?;
    metrics::gauge!(names::NOT_UNDERSTOOD).set(missing.len() as f64);
    let pause = after.max(Duration::from_secs(record.settings.reconcile_after_s));
    let missing = tried.missing.due(missing, None, reconcile_most, pause);
    let lowered = tried.lowered.due(lowered, Some(MOST_TRIES_LOWERED), reconcile_most - missing.len(), pause);
    let due = [missing.as_slice(), &lowered].concat();
    if due.is_empty() {
        return Ok(0);
    }
    let segments = record.readers.read("requeued", move |conn| by_utterances(conn, &tenant, &due)).await?;
    let entries: Vec<NewEntry> = segments.iter().map(entry).collect();
    let count = entries.len();
    let refused = |error| CallError::unavailable(format!("the bus does not take turns that are to be understood again: {error}"));
    record.bus.publish(UTTERANCES, entries).await.map_err(refused)?;
    metrics::counter!(names::REQUEUED_TOTAL).increment(count as u64);
    tried.missing.note(&missing);
    tried.lowered.note(&lowered);
    Ok(count)
}

fn entry(segment: &Segment) -> NewEntry {
    let mut payload = serde_json::to_value(segment).expect("a segment is plain data");
    payload[AGAIN] = true.into();
    NewEntry { key: segment.conversation.to_string(), payload: payload.to_string().into(), trace: segment.trace }
}

/// Ids of turns without an insight, the newest first.
fn missing(conn: &mut Conn, tenant: &TenantId, stored_before: NaiveDateTime) -> Result<Vec<String>, StoreError> {
    let for_good: Vec<String> = ErrorKind::ALL.into_iter().filter(|kind| !kind.may_pass()).map(not_understood).collect();
    on_conn!(conn, |c: B| {
        let newest: Option<i64> = segments::table.select(max(segments::row_id)).first(c)?;
        macro_rules! understood {
            ($task:expr) => {
                exists(
                    insights::table
                        .filter(insights::tenant_id.eq(segments::tenant_id))
                        .filter(insights::utterance_id.eq(segments::utterance_id))
                        .filter(insights::task.eq($task.name()))
                        .filter(insights::superseded_by.is_null())
                        .filter(insights::tier.ne(Tier::Pending.name()).or(insights::abstained.eq_any(&for_good).assume_not_null())),
                )
            };
        }
        Ok(segments::table
            .filter(segments::tenant_id.eq(tenant.as_str()))
            .filter(segments::row_id.gt(newest.unwrap_or_default() - WINDOW))
            .filter(segments::kind.eq("speech"))
            .filter(segments::text.ne(""))
            .filter(segments::created_at.lt(stored_before))
            .filter(not(understood!(Task::Intent)).or(not(understood!(Task::Sentiment))))
            .order(segments::row_id.desc())
            .limit(MOST_MISSING)
            .select(segments::utterance_id)
            .load(c)?)
    })
}

/// Who answers turns, instead of whom, and when last: tier, the tier it stands in for, time.
type Answered = (String, Option<String>, Option<NaiveDateTime>);

/// Ids of turns whose insight stands in for a better rung, which is back since some time before `before`; the newest first.
fn lowered(conn: &mut Conn, tenant: &TenantId, before: NaiveDateTime) -> Result<Vec<String>, StoreError> {
    on_conn!(conn, |c: B| {
        let newest: Option<i64> = segments::table.select(max(segments::row_id)).first(c)?;
        macro_rules! current {
            () => {
                segments::table
                    .inner_join(
                        insights::table
                            .on(insights::tenant_id.eq(segments::tenant_id).and(insights::utterance_id.eq(segments::utterance_id))),
                    )
                    .filter(segments::tenant_id.eq(tenant.as_str()))
                    .filter(segments::row_id.gt(newest.unwrap_or_default() - WINDOW))
                    .filter(insights::superseded_by.is_null())
            };
        }
        macro_rules! answered {
            ($current:expr) => {
                $current
                    .group_by((insights::tier, insights::degraded_from))
                    .select((insights::tier, insights::degraded_from, max(insights::created_at)))
                    .load::<Answered>(c)?
            };
        }
        let now = answered!(current!());
        if now.iter().all(|(_, instead_of, _)| instead_of.is_none()) {
            return Ok(vec![]);
        }
        let then = answered!(current!().filter(insights::created_at.lt(before)));
        let mut found: Vec<(i64, String)> = vec![];
        for better in [Tier::Llm, Tier::SecondLlm, Tier::Local] {
            let by = |answers: &[Answered]| answers.iter().filter(|(tier, ..)| tier == better.name()).filter_map(|(.., at)| *at).max();
            let away =
                now.iter().filter(|(_, instead_of, _)| instead_of.as_deref() == Some(better.name())).filter_map(|(.., at)| *at).max();
            let Some(back) = by(&then).filter(|_| by(&now) > away) else { continue };
            found.extend(
                current!()
                    .filter(insights::degraded_from.eq(better.name()))
                    .filter(insights::tier.ne(Tier::Pending.name()))
                    .filter(insights::created_at.lt(back))
                    .order(segments::row_id.desc())
                    .limit(MOST_MISSING)
                    .select((segments::row_id, segments::utterance_id))
                    .load::<(i64, String)>(c)?,
            );
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup(); // one of each task
        Ok(found.into_iter().map(|(_, utterance)| utterance).collect())
    })
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = segments)]
struct Entry {
    conversation_id: String,
    channel: i64,
    epoch: i64,
    seq: i64,
    start_pos: i64,
    end_pos: i64,
    start_ms: i64,
    end_ms: i64,
    words: serde_json::Value,
    confidence: f64,
    speech_final: bool,
    word_times: String,
    model: String,
    decode_ms: i64,
    trace_id: String,
}

/// As they came from the bus, as far as the record knows: where speech begins and ends, to the millisecond. The newest first.
fn by_utterances(conn: &mut Conn, tenant: &TenantId, utterances: &[String]) -> Result<Vec<Segment>, StoreError> {
    let found: Vec<(Entry, i64)> = on_conn!(conn, |c: B| {
        heard_segments!()
            .filter(segments::tenant_id.eq(tenant.as_str()))
            .filter(segments::utterance_id.eq_any(utterances))
            .order(segments::row_id.desc())
            .select((Entry::as_select(), channels::rate))
            .load(c)?
    });
    found.into_iter().map(|(entry, rate)| entry.segment(rate)).collect()
}

impl Entry {
    fn segment(self, rate: i64) -> Result<Segment, StoreError> {
        let words: Vec<Word> = serde_json::from_value(self.words).map_err(|e| StoreError::damaged("words of a segment", e))?;
        let hz = u64::from(rate_of(rate)?.hz());
        let (start, end) = (SamplePos(self.start_pos as u64), SamplePos(self.end_pos as u64));
        // The first sample of that millisecond.
        let at = |ms: i64| SamplePos((ms as u64 * hz).div_ceil(1_000).clamp(start.0, end.0));
        let trace_id = u128::from_str_radix(&self.trace_id, 16).map_err(|_| StoreError::damaged("trace of a segment", &self.trace_id))?;
        let spoken = Spoken {
            words,
            from: at(self.start_ms),
            to: at(self.end_ms),
            confidence: self.confidence as f32,
            speech_final: self.speech_final,
            word_times: if self.word_times == "model" { WordTimes::Model } else { WordTimes::Estimated },
            model: self.model,
            decode_ms: self.decode_ms as u32,
        };
        Ok(Segment {
            conversation: id_of(&self.conversation_id)?,
            channel: ChannelIndex(self.channel as u8),
            epoch: Epoch(self.epoch as u32),
            seq: self.seq as u64,
            start,
            end,
            body: SegmentBody::Speech(spoken),
            trace: TraceCx { trace_id, ..TraceCx::root() },
        })
    }
}
