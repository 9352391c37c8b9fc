//! One turn, understood: probabilities per label from the turn and its sentences, and the words that carried the decision.

use super::{Question, ReadTurn, embedder::Embedder, head::Head};
use crate::{labels::Labels, rules::Rules, turn::Turn};
use contracts::{audio::Role, inference::Task};
use ndarray::{Array1, Array2, Axis, concatenate};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// How loud a matched pattern is beside the embedding, whose length is one.
const PATTERN: f32 = 0.4;
/// Patterns beyond this weight say nothing more.
const LOUDEST: f32 = 2.0;
/// How much of what a turn leaves open goes to what was spoken of before.
const CARRIES: f32 = 0.5;
/// Sentences looked at one by one; a turn with more is looked at in equal stretches.
const SENTENCES: usize = 6;
/// Up to here the whole turn is the evidence.
const SHORT: usize = 3;
/// Spans tried at once when looking for evidence.
const SPANS: usize = 8;
/// A span longer than this is looked into.
const LONG: usize = 6;

pub struct Engine {
    embedder: Embedder,
    tasks: Arc<Vec<Reader>>,
}

/// What reads one task out of an embedding.
pub struct Reader {
    task: Task,
    labels: Vec<Kind>,
    abstain_below: f32,
    rules: Rules,
    head: Head,
}

#[derive(Clone, Copy)]
struct Kind {
    none: bool,
    quiet: bool,
    topic: bool,
    by_agent: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Probability of each label, in the order of the label file.
    pub scores: Vec<f32>,
    /// The words without which the best label is less likely.
    pub evidence: Option<Range<usize>>,
}

impl Reading {
    pub fn best(&self) -> usize {
        (0..self.scores.len()).max_by(|a, b| self.scores[*a].total_cmp(&self.scores[*b])).unwrap_or(0)
    }
}

impl Engine {
    pub fn new(embedder: Embedder, tasks: Arc<Vec<Reader>>) -> Self {
        Self { embedder, tasks }
    }

    /// Embeds the examples and fits one reader per task.
    ///
    /// # Errors
    /// What the model says.
    pub fn train(embedder: &mut Embedder, labels: &[Labels]) -> Result<Vec<Reader>, String> {
        let mut tasks = vec![];
        for labels in labels {
            let rules = Rules::new(labels);
            let (mut texts, mut y) = (vec![], vec![]);
            for (index, label) in labels.labels.iter().enumerate() {
                for text in label.examples.iter().chain([&label.description]) {
                    texts.push(text.clone());
                    y.push(index);
                }
            }
            let embedded = embedder.embed(&texts)?;
            let patterns: Vec<f32> = texts.iter().flat_map(|t| patterns(&rules, &Turn::from_text(t))).collect();
            let patterns = Array2::from_shape_vec((texts.len(), labels.labels.len()), patterns).expect("one weight per text and label");
            let x = concatenate(Axis(1), &[embedded.view(), patterns.view()]).expect("one row per text in both");
            let kinds = labels.labels.iter().map(|l| Kind { none: l.none, quiet: l.quiet, topic: l.topic, by_agent: l.by_agent }).collect();
            let head = Head::fit(&x, &y, labels.labels.len());
            tasks.push(Reader { task: labels.task, labels: kinds, abstain_below: labels.abstain_below, rules, head });
        }
        Ok(tasks)
    }

    fn reader(&self, task: Task) -> &Reader {
        self.tasks.iter().find(|r| r.task == task).expect("every task has a reader")
    }
}

impl ReadTurn for Engine {
    fn model(&self) -> &str {
        self.embedder.name()
    }

