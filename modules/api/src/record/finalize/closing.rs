//! The ends of a conversation's audio: closed, drained, and opened again.

use super::{Claim, Outcome, Step, add, later, mark, over};
use crate::record::{
    Finalization, commit, conversations,
    schema::{channels, conversations as heads, finalize},
    store::{Conn, StoreError, on_conn},
    writer::Effects,
};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use contracts::{
    ChannelIndex, ConversationId, Epoch, SamplePos, TenantId, TraceCx,
    audio::SegmentBody,
    conversation::{Close, CommitOutcome, ConversationState, Segment},
};
use diesel::{ExpressionMethods as _, QueryDsl as _, Queryable, RunQueryDsl as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What was heard and is not committed is waited for this long, counted from the last progress.
const DRAIN: TimeDelta = TimeDelta::seconds(30);
/// Between two looks at a conversation that is being drained.
const DRAIN_LOOK: TimeDelta = TimeDelta::milliseconds(250);
const NEVER_HEARD: &str = "it was received and not heard in time";

/// The Close of the saga: the caller's, in its transaction. Late audio is refused from here on.
pub(in crate::record) fn begin(conn: &mut Conn, tenant: &TenantId, request: &Close, now: NaiveDateTime) -> Result<(), StoreError> {
    let id = request.conversation;
    let mut ends = Sha256::new();
    ends.update(id.to_string());
    let (mut seen, mut drained) = (0, true);
    let stands = stands(conn, tenant, id)?;
    for stand in &stands {
        let heard = request.heard.iter().find(|heard| i64::from(heard.channel.0) == stand.channel);
        let closed = heard.and_then(|heard| i64::try_from(heard.to.0).ok()).unwrap_or(0).max(stand.safe);
        drained &= closed == stand.safe;
        seen += stand.safe;
        for part in [stand.channel, stand.epoch, closed] {
            ends.update(part.to_be_bytes());
        }
        on_conn!(conn, |c: B| {
            diesel::update(channels::table.find((tenant.as_str(), id.to_string(), stand.channel)))
                .set((channels::closed_pos.eq(closed), channels::updated_at.eq(now), channels::version.eq(channels::version + 1)))
                .execute(c)?
        });
    }
    if drained {
        fence_off(conn, tenant, id, now)?;
    }
    let input_hash = hex::encode(ends.finalize());
    let payload = json!({ "fenced": drained, "seen": seen, "since": now.and_utc() });
    add(conn, tenant, id, Step::Drain, now, &input_hash, &payload, now)
}

/// Whoever held a channel holds it no more.
fn fence_off(conn: &mut Conn, tenant: &TenantId, id: ConversationId, now: NaiveDateTime) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::update(channels::table.filter(channels::tenant_id.eq(tenant.as_str())).filter(channels::conversation_id.eq(id.to_string())))
            .set((channels::epoch.eq(channels::epoch + 1), channels::updated_at.eq(now), channels::version.eq(channels::version + 1)))
            .execute(c)?
    });
    Ok(())
}

/// Compensation: an abandoned conversation whose result is not published lives again, and its steps are gone. False: that is not so.
pub(in crate::record) fn reopen(conn: &mut Conn, effects: &mut Effects, tenant: &TenantId, id: ConversationId) -> Result<bool, StoreError> {
    let (key, now) = (id.to_string(), Utc::now().naive_utc());
    let of = || finalize::table.filter(finalize::tenant_id.eq(tenant.as_str())).filter(finalize::conversation_id.eq(&key));
    let abandoned = on_conn!(conn, |c: B| {
        diesel::update(heads::table.find((tenant.as_str(), &key)))
            .filter(heads::state.eq(ConversationState::Abandoned.name()))
            .set(heads::updated_at.eq(now))
            .execute(c)?
    });
    let steps: Vec<(String, Option<String>)> = on_conn!(conn, |c: B| of().select((finalize::step, finalize::outcome)).load(c)?);
    let published = steps.iter().any(|(step, outcome)| step == Step::Publish.name() && outcome.is_some());
    if abandoned == 0 || steps.is_empty() || published {
        return Ok(false);
    }
    on_conn!(conn, |c: B| {
        diesel::delete(of()).execute(c)?;
        diesel::update(heads::table.find((tenant.as_str(), &key)))
            .set((
                heads::state.eq(ConversationState::Live.name()),
                heads::ended_at.eq(None::<NaiveDateTime>),
                heads::finalization.eq(None::<String>),
                heads::version.eq(heads::version + 1),
            ))
            .execute(c)?;
        diesel::update(channels::table.filter(channels::tenant_id.eq(tenant.as_str())).filter(channels::conversation_id.eq(&key)))
            .set(channels::closed_pos.eq(None::<i64>))
            .execute(c)?;
    });
    fence_off(conn, tenant, id, now)?;
    conversations::announce(conn, effects, tenant, &key, now)?;
    Ok(true)
}

