//! What it meant: runs and their insights, recorded once and superseded, never overwritten.
//!
//! Invariants:
//! - at most one current insight per utterance and task; an older one names what took its place;
//! - a repeated insight changes nothing, also when it has been superseded since;
//! - one that stands in for a better rung is kept beside what that rung has said, and never takes its place;
//! - a conversation's own intent and sentiment follow in the same transaction;
//! - whatever is kept here moves its conversation's `updated_at`, by which `copy.rs` finds it.

use super::{
    conversations::{id_of, tier_of, unknown},
    rows::{EvidenceRow, InsightRow, LabelRow, ProvenanceRow},
    schema::{analysis_runs, channels, conversations, heard_segments, insights, outbox, segments},
    store::{Conn, StoreError, on_conn},
    writer::Effects,
};
use chrono::{NaiveDateTime, Utc};
use contracts::{
    ConversationId, InsightId, TenantId,
    audio::Role,
    inference::{Evidence, Insight, Label, Provenance, Task},
};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, Insertable, JoinOnDsl as _, NullableExpressionMethods, OptionalExtension as _,
    QueryDsl as _, Queryable, RunQueryDsl as _, Selectable, SelectableHelper as _,
    dsl::{max, min, sum},
};
use std::collections::BTreeSet;

/// What became of one insight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    New,
    /// It was there already.
    Known,
    /// What it speaks of is not in the record (yet); only for [`Utterances::MustExist`].
    Orphan,
}

/// Whether an insight may come before its utterance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Utterances {
    MayBeMissing,
    MustExist,
}

#[derive(Insertable)]
#[diesel(table_name = insights, treat_none_as_default_value = false)]
struct NewInsight<'a> {
    tenant_id: &'a str,
    id: String,
    run_id: String,
    conversation_id: String,
    utterance_id: String,
    task: &'static str,
    role: Option<String>,
    start_ms: Option<i64>,
    label: Option<&'a str>,
    score: Option<f64>,
    labels: serde_json::Value,
    abstained: Option<&'a str>,
    evidence: serde_json::Value,
    tier: &'static str,
    model: &'a str,
    degraded_from: Option<&'static str>,
    config_hash: &'a str,
    latency_ms: i64,
    prompt: Option<&'a str>,
    late: bool,
    superseded_by: Option<String>,
    created_at: NaiveDateTime,
}

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = insights)]
struct InsightEntry {
    id: String,
    run_id: String,
    conversation_id: String,
    utterance_id: String,
    task: String,
    labels: serde_json::Value,
    abstained: Option<String>,
    evidence: serde_json::Value,
    tier: String,
    model: String,
    degraded_from: Option<String>,
    config_hash: String,
    latency_ms: i64,
    prompt: Option<String>,
    late: bool,
    superseded_by: Option<String>,
    created_at: NaiveDateTime,
}

impl InsightEntry {
    fn row(self) -> Result<InsightRow, StoreError> {
        let labels: Vec<Label> = serde_json::from_value(self.labels).map_err(|e| StoreError::damaged("labels of an insight", e))?;
        let evidence: Vec<Evidence> =
            serde_json::from_value(self.evidence).map_err(|e| StoreError::damaged("evidence of an insight", e))?;
        Ok(InsightRow {
            id: id_of(&self.id)?,
            run_id: id_of(&self.run_id)?,
            conversation_id: id_of(&self.conversation_id)?,
            utterance_id: id_of(&self.utterance_id)?,
            task: task_of(&self.task)?,
            labels: labels.into_iter().map(|l| LabelRow { name: l.name, score: l.score }).collect(),
            abstained: self.abstained,
            evidence: evidence
                .into_iter()
                .map(|e| EvidenceRow { utterance_id: e.utterance, word_from: e.word_from, word_to: e.word_to })
                .collect(),
            provenance: ProvenanceRow {
                tier: tier_of(&self.tier)?,
                model: self.model,
                degraded_from: self.degraded_from.as_deref().map(tier_of).transpose()?,
                config_hash: self.config_hash,
                latency_ms: self.latency_ms as u32,
                prompt: self.prompt,
                late: self.late,
            },
            superseded_by: self.superseded_by.as_deref().map(id_of).transpose()?,
            created_at: self.created_at.and_utc(),
        })
    }
}

