//! From audio to row, once: the commit rule.
//!
//! Invariants, per channel:
//! - a segment is taken only by compare-and-swap on (epoch, next_seq, safe_pos = its start), so stored ranges are contiguous;
//! - whoever holds an older epoch changes nothing;
//! - what is not taken is judged from the channel and from the row with the same seq, and nothing is written.
//!
//! Silence moves the watermark and makes no row; a gap is a row.

use super::{
    schema::{channels, outbox, segments},
    store::{Conn, StoreError, on_conn},
    writer::Effects,
};
use chrono::{NaiveDateTime, Utc};
use contracts::{
    CallError, Epoch, ErrorKind, Retry, SamplePos, SampleRate, TenantId,
    audio::{SegmentBody, WordTimes, text_of},
    conversation::{CommitOutcome, Segment},
    signal::Committed,
};
use diesel::{BoolExpressionMethods as _, ExpressionMethods as _, Insertable, OptionalExtension as _, QueryDsl as _, RunQueryDsl as _};

#[derive(Insertable)]
#[diesel(table_name = segments, treat_none_as_default_value = false)]
struct NewRow {
    tenant_id: String,
    conversation_id: String,
    channel: i64,
    epoch: i64,
    seq: i64,
    utterance_id: String,
    kind: &'static str,
    start_pos: i64,
    end_pos: i64,
    start_ms: i64,
    end_ms: i64,
    text: String,
    words: serde_json::Value,
    confidence: f64,
    speech_final: bool,
    word_times: &'static str,
    model: String,
    decode_ms: i64,
    reason: Option<String>,
    trace_id: String,
    created_at: NaiveDateTime,
}

/// Commits each segment by itself, in order.
pub(super) fn commit(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    batch: &[Segment],
) -> Result<Vec<CommitOutcome>, StoreError> {
    let mut taken = vec![];
    let mut outcomes = Vec::with_capacity(batch.len());
    for segment in batch {
        outcomes.push(commit_one(conn, effects, tenant, segment, &mut taken)?);
    }
    store(conn, effects, &mut taken)?;
    Ok(outcomes)
}

/// How often a judgement is made anew because another process moved the channel between the statements.
const MOST_MOVES: usize = 16;

/// Rows of what is taken gather in `taken`.
fn commit_one(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    segment: &Segment,
    taken: &mut Vec<NewRow>,
) -> Result<CommitOutcome, StoreError> {
    let Some(place) = Place::of(segment) else { return Ok(CommitOutcome::Mismatch) };
    let now = Utc::now().naive_utc();
    for _ in 0..MOST_MOVES {
        if let Some(rate) = advance(conn, tenant, segment, &place, now)? {
            effects.touch(tenant, segment.conversation);
            effects.watermarks.push(Committed {
                conversation: segment.conversation,
                channel: segment.channel,
                epoch: segment.epoch,
                next_seq: segment.seq + 1,
                safe: segment.end,
            });
            taken.extend(new_row(tenant, segment, &place, rate_of(rate)?, now)?);
            return Ok(CommitOutcome::Committed);
        }
        store(conn, effects, taken)?; // the judgement looks at rows
        if let Some(outcome) = judge_stored(conn, effects, tenant, segment, &place)? {
            return Ok(outcome);
        }
    }
    Err(CallError::new(ErrorKind::Unavailable, Retry::Safe, "the channel is being moved by another process all the time").into())
}

/// The compare-and-swap. Gives the channel's rate when it was made. An empty segment moves nothing, but it may be late as well.
fn advance(conn: &mut Conn, tenant: &TenantId, segment: &Segment, place: &Place, now: NaiveDateTime) -> Result<Option<i64>, StoreError> {
    if place.start == place.end {
        return Ok(None);
    }
    let speech = i64::from(matches!(segment.body, SegmentBody::Speech(_)));
    on_conn!(conn, |c: B| {
        Ok(diesel::update(
            channels::table
                .filter(channels::tenant_id.eq(tenant.as_str()))
                .filter(channels::conversation_id.eq(segment.conversation.to_string()))
                .filter(channels::channel.eq(place.channel))
                .filter(channels::epoch.eq(place.epoch))
                .filter(channels::next_seq.eq(place.seq))
                .filter(channels::safe_pos.eq(place.start))
                .filter(channels::closed_pos.is_null().or(channels::closed_pos.ge(place.end))),
        )
        .set((
            channels::next_seq.eq(place.seq + 1),
            channels::safe_pos.eq(place.end),
            channels::utterances.eq(channels::utterances + speech),
            channels::updated_at.eq(now),
            channels::version.eq(channels::version + 1),
        ))
        .returning(channels::rate)
        .get_result(c)
        .optional()?)
    })
}