    fn read(&mut self, question: &Question) -> Result<Vec<Reading>, String> {
        let Question { turn, role, before, tasks, evidence } = question;
        let mut seen = Seen::default();
        let whole = Part::of(turn, *role, None);
        let before: Vec<Part> = before.iter().map(|turn| Part::of(turn, *role, None)).collect();
        seen.embed(&mut self.embedder, before.iter().chain([&whole]))?;
        let topics: Vec<Vec<f32>> = tasks.iter().map(|task| self.reader(*task).topic(&before, &seen)).collect();
        let mut readings = vec![];
        for (task, topic) in tasks.iter().zip(&topics) {
            readings.push(Reading { scores: self.reader(*task).in_context(&whole, &seen, topic), evidence: None });
        }
        let wanted: Vec<bool> = tasks.iter().zip(&readings).map(|(t, r)| *evidence && self.reader(*t).decides(r)).collect();
        if !wanted.contains(&true) {
            return Ok(readings);
        }
        if turn.len() <= SHORT {
            for (reading, _) in readings.iter_mut().zip(&wanted).filter(|(_, wanted)| **wanted) {
                reading.evidence = Some(0..turn.len());
            }
            return Ok(readings);
        }
        // All tasks share the first round: the same words are left out for each, and embedded once.
        let mut spans = spans(turn);
        for (task, wanted) in tasks.iter().zip(&wanted) {
            let reader = self.reader(*task);
            if *wanted {
                spans.extend(reader.rules.hits(turn).into_iter().map(|h| h.words).take(SPANS / 2));
            }
        }
        spans.sort_by_key(|s| (s.start, s.end));
        spans.dedup();
        let left: Vec<Part> = spans.iter().map(|s| Part::of(turn, *role, Some(s.clone()))).collect();
        seen.embed(&mut self.embedder, &left)?;
        for (((task, topic), reading), _) in tasks.iter().zip(&topics).zip(&mut readings).zip(&wanted).filter(|(_, wanted)| **wanted) {
            let best = reading.best();
            let full = reading.scores[best];
            let drops = |reader: &Reader, seen: &Seen, left: &[Part]| -> Vec<f32> {
                left.iter().map(|part| full - reader.in_context(part, seen, topic)[best]).collect()
            };
            let Some((span, drop)) = strongest(&spans, &drops(self.reader(*task), &seen, &left)) else { continue };
            reading.evidence = Some(span.clone());
            if span.len() <= LONG {
                continue;
            }
            let inner = windows(span, span.len().div_ceil(3));
            let inner_left: Vec<Part> = inner.iter().map(|s| Part::of(turn, *role, Some(s.clone()))).collect();
            seen.embed(&mut self.embedder, &inner_left)?;
            if let Some((narrow, inner_drop)) = strongest(&inner, &drops(self.reader(*task), &seen, &inner_left))
                && inner_drop >= drop / 2.0
            {
                reading.evidence = Some(narrow.clone());
            }
        }
        Ok(readings)
    }
}

fn patterns(rules: &Rules, turn: &Turn) -> Vec<f32> {
    rules.weights(&rules.hits(turn)).into_iter().map(|w| PATTERN * w.min(LOUDEST)).collect()
}

/// The span whose loss costs most, if it costs anything.
fn strongest<'a>(spans: &'a [Range<usize>], drops: &[f32]) -> Option<(&'a Range<usize>, f32)> {
    let best = spans.iter().zip(drops.iter().copied()).max_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 > 0.0).then_some(best)
}

/// Sentences where there are several, else windows.
fn spans(turn: &Turn) -> Vec<Range<usize>> {
    if (2..=SPANS).contains(&turn.sentences().len()) {
        return turn.sentences().to_vec();
    }
    let size = (turn.len().div_ceil(4)).max(2);
    windows(&(0..turn.len()), size)
}

/// Half-overlapping windows that cover `over`; at most [`SPANS`].
fn windows(over: &Range<usize>, size: usize) -> Vec<Range<usize>> {
    let step = (size / 2).max(1).max(over.len().saturating_sub(size).div_ceil(SPANS - 1));
    let mut windows: Vec<Range<usize>> = (over.start..over.end).step_by(step).map(|from| from..(from + size).min(over.end)).collect();
    windows.dedup_by(|later, earlier| later.end == earlier.end);
    windows.truncate(SPANS);
    windows
}

/// A turn with or without a span, as the texts that have to be embedded for it.
struct Part {
    turn: Turn,
    role: Role,
    /// The whole, then its sentences when there are several.
    texts: Vec<(String, Turn)>,
}

impl Part {
    fn of(turn: &Turn, role: Role, without: Option<Range<usize>>) -> Self {
        let turn = match without {
            Some(span) => turn.without(span),
            None => turn.clone(),
        };
        let mut texts = vec![(turn.text(0..turn.len()), turn.clone())];
        if turn.sentences().len() > 1 {
            let per_stretch = turn.sentences().len().div_ceil(SENTENCES);
            for sentences in turn.sentences().chunks(per_stretch) {
                let text = turn.text(sentences[0].start..sentences[sentences.len() - 1].end);
                let part = Turn::from_text(&text);
                texts.push((text, part));
            }
        }
        Self { turn, role, texts }
    }
}

/// Embeddings of one call, by text.
#[derive(Default)]
struct Seen(HashMap<String, Array1<f32>>);

