//! `Inference` on the wire.

use crate::{
    audio::wire::{read_role, role},
    wire::{
        HEAD, ID, NUMBER, Unreadable, Weight, all, bytes, channel, each, maybe, number, quickcomm::inference::v1 as pb, some, sum, text,
    },
};
use contracts::{
    ConversationId, InsightId, RunId, UtteranceId,
    inference::{Analyze, Evidence, Insight, Label, Provenance, Summarize, SummaryItem, SummaryKind, Task, Tier, TierStatus, Utterance},
};

impl From<Analyze> for pb::AnalyzeRequest {
    fn from(request: Analyze) -> Self {
        Self {
            conversation: bytes(request.conversation.as_u128()),
            tasks: request.tasks.into_iter().map(|t| task(t).into()).collect(),
            utterances: each(request.utterances),
            context: each(request.context),
        }
    }
}

impl TryFrom<pb::AnalyzeRequest> for Analyze {
    type Error = Unreadable;
    fn try_from(request: pb::AnalyzeRequest) -> Result<Self, Unreadable> {
        Ok(Self {
            conversation: conversation(&request.conversation)?,
            tasks: request.tasks.into_iter().map(read_task).collect::<Result<_, _>>()?,
            utterances: all(request.utterances)?,
            context: all(request.context)?,
        })
    }
}

impl Weight for Analyze {
    fn weight(&self) -> usize {
        ID + HEAD + self.tasks.len() * NUMBER + sum(&self.utterances) + sum(&self.context)
    }
}

impl From<Summarize> for pb::SummarizeRequest {
    fn from(request: Summarize) -> Self {
        Self { conversation: bytes(request.conversation.as_u128()), utterances: each(request.utterances) }
    }
}

impl TryFrom<pb::SummarizeRequest> for Summarize {
    type Error = Unreadable;
    fn try_from(request: pb::SummarizeRequest) -> Result<Self, Unreadable> {
        Ok(Self { conversation: conversation(&request.conversation)?, utterances: all(request.utterances)? })
    }
}

impl Weight for Summarize {
    fn weight(&self) -> usize {
        ID + sum(&self.utterances)
    }
}

impl From<Vec<Insight>> for pb::AnalyzeReply {
    fn from(insights: Vec<Insight>) -> Self {
        Self { insights: each(insights) }
    }
}

impl From<Vec<TierStatus>> for pb::TiersReply {
    fn from(tiers: Vec<TierStatus>) -> Self {
        Self { tiers: each(tiers) }
    }
}

impl From<Utterance> for pb::Utterance {
    fn from(utterance: Utterance) -> Self {
        Self {
            id: bytes(utterance.id.as_u128()),
            conversation: bytes(utterance.conversation.as_u128()),
            channel: utterance.channel.0.into(),
            role: role(utterance.role).into(),
            start_ms: utterance.start_ms,
            end_ms: utterance.end_ms,
            words: each(utterance.words),
        }
    }
}

impl TryFrom<pb::Utterance> for Utterance {
    type Error = Unreadable;
    fn try_from(utterance: pb::Utterance) -> Result<Self, Unreadable> {
        Ok(Self {
            id: self::utterance(&utterance.id)?,
            conversation: conversation(&utterance.conversation)?,
            channel: channel(utterance.channel)?,
            role: read_role(utterance.role)?,
            start_ms: utterance.start_ms,
            end_ms: utterance.end_ms,
            words: each(utterance.words),
        })
    }
}

impl Weight for Utterance {
    fn weight(&self) -> usize {
        2 * ID + 4 * NUMBER + sum(&self.words)
    }
}

impl From<Insight> for pb::Insight {
    fn from(insight: Insight) -> Self {
        Self {
            id: bytes(insight.id.as_u128()),
            run: bytes(insight.run.as_u128()),
            conversation: bytes(insight.conversation.as_u128()),
            utterance: bytes(insight.utterance.as_u128()),
            task: task(insight.task).into(),
            labels: each(insight.labels),
            abstained: insight.abstained,
            evidence: each(insight.evidence),
            provenance: Some(insight.provenance.into()),
        }
    }
}

impl TryFrom<pb::Insight> for Insight {
    type Error = Unreadable;
    fn try_from(insight: pb::Insight) -> Result<Self, Unreadable> {
        Ok(Self {
            id: number(&insight.id, "insight id").map(InsightId::from_u128)?,
            run: number(&insight.run, "run id").map(RunId::from_u128)?,
            conversation: conversation(&insight.conversation)?,
            utterance: utterance(&insight.utterance)?,
            task: read_task(insight.task)?,
            labels: each(insight.labels),
            abstained: insight.abstained,
            evidence: all(insight.evidence)?,
            provenance: some(insight.provenance, "provenance")?,
        })
    }
}

impl Weight for Insight {
    fn weight(&self) -> usize {
        let Provenance { model, config_hash, prompt, .. } = &self.provenance;
        let provenance = HEAD + 4 * NUMBER + text(model) + text(config_hash) + maybe(prompt);
        4 * ID + NUMBER + sum(&self.labels) + maybe(&self.abstained) + sum(&self.evidence) + provenance
    }
}

impl From<Label> for pb::Label {
    fn from(label: Label) -> Self {
        Self { name: label.name, score: label.score }
    }
}

impl From<pb::Label> for Label {
    fn from(label: pb::Label) -> Self {
        Self { name: label.name, score: label.score }
    }
}

impl Weight for Label {
    fn weight(&self) -> usize {
        text(&self.name) + NUMBER
    }
}

