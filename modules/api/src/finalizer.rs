//! Finishes conversations after their last word: takes the steps that are due from the record, does what each needs from outside, and has the
//! record settle it.
//!
//! Invariants:
//! - everything that must survive a crash is a row (`record/finalize.rs`); a worker that dies at any moment is replaced by any other;
//! - a conversation is summed up in 20 s, by `Inference` if that answers, else from the insights that are in the record; then the result is
//!   called degraded, and a better one takes its place later;
//! - a webhook is tried 8 times in 24 h; what it is told keeps its id.

pub mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod webhook;

use crate::{
    Record, metrics as names,
    record::{
        ChangeRows, Changes, Claim, Finalization, Finding, Follow, Missed, Outcome, Quality, Score, Step, UtteranceKind, UtteranceRow,
    },
};
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use contracts::{
    CallCx, CallError, ConversationId, ErrorKind, Inference, TenantId,
    inference::{Evidence, Summarize, SummaryItem, SummaryKind, Task, Tier, TierStatus},
};
use futures::TryStreamExt as _;
pub use settings::Settings;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use webhook::Webhook;

/// Steps worked on at the same time.
const AT_ONCE: usize = 8;
/// Nobody says when a step of another process is due, so it is looked for this often.
const LOOK: Duration = Duration::from_secs(1);
const SCORE: Duration = Duration::from_secs(20);
const STORE: Duration = Duration::from_secs(5);
/// Workers that may die while scoring before the record's own insights have to do.
const SCORED_IN_VAIN: u32 = 3;
/// Between tries of the webhook: 8 of them within 24 h.
const TELL_AGAIN: [TimeDelta; 7] = [
    TimeDelta::seconds(10),
    TimeDelta::minutes(1),
    TimeDelta::minutes(5),
    TimeDelta::minutes(30),
    TimeDelta::hours(2),
    TimeDelta::hours(6),
    TimeDelta::hours(15),
];
/// Between tries for a better result; after the last it stays as it is.
const UPGRADE_AGAIN: [TimeDelta; 6] =
    [TimeDelta::minutes(1), TimeDelta::minutes(5), TimeDelta::minutes(15), TimeDelta::hours(1), TimeDelta::hours(6), TimeDelta::hours(16)];
const RETAIN_AGAIN: TimeDelta = TimeDelta::minutes(10);

/// Deletes the recording of a conversation, where there is one here.
pub type ForgetRecording = Arc<dyn Fn(ConversationId) -> std::io::Result<()> + Send + Sync>;

/// Where steps are claimed and settled. The record; a trait so that a test can fail it at any write.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    async fn claim(&self, now: DateTime<Utc>, most: usize) -> Result<Vec<Claim>, CallError>;
    /// False: somebody else has it by now.
    async fn settle(&self, claim: &Claim, finding: &Finding, now: DateTime<Utc>) -> Result<bool, CallError>;
}

#[async_trait]
impl Ledger for Record {
    async fn claim(&self, now: DateTime<Utc>, most: usize) -> Result<Vec<Claim>, CallError> {
        self.claim_steps(&CallCx::new(STORE), now, most).await
    }
    async fn settle(&self, claim: &Claim, finding: &Finding, now: DateTime<Utc>) -> Result<bool, CallError> {
        self.settle_step(&CallCx::new(STORE), claim, finding, now).await
    }
}

/// Cheap to clone; every clone is the same worker.
#[derive(Clone)]
pub struct Finalizer(Arc<Inner>);

struct Inner {
    record: Arc<Record>,
    ledger: Arc<dyn Ledger>,
    inference: Arc<dyn Inference>,
    forget_recording: ForgetRecording,
    webhook: Option<Webhook>,
    settings: Settings,
    patience: Duration,
}

impl Finalizer {
    /// # Errors
    /// Settings of the webhook that cannot work.
    pub fn new(
        record: Arc<Record>,
        inference: Arc<dyn Inference>,
        forget_recording: ForgetRecording,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let (webhook, ledger, settings) = (Webhook::new(settings)?, record.clone(), settings.clone());
        Ok(Self(Arc::new(Inner { record, ledger, inference, forget_recording, webhook, settings, patience: SCORE })))
    }

    /// The same, writing by way of `ledger`, and with this much patience for a result.
    #[cfg(test)]
    pub(crate) fn by_way_of(self, ledger: Arc<dyn Ledger>, patience: Duration) -> Self {
        let inner = Arc::into_inner(self.0).expect("it is new");
        Self(Arc::new(Inner { ledger, patience, ..inner }))
    }

    /// Works on everything that is due, one after the other, and on what becomes due by it.
    #[cfg(test)]
    pub(crate) async fn work_due(&self, now: DateTime<Utc>) -> Result<(), CallError> {
        while self.0.record.next_step().await?.is_some_and(|at| at <= now) {
            for claim in self.0.ledger.claim(now, 1).await? {
                self.work(&claim, now).await?;
            }
        }
        Ok(())
    }

