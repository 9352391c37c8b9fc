//! The rungs of understanding that need nothing outside this process: the local classifier, and rules below it.
//!
//! Invariants: a call is never failed by a model; who answered, and instead of whom, stands in every insight; the same request gives the
//! same ids, and the same labels as long as the same rung answers (the rung is part of the run's configuration).

use crate::{
    Settings,
    breaker::Breaker,
    classifier::{Classifier, ClassifyError, Pending, Question, Reading, State},
    labels::Labels,
    metrics as names,
    rules::{Rules, Verdict},
    summary,
    turn::Turn,
};
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, EventStream, Inference, InsightId, RunId,
    audio::Role,
    inference::{Analyze, Evidence, Insight, Label, Provenance, Summarize, SummaryItem, Task, Tier, TierStatus, Utterance},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

/// Raised when the same labels and model would answer differently.
const CODE: u32 = 1;
/// Name and version of the rung without a model.
const RULES: &str = "rules 1";
/// Words of a turn that are read; the rest of a longer one is not.
const WORDS: usize = 200;
/// Turns before one that may tell what it carries on.
const CONTEXT: usize = 3;
/// Other labels worth telling, beside the best.
const ALSO: f32 = 0.15;
const MOST_LABELS: usize = 3;
/// Customer turns whose intent is asked for when summing up.
const SUMMED_UP: usize = 40;
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why the module cannot start. A missing model is no reason: it only lowers the rung.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("setting {0}")]
    Setting(String),
    #[error("label file {file}: {cause}", file = .file.display())]
    Labels { file: PathBuf, cause: String },
}

/// Keeps the contract `Inference` in this process.
pub struct Local {
    labels: Vec<Labels>,
    rules: Vec<Rules>,
    classifier: Result<Classifier, NoClassifier>,
    breaker: Mutex<Breaker>,
    timeout: Duration,
    reserve: Duration,
}

enum NoClassifier {
    /// Rules are the best rung that was asked for.
    Unwanted,
    /// For people.
    Missing(String),
}

/// Who may answer now.
enum Rung {
    Local {
        model: String,
    },
    /// With the reason why not the classifier, when it was wanted.
    Rules {
        instead: Option<String>,
    },
}

struct AnsweredBy<'a> {
    tier: Tier,
    model: &'a str,
    begun: Instant,
}

/// What was found in one turn for one task.
struct Finding {
    labels: Vec<(usize, f32)>,
    evidence: Option<Range<usize>>,
    abstained: Option<String>,
}