impl InsightRow {
    /// As the contract says it.
    pub fn insight(&self) -> Insight {
        Insight {
            id: self.id,
            run: self.run_id,
            conversation: self.conversation_id,
            utterance: self.utterance_id,
            task: self.task,
            labels: self.labels.iter().map(|l| Label { name: l.name.clone(), score: l.score }).collect(),
            abstained: self.abstained.clone(),
            evidence: self
                .evidence
                .iter()
                .map(|e| Evidence { utterance: e.utterance_id, word_from: e.word_from, word_to: e.word_to })
                .collect(),
            provenance: Provenance {
                tier: self.provenance.tier,
                model: self.provenance.model.clone(),
                degraded_from: self.provenance.degraded_from,
                config_hash: self.provenance.config_hash.clone(),
                latency_ms: self.provenance.latency_ms,
                prompt: self.provenance.prompt.clone(),
                late: self.provenance.late,
            },
        }
    }
}

fn task_of(name: &str) -> Result<Task, StoreError> {
    Task::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| StoreError::damaged("task", name))
}

/// Records each insight by itself.
///
/// # Errors
/// `NotFound` for a conversation that was never opened, unless `utterances` must exist: then its insights are orphans.
pub(super) fn record(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    batch: &[Insight],
    utterances: Utterances,
) -> Result<Vec<Recorded>, StoreError> {
    let named: BTreeSet<ConversationId> = batch.iter().map(|i| i.conversation).collect();
    let names: Vec<String> = named.iter().map(ToString::to_string).collect();
    let known: Vec<String> = on_conn!(conn, |c: B| {
        conversations::table
            .filter(conversations::tenant_id.eq(tenant.as_str()))
            .filter(conversations::id.eq_any(&names))
            .select(conversations::id)
            .load(c)?
    });
    if utterances == Utterances::MayBeMissing
        && let Some(missing) = named.iter().find(|id| !known.contains(&id.to_string()))
    {
        return Err(unknown(*missing));
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut touched = BTreeSet::new();
    for insight in batch {
        let outcome = if known.contains(&insight.conversation.to_string()) {
            record_one(conn, tenant, insight, utterances)?
        } else {
            Recorded::Orphan
        };
        if outcome == Recorded::New {
            touched.insert((insight.conversation, insight.task));
            effects.touch(tenant, insight.conversation);
            effects.announced = true;
        }
        outcomes.push(outcome);
    }
    for (conversation, task) in touched {
        refresh_top(conn, tenant, conversation, task)?;
    }
    Ok(outcomes)
}

fn record_one(conn: &mut Conn, tenant: &TenantId, insight: &Insight, utterances: Utterances) -> Result<Recorded, StoreError> {
    let tenant = tenant.as_str();
    let id = insight.id.to_string();
    let utterance_id = insight.utterance.to_string();
    let known: Option<String> = on_conn!(conn, |c: B| insights::table.find((tenant, &id)).select(insights::id).first(c).optional()?);
    if known.is_some() {
        return Ok(Recorded::Known);
    }
    let place: Option<(String, i64)> = on_conn!(conn, |c: B| {
        heard_segments!()
            .filter(segments::tenant_id.eq(tenant))
            .filter(segments::utterance_id.eq(&utterance_id))
            .select((channels::role, segments::start_ms))
            .first(c)
            .optional()?
    });
    if place.is_none() && utterances == Utterances::MustExist {
        return Ok(Recorded::Orphan);
    }
    let better = better_current(conn, tenant, insight)?;
    let (role, start_ms) = place.unzip();
    let now = Utc::now().naive_utc();
    let json = |value: Result<serde_json::Value, serde_json::Error>| value.map_err(|e| StoreError::damaged("insight", e));
    let top = insight.labels.first().filter(|_| insight.abstained.is_none());
    let row = NewInsight {
        tenant_id: tenant,
        id,
        run_id: insight.run.to_string(),
        conversation_id: insight.conversation.to_string(),
        utterance_id,
        task: insight.task.name(),
        role,
        start_ms,
        label: top.map(|l| l.name.as_str()),
        score: top.map(|l| f64::from(l.score)),
        labels: json(serde_json::to_value(&insight.labels))?,
        abstained: insight.abstained.as_deref(),
        evidence: json(serde_json::to_value(&insight.evidence))?,
        tier: insight.provenance.tier.name(),
        model: &insight.provenance.model,
        degraded_from: insight.provenance.degraded_from.map(|t| t.name()),
        config_hash: &insight.provenance.config_hash,
        latency_ms: i64::from(insight.provenance.latency_ms),
        prompt: insight.provenance.prompt.as_deref(),
        late: insight.provenance.late,
        superseded_by: better.clone(),
        created_at: now,
    };
    on_conn!(conn, |c: B| {
        diesel::insert_into(analysis_runs::table)
            .values((
                analysis_runs::tenant_id.eq(tenant),
                analysis_runs::id.eq(&row.run_id),
                analysis_runs::conversation_id.eq(&row.conversation_id),
                analysis_runs::task.eq(row.task),
                analysis_runs::trigger.eq("live"),
                analysis_runs::model.eq(row.model),
                analysis_runs::config_hash.eq(row.config_hash),
                analysis_runs::created_at.eq(now),
            ))
            .on_conflict_do_nothing()
            .execute(c)?;
        if better.is_none() {
            diesel::update(
                insights::table
                    .filter(insights::tenant_id.eq(tenant))
                    .filter(insights::utterance_id.eq(&row.utterance_id))
                    .filter(insights::task.eq(row.task))
                    .filter(insights::superseded_by.is_null()),
            )
            .set(insights::superseded_by.eq(&row.id))
            .execute(c)?;
        }
        diesel::insert_into(insights::table).values(&row).execute(c)?;
        if better.is_some() {
            // Nothing that a reader sees has changed, so nobody is told and the version stays.
            diesel::update(conversations::table.find((tenant, &row.conversation_id))).set(conversations::updated_at.eq(now)).execute(c)?;
            return Ok(Recorded::Known);
        }
        diesel::insert_into(outbox::table)
            .values((
                outbox::tenant_id.eq(tenant),
                outbox::conversation_id.eq(&row.conversation_id),
                outbox::kind.eq("insight"),
                outbox::subject.eq(&row.id),
                outbox::created_at.eq(now),
            ))
            .execute(c)?;
    });
    Ok(Recorded::New)
}

/// The current insight on the same, where it is of a better rung and this one only stands in for that. A turn that is understood twice, once
/// with the better rung and later without, keeps the better answer.
fn better_current(conn: &mut Conn, tenant: &str, insight: &Insight) -> Result<Option<String>, StoreError> {
    if insight.provenance.degraded_from.is_none() {
        return Ok(None);
    }
    let current: Option<(String, String)> = on_conn!(conn, |c: B| {
        insights::table
            .filter(insights::tenant_id.eq(tenant))
            .filter(insights::utterance_id.eq(insight.utterance.to_string()))
            .filter(insights::task.eq(insight.task.name()))
            .filter(insights::superseded_by.is_null())
            .select((insights::id, insights::tier))
            .first(c)
            .optional()?
    });
    let Some((id, tier)) = current else { return Ok(None) };
    Ok((tier_of(&tier)? < insight.provenance.tier).then_some(id))
}

/// A conversation's intent is what its customer's turns add up to, so that one sure "thank you" does not outweigh the reason of the call;
/// its sentiment is the latest. An agent's do not count.
fn refresh_top(conn: &mut Conn, tenant: &TenantId, id: ConversationId, task: Task) -> Result<(), StoreError> {
    let id = id.to_string();
    let top: Option<(Option<String>, Option<f64>, Option<String>)> = on_conn!(conn, |c: B| {
        macro_rules! heard {
            ($query:expr) => {
                $query
                    .filter(insights::tenant_id.eq(tenant.as_str()))
                    .filter(insights::conversation_id.eq(&id))
                    .filter(insights::task.eq(task.name()))
                    .filter(insights::superseded_by.is_null())
                    .filter(insights::label.is_not_null())
                    .filter(insights::role.ne(Role::Agent.name()))
            };
        }
        match task {
            Task::Intent => heard!(insights::table.group_by(insights::label))
                .select((insights::label, max(insights::score), min(insights::tier)))
                .order((sum(insights::score).desc(), min(insights::start_ms).asc()))
                .first(c)
                .optional()?,
            Task::Sentiment => heard!(insights::table)
                .select((insights::label, insights::score, insights::tier.nullable()))
                .order((insights::start_ms.desc(), insights::id.desc()))
                .first(c)
                .optional()?,
        }
    });
    let (label, score, tier) = top.unwrap_or_default();
    let updated = (conversations::updated_at.eq(Utc::now().naive_utc()), conversations::version.eq(conversations::version + 1));
    on_conn!(conn, |c: B| {
        let target = diesel::update(conversations::table.find((tenant.as_str(), &id)));
        match task {
            Task::Intent => target
                .set((conversations::intent.eq(label), conversations::intent_score.eq(score), conversations::intent_tier.eq(tier), updated))
                .execute(c)?,
            Task::Sentiment => target
                .set((
                    conversations::sentiment.eq(label),
                    conversations::sentiment_score.eq(score),
                    conversations::sentiment_tier.eq(tier),
                    updated,
                ))
                .execute(c)?,
        }
    });
    Ok(())
}

/// Oldest first.
pub(super) fn of_conversation(
    conn: &mut Conn,
    tenant: &TenantId,
    id: ConversationId,
    superseded: bool,
    task: Option<Task>,
) -> Result<Vec<InsightRow>, StoreError> {
    let found: Vec<InsightEntry> = on_conn!(conn, |c: B| {
        let mut query = insights::table
            .filter(insights::tenant_id.eq(tenant.as_str()))
            .filter(insights::conversation_id.eq(id.to_string()))
            .order((insights::created_at, insights::id))
            .select(InsightEntry::as_select())
            .into_boxed::<B>();
        if !superseded {
            query = query.filter(insights::superseded_by.is_null());
        }
        if let Some(task) = task {
            query = query.filter(insights::task.eq(task.name()));
        }
        query.load(c)?
    });
    found.into_iter().map(InsightEntry::row).collect()
}

/// Those with these ids, each with the ids it took the place of; unknown ids are left out.
pub(super) fn by_ids(conn: &mut Conn, tenant: &TenantId, ids: &[String]) -> Result<Vec<(InsightRow, Vec<InsightId>)>, StoreError> {
    let (found, replaced): (Vec<InsightEntry>, Vec<(Option<String>, String)>) = on_conn!(conn, |c: B| {
        let found = insights::table
            .filter(insights::tenant_id.eq(tenant.as_str()))
            .filter(insights::id.eq_any(ids))
            .select(InsightEntry::as_select())
            .load(c)?;
        let replaced = insights::table
            .filter(insights::tenant_id.eq(tenant.as_str()))
            .filter(insights::superseded_by.eq_any(ids))
            .select((insights::superseded_by, insights::id))
            .load(c)?;
        (found, replaced)
    });
    let mut rows = Vec::with_capacity(found.len());
    for entry in found {
        let of = replaced.iter().filter(|(by, _)| by.as_deref() == Some(entry.id.as_str()));
        let superseded = of.map(|(_, id)| id_of(id)).collect::<Result<_, _>>()?;
        rows.push((entry.row()?, superseded));
    }
    Ok(rows)
}