impl From<Evidence> for pb::Evidence {
    fn from(evidence: Evidence) -> Self {
        Self { utterance: bytes(evidence.utterance.as_u128()), word_from: evidence.word_from, word_to: evidence.word_to }
    }
}

impl TryFrom<pb::Evidence> for Evidence {
    type Error = Unreadable;
    fn try_from(evidence: pb::Evidence) -> Result<Self, Unreadable> {
        Ok(Self { utterance: utterance(&evidence.utterance)?, word_from: evidence.word_from, word_to: evidence.word_to })
    }
}

impl Weight for Evidence {
    fn weight(&self) -> usize {
        ID + 2 * NUMBER
    }
}

impl From<Provenance> for pb::Provenance {
    fn from(provenance: Provenance) -> Self {
        Self {
            tier: tier(provenance.tier).into(),
            model: provenance.model,
            degraded_from: provenance.degraded_from.map(|t| tier(t).into()),
            config_hash: provenance.config_hash,
            latency_ms: provenance.latency_ms,
            prompt: provenance.prompt,
            late: provenance.late,
        }
    }
}

impl TryFrom<pb::Provenance> for Provenance {
    type Error = Unreadable;
    fn try_from(provenance: pb::Provenance) -> Result<Self, Unreadable> {
        Ok(Self {
            tier: read_tier(provenance.tier)?,
            model: provenance.model,
            degraded_from: provenance.degraded_from.map(read_tier).transpose()?,
            config_hash: provenance.config_hash,
            latency_ms: provenance.latency_ms,
            prompt: provenance.prompt,
            late: provenance.late,
        })
    }
}

impl From<TierStatus> for pb::TierStatus {
    fn from(status: TierStatus) -> Self {
        Self { task: task(status.task).into(), tier: tier(status.tier).into(), degraded: status.degraded, stale: status.stale }
    }
}

impl TryFrom<pb::TierStatus> for TierStatus {
    type Error = Unreadable;
    fn try_from(status: pb::TierStatus) -> Result<Self, Unreadable> {
        Ok(Self { task: read_task(status.task)?, tier: read_tier(status.tier)?, degraded: status.degraded, stale: status.stale })
    }
}

impl Weight for TierStatus {
    fn weight(&self) -> usize {
        2 * NUMBER + maybe(&self.degraded) + maybe(&self.stale)
    }
}

impl From<SummaryItem> for pb::SummaryItem {
    fn from(item: SummaryItem) -> Self {
        let kind = match item.kind {
            SummaryKind::Reason => pb::SummaryKind::Reason,
            SummaryKind::Action => pb::SummaryKind::Action,
            SummaryKind::Outcome => pb::SummaryKind::Outcome,
        };
        Self { kind: kind.into(), text: item.text, evidence: each(item.evidence), tier: tier(item.tier).into() }
    }
}

impl TryFrom<pb::SummaryItem> for SummaryItem {
    type Error = Unreadable;
    fn try_from(item: pb::SummaryItem) -> Result<Self, Unreadable> {
        Ok(Self {
            kind: match pb::SummaryKind::try_from(item.kind) {
                Ok(pb::SummaryKind::Reason) => SummaryKind::Reason,
                Ok(pb::SummaryKind::Action) => SummaryKind::Action,
                Ok(pb::SummaryKind::Outcome) => SummaryKind::Outcome,
                Ok(pb::SummaryKind::Unspecified) | Err(_) => return Err(Unreadable::unknown("kind of summary item", item.kind)),
            },
            text: item.text,
            evidence: all(item.evidence)?,
            tier: read_tier(item.tier)?,
        })
    }
}

impl Weight for SummaryItem {
    fn weight(&self) -> usize {
        2 * NUMBER + text(&self.text) + sum(&self.evidence)
    }
}

fn task(task: Task) -> pb::Task {
    match task {
        Task::Intent => pb::Task::Intent,
        Task::Sentiment => pb::Task::Sentiment,
    }
}

fn read_task(number: i32) -> Result<Task, Unreadable> {
    Ok(match pb::Task::try_from(number) {
        Ok(pb::Task::Intent) => Task::Intent,
        Ok(pb::Task::Sentiment) => Task::Sentiment,
        Ok(pb::Task::Unspecified) | Err(_) => return Err(Unreadable::unknown("task", number)),
    })
}

fn tier(tier: Tier) -> pb::Tier {
    match tier {
        Tier::Llm => pb::Tier::Llm,
        Tier::SecondLlm => pb::Tier::SecondLlm,
        Tier::Local => pb::Tier::Local,
        Tier::Rules => pb::Tier::Rules,
        Tier::Pending => pb::Tier::Pending,
    }
}

fn read_tier(number: i32) -> Result<Tier, Unreadable> {
    Ok(match pb::Tier::try_from(number) {
        Ok(pb::Tier::Llm) => Tier::Llm,
        Ok(pb::Tier::SecondLlm) => Tier::SecondLlm,
        Ok(pb::Tier::Local) => Tier::Local,
        Ok(pb::Tier::Rules) => Tier::Rules,
        Ok(pb::Tier::Pending) => Tier::Pending,
        Ok(pb::Tier::Unspecified) | Err(_) => return Err(Unreadable::unknown("tier", number)),
    })
}

pub(crate) fn conversation(id: &[u8]) -> Result<ConversationId, Unreadable> {
    number(id, "conversation id").map(ConversationId::from_u128)
}

fn utterance(id: &[u8]) -> Result<UtteranceId, Unreadable> {
    number(id, "utterance id").map(UtteranceId::from_u128)
}
