//! Understanding without a model: patterns and word lists. Linear in the length of the turn; evidence is what matched.
//!
//! Also what the classifier above reads besides the embedding: [`Rules::weights`].

mod phrases;

use crate::{
    labels::Labels,
    turn::{Turn, token},
};
use contracts::audio::Role;
use phrases::Phrases;
use std::{collections::HashSet, ops::Range};

/// Words a negation or an intensifier reaches over.
const REACH: usize = 3;
const NEGATED: f32 = 0.9;
const INTENSIFIED: f32 = 1.4;

pub struct Rules {
    phrases: Phrases<Tag>,
    labels: Vec<Traits>,
    negations: HashSet<String>,
    intensifiers: HashSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Tag {
    label: usize,
    weight: f32,
}

struct Traits {
    short: Option<usize>,
    opposite: Option<usize>,
    none: bool,
    default: bool,
    by_agent: f32,
}

/// What speaks for a label in a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    pub label: usize,
    pub weight: f32,
    pub words: Range<usize>,
}

/// What rules make of a turn. Confidence is a share of the weights found, never certainty.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Labels with their scores, best first.
    Says { labels: Vec<(usize, f32)>, evidence: Option<Range<usize>> },
    /// The best label means that nothing fits.
    None,
    /// Two labels, or none, with equal right.
    Unsure,
}

impl Rules {
    pub fn new(labels: &Labels) -> Self {
        let index_of = |name: &String| labels.labels.iter().position(|l| l.name == *name);
        let mut phrases = Phrases::default();
        for (label, definition) in labels.labels.iter().enumerate() {
            for (patterns, weight) in [(&definition.strong, 2.0), (&definition.phrases, 1.0), (&definition.hints, 0.5)] {
                for pattern in patterns {
                    phrases.add(pattern, Tag { label, weight });
                }
            }
        }
        let traits = |l: &crate::labels::Label| Traits {
            short: l.short,
            opposite: l.opposite.as_ref().and_then(index_of),
            none: l.none,
            default: l.default,
            by_agent: l.by_agent,
        };
        Self {
            phrases,
            labels: labels.labels.iter().map(traits).collect(),
            negations: labels.words.negations.iter().map(|w| token(w)).collect(),
            intensifiers: labels.words.intensifiers.iter().map(|w| token(w)).collect(),
        }
    }

    /// Everything that matched, in order, no word counted twice.
    pub fn hits(&self, turn: &Turn) -> Vec<Hit> {
        let mut found = self.phrases.find(turn.tokens());
        // The longest pattern explains its words best; of equally long ones the heaviest.
        found.sort_by(|a, b| {
            b.words.len().cmp(&a.words.len()).then(b.tag.weight.total_cmp(&a.tag.weight)).then(a.words.start.cmp(&b.words.start))
        });
        let mut taken = vec![false; turn.len()];
        let mut hits = vec![];
        for found in found {
            if taken[found.words.clone()].contains(&true) {
                continue;
            }
            taken[found.words.clone()].fill(true);
            hits.extend(self.weigh(turn, found.tag, found.words));
        }
        hits.sort_by_key(|h| h.words.start);
        hits
    }

    fn weigh(&self, turn: &Turn, tag: Tag, words: Range<usize>) -> Option<Hit> {
        let Traits { short, opposite, .. } = self.labels[tag.label];
        let mut hit = Hit { label: tag.label, weight: tag.weight, words: words.clone() };
        if let Some(short) = short {
            hit.weight *= (short as f32 / turn.len() as f32).min(1.0);
        }
        for i in (words.start.saturating_sub(REACH)..words.start).rev() {
            if turn.breaks()[i] {
                break;
            }
            let before = &turn.tokens()[i];
            if self.negations.contains(before) {
                hit.label = opposite?;
                hit.weight *= NEGATED;
                hit.words.start = i; // "not happy": without the negation it would speak for the other side
                break;
            }
            if i + 1 == words.start && self.intensifiers.contains(before) {
                hit.weight *= INTENSIFIED;
                hit.words.start = i;
            }
        }
        Some(hit)
    }

    /// How much speaks for each label.
    pub fn weights(&self, hits: &[Hit]) -> Vec<f32> {
        let mut weights = vec![0.0; self.labels.len()];
        for hit in hits {
            weights[hit.label] += hit.weight;
        }
        weights
    }

    pub fn decide(&self, turn: &Turn, role: Role) -> Verdict {
        let hits = self.hits(turn);
        let mut weights = self.weights(&hits);
        if role == Role::Agent {
            weights.iter_mut().zip(&self.labels).for_each(|(weight, label)| *weight *= label.by_agent);
        }
        let mut ranked: Vec<usize> = (0..weights.len()).collect();
        ranked.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
        let (best, second) = (ranked[0], ranked[1]);
        if weights[best] < 0.9 {
            // A lone hint is no sign. What is left is what a turn without signs usually is, where the task has such a label.
            return match self.labels.iter().position(|l| l.default) {
                Some(label) if weights[best] < 0.6 => Verdict::Says { labels: vec![(label, 0.5)], evidence: None },
                _ => Verdict::Unsure,
            };
        }
        let total: f32 = weights.iter().sum::<f32>() + 0.5;
        let score = |label: usize| weights[label] / total;
        if weights[best] - weights[second] < 0.25 || score(best) < 0.4 {
            return Verdict::Unsure;
        }
        if self.labels[best].none {
            return Verdict::None;
        }
        let labels = ranked.into_iter().filter(|l| !self.labels[*l].none && score(*l) >= 0.15).take(3).map(|l| (l, score(l))).collect();
        let heaviest = hits.iter().filter(|h| h.label == best).max_by(|a, b| a.weight.total_cmp(&b.weight));
        Verdict::Says { labels, evidence: heaviest.map(|h| h.words.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::inference::Task;

    #[track_caller]
    fn check(task: Task, text: &str, expected: &str) {
        let labels = Labels::read(task, None).unwrap();
        let turn = Turn::from_text(text);
        let verdict = Rules::new(&labels).decide(&turn, Role::Customer);
        let said = match &verdict {
            Verdict::Says { labels: found, evidence } => {
                let span = evidence.clone().map(|e| format!(" [{}]", turn.text(e))).unwrap_or_default();
                format!("{}{span}", labels.labels[found[0].0].name)
            }
            Verdict::None => "none".into(),
            Verdict::Unsure => "unsure".into(),
        };
        assert_eq!(said, expected, "{text}");
    }

    #[test]
    fn intents_are_told_by_their_phrases() {
        check(Task::Intent, "Why did you bill me, I was charged for it twice", "billing_dispute [charged for it twice]");
        check(Task::Intent, "I want to cancel my plan", "cancel_service [cancel]");
        check(Task::Intent, "let me speak to a manager now", "request_agent [speak to a manager]");
        check(Task::Intent, "the violets are blue", "unsure");
    }

    #[test]
    fn a_negation_turns_feeling_round_but_not_across_a_pause() {
        check(Task::Sentiment, "I am not happy with this", "negative [not happy]");
        check(Task::Sentiment, "No, that is wonderful", "positive [wonderful]");
        check(Task::Sentiment, "that is not a problem", "neutral [not a problem]");
        check(Task::Sentiment, "the box is on the table", "neutral");
    }
}
