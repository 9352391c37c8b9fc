//! Understands first words: the label of every task is the utterance's first word.

use super::behavior::{Behavior, Conduct};
use crate::{
    CallCx, CallError, EventStream, Inference, InsightId, RunId,
    inference::{Analyze, Evidence, Insight, Label, Provenance, Summarize, SummaryItem, SummaryKind, Task, Tier, TierStatus},
};
use async_trait::async_trait;
use futures::StreamExt;
use std::sync::Arc;

/// Keeps the contract with a rule anyone can compute: label = first word in lower case, score 1, evidence that word; an utterance
/// without words abstains. A summary has one item per utterance.
#[derive(Clone, Default)]
pub struct FakeInference {
    conduct: Arc<Conduct>,
    midway: Arc<Conduct>,
}

impl FakeInference {
    /// From the next call on, in every method.
    pub fn behave(&self, behavior: Behavior) {
        self.conduct.behave(behavior)
    }

    /// Instead of the second item of a summary.
    pub fn behave_midway(&self, behavior: Behavior) {
        self.midway.behave(behavior)
    }

    /// Contexts of all calls so far.
    pub fn seen(&self) -> Vec<CallCx> {
        self.conduct.seen()
    }

    /// Waits until there were so many calls.
    pub async fn called(&self, times: usize) {
        self.conduct.called(times).await
    }

    /// Calls and summaries now under way.
    pub fn running(&self) -> usize {
        self.conduct.running()
    }

    pub fn conduct(&self) -> Arc<Conduct> {
        self.conduct.clone()
    }

    /// That of a summary's second item.
    pub fn midway(&self) -> Arc<Conduct> {
        self.midway.clone()
    }

    fn insight(&self, request: &Analyze, task: Task, at: usize) -> Insight {
        let utterance = &request.utterances[at];
        let run = RunId::live(request.conversation, task.name(), "fake");
        let first = utterance.words.first();
        Insight {
            id: InsightId::of(run, utterance.id),
            run,
            conversation: request.conversation,
            utterance: utterance.id,
            task,
            labels: first.iter().map(|w| Label { name: w.text.to_lowercase(), score: 1.0 }).collect(),
            abstained: first.is_none().then(|| "no words".into()),
            evidence: first.iter().map(|_| Evidence { utterance: utterance.id, word_from: 0, word_to: 1 }).collect(),
            provenance: Provenance {
                tier: Tier::Rules,
                model: "fake 1".into(),
                degraded_from: None,
                config_hash: "fake".into(),
                latency_ms: 0,
                prompt: None,
                late: false,
            },
        }
    }
}

#[async_trait]
impl Inference for FakeInference {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let all = (0..request.utterances.len()).flat_map(|at| request.tasks.iter().map(move |task| (*task, at)));
        Ok(all.map(|(task, at)| self.insight(&request, task, at)).collect())
    }

    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let midway = self.midway.clone();
        let items = futures::stream::iter(request.utterances.into_iter().enumerate()).then(move |(at, utterance)| {
            let _ = &running; // ends with the stream
            let (midway, cx) = (midway.clone(), cx.clone());
            async move {
                if at == 1 {
                    midway.act(&cx).await?;
                }
                let evidence = Evidence { utterance: utterance.id, word_from: 0, word_to: utterance.words.len() as u32 };
                Ok(SummaryItem { kind: SummaryKind::Reason, text: utterance.text(), evidence: vec![evidence], tier: Tier::Rules })
            }
        });
        // An error is the last item.
        let items = items.scan(false, |ended, item| {
            let item = (!*ended).then_some(item);
            *ended |= matches!(item, Some(Err(_)));
            futures::future::ready(item)
        });
        Ok(items.boxed())
    }

    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        Ok(Task::ALL.map(|task| TierStatus { task, tier: Tier::Rules, degraded: Some("a fake".into()), stale: None }).into())
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        crate::testing::inference_suite(std::sync::Arc::new(super::FakeInference::default())).await;
    }
}