impl Local {
    /// Reads the labels and, where `runtime` and the model in `models/minilm-l6-v2` are usable, starts the classifier, which loads in the
    /// background: calls wait for it within their budget.
    ///
    /// # Errors
    /// Invalid settings or label files only.
    pub fn start(runtime: Option<&platform::onnx::Runtime>, models: &Path, settings: &Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Setting)?;
        let labels = read_labels(settings)?;
        let classifier = match runtime {
            _ if !settings.classifier => Err(NoClassifier::Unwanted),
            None => Err(NoClassifier::Missing("the ONNX Runtime library is not loaded".into())),
            Some(runtime) => Ok(Classifier::start(runtime.clone(), &models.join("minilm-l6-v2"), labels.clone(), settings)),
        };
        Ok(Self::with(classifier, labels, settings))
    }

    fn with(classifier: Result<Classifier, NoClassifier>, labels: Vec<Labels>, settings: &Settings) -> Self {
        if let Err(NoClassifier::Missing(reason)) = &classifier {
            warn!(%reason, "the classifier is not there; rules answer in its place");
        }
        Self {
            rules: labels.iter().map(Rules::new).collect(),
            labels,
            classifier,
            breaker: Mutex::new(Breaker::new(settings.breaker_failures, Duration::from_millis(settings.breaker_pause_ms))),
            timeout: Duration::from_millis(settings.timeout_ms),
            reserve: Duration::from_millis(settings.reserve_ms),
        }
    }

    /// Waits until the classifier is loaded, or known to be missing; the reason if it is.
    ///
    /// # Errors
    /// Why rules answer although the classifier was wanted.
    pub async fn ready(&self) -> Result<(), String> {
        match &self.classifier {
            Ok(classifier) => match classifier.loaded().await {
                State::Failed(reason) => Err(reason),
                State::Loading | State::Ready(_) => Ok(()),
            },
            Err(NoClassifier::Unwanted) => Ok(()),
            Err(NoClassifier::Missing(reason)) => Err(reason.clone()),
        }
    }

    /// Answers what is under way and ends the threads.
    pub async fn shutdown(&self) {
        let Ok(classifier) = &self.classifier else { return };
        let threads = classifier.close();
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().filter_map(|t| t.join().err()).count());
        match joined.await {
            Ok(0) => info!("the classifier has stopped"),
            _ => warn!("a thread of the classifier did not end well"),
        }
    }

    /// Waits for a classifier that is still loading as long as the call may wait.
    async fn rung(&self, cx: &CallCx) -> Rung {
        let rules = |reason: String| Rung::Rules { instead: Some(reason) };
        let classifier = match &self.classifier {
            Ok(classifier) => classifier,
            Err(NoClassifier::Unwanted) => return Rung::Rules { instead: None },
            Err(NoClassifier::Missing(reason)) => return rules(reason.clone()),
        };
        let Some(time) = self.time(cx) else { return rules("too little of the call's time was left".into()) };
        let model = match tokio::time::timeout(time, classifier.loaded()).await {
            Ok(State::Ready(model)) => model,
            Ok(State::Failed(reason)) => return rules(reason),
            Ok(State::Loading) | Err(_) => return rules("the classifier is still loading".into()),
        };
        let now = Instant::now();
        let mut breaker = self.breaker.lock();
        if breaker.admits(now) {
            Rung::Local { model }
        } else {
            rules(breaker.reason(now).unwrap_or_else(|| "the classifier rests".into()))
        }
    }

    /// What the classifier may take of the call's time; `None` when it is not worth asking. Half of it where this module stands in for
    /// one that did not answer: the caller has waited for that one already, or many have come over at once.
    fn time(&self, cx: &CallCx) -> Option<Duration> {
        let time = cx.remaining().saturating_sub(self.reserve);
        let patience = if cx.attempt > 0 { self.timeout / 2 } else { self.timeout };
        (!time.is_zero()).then(|| time.min(patience))
    }

    /// Puts every turn that needs the classifier into its queue.
    fn ask(&self, cx: &CallCx, questions: &[Question]) -> Result<Vec<Option<Pending>>, CallError> {
        let (Ok(classifier), Some(time)) = (&self.classifier, self.time(cx)) else { return Ok(questions.iter().map(|_| None).collect()) };
        let asked = questions.iter().map(|q| if q.tasks.is_empty() { Ok(None) } else { classifier.ask(q.clone(), time).map(Some) });
        asked.collect::<Result<_, _>>().map_err(|e| match e {
            ClassifyError::Busy(_) => CallError::busy(AGAIN_AFTER, e.to_string()),
            other => CallError::unavailable(other.to_string()),
        })
    }

    /// One reading per task of the turn, or why there is none.
    async fn answer(&self, pending: Pending) -> Result<Vec<Reading>, String> {
        let result = pending.answer().await;
        let mut breaker = self.breaker.lock();
        let (kind, error) = match result {
            Ok(readings) => {
                breaker.succeeded();
                return Ok(readings);
            }
            Err(e @ ClassifyError::Panicked) => ("panicked", e),
            Err(e @ ClassifyError::Slow(_)) => ("timeout", e),
            Err(e @ ClassifyError::Model(_)) => ("model", e),
            Err(e) => return Err(e.to_string()), // the queue, not the classifier
        };
        metrics::counter!(names::FAILED, "reason" => kind).increment(1);
        debug!(error = %error, "the classifier failed at a turn; rules answer in its place");
        if breaker.failed(Instant::now(), error.to_string()) {
            warn!(error = %error, "the classifier is left alone for a while; rules answer in its place");
        }
        Err(error.to_string())
    }

    fn labels(&self, task: Task) -> &Labels {
        self.labels.iter().find(|l| l.task == task).expect("labels of every task are read at start")
    }

    fn by_classifier(&self, task: Task, reading: Reading) -> Finding {
        let labels = self.labels(task);
        let best = reading.best();
        let (name, score) = (&labels.labels[best].name, reading.scores[best]);
        if labels.labels[best].none {
            return Finding::abstains("nothing is asked for that has a label");
        }
        if score < labels.abstain_below {
            return Finding::abstains(format!("not sure: the nearest is {name} at {score:.2}"));
        }
        let mut ranked: Vec<(usize, f32)> =
            reading.scores.into_iter().enumerate().filter(|(l, s)| *l == best || *s >= ALSO && !labels.labels[*l].none).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(MOST_LABELS);
        Finding { labels: ranked, evidence: reading.evidence, abstained: None }
    }

    fn by_rules(&self, task: Task, turn: &Turn, role: Role) -> Finding {
        let rules = &self.rules[self.labels.iter().position(|l| l.task == task).expect("labels of every task are read at start")];
        match rules.decide(turn, role) {
            Verdict::Says { labels, evidence } => Finding { labels, evidence, abstained: None },
            Verdict::None => Finding::abstains("nothing is asked for that has a label"),
            Verdict::Unsure => Finding::abstains("no pattern decides it"),
        }
    }

    fn config_hash(&self, task: Task, tier: Tier, model: &str) -> String {
        let mut hash = Sha256::new();
        for part in [self.labels(task).source.as_str(), model, tier.name(), &CODE.to_string()] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hex::encode(&hash.finalize()[..6])
    }

    fn insight(&self, task: Task, utterance: &Utterance, finding: Finding, by: &AnsweredBy<'_>) -> Insight {
        let AnsweredBy { tier, model, begun } = *by;
        let config_hash = self.config_hash(task, tier, model);
        let run = RunId::live(utterance.conversation, task.name(), &config_hash);
        let wanted = !matches!(self.classifier, Err(NoClassifier::Unwanted));
        let degraded_from = (wanted && tier == Tier::Rules).then_some(Tier::Local);
        let labels = [("task", task.name()), ("tier", tier.name())];
        metrics::histogram!(names::ANALYZE, &labels).record(begun.elapsed().as_secs_f64());
        if finding.abstained.is_some() {
            metrics::counter!(names::ABSTAINED, &labels).increment(1);
        }
        if degraded_from.is_some() {
            metrics::counter!(names::DEGRADED, &labels).increment(1);
        }
        let definitions = &self.labels(task).labels;
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
                tier,
                model: model.into(),
                degraded_from,
                config_hash,
                latency_ms: begun.elapsed().as_millis() as u32,
            },
        }
    }

    async fn understand(&self, cx: &CallCx, request: &Analyze) -> Result<Vec<Insight>, CallError> {
        let begun = Instant::now();
        let rung = self.rung(cx).await;
        let questions = questions(request);
        let (asked, model, instead) = match rung {
            Rung::Local { model } => (self.ask(cx, &questions)?, model, None),
            Rung::Rules { instead } => (questions.iter().map(|_| None).collect(), String::new(), Some(instead)),
        };
        if let Some(Some(reason)) = &instead {
            debug!(%reason, "rules answer in the classifier's place");
        }
        let mut insights = Vec::with_capacity(request.tasks.len() * request.utterances.len());
        for ((utterance, Question { turn, tasks, .. }), pending) in request.utterances.iter().zip(&questions).zip(asked) {
            let mut readings: Vec<Option<Reading>> = match pending {
                Some(pending) => self.answer(pending).await.map(|all| all.into_iter().map(Some).collect()).unwrap_or_default(),
                None => vec![],
            };
            let classified = !readings.is_empty() || (tasks.is_empty() && instead.is_none());
            for task in &request.tasks {
                let reading = tasks.iter().position(|t| t == task).and_then(|i| readings.get_mut(i)?.take());
                let finding = match (plain_answer(*task, utterance.role, turn), reading) {
                    (Some(reason), _) => Finding::abstains(reason),
                    (None, Some(reading)) => self.by_classifier(*task, reading),
                    (None, None) => self.by_rules(*task, turn, utterance.role),
                };
                let (tier, model) = if classified { (Tier::Local, model.as_str()) } else { (Tier::Rules, RULES) };
                insights.push(self.insight(*task, utterance, finding, &AnsweredBy { tier, model, begun }));
            }
        }
        Ok(insights)
    }
}