    /// Until `stop`. What is under way then is finished by whoever comes after.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.0.record.subscribe();
        let mut working = JoinSet::new();
        loop {
            let now = Utc::now();
            let due = self.0.record.next_step().await.is_ok_and(|next| next.is_some_and(|at| at <= now));
            if due && working.len() < AT_ONCE {
                match self.0.ledger.claim(now, AT_ONCE - working.len()).await {
                    Ok(claims) => claims.into_iter().for_each(|claim| {
                        let worker = self.clone();
                        working.spawn(async move { worker.work_off(claim, Utc::now()).await });
                    }),
                    Err(error) => debug!(%error, "no steps could be claimed; trying again"),
                }
            }
            // Every branch is cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = working.join_next() => {}
                () = closing(&mut changes) => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn work_off(&self, claim: Claim, now: DateTime<Utc>) {
        let (id, step, attempt) = (claim.conversation, claim.step.name(), claim.attempt);
        match self.work(&claim, now).await {
            Ok(true) => {}
            Ok(false) => info!(conversation = %id, step, attempt, "somebody else has the step by now"),
            // Claimed again when its lease is over.
            Err(error) => warn!(conversation = %id, step, attempt, %error, "a step of finishing failed; it is tried again"),
        }
    }

    /// One step, from its claim to its settlement.
    pub(crate) async fn work(&self, claim: &Claim, now: DateTime<Utc>) -> Result<bool, CallError> {
        let finding = match claim.step {
            Step::Drain => Finding::Drain,
            Step::Score => {
                let asks = claim.attempt <= SCORED_IN_VAIN;
                Finding::Scored(self.score(&claim.tenant, claim.conversation, asks).await?)
            }
            Step::Publish => Finding::Publish(self.follow()),
            Step::Notify => self.notify(claim, now).await,
            Step::Retain => self.retain(claim, now).await?,
            Step::Upgrade => self.upgrade(claim, now).await?,
        };
        let told = match &finding {
            Finding::Drain => "looked",
            Finding::Later(_) => "later",
            Finding::Scored(Score { timed_out: true, .. }) => Outcome::TimedOut.name(),
            Finding::Over(outcome) => outcome.name(),
            _ => Outcome::Done.name(),
        };
        let ours = self.0.ledger.settle(claim, &finding, now).await?;
        metrics::counter!(names::FINALIZE_STEPS, "step" => claim.step.name(), "outcome" => if ours { told } else { "fenced" }).increment(1);
        Ok(ours)
    }

    fn follow(&self) -> Follow {
        Follow { notify: self.0.webhook.is_some(), retain: self.0.settings.recordings_stay() }
    }

    /// By `Inference` where that is asked and answers, else by the lowest rung.
    async fn score(&self, tenant: &TenantId, id: ConversationId, asks: bool) -> Result<Score, CallError> {
        let said = self.0.record.transcript(tenant, id).await?;
        if said.iter().all(|row| row.kind == UtteranceKind::Gap || row.words.is_empty()) {
            return Ok(Score { quality: Quality::Full, summary: vec![], timed_out: false });
        }
        let began = std::time::Instant::now();
        let asked = match asks {
            true => tokio::time::timeout(self.0.patience, self.ask(tenant, id, &said)).await.unwrap_or_else(|_| Err(CallError::deadline())),
            false => Err(CallError::panicked(&"whoever asked did not live to tell")),
        };
        metrics::histogram!(names::FINALIZE_SCORE_SECONDS).record(began.elapsed().as_secs_f64());
        match asked {
            Ok((summary, quality)) => Ok(Score { quality, summary, timed_out: false }),
            Err(error) => {
                warn!(conversation = %id, kind = error.kind.name(), %error, "summed up from the record's own insights");
                let summary = self.sum_up_insights(tenant, id, &said).await?;
                Ok(Score { quality: Quality::Degraded, summary, timed_out: error.kind == ErrorKind::DeadlineExceeded })
            }
        }
    }

    async fn ask(&self, tenant: &TenantId, id: ConversationId, said: &[UtteranceRow]) -> Result<(Vec<SummaryItem>, Quality), CallError> {
        let utterances = said.iter().filter(|row| row.kind == UtteranceKind::Speech).map(UtteranceRow::utterance).collect();
        let mut cx = CallCx::new(self.0.patience).for_conversation(id);
        cx.tenant = tenant.clone();
        let inference = &self.0.inference;
        let summary: Vec<SummaryItem> =
            inference.summarize(cx.clone(), Summarize { conversation: id, utterances }).await?.try_collect().await?;
        let by_the_best = !summary.is_empty() && summary.iter().all(|item| item.tier == Tier::Llm);
        let degraded = !by_the_best && stands_in(&inference.tiers(cx).await?);
        Ok((summary, if degraded { Quality::Degraded } else { Quality::Full }))
    }

    /// The lowest rung: what was found while people spoke says why they called.
    async fn sum_up_insights(&self, tenant: &TenantId, id: ConversationId, said: &[UtteranceRow]) -> Result<Vec<SummaryItem>, CallError> {
        let Some(intent) = self.0.record.row(tenant, id).await?.intent else { return Ok(vec![]) };
        let insights = self.0.record.insights(tenant, id, false, Some(Task::Intent)).await?;
        let carries = insights.iter().filter(|insight| insight.labels.first().is_some_and(|label| label.name == intent.name));
        let best = carries.max_by(|a, b| a.labels[0].score.total_cmp(&b.labels[0].score));
        let Some((insight, row)) = best.and_then(|i| Some((i, said.iter().find(|row| row.id == i.utterance_id)?))) else {
            return Ok(vec![]);
        };
        let evidence = Evidence { utterance: row.id, word_from: 0, word_to: row.words.len() as u32 };
        let tier = insight.provenance.tier;
        Ok(vec![SummaryItem { kind: SummaryKind::Reason, text: row.text.clone(), evidence: vec![evidence], tier }])
    }

    async fn notify(&self, claim: &Claim, now: DateTime<Utc>) -> Finding {
        let text = |name: &str| claim.payload[name].as_str().unwrap_or_default().to_owned();
        let (event, body) = (text("event"), text("body"));
        let Some(webhook) = &self.0.webhook else {
            info!(conversation = %claim.conversation, event, "the webhook was taken out of the configuration: nobody is told");
            return Finding::Over(Outcome::GivenUp);
        };
        let Err(error) = webhook.tell(&event, body, now.timestamp()).await else { return Finding::Over(Outcome::Done) };
        match TELL_AGAIN.get(claim.attempt as usize - 1) {
            Some(pause) => {
                warn!(conversation = %claim.conversation, event, attempt = claim.attempt, error = format!("{error:#}"), "the webhook was not told; it is tried again");
                Finding::Later(now + *pause)
            }
            None => {
                tracing::error!(conversation = %claim.conversation, event, attempts = claim.attempt, error = format!("{error:#}"), "the webhook was not told and is given up");
                Finding::Over(Outcome::GivenUp)
            }
        }
    }

    async fn retain(&self, claim: &Claim, now: DateTime<Utc>) -> Result<Finding, CallError> {
        let Settings { keep_recordings_days, keep_days, .. } = self.0.settings;
        let row = self.0.record.row(&claim.tenant, claim.conversation).await?;
        let over = |days: u32| (days > 0).then(|| row.ended_at.unwrap_or(row.started_at) + TimeDelta::days(days.into()));
        let (recording, everything) = (over(keep_recordings_days), over(keep_days));
        if [recording, everything].into_iter().flatten().any(|at| at <= now) {
            let (forget, id) = (self.0.forget_recording.clone(), claim.conversation);
            let forgotten = tokio::task::spawn_blocking(move || forget(id)).await;
            if let Err(error) = forgotten.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
                warn!(conversation = %id, %error, "a recording could not be deleted; it is tried again");
                return Ok(Finding::Later(now + RETAIN_AGAIN));
            }
        }
        Ok(match everything {
            Some(at) if at <= now => Finding::Erase,
            Some(at) => Finding::Later(recording.filter(|first| *first > now).map_or(at, |first| first.min(at))),
            None => recording.filter(|at| *at > now).map_or(Finding::Over(Outcome::Done), Finding::Later),
        })
    }

    async fn upgrade(&self, claim: &Claim, now: DateTime<Utc>) -> Result<Finding, CallError> {
        let score = self.score(&claim.tenant, claim.conversation, true).await?;
        if score.quality == Quality::Full {
            return Ok(Finding::Better(score, self.follow()));
        }
        Ok(match UPGRADE_AGAIN.get(claim.attempt as usize - 1) {
            Some(pause) => Finding::Later(now + *pause),
            None => Finding::Over(Outcome::GivenUp),
        })
    }
}

/// Whether a summary that is not by a language model is one of a lower rung: the best is away, or there is a language model, which did not
/// answer this time.
fn stands_in(tiers: &[TierStatus]) -> bool {
    tiers.iter().any(|task| task.degraded.is_some() || task.tier <= Tier::SecondLlm)
}

/// Returns when a conversation may have become due.
async fn closing(changes: &mut Changes) {
    loop {
        match changes.recv().await {
            Ok(change) => match &change.rows {
                ChangeRows::Conversation(row) if matches!(row.finalization, Some(Finalization::Closing | Finalization::Scoring)) => return,
                _ => {}
            },
            Err(Missed::Behind(_) | Missed::Another) => return,
            Err(Missed::Closed) => std::future::pending().await,
        }
    }
}
