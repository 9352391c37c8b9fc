//! One turn, understood: probabilities per label from the turn and its sentences, and the words that carried the decision.

use super::{Question, ReadTurn, embedder::Embedder, head::Head};
use crate::{definitions::Definitions, rules::Rules, turn::Turn};
use arc_swap::ArcSwapOption;
use contracts::{audio::Role, inference::Task};
use ndarray::{Array1, Array2, Axis, concatenate};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

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
const SPANS: usize = 6;
/// A span longer than this is looked into.
const LONG: usize = 6;
/// Texts whose embeddings are kept, and again as many older ones: a speaker's last turns come back as what was said before the next one.
/// 1.5 kB each.
const RECENT: usize = 2048;

pub struct Engine {
    embedder: Embedder,
    /// Replaced as a whole when definitions change.
    trained: Arc<ArcSwapOption<Trained>>,
    /// What the last turn was read by.
    by: Option<Arc<Trained>>,
    recent: Recent,
}

/// What was learnt from definitions.
pub struct Trained {
    definitions: Arc<Definitions>,
    tasks: Vec<Reader>,
    /// Of every example, so that one more costs no more than itself.
    embedded: HashMap<String, Array1<f32>>,
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
    pub fn new(embedder: Embedder, trained: Arc<ArcSwapOption<Trained>>) -> Self {
        Self { embedder, trained, by: None, recent: Recent::default() }
    }

    /// Embeds the examples and fits one reader per task; what `before` has embedded is taken from there.
    ///
    /// # Errors
    /// What the model says; that it was given up.
    pub fn train(
        embedder: &mut Embedder,
        definitions: &Arc<Definitions>,
        before: Option<&Trained>,
        given_up: &AtomicBool,
    ) -> Result<Trained, String> {
        let mut tasks = vec![];
        let mut embedded = HashMap::new();
        for labels in &definitions.labels {
            let rules = Rules::new(labels);
            let (mut texts, mut y) = (vec![], vec![]);
            for (index, label) in labels.labels.iter().enumerate() {
                for text in label.examples.iter().chain([&label.description]) {
                    texts.push(text.clone());
                    y.push(index);
                }
            }
            let mut rows = vec![];
            for text in &texts {
                if given_up.load(Ordering::Acquire) {
                    return Err("the classifier stops".into());
                }
                let known = before.and_then(|b| b.embedded.get(text));
                let row = match known {
                    Some(row) => row.clone(),
                    None => embedder.embed(std::slice::from_ref(text))?.row(0).to_owned(),
                };
                rows.extend(patterns_beside(&row, &rules, text));
                embedded.insert(text.clone(), row);
            }
            let x = Array2::from_shape_vec((texts.len(), rows.len() / texts.len()), rows).expect("rows of the same length");
            let kinds = labels.labels.iter().map(|l| Kind { none: l.none, quiet: l.quiet, topic: l.topic, by_agent: l.by_agent }).collect();
            let head = Head::fit(&x, &y, labels.labels.len());
            tasks.push(Reader { task: labels.task, labels: kinds, abstain_below: labels.abstain_below, rules, head });
        }
        Ok(Trained { definitions: definitions.clone(), tasks, embedded })
    }
}

/// What a head reads: the embedding, then what matches.
fn patterns_beside(embedded: &Array1<f32>, rules: &Rules, text: &str) -> Vec<f32> {
    embedded.iter().copied().chain(patterns(rules, &Turn::from_text(text))).collect()
}

impl ReadTurn for Engine {
    fn model(&self) -> &str {
        self.embedder.name()
    }

    fn read(&mut self, question: &Question) -> Result<Vec<Reading>, String> {
        let Question { turn, role, before, tasks, evidence } = question;
        let whole = Part::of(turn.clone(), *role);
        let before: Vec<Part> = before.iter().map(|turn| Part::of(turn.clone(), *role)).collect();
        let mut seen = Seen::default();
        let said = || before.iter().chain([&whole]).flat_map(Part::texts);
        self.recent.recall(said(), &mut seen);
        seen.embed(&mut self.embedder, said())?;
        self.recent.keep(said(), &seen);
        let by = self.trained.load_full().ok_or("nothing has been learnt yet")?;
        self.by = Some(by.clone());
        let mut readings = vec![];
        for task in tasks {
            let reader = by.tasks.iter().find(|r| r.task == *task).expect("every task has a reader");
            let topic = reader.topic(&before, &seen);
            let mut reading = Reading { scores: reader.in_context(&whole, &seen, &topic), evidence: None };
            if *evidence && reader.decides(&reading) {
                reading.evidence = match turn.len() <= SHORT {
                    true => Some(0..turn.len()),
                    false => Search { reader, topic, best: reading.best(), role: *role }.evidence(turn, &mut self.embedder, &mut seen)?,
                };
            }
            readings.push(reading);
        }
        Ok(readings)
    }

    fn definitions(&self) -> Option<Arc<Definitions>> {
        self.by.as_ref().map(|by| by.definitions.clone())
    }
}

/// Looks for the words that carried a label: first the sentence that says it most by itself, then what that sentence cannot do without.
/// Embedding is what costs, so little is embedded that scoring has not embedded already, and what is, is short.
struct Search<'a> {
    reader: &'a Reader,
    topic: Vec<f32>,
    best: usize,
    role: Role,
}