impl Seen {
    fn embed<'a>(&mut self, embedder: &mut Embedder, parts: impl IntoIterator<Item = &'a Part>) -> Result<(), String> {
        let mut missing: Vec<String> = parts.into_iter().flat_map(|p| &p.texts).map(|(text, _)| text.clone()).collect();
        missing.retain(|text| !self.0.contains_key(text));
        missing.sort();
        missing.dedup();
        let rows = embedder.embed(&missing)?;
        for (text, row) in missing.into_iter().zip(rows.axis_iter(Axis(0))) {
            self.0.insert(text, row.to_owned());
        }
        Ok(())
    }
}

impl Reader {
    /// The scores are worth a label, and so worth finding what carried it.
    fn decides(&self, reading: &Reading) -> bool {
        let best = reading.best();
        !self.labels[best].none && reading.scores[best] >= self.abstain_below
    }

    /// What the turns before were about: the later, the more.
    fn topic(&self, before: &[Part], seen: &Seen) -> Vec<f32> {
        let mut topic = vec![0.0; self.labels.len()];
        for part in before {
            let scores = self.scores(part, seen);
            let says: f32 = scores.iter().zip(&self.labels).filter(|(_, l)| l.topic).map(|(s, _)| s).sum();
            for ((topic, score), label) in topic.iter_mut().zip(&scores).zip(&self.labels) {
                *topic = *topic * (1.0 - says) + if label.topic { *score } else { 0.0 };
            }
        }
        topic
    }

    /// A turn that says little by itself carries on what was spoken of.
    fn in_context(&self, part: &Part, seen: &Seen, topic: &[f32]) -> Vec<f32> {
        let mut scores = self.scores(part, seen);
        let silent: f32 = scores.iter().zip(&self.labels).filter(|(_, l)| l.none).map(|(s, _)| s).sum();
        let spoken: f32 = topic.iter().sum();
        for ((score, topic), label) in scores.iter_mut().zip(topic).zip(&self.labels) {
            if label.none {
                *score *= 1.0 - CARRIES * spoken;
            } else {
                *score += CARRIES * silent * topic;
            }
        }
        scores
    }

    /// Half the turn as a whole, half its sentences, where those that say something outweigh the quiet ones.
    fn scores(&self, part: &Part, seen: &Seen) -> Vec<f32> {
        if part.turn.is_empty() {
            return vec![0.0; self.labels.len()]; // without words nothing is likely
        }
        let mut all = part.texts.iter().map(|(text, turn)| (self.probabilities(&seen.0[text], turn, part.role), turn.len()));
        let (mut scores, _) = all.next().expect("a turn has at least its whole text");
        let sentences: Vec<(Vec<f32>, f32)> = all
            .map(|(p, words)| {
                let quiet: f32 = p.iter().zip(&self.labels).filter(|(_, l)| l.quiet || l.none).map(|(p, _)| p).sum();
                (p, words.min(12) as f32 * (1.05 - quiet))
            })
            .collect();
        let total: f32 = sentences.iter().map(|(_, weight)| weight).sum();
        if total > 0.0 {
            for (label, score) in scores.iter_mut().enumerate() {
                let told: f32 = sentences.iter().map(|(p, weight)| p[label] * weight / total).sum();
                *score = 0.5 * *score + 0.5 * told;
            }
        }
        scores
    }

    fn probabilities(&self, embedded: &Array1<f32>, turn: &Turn, role: Role) -> Vec<f32> {
        let patterns = Array1::from(patterns(&self.rules, turn));
        let x = concatenate(Axis(0), &[embedded.view(), patterns.view()]).expect("both have one dimension");
        let mut scores = self.head.probabilities(x.view());
        if role == Role::Agent {
            scores.iter_mut().zip(&self.labels).for_each(|(score, label)| *score *= label.by_agent);
            let sum: f32 = scores.iter().sum::<f32>().max(f32::MIN_POSITIVE);
            scores.iter_mut().for_each(|score| *score /= sum);
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_everything_and_stay_few() {
        for words in 4..200 {
            let windows = windows(&(3..3 + words), (words / 4usize).max(2));
            assert!(windows.len() <= SPANS, "{words}: {windows:?}");
            assert_eq!((windows[0].start, windows[windows.len() - 1].end), (3, 3 + words), "{windows:?}");
            assert!(windows.windows(2).all(|w| w[1].start <= w[0].end), "{words}: {windows:?}");
        }
    }
}