/// Rows at once: a statement to a server is a journey, one to SQLite is cheaper prepared and repeated.
trait Many {
    const ROWS: usize;
}

impl Many for diesel::sqlite::Sqlite {
    const ROWS: usize = 1;
}

impl Many for diesel::pg::Pg {
    const ROWS: usize = 128;
}

/// Stores rows with their announcements.
fn store(conn: &mut Conn, effects: &mut Effects, rows: &mut Vec<NewRow>) -> Result<(), StoreError> {
    let announcement = |row: &NewRow| {
        (
            outbox::tenant_id.eq(row.tenant_id.clone()),
            outbox::conversation_id.eq(row.conversation_id.clone()),
            outbox::kind.eq("utterance"),
            outbox::subject.eq(row.utterance_id.clone()),
            outbox::created_at.eq(row.created_at),
        )
    };
    effects.announced |= !rows.is_empty();
    on_conn!(conn, |c: B| {
        for rows in rows.chunks(<B as Many>::ROWS) {
            match rows {
                // Its statement is prepared once; one with many rows is another for every number of them.
                [row] => {
                    diesel::insert_into(segments::table).values(row).execute(c)?;
                    diesel::insert_into(outbox::table).values(announcement(row)).execute(c)?;
                }
                rows => {
                    diesel::insert_into(segments::table).values(rows).execute(c)?;
                    diesel::insert_into(outbox::table).values(rows.iter().map(announcement).collect::<Vec<_>>()).execute(c)?;
                }
            }
        }
    });
    rows.clear();
    Ok(())
}

/// The segment's place in the database's numbers. `None`: no sender could mean it.
struct Place {
    channel: i64,
    epoch: i64,
    seq: i64,
    start: i64,
    end: i64,
}

impl Place {
    fn of(segment: &Segment) -> Option<Self> {
        let place = Self {
            channel: i64::from(segment.channel.0),
            epoch: i64::from(segment.epoch.0),
            seq: i64::try_from(segment.seq).ok().filter(|seq| *seq < i64::MAX)?,
            start: i64::try_from(segment.start.0).ok()?,
            end: i64::try_from(segment.end.0).ok()?,
        };
        (place.start <= place.end).then_some(place)
    }
}

pub(super) fn rate_of(hz: i64) -> Result<SampleRate, StoreError> {
    u32::try_from(hz).ok().and_then(|hz| SampleRate::new(hz).ok()).ok_or_else(|| StoreError::damaged("sample rate", hz))
}

fn new_row(
    tenant: &TenantId,
    segment: &Segment,
    place: &Place,
    rate: SampleRate,
    now: NaiveDateTime,
) -> Result<Option<NewRow>, StoreError> {
    let ms = |pos: SamplePos| rate.ms_at(SamplePos(pos.0.clamp(segment.start.0, segment.end.0))) as i64;
    let mut row = NewRow {
        tenant_id: tenant.to_string(),
        conversation_id: segment.conversation.to_string(),
        channel: place.channel,
        epoch: place.epoch,
        seq: place.seq,
        utterance_id: segment.utterance_id().to_string(),
        kind: "gap",
        start_pos: place.start,
        end_pos: place.end,
        start_ms: ms(segment.start),
        end_ms: ms(segment.end),
        text: String::new(),
        words: serde_json::Value::Array(vec![]),
        confidence: 0.0,
        speech_final: false,
        word_times: word_times_name(WordTimes::Estimated),
        model: String::new(),
        decode_ms: 0,
        reason: None,
        trace_id: segment.trace.trace_id_hex(),
        created_at: now,
    };
    match &segment.body {
        SegmentBody::Silence => return Ok(None),
        SegmentBody::Gap { reason } => row.reason = Some(reason.clone()),
        SegmentBody::Speech(spoken) => {
            row.kind = "speech";
            row.start_ms = ms(spoken.from);
            row.end_ms = ms(spoken.to).max(row.start_ms);
            row.text = text_of(&spoken.words);
            row.words = serde_json::to_value(&spoken.words).map_err(|e| StoreError::damaged("words of a segment", e))?;
            row.confidence = f64::from(spoken.confidence);
            row.speech_final = spoken.speech_final;
            row.word_times = word_times_name(spoken.word_times);
            row.model = spoken.model.clone();
            row.decode_ms = i64::from(spoken.decode_ms);
        }
    }
    Ok(Some(row))
}

