//! How a conversation is finished after its last word: a saga of stored steps.
//!
//! Close (`conversations.rs`) → Drain → Score → Publish → Notify, Retain and Upgrade, these three beside each other.
//!
//! Invariants:
//! - a step is a row: claimed before it is worked on, and settled in one transaction with its effect and the rows of what follows;
//! - whoever settles shows fence and input of its claim, so a worker that was overtaken changes nothing, and no effect happens twice;
//! - every settlement takes the conversation's row first: settling and opening again wait for each other;
//! - before Publish an abandoned conversation may be opened again, which removes its steps; after it there are only forward steps.
//!
//! Deliberately absent: what the steps do outside the database (`crate::finalizer`).

mod closing;
mod result;

use super::{
    Finalization, Record, ResultRow, conversations,
    schema::{conversations as heads, finalize, results},
    store::{Conn, StoreError, on_conn},
    writer::{Effects, Settle},
};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
pub(super) use closing::{begin, reopen};
use contracts::{CallCx, CallError, ConversationId, TenantId, inference::SummaryItem};
use diesel::{ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, RunQueryDsl as _, dsl::min};
use result::{event, result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Before the first try for a better result: a process that was killed is back by then, and whoever was about to tell of the first one has been
/// followed by another.
const FIRST_UPGRADE: TimeDelta = TimeDelta::seconds(35);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Until everything that was received is committed, or given up as a gap.
    Drain,
    /// Summing up, by whichever rung answers.
    Score,
    /// The result becomes everybody's.
    Publish,
    /// A webhook is told.
    Notify,
    /// What is kept for a limited time is deleted.
    Retain,
    /// A result by a lower rung is replaced when the better one is back.
    Upgrade,
}

impl Step {
    pub const ALL: [Self; 6] = [Self::Drain, Self::Score, Self::Publish, Self::Notify, Self::Retain, Self::Upgrade];

    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Score => "score",
            Self::Publish => "publish",
            Self::Notify => "notify",
            Self::Retain => "retain",
            Self::Upgrade => "upgrade",
        }
    }

    /// Longer than the step may take: after this, whoever claimed it is held to be dead.
    pub fn lease(self) -> TimeDelta {
        match self {
            Self::Drain | Self::Publish => TimeDelta::seconds(10),
            Self::Score | Self::Upgrade => TimeDelta::seconds(30),
            Self::Notify | Self::Retain => TimeDelta::seconds(20),
        }
    }
}

/// How good a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    Full,
    /// A lower rung stood in for a better one.
    Degraded,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Degraded => "degraded",
        }
    }
}

/// A step that somebody works on.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub tenant: TenantId,
    pub conversation: ConversationId,
    pub step: Step,
    /// 1 for the first time.
    pub attempt: u32,
    /// What the step before left for this one.
    pub payload: Value,
    fence: i64,
    input_hash: String,
}

/// What a conversation came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub quality: Quality,
    pub summary: Vec<SummaryItem>,
    /// The better rung did not answer in time.
    pub timed_out: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    TimedOut,
    /// Tried as often as it is tried.
    GivenUp,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::TimedOut => "timed_out",
            Self::GivenUp => "given_up",
        }
    }
}

/// What a published result is followed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    /// Somebody is told.
    pub notify: bool,
    /// After the end of the conversation.
    pub retain: Option<TimeDelta>,
}

/// What has become of a claimed step.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Look whether everything received is committed.
    Drain,
    Scored(Score),
    Publish(Follow),
    /// Of Upgrade: a better result.
    Better(Score, Follow),
    /// There is nothing left of it to do.
    Over(Outcome),
    Later(DateTime<Utc>),
    /// Of Retain: the conversation goes, with all its rows.
    Erase,
}

#[derive(Queryable)]
struct Entry {
    tenant_id: String,
    conversation_id: String,
    step: String,
    attempt: i64,
    fence: i64,
    input_hash: String,
    payload: Value,
}

/// The answer to a lost answer is the new one: what the first run claimed is claimed again when its lease is over.
impl Settle for Vec<Claim> {}
/// Settled or fenced out; either way there is nothing left to do.
impl Settle for bool {}

impl Record {
    /// Takes up to `most` steps that are due, oldest first; nobody else gets them before their lease is over.
    pub async fn claim_steps(&self, cx: &CallCx, now: DateTime<Utc>, most: usize) -> Result<Vec<Claim>, CallError> {
        self.writer.ask(cx, most, move |conn, _| claim(conn, now.naive_utc(), most)).await
    }

    /// Stores what has become of a step. False: somebody else has it by now, and nothing was stored.
    pub async fn settle_step(&self, cx: &CallCx, claim: &Claim, finding: &Finding, now: DateTime<Utc>) -> Result<bool, CallError> {
        let (claim, finding) = (claim.clone(), finding.clone());
        self.writer.ask(cx, 4, move |conn, effects| settle(conn, effects, &claim, &finding, now.naive_utc())).await
    }