impl Search<'_> {
    /// The words without which the label is less likely; `None` when none are found.
    fn evidence(&self, turn: &Turn, embedder: &mut Embedder, seen: &mut Seen) -> Result<Option<Range<usize>>, String> {
        let sentence = match turn.sentences() {
            [] => return Ok(None),
            [_] => return self.within(turn, embedder, seen),
            several => {
                let alone: Vec<Part> = several.iter().map(|s| Part::of(turn.part(s.clone()), self.role)).collect();
                seen.embed(embedder, alone.iter().flat_map(Part::texts))?;
                let says = alone.iter().map(|part| self.score(part, seen));
                let most = says.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index);
                several[most].clone()
            }
        };
        let narrow = match sentence.len() <= LONG {
            true => None,
            false => self.within(&turn.part(sentence.clone()), embedder, seen)?,
        };
        let place = |span: Range<usize>| sentence.start + span.start..sentence.start + span.end;
        // What the sentence cannot do without, the turn may: another sentence says it too.
        for span in narrow.map(place).into_iter().chain([sentence.clone()]) {
            if self.strongest(turn, vec![span.clone()], embedder, seen)?.is_some() {
                return Ok(Some(span));
            }
        }
        Ok(None)
    }

    /// In one sentence.
    fn within(&self, turn: &Turn, embedder: &mut Embedder, seen: &mut Seen) -> Result<Option<Range<usize>>, String> {
        let mut spans = windows(&(0..turn.len()), turn.len().div_ceil(4).max(2));
        spans.extend(self.reader.rules.hits(turn).into_iter().map(|h| h.words).take(SPANS / 2));
        let Some((span, drop)) = self.strongest(turn, spans, embedder, seen)? else { return Ok(None) };
        if span.len() > LONG {
            let inner = windows(&span, span.len().div_ceil(3));
            if let Some((narrow, inner_drop)) = self.strongest(turn, inner, embedder, seen)?
                && inner_drop >= drop / 2.0
            {
                return Ok(Some(narrow));
            }
        }
        Ok(Some(span))
    }

    /// The span without which the label loses most, and how much; `None` when none costs it anything.
    fn strongest(
        &self,
        turn: &Turn,
        mut spans: Vec<Range<usize>>,
        embedder: &mut Embedder,
        seen: &mut Seen,
    ) -> Result<Option<(Range<usize>, f32)>, String> {
        spans.sort_by_key(|s| (s.start, s.end));
        spans.dedup();
        let full = Part::of(turn.clone(), self.role);
        let left: Vec<Part> = spans.iter().map(|s| Part::of(turn.without(s.clone()), self.role)).collect();
        seen.embed(embedder, left.iter().chain([&full]).flat_map(Part::texts))?;
        let full = self.score(&full, seen);
        let drops = left.iter().map(|part| full - self.score(part, seen));
        let best = spans.into_iter().zip(drops).max_by(|a, b| a.1.total_cmp(&b.1));
        Ok(best.filter(|(_, drop)| *drop > 0.0))
    }

    fn score(&self, part: &Part, seen: &Seen) -> f32 {
        self.reader.in_context(part, seen, &self.topic)[self.best]
    }
}

fn patterns(rules: &Rules, turn: &Turn) -> Vec<f32> {
    rules.weights(&rules.hits(turn)).into_iter().map(|w| PATTERN * w.min(LOUDEST)).collect()
}

/// Half-overlapping windows that cover `over`; at most [`SPANS`].
fn windows(over: &Range<usize>, size: usize) -> Vec<Range<usize>> {
    let step = (size / 2).max(1).max(over.len().saturating_sub(size).div_ceil(SPANS - 1));
    let mut windows: Vec<Range<usize>> = (over.start..over.end).step_by(step).map(|from| from..(from + size).min(over.end)).collect();
    windows.dedup_by(|later, earlier| later.end == earlier.end);
    windows.truncate(SPANS);
    windows
}

/// A turn, as the texts that have to be embedded for it.
struct Part {
    turn: Turn,
    role: Role,
    /// The whole, then its sentences when there are several.
    texts: Vec<(String, Turn)>,
}

impl Part {
    fn of(turn: Turn, role: Role) -> Self {
        let mut texts = vec![(turn.text(0..turn.len()), turn.clone())];
        if turn.sentences().len() > 1 {
            let per_stretch = turn.sentences().len().div_ceil(SENTENCES);
            for sentences in turn.sentences().chunks(per_stretch) {
                let part = turn.part(sentences[0].start..sentences[sentences.len() - 1].end);
                texts.push((part.text(0..part.len()), part));
            }
        }
        Self { turn, role, texts }
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|(text, _)| text.as_str())
    }
}

/// Embeddings of one call, by text.
#[derive(Default)]
struct Seen(HashMap<String, Array1<f32>>);

impl Seen {
    fn embed<'a>(&mut self, embedder: &mut Embedder, texts: impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut missing: Vec<String> = texts.filter(|text| !self.0.contains_key(*text)).map(str::to_owned).collect();
        missing.sort();
        missing.dedup();
        let rows = embedder.embed(&missing)?;
        for (text, row) in missing.into_iter().zip(rows.axis_iter(Axis(0))) {
            self.0.insert(text, row.to_owned());
        }
        Ok(())
    }
}

/// Embeddings of what was said lately, in two generations: a full young one takes the place of the old.
#[derive(Default)]
struct Recent {
    young: HashMap<String, Array1<f32>>,
    old: HashMap<String, Array1<f32>>,
}

impl Recent {
    fn recall<'a>(&self, texts: impl Iterator<Item = &'a str>, seen: &mut Seen) {
        for text in texts {
            if let Some(row) = self.young.get(text).or_else(|| self.old.get(text)) {
                seen.0.insert(text.to_owned(), row.clone());
            }
        }
    }

    fn keep<'a>(&mut self, texts: impl Iterator<Item = &'a str>, seen: &Seen) {
        for text in texts {
            if self.young.len() >= RECENT {
                self.old = std::mem::take(&mut self.young);
            }
            if let (Some(row), false) = (seen.0.get(text), self.young.contains_key(text)) {
                self.young.insert(text.to_owned(), row.clone());
            }
        }
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