/// One question per utterance. What was said before it by the same role goes along: the context, and earlier turns of the request.
fn questions(request: &Analyze) -> Vec<Question> {
    let turn_of = |u: &Utterance| Turn::of(&u.words[..u.words.len().min(WORDS)]);
    let said: Vec<&Utterance> = request.context.iter().chain(&request.utterances).collect();
    let question = |(at, utterance): (usize, &Utterance)| {
        let turn = turn_of(utterance);
        let tasks = request.tasks.iter().copied().filter(|t| plain_answer(*t, utterance.role, &turn).is_none()).collect();
        let earlier = &said[..request.context.len() + at];
        let recent = &earlier[earlier.len().saturating_sub(CONTEXT)..];
        let before = recent.iter().filter(|u| u.role == utterance.role).map(|u| turn_of(u)).collect();
        Question { turn, role: utterance.role, before, tasks, evidence: true }
    };
    request.utterances.iter().enumerate().map(question).collect()
}

/// What needs neither model nor rules to say.
fn plain_answer(task: Task, role: Role, turn: &Turn) -> Option<&'static str> {
    if turn.is_empty() {
        return Some("no words");
    }
    (task == Task::Intent && role == Role::Agent).then_some("agent turn")
}

fn read_labels(settings: &Settings) -> Result<Vec<Labels>, StartError> {
    let path = |task| match task {
        Task::Intent => settings.intent_labels.as_deref(),
        Task::Sentiment => settings.sentiment_labels.as_deref(),
    };
    Task::ALL.into_iter().map(|task| Labels::read(task, path(task))).collect()
}

