//! What one rung found in a turn, and the insight made of it. Pure, but for what it counts.

use crate::{
    classifier::Reading,
    definitions::Definitions,
    labels::Labels,
    llm::{Answer, Certainty},
    metrics as names,
    rules::{Rules, Verdict},
    turn::Turn,
};
use contracts::{
    InsightId, RunId,
    audio::Role,
    inference::{Evidence, Insight, Label, Provenance, Task, Tier, Utterance},
};
use sha2::{Digest, Sha256};
use std::{ops::Range, time::Instant};

/// Raised when the same definitions and model would answer differently.
const CODE: u32 = 1;
/// Name and version of the rung without a model.
pub(crate) const RULES: &str = "rules 1";
/// Other labels worth telling, beside the best.
const ALSO: f32 = 0.15;
const MOST_LABELS: usize = 3;

/// What was found in one turn for one task.
pub(crate) struct Finding {
    labels: Vec<(usize, f32)>,
    evidence: Option<Range<usize>>,
    abstained: Option<String>,
}

pub(crate) struct AnsweredBy<'a> {
    pub tier: Tier,
    /// The rung that was to answer.
    pub best: Tier,
    pub model: &'a str,
    pub begun: Instant,
    pub definitions: &'a Definitions,
    /// How a language model is asked, where one answered.
    pub sampling: Option<String>,
}

impl Finding {
    pub(crate) fn abstains(reason: impl Into<String>) -> Self {
        Self { labels: vec![], evidence: None, abstained: Some(reason.into()) }
    }

    fn nothing() -> Self {
        Self::abstains("nothing is asked for that has a label")
    }

    pub(crate) fn by_llm(labels: &Labels, answer: Answer) -> Self {
        let label = &labels.labels[answer.label];
        if label.none {
            return Self::nothing();
        }
        if answer.certainty == Certainty::Unsure {
            return Self::abstains(format!("not sure: the nearest is {}", label.name));
        }
        Self { labels: vec![(answer.label, answer.certainty.score())], evidence: answer.evidence, abstained: None }
    }

    pub(crate) fn by_classifier(labels: &Labels, reading: Reading) -> Self {
        let best = reading.best();
        let (name, score) = (&labels.labels[best].name, reading.scores[best]);
        if labels.labels[best].none {
            return Self::nothing();
        }
        if score < labels.abstain_below {
            return Self::abstains(format!("not sure: the nearest is {name} at {score:.2}"));
        }
        let mut ranked: Vec<(usize, f32)> =
            reading.scores.into_iter().enumerate().filter(|(l, s)| *l == best || *s >= ALSO && !labels.labels[*l].none).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(MOST_LABELS);
        Self { labels: ranked, evidence: reading.evidence, abstained: None }
    }

    pub(crate) fn by_rules(rules: &Rules, turn: &Turn, role: Role) -> Self {
        match rules.decide(turn, role) {
            Verdict::Says { labels, evidence } => Self { labels, evidence, abstained: None },
            Verdict::None => Self::nothing(),
            Verdict::Unsure => Self::abstains("no pattern decides it"),
        }
    }
}

fn config_hash(task: Task, by: &AnsweredBy<'_>) -> String {
    let code = CODE.to_string();
    let mut parts = vec![by.definitions.labels(task).source.as_str(), by.model, by.tier.name(), &code];
    if let Some(sampling) = &by.sampling {
        // Every task's labels stand in the prompt.
        parts.extend(by.definitions.labels.iter().map(|l| l.source.as_str()));
        parts.extend([by.definitions.prompt.source.as_str(), sampling]);
    }
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..6])
}

pub(crate) fn insight(task: Task, utterance: &Utterance, finding: Finding, by: &AnsweredBy<'_>) -> Insight {
    let config_hash = config_hash(task, by);
    let run = RunId::live(utterance.conversation, task.name(), &config_hash);
    let degraded_from = (by.tier > by.best).then_some(by.best);
    let labels = [("task", task.name()), ("tier", by.tier.name())];
    metrics::histogram!(names::ANALYZE, &labels).record(by.begun.elapsed().as_secs_f64());
    if finding.abstained.is_some() {
        metrics::counter!(names::ABSTAINED, &labels).increment(1);
    }
    if degraded_from.is_some() {
        metrics::counter!(names::DEGRADED, &labels).increment(1);
    }
    let definitions = &by.definitions.labels(task).labels;
    let evidence = finding.evidence.filter(|span| !span.is_empty() && span.end <= utterance.words.len());
    Insight {
        id: InsightId::of(run, utterance.id),
        run,
        conversation: utterance.conversation,
        utterance: utterance.id,
        task,
        labels: finding.labels.into_iter().map(|(l, score)| Label { name: definitions[l].name.clone(), score }).collect(),
        abstained: finding.abstained,
        evidence: evidence
            .map(|span| Evidence { utterance: utterance.id, word_from: span.start as u32, word_to: span.end as u32 })
            .into_iter()
            .collect(),
        provenance: Provenance {
            tier: by.tier,
            model: by.model.into(),
            degraded_from,
            config_hash,
            latency_ms: by.begun.elapsed().as_millis() as u32,
            prompt: (by.tier == Tier::Llm).then(|| by.definitions.prompt.name()),
            late: false,
        },
    }
}