/// Where a channel stands, and where it ends.
#[derive(Queryable)]
struct Stand {
    channel: i64,
    epoch: i64,
    next_seq: i64,
    safe: i64,
    closed: Option<i64>,
}

impl Stand {
    fn lacks(&self) -> bool {
        self.closed.is_some_and(|closed| self.safe < closed)
    }
}

fn stands(conn: &mut Conn, tenant: &TenantId, id: ConversationId) -> Result<Vec<Stand>, StoreError> {
    on_conn!(conn, |c: B| {
        Ok(channels::table
            .filter(channels::tenant_id.eq(tenant.as_str()))
            .filter(channels::conversation_id.eq(id.to_string()))
            .order(channels::channel)
            .select((channels::channel, channels::epoch, channels::next_seq, channels::safe_pos, channels::closed_pos))
            .load(c)?)
    })
}

/// What the drain remembers between its looks.
#[derive(Serialize, Deserialize)]
struct Drain {
    /// Nobody holds the channels any more.
    fenced: bool,
    /// Sum of what was committed when it last changed, and when that was.
    seen: i64,
    since: DateTime<Utc>,
}

pub(super) fn drain(conn: &mut Conn, effects: &mut Effects, claim: &Claim, now: NaiveDateTime) -> Result<(), StoreError> {
    let (tenant, id) = (&claim.tenant, claim.conversation);
    let mut drain: Drain = serde_json::from_value(claim.payload.clone()).map_err(|e| StoreError::damaged("drain of a conversation", e))?;
    let stands = stands(conn, tenant, id)?;
    let lacking = stands.iter().any(Stand::lacks);
    let seen: i64 = stands.iter().map(|stand| stand.safe).sum();
    if lacking && seen != drain.seen {
        (drain.seen, drain.since) = (seen, now.and_utc());
    }
    let timed_out = lacking && now.and_utc() >= drain.since + DRAIN;
    if lacking && !timed_out {
        return later(conn, claim, now + DRAIN_LOOK, &json!(drain));
    }
    if !drain.fenced {
        fence_off(conn, tenant, id, now)?;
    }
    let gaps: Vec<Segment> = stands.iter().filter(|stand| stand.lacks()).map(|stand| stand.gap(id)).collect();
    let outcomes = commit::commit(conn, effects, tenant, &gaps)?;
    if let Some(refused) = outcomes.iter().find(|outcome| **outcome != CommitOutcome::Committed) {
        // The rows are locked by `fence_off`, so nobody can have come between.
        return Err(StoreError::damaged("end of a channel", format!("{refused:?}")));
    }
    over(conn, claim, if timed_out { Outcome::TimedOut } else { Outcome::Done }, now)?;
    mark(conn, effects, claim, Finalization::Scoring, now)?;
    add(conn, tenant, id, Step::Score, now, &claim.input_hash, &Value::Null, now)
}

impl Stand {
    /// From what is committed to the channel's end, by the epoch that comes with the fence.
    fn gap(&self, conversation: ConversationId) -> Segment {
        Segment {
            conversation,
            channel: ChannelIndex(self.channel as u8),
            epoch: Epoch(self.epoch as u32 + 1),
            seq: self.next_seq as u64,
            start: SamplePos(self.safe as u64),
            end: SamplePos(self.closed.unwrap_or(self.safe) as u64),
            body: SegmentBody::Gap { reason: NEVER_HEARD.into() },
            trace: TraceCx::root(),
        }
    }
}