pub(super) fn word_times_name(times: WordTimes) -> &'static str {
    match times {
        WordTimes::Estimated => "estimated",
        WordTimes::Model => "model",
    }
}

/// Where a channel stands.
struct Stand {
    epoch: i64,
    next_seq: i64,
    safe: i64,
}

/// What is stored around the same seq of the channel.
#[derive(Default)]
struct Stored {
    /// (epoch, start, end) of the row with this seq.
    same: Option<(i64, i64, i64)>,
    /// End of the row before it, start of the row after it: a committed silence lies between them.
    before: Option<i64>,
    after: Option<i64>,
}

/// Reads what the compare-and-swap ran against, and judges. `None`: the channel has moved since, and would take it now.
fn judge_stored(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    segment: &Segment,
    place: &Place,
) -> Result<Option<CommitOutcome>, StoreError> {
    let conversation = segment.conversation.to_string();
    let found: Option<(i64, i64, i64, Option<i64>)> = on_conn!(conn, |c: B| {
        channels::table
            .find((tenant.as_str(), &conversation, place.channel))
            .select((channels::epoch, channels::next_seq, channels::safe_pos, channels::closed_pos))
            .first(c)
            .optional()?
    });
    // A channel nobody opened: whoever sends it works for a record that is not this one, and must ask anew.
    let Some((epoch, next_seq, safe, closed)) = found else { return Ok(Some(CommitOutcome::Stale)) };
    if (epoch, next_seq, safe) == (place.epoch, place.seq, place.start) && place.start < place.end {
        // Late audio: what was heard until the end may still come, nothing beyond it.
        return Ok(closed.is_some_and(|closed| closed < place.end).then_some(CommitOutcome::Stale));
    }
    let mut stored = Stored::default();
    if place.seq < next_seq {
        let of_channel = || {
            segments::table
                .filter(segments::tenant_id.eq(tenant.as_str()))
                .filter(segments::conversation_id.eq(&conversation))
                .filter(segments::channel.eq(place.channel))
        };
        on_conn!(conn, |c: B| {
            stored.same = of_channel()
                .filter(segments::seq.eq(place.seq))
                .select((segments::epoch, segments::start_pos, segments::end_pos))
                .first(c)
                .optional()?;
            if stored.same.is_none() {
                stored.before = of_channel()
                    .filter(segments::seq.lt(place.seq))
                    .order(segments::seq.desc())
                    .select(segments::end_pos)
                    .first(c)
                    .optional()?;
                stored.after = of_channel()
                    .filter(segments::seq.gt(place.seq))
                    .order(segments::seq.asc())
                    .select(segments::start_pos)
                    .first(c)
                    .optional()?;
            }
        });
    }
    // Whoever did not get through should learn at once where the channel stands.
    effects.watermarks.push(Committed {
        conversation: segment.conversation,
        channel: segment.channel,
        epoch: Epoch(epoch as u32),
        next_seq: next_seq as u64,
        safe: SamplePos(safe as u64),
    });
    Ok(Some(judge(&Stand { epoch, next_seq, safe }, &stored, place, matches!(segment.body, SegmentBody::Silence))))
}

/// Why a segment was not taken. Pure.
fn judge(stand: &Stand, stored: &Stored, place: &Place, silence: bool) -> CommitOutcome {
    use CommitOutcome::{Ahead, Duplicate, Mismatch, Stale};
    if let Some((epoch, start, end)) = stored.same {
        // The row's own epoch counts, so a late copy is recognized also after someone else attached.
        if epoch == place.epoch {
            return if (start, end) == (place.start, place.end) { Duplicate } else { Mismatch };
        }
    }
    if place.epoch != stand.epoch {
        return Stale; // an older one is fenced off; a newer one was never given out by this record
    }
    if place.seq > stand.next_seq {
        return Ahead { next_seq: stand.next_seq as u64, safe: SamplePos(stand.safe as u64) };
    }
    let fits = stored.before.is_none_or(|end| end <= place.start) && stored.after.is_none_or(|start| place.end <= start);
    let was_silence =
        silence && place.start < place.end && place.seq < stand.next_seq && stored.same.is_none() && place.end <= stand.safe && fits;
    if was_silence { Duplicate } else { Mismatch }
}