    /// When the next step is due, of all conversations.
    pub async fn next_step(&self) -> Result<Option<DateTime<Utc>>, CallError> {
        let read = |conn: &mut Conn| {
            let next: Option<NaiveDateTime> =
                on_conn!(conn, |c: B| finalize::table.filter(finalize::next_at.is_not_null()).select(min(finalize::next_at)).first(c)?);
            Ok(next.map(|at| at.and_utc()))
        };
        self.readers.read("next_step", read).await
    }

    /// What the conversation came to, once that is published.
    pub async fn result(&self, tenant: &TenantId, id: ConversationId) -> Result<Option<ResultRow>, CallError> {
        let tenant = tenant.clone();
        self.readers.read("result", move |conn| result(conn, &tenant, id)).await
    }
}

fn claim(conn: &mut Conn, now: NaiveDateTime, most: usize) -> Result<Vec<Claim>, StoreError> {
    macro_rules! due {
        () => {
            finalize::table.filter(finalize::next_at.le(now)).order(finalize::next_at).limit(most as i64).select((
                finalize::tenant_id,
                finalize::conversation_id,
                finalize::step,
                finalize::attempt,
                finalize::fence,
                finalize::input_hash,
                finalize::payload,
            ))
        };
    }
    let found: Vec<Entry> = match conn {
        Conn::Sqlite(c) => due!().load(c)?, // one writer
        Conn::Postgres(c) => {
            let c: &mut super::postgres::PgConn = c;
            due!().for_update().skip_locked().load(c)?
        }
    };
    let mut claims = Vec::with_capacity(found.len());
    for entry in found {
        // A step of a newer release is left to it.
        let Some(step) = Step::ALL.into_iter().find(|step| step.name() == entry.step) else { continue };
        let claim = Claim {
            tenant: TenantId::new(&entry.tenant_id),
            conversation: conversations::id_of(&entry.conversation_id)?,
            step,
            attempt: (entry.attempt + 1) as u32,
            fence: entry.fence + 1,
            input_hash: entry.input_hash,
            payload: entry.payload,
        };
        on_conn!(conn, |c: B| {
            diesel::update(finalize::table.find((&entry.tenant_id, &entry.conversation_id, &entry.step)))
                .set((
                    finalize::attempt.eq(finalize::attempt + 1),
                    finalize::fence.eq(finalize::fence + 1),
                    finalize::next_at.eq(now + step.lease()),
                    finalize::updated_at.eq(now),
                ))
                .execute(c)?
        });
        claims.push(claim);
    }
    Ok(claims)
}

fn settle(conn: &mut Conn, effects: &mut Effects, claim: &Claim, finding: &Finding, now: NaiveDateTime) -> Result<bool, StoreError> {
    let (tenant, id) = (&claim.tenant, claim.conversation);
    let ended_at: Option<Option<NaiveDateTime>> = on_conn!(conn, |c: B| {
        diesel::update(heads::table.find((tenant.as_str(), id.to_string())))
            .set(heads::updated_at.eq(now))
            .returning(heads::ended_at)
            .get_result(c)
            .optional()?
    });
    let ours = on_conn!(conn, |c: B| {
        diesel::update(finalize::table.find((tenant.as_str(), id.to_string(), claim.step.name())))
            .filter(finalize::fence.eq(claim.fence))
            .filter(finalize::input_hash.eq(&claim.input_hash))
            .filter(finalize::outcome.is_null())
            .set(finalize::updated_at.eq(now))
            .execute(c)?
    });
    let Some(ended_at) = ended_at.filter(|_| ours == 1) else { return Ok(false) };
    let next = |conn: &mut Conn, step, at, payload: &Value| add(conn, tenant, id, step, at, &claim.input_hash, payload, now);
    match finding {
        Finding::Drain => closing::drain(conn, effects, claim, now)?,
        Finding::Scored(score) => {
            over(conn, claim, if score.timed_out { Outcome::TimedOut } else { Outcome::Done }, now)?;
            next(conn, Step::Publish, now, &json!(score))?;
        }
        Finding::Publish(follow) => {
            let score: Score = serde_json::from_value(claim.payload.clone()).map_err(|e| StoreError::damaged("result to publish", e))?;
            on_conn!(conn, |c: B| {
                diesel::insert_into(results::table)
                    .values((
                        results::tenant_id.eq(tenant.as_str()),
                        results::conversation_id.eq(id.to_string()),
                        results::version.eq(1),
                        results::quality.eq(score.quality.name()),
                        results::summary.eq(json!(score.summary)),
                        results::input_hash.eq(&claim.input_hash),
                        results::created_at.eq(now),
                        results::updated_at.eq(now),
                    ))
                    .on_conflict_do_nothing()
                    .execute(c)?
            });
            let degraded = score.quality == Quality::Degraded;
            mark(conn, effects, claim, if degraded { Finalization::Degraded } else { Finalization::Done }, now)?;
            over(conn, claim, Outcome::Done, now)?;
            if follow.notify {
                let event = event(conn, tenant, id, now)?;
                next(conn, Step::Notify, now, &event)?;
            }
            if let Some(kept) = follow.retain {
                next(conn, Step::Retain, ended_at.unwrap_or(now) + kept, &Value::Null)?;
            }
            if degraded {
                next(conn, Step::Upgrade, now + FIRST_UPGRADE, &json!({ "version": 1 }))?;
            }
        }
        Finding::Better(score, follow) => {
            let version = claim.payload["version"].as_i64().unwrap_or(1);
            let replaced = on_conn!(conn, |c: B| {
                diesel::update(results::table.find((tenant.as_str(), id.to_string())))
                    .filter(results::version.eq(version))
                    .set((
                        results::version.eq(version + 1),
                        results::quality.eq(score.quality.name()),
                        results::summary.eq(json!(score.summary)),
                        results::updated_at.eq(now),
                    ))
                    .execute(c)?
            });
            over(conn, claim, Outcome::Done, now)?;
            if replaced > 0 {
                mark(conn, effects, claim, Finalization::Done, now)?;
                if follow.notify {
                    let event = event(conn, tenant, id, now)?;
                    tell_again(conn, claim, &event, now)?;
                }
            }
        }
        Finding::Over(outcome) => over(conn, claim, *outcome, now)?,
        Finding::Later(at) => later(conn, claim, at.naive_utc(), &claim.payload)?,
        Finding::Erase => {
            on_conn!(conn, |c: B| diesel::delete(heads::table.find((tenant.as_str(), id.to_string()))).execute(c)?);
        }
    }
    Ok(true)
}

