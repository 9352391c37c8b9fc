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
    Epoch, SamplePos, SampleRate, TenantId,
    audio::{SegmentBody, WordTimes, text_of},
    conversation::{CommitOutcome, Segment},
    signal::Committed,
};
use diesel::{ExpressionMethods as _, Insertable, OptionalExtension as _, QueryDsl as _, RunQueryDsl as _};

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
    batch.iter().map(|segment| commit_one(conn, effects, tenant, segment)).collect()
}

fn commit_one(conn: &mut Conn, effects: &mut Effects, tenant: &TenantId, segment: &Segment) -> Result<CommitOutcome, StoreError> {
    let Some(place) = Place::of(segment) else { return Ok(CommitOutcome::Mismatch) };
    let now = Utc::now().naive_utc();
    let conversation = segment.conversation.to_string();
    let speech = i64::from(matches!(segment.body, SegmentBody::Speech(_)));
    if place.start == place.end {
        return judge_stored(conn, effects, tenant, segment, &place); // nothing to store, but it may be late as well
    }
    let taken: Option<i64> = on_conn!(conn, |c: B| {
        diesel::update(
            channels::table
                .filter(channels::tenant_id.eq(tenant.as_str()))
                .filter(channels::conversation_id.eq(&conversation))
                .filter(channels::channel.eq(place.channel))
                .filter(channels::epoch.eq(place.epoch))
                .filter(channels::next_seq.eq(place.seq))
                .filter(channels::safe_pos.eq(place.start)),
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
        .optional()?
    });
    let Some(rate) = taken else { return judge_stored(conn, effects, tenant, segment, &place) };

    effects.watermarks.push(Committed {
        conversation: segment.conversation,
        channel: segment.channel,
        epoch: segment.epoch,
        next_seq: segment.seq + 1,
        safe: segment.end,
    });
    let rate = rate_of(rate)?;
    let Some(row) = new_row(tenant, segment, &place, rate, now)? else { return Ok(CommitOutcome::Committed) };
    on_conn!(conn, |c: B| {
        let announcement = (
            outbox::tenant_id.eq(&row.tenant_id),
            outbox::conversation_id.eq(&row.conversation_id),
            outbox::kind.eq("utterance"),
            outbox::subject.eq(&row.utterance_id),
            outbox::created_at.eq(now),
        );
        diesel::insert_into(segments::table).values(&row).execute(c)?;
        diesel::insert_into(outbox::table).values(announcement).execute(c)?;
    });
    effects.announced = true;
    Ok(CommitOutcome::Committed)
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

/// Reads what the compare-and-swap ran against, and judges.
fn judge_stored(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    segment: &Segment,
    place: &Place,
) -> Result<CommitOutcome, StoreError> {
    let conversation = segment.conversation.to_string();
    let found: Option<(i64, i64, i64)> = on_conn!(conn, |c: B| {
        channels::table
            .find((tenant.as_str(), &conversation, place.channel))
            .select((channels::epoch, channels::next_seq, channels::safe_pos))
            .first(c)
            .optional()?
    });
    // A channel nobody opened: whoever sends it works for a record that is not this one, and must ask anew.
    let Some((epoch, next_seq, safe)) = found else { return Ok(CommitOutcome::Stale) };
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
    Ok(judge(&Stand { epoch, next_seq, safe }, &stored, place, matches!(segment.body, SegmentBody::Silence)))
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