impl Finding {
    fn abstains(reason: impl Into<String>) -> Self {
        Self { labels: vec![], evidence: None, abstained: Some(reason.into()) }
    }
}

#[async_trait]
impl Inference for Local {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        if cx.remaining().is_zero() {
            return Err(CallError::deadline());
        }
        if let Some(stray) = request.utterances.iter().find(|u| u.conversation != request.conversation) {
            return Err(CallError::invalid(format!(
                "utterance {} is of {}: expected {}",
                stray.id, stray.conversation, request.conversation
            )));
        }
        tokio::select! {
            biased; // whoever gave up wants no answer, however near it is
            () = cx.cancel.cancelled() => Err(CallError::cancelled()),
            insights = self.understand(&cx, &request) => insights,
        }
    }

    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let customers = request.utterances.iter().filter(|u| u.role != Role::Agent && !u.words.is_empty()).take(SUMMED_UP).cloned();
        let analyze =
            Analyze { conversation: request.conversation, tasks: vec![Task::Intent], utterances: customers.collect(), context: vec![] };
        let insights = self.analyze(cx, analyze).await?;
        let passing: Vec<&str> = self.labels(Task::Intent).labels.iter().filter(|l| l.short.is_some()).map(|l| l.name.as_str()).collect();
        let items = summary::extract(&request.utterances, &insights, &passing);
        Ok(Box::pin(futures::stream::iter(items.into_iter().map(Ok))))
    }

    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let (tier, degraded) = match &self.classifier {
            Err(NoClassifier::Unwanted) => (Tier::Rules, None),
            Err(NoClassifier::Missing(reason)) => (Tier::Rules, Some(reason.clone())),
            Ok(classifier) => match tokio::time::timeout(cx.remaining(), classifier.loaded()).await {
                Ok(State::Failed(reason)) => (Tier::Rules, Some(reason)),
                Ok(State::Loading) | Err(_) => (Tier::Rules, Some("the classifier is still loading".into())),
                Ok(State::Ready(_)) => match self.breaker.lock().reason(Instant::now()) {
                    Some(reason) => (Tier::Rules, Some(reason)),
                    None => (Tier::Local, None),
                },
            },
        };
        Ok(Task::ALL.map(|task| TierStatus { task, tier, degraded: degraded.clone() }).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::{Load, ReadTurn};
    use contracts::{ChannelIndex, ConversationId, ErrorKind, UtteranceId, audio::Word};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// Says the first label, after what `before` does with the number of the turn.
    struct Scripted {
        before: Arc<dyn Fn(usize) + Send + Sync>,
        turns: Arc<AtomicUsize>,
    }

    impl ReadTurn for Scripted {
        fn model(&self) -> &str {
            "scripted 1"
        }
        fn read(&mut self, question: &Question) -> Result<Vec<Reading>, String> {
            (self.before)(self.turns.fetch_add(1, Ordering::SeqCst));
            Ok(question.tasks.iter().map(|_| Reading { scores: vec![1.0, 0.0], evidence: None }).collect())
        }
    }

    fn scripted(settings: &Settings, before: impl Fn(usize) + Send + Sync + 'static) -> (Local, Arc<AtomicUsize>) {
        let (before, turns) = (Arc::new(before) as Arc<dyn Fn(usize) + Send + Sync>, Arc::new(AtomicUsize::new(0)));
        let counted = turns.clone();
        let load: Arc<Load> =
            Arc::new(move || Ok(Box::new(Scripted { before: before.clone(), turns: turns.clone() }) as Box<dyn ReadTurn>));
        (Local::with(Ok(Classifier::spawn(load, settings)), read_labels(settings).unwrap(), settings), counted)
    }

    fn request(turns: usize) -> Analyze {
        let conversation = ConversationId::from_u128(1);
        let word = Word { text: "cancel".into(), start_ms: 0, end_ms: 1, confidence: 1.0 };
        let utterance = |n: usize| Utterance {
            id: UtteranceId::from_u128(n as u128),
            conversation,
            channel: ChannelIndex(0),
            role: Role::Customer,
            start_ms: n as u64,
            end_ms: n as u64 + 1,
            words: vec![word.clone()],
        };
        Analyze { conversation, tasks: vec![Task::Intent], utterances: (0..turns).map(utterance).collect(), context: vec![] }
    }

    async fn tier(local: &Local) -> Tier {
        local.analyze(CallCx::new(Duration::from_secs(20)), request(1)).await.unwrap()[0].provenance.tier
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_turn_and_the_thread_goes_on() {
        let (local, _) = scripted(&Settings::default(), |turn| assert_ne!(turn, 1, "the second turn is poisoned"));
        assert_eq!([tier(&local).await, tier(&local).await, tier(&local).await], [Tier::Local, Tier::Rules, Tier::Local]);
        local.shutdown().await;
    }

    #[tokio::test]
    async fn after_failures_in_a_row_the_classifier_rests_and_is_tried_again() {
        let settings = Settings { breaker_failures: 2, breaker_pause_ms: 200, ..Settings::default() };
        let (local, turns) = scripted(&settings, |turn| assert!(turn >= 2, "poisoned"));
        for _ in 0..5 {
            assert_eq!(tier(&local).await, Tier::Rules);
        }
        assert_eq!(turns.load(Ordering::SeqCst), 2, "left alone after the second failure");
        let why = local.tiers(CallCx::new(Duration::from_secs(1))).await.unwrap().remove(0).degraded.unwrap();
        assert!(why.contains("panicked") && why.contains("2 times"), "{why}");
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(tier(&local).await, Tier::Local);
        assert_eq!(local.tiers(CallCx::new(Duration::from_secs(1))).await.unwrap()[0].degraded, None);
    }

    /// A gate that holds the classifier's thread until it is opened.
    fn gated(settings: &Settings) -> (Local, std::sync::mpsc::Sender<()>) {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (local, _) = scripted(settings, move |_| {
            let _opened = gate.lock().recv();
        });
        (local, open)
    }

    #[tokio::test]
    async fn a_classifier_that_hangs_is_not_waited_for() {
        let (local, open) = gated(&Settings { timeout_ms: 100, ..Settings::default() });
        assert_eq!(tier(&local).await, Tier::Rules, "its turn was begun and not finished");
        assert_eq!(tier(&local).await, Tier::Rules, "its turn was not even begun");
        drop(open);
        local.ready().await.unwrap();
        assert_eq!(tier(&local).await, Tier::Local);
    }

    #[tokio::test]
    async fn a_call_that_others_did_not_answer_has_waited_already() {
        let (local, _open) = gated(&Settings { timeout_ms: 20_000, ..Settings::default() });
        local.ready().await.unwrap();
        let patience = |attempt| local.time(&CallCx { attempt, ..CallCx::new(Duration::from_secs(60)) });
        assert_eq!((patience(0), patience(1)), (Some(Duration::from_secs(20)), Some(Duration::from_secs(10))));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
        let (local, open) = gated(&Settings { queue: 4, timeout_ms: 60_000, ..Settings::default() });
        local.ready().await.unwrap();
        let begun = Instant::now();
        // One is in the thread, or about to be; four wait; the sixth is one too many.
        let error = local.analyze(CallCx::new(Duration::from_secs(60)), request(6)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert_eq!(error.retry, contracts::Retry::After(AGAIN_AFTER));
        assert!(begun.elapsed() < Duration::from_secs(5), "refused, not waited for: {:?}", begun.elapsed());
        drop(open);
    }

    #[tokio::test]
    async fn after_shutdown_calls_are_told_so() {
        let (local, _) = scripted(&Settings::default(), |_| ());
        assert_eq!(tier(&local).await, Tier::Local);
        local.shutdown().await;
        let error = local.analyze(CallCx::new(Duration::from_secs(1)), request(1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
    }
}