/// A step that is there already stays as it is.
#[allow(clippy::too_many_arguments)] // each is a column
fn add(
    conn: &mut Conn,
    tenant: &TenantId,
    id: ConversationId,
    step: Step,
    at: NaiveDateTime,
    input_hash: &str,
    payload: &Value,
    now: NaiveDateTime,
) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::insert_into(finalize::table)
            .values((
                finalize::tenant_id.eq(tenant.as_str()),
                finalize::conversation_id.eq(id.to_string()),
                finalize::step.eq(step.name()),
                finalize::attempt.eq(0),
                finalize::next_at.eq(at),
                finalize::fence.eq(0),
                finalize::input_hash.eq(input_hash),
                finalize::payload.eq(payload),
                finalize::created_at.eq(now),
                finalize::updated_at.eq(now),
            ))
            .on_conflict_do_nothing()
            .execute(c)?
    });
    Ok(())
}

fn over(conn: &mut Conn, claim: &Claim, outcome: Outcome, now: NaiveDateTime) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::update(finalize::table.find((claim.tenant.as_str(), claim.conversation.to_string(), claim.step.name())))
            .set((finalize::outcome.eq(outcome.name()), finalize::next_at.eq(None::<NaiveDateTime>), finalize::updated_at.eq(now)))
            .execute(c)?
    });
    Ok(())
}

fn later(conn: &mut Conn, claim: &Claim, at: NaiveDateTime, payload: &Value) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::update(finalize::table.find((claim.tenant.as_str(), claim.conversation.to_string(), claim.step.name())))
            .set((finalize::next_at.eq(at), finalize::payload.eq(payload)))
            .execute(c)?
    });
    Ok(())
}

/// A newer result takes the place of the news of an older one, told or not.
fn tell_again(conn: &mut Conn, claim: &Claim, event: &Value, now: NaiveDateTime) -> Result<(), StoreError> {
    let (tenant, id) = (&claim.tenant, claim.conversation);
    let known = on_conn!(conn, |c: B| {
        diesel::update(finalize::table.find((tenant.as_str(), id.to_string(), Step::Notify.name())))
            .set((
                finalize::attempt.eq(0),
                finalize::next_at.eq(now),
                finalize::fence.eq(finalize::fence + 1),
                finalize::payload.eq(event),
                finalize::outcome.eq(None::<String>),
                finalize::updated_at.eq(now),
            ))
            .execute(c)?
    });
    if known > 0 { Ok(()) } else { add(conn, tenant, id, Step::Notify, now, &claim.input_hash, event, now) }
}

/// Shows readers how far the conversation is.
fn mark(conn: &mut Conn, effects: &mut Effects, claim: &Claim, is: Finalization, now: NaiveDateTime) -> Result<(), StoreError> {
    let id = claim.conversation.to_string();
    on_conn!(conn, |c: B| {
        diesel::update(heads::table.find((claim.tenant.as_str(), &id)))
            .set((heads::finalization.eq(is.name()), heads::version.eq(heads::version + 1)))
            .execute(c)?
    });
    conversations::announce(conn, effects, &claim.tenant, &id, now)
}
