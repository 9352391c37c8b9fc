//! The rungs of understanding: a language model where one is configured, the local classifier, and rules below it.
//!
//! Invariants: a call is never failed by a model; who answered, and instead of whom, stands in every insight; the same request gives the
//! same ids, and the same labels as long as the same rung answers (the rung is part of the run's configuration).
//!
//! A call goes by the definitions that are in force when it begins, to its end; the classifier by those it has learnt.

#[cfg(test)]
mod tests;

use crate::{
    Settings,
    breaker::Breaker,
    classifier::{Classifier, ClassifyError, Pending, Question, Read, State},
    definitions::{Definitions, Sources},
    finding::{AnsweredBy, Finding, RULES, insight},
    llm::{Answer, Llm},
    metrics as names,
    prompts::Asked,
    summary,
    turn::Turn,
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, ConversationId, EventStream, Inference,
    audio::Role,
    inference::{Analyze, Insight, Summarize, SummaryItem, Task, Tier, TierStatus, Utterance},
};
use futures::future::join_all;
use parking_lot::Mutex;
use platform::cache::Front;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

/// Turns before one that may tell what it carries on.
const CONTEXT: usize = 3;
/// Customer turns whose intent is asked for when summing up.
const SUMMED_UP: usize = 40;
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The classifier's longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why the module cannot start. A missing model is no reason: it only lowers the rung.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("setting {0}")]
    Setting(String),
    #[error("label file {file}: {cause}", file = .file.display())]
    Labels { file: PathBuf, cause: String },
    #[error("definitions {file}: {cause}", file = .file.display())]
    Definitions { file: PathBuf, cause: String },
}

/// Keeps the contract `Inference` in this process.
pub struct Local {
    pub(crate) sources: Sources,
    pub(crate) definitions: ArcSwap<Definitions>,
    /// Why newer definitions are not in force.
    pub(crate) stale: Mutex<Option<String>>,
    llm: Option<Llm>,
    pub(crate) classifier: Result<Classifier, NoClassifier>,
    breaker: Mutex<Breaker>,
    timeout: Duration,
    reserve: Duration,
    pub(crate) nice: i32,
}

pub(crate) enum NoClassifier {
    /// Rules are the best rung that was asked for.
    Unwanted,
    /// For people.
    Missing(String),
}

/// Who of those in this process may answer now.
enum Rung {
    Local {
        model: String,
    },
    /// With the reason why not the classifier, when it was wanted.
    Rules {
        instead: Option<String>,
    },
}

/// Which of them are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rungs {
    All,
    /// Those that need nothing outside this process.
    Here,
}

/// What the language model said to one turn.
struct Told {
    /// One per task of the question; `None` where a lower rung must answer.
    answers: Vec<Option<Answer>>,
    /// It is there: what needs no model is its answer as well.
    there: bool,
}

impl Local {
    /// Reads the definitions and, where `runtime` and the model in `models/minilm-l6-v2` are usable, starts the classifier, which loads in the
    /// background: calls wait for it within their budget.
    ///
    /// # Errors
    /// Invalid settings or definitions only.
    pub fn start(runtime: Option<&platform::onnx::Runtime>, models: &Path, settings: &Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Setting)?;
        let definitions = Arc::new(Definitions::read(settings)?);
        let llm = Llm::new(&settings.llm)?;
        let classifier = match runtime {
            _ if !settings.classifier => Err(NoClassifier::Unwanted),
            None => Err(NoClassifier::Missing("the ONNX Runtime library is not loaded".into())),
            Some(runtime) => Ok(Classifier::start(runtime.clone(), &models.join("minilm-l6-v2"), definitions.clone(), settings)),
        };
        Ok(Self::with(classifier, llm, definitions, settings))
    }

    fn with(classifier: Result<Classifier, NoClassifier>, llm: Option<Llm>, definitions: Arc<Definitions>, settings: &Settings) -> Self {
        if let Err(NoClassifier::Missing(reason)) = &classifier {
            warn!(%reason, "the classifier is not there; rules answer in its place");
        }
        Self {
            sources: Sources::of(settings),
            definitions: ArcSwap::new(definitions),
            stale: Mutex::default(),
            llm,
            classifier,
            breaker: Mutex::new(Breaker::new(settings.breaker_failures, Duration::from_millis(settings.breaker_pause_ms), LONGEST_PAUSE)),
            timeout: Duration::from_millis(settings.timeout_ms),
            reserve: Duration::from_millis(settings.reserve_ms),
            nice: settings.nice,
        }
    }

    /// The same, keeping a language model's answers in `cache`, where whoever shares it finds them. Without, each question is asked anew.
    #[must_use]
    pub fn remembering(mut self, cache: Arc<Front>) -> Self {
        self.llm = self.llm.map(|llm| llm.remembering(cache));
        self
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
    async fn answer(&self, pending: Pending) -> Result<Read, String> {
        let result = pending.answer().await;
        let mut breaker = self.breaker.lock();
        let (kind, error) = match result {
            Ok(read) => {
                breaker.succeeded();
                return Ok(read);
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

    /// What the language model makes of each turn, asked about all of them at the same time.
    async fn tell(&self, cx: &CallCx, request: &Analyze, questions: &[Question], definitions: &Definitions) -> Vec<Told> {
        let Some(llm) = &self.llm else { return vec![] };
        let told = questions.iter().enumerate().map(async |(at, question)| {
            if question.tasks.is_empty() {
                return Told { answers: vec![], there: llm.resting().is_none() };
            }
            let said = |u: &&Utterance| {
                let turn = Turn::beginning_of(&u.words);
                (u.role, turn.text(0..turn.len()))
            };
            let before = before(request, at).iter().map(said).collect();
            let asked = Asked { tasks: &question.tasks, role: question.role, turn: &question.turn, before };
            match llm.ask(cx, request.conversation, &asked, definitions).await {
                Ok(answers) => Told { there: answers.iter().any(Result::is_ok), answers: answers.into_iter().map(Result::ok).collect() },
                Err(reason) => {
                    debug!(reason = reason.name(), "a lower rung answers in the language model's place");
                    Told { answers: question.tasks.iter().map(|_| None).collect(), there: false }
                }
            }
        });
        join_all(told).await
    }

    /// The best rung that is configured, among those that may be asked.
    fn best(&self, from: Rungs) -> Tier {
        match (&self.llm, &self.classifier) {
            (Some(_), _) if from == Rungs::All => Tier::Llm,
            (_, Err(NoClassifier::Unwanted)) => Tier::Rules,
            _ => Tier::Local,
        }
    }

    async fn understand(&self, cx: &CallCx, request: &Analyze, from: Rungs) -> Result<Vec<Insight>, CallError> {
        let begun = Instant::now();
        let definitions = self.definitions.load_full();
        let questions = questions(request);
        let mut told = match from {
            Rungs::All => self.tell(cx, request, &questions, &definitions).await,
            Rungs::Here => vec![],
        };
        told.resize_with(questions.len(), || Told { answers: vec![], there: false });
        // What is left for the rungs in this process.
        let left: Vec<Question> = questions.iter().zip(&told).map(|(question, told)| question.without(&told.answers)).collect();
        let all_told = told.iter().zip(&left).all(|(told, left)| told.there && left.tasks.is_empty());
        let rung = if all_told { Rung::Rules { instead: None } } else { self.rung(cx).await };
        let (asked, model, instead) = match rung {
            Rung::Local { model } => (self.ask(cx, &left)?, model, None),
            Rung::Rules { instead } => (left.iter().map(|_| None).collect(), String::new(), Some(instead)),
        };
        if let Some(Some(reason)) = &instead {
            debug!(%reason, "rules answer in the classifier's place");
        }
        let best = self.best(from);
        let mut insights = Vec::with_capacity(request.tasks.len() * request.utterances.len());
        let turns = request.utterances.iter().zip(&questions).zip(&left).zip(asked).zip(told);
        for ((((utterance, Question { turn, tasks, .. }), left), pending), told) in turns {
            let read = match pending {
                Some(pending) => self.answer(pending).await.ok(),
                None => None,
            };
            let classified = read.is_some() || (left.tasks.is_empty() && instead.is_none());
            let (mut readings, learnt) = read.map_or((vec![], None), |r| (r.readings.into_iter().map(Some).collect(), r.definitions));
            let learnt = learnt.unwrap_or_else(|| definitions.clone());
            for task in &request.tasks {
                let answer = tasks.iter().position(|t| t == task).and_then(|i| told.answers.get(i)?.clone());
                let reading = left.tasks.iter().position(|t| t == task).and_then(|i| readings.get_mut(i)?.take());
                let plain = plain_answer(*task, utterance.role, turn);
                let (tier, model, by) = match (&answer, &reading) {
                    (Some(_), _) => (Tier::Llm, self.llm.as_ref().map_or("", Llm::model), &definitions),
                    (None, Some(_)) => (Tier::Local, model.as_str(), &learnt),
                    (None, None) if plain.is_some() && told.there => (Tier::Llm, self.llm.as_ref().map_or("", Llm::model), &definitions),
                    (None, None) if plain.is_some() && classified => (Tier::Local, model.as_str(), &learnt),
                    (None, None) => (Tier::Rules, RULES, &definitions),
                };
                let finding = match (plain, answer, reading) {
                    (Some(reason), ..) => Finding::abstains(reason),
                    (None, Some(answer), _) => Finding::by_llm(by.labels(*task), answer),
                    (None, None, Some(reading)) => Finding::by_classifier(by.labels(*task), reading),
                    (None, None, None) => Finding::by_rules(by.rules(*task), turn, utterance.role),
                };
                let sampling = if tier == Tier::Llm { self.llm.as_ref().map(Llm::sampling) } else { None };
                let by = AnsweredBy { tier, best, model, begun, definitions: by, sampling };
                insights.push(insight(*task, utterance, finding, &by));
            }
        }
        Ok(insights)
    }

    /// The rung in this process that would answer, and why not the classifier.
    async fn lower_rung(&self, cx: &CallCx) -> (Tier, Option<String>) {
        match &self.classifier {
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
        }
    }

    /// What the language model points at in a call; `None` where a lower rung must sum it up.
    async fn point_out(&self, cx: &CallCx, request: &Summarize) -> Result<Option<Vec<SummaryItem>>, CallError> {
        let Some(llm) = self.llm.as_ref().filter(|_| request.utterances.iter().any(|u| !u.words.is_empty())) else { return Ok(None) };
        let definitions = self.definitions.load_full();
        let said = tokio::select! {
            biased; // whoever gave up wants no answer
            () = cx.cancel.cancelled() => return Err(CallError::cancelled()),
            said = llm.sum_up(cx, request, &definitions) => said,
        };
        let told = said.inspect_err(|reason| debug!(reason = reason.name(), "a lower rung sums up in the language model's place"));
        Ok(told.ok())
    }

    /// By what is in this process: most turns have been answered already while they were spoken, and would be asked about again.
    async fn extract(&self, cx: CallCx, request: &Summarize) -> Result<Vec<SummaryItem>, CallError> {
        let customers = request.utterances.iter().filter(|u| u.role != Role::Agent && !u.words.is_empty()).take(SUMMED_UP).cloned();
        let analyze =
            Analyze { conversation: request.conversation, tasks: vec![Task::Intent], utterances: customers.collect(), context: vec![] };
        let insights = self.analyze_from(cx, analyze, Rungs::Here).await?;
        let definitions = self.definitions.load_full();
        let labels = definitions.labels(Task::Intent).labels.iter();
        let passing: Vec<&str> = labels.filter(|l| l.short.is_some()).map(|l| l.name.as_str()).collect();
        Ok(summary::extract(&request.utterances, &insights, &passing))
    }

    async fn analyze_from(&self, cx: CallCx, request: Analyze, from: Rungs) -> Result<Vec<Insight>, CallError> {
        if cx.remaining().is_zero() {
            return Err(CallError::deadline());
        }
        are_all_of(request.conversation, &request.utterances)?;
        tokio::select! {
            biased; // whoever gave up wants no answer, however near it is
            () = cx.cancel.cancelled() => Err(CallError::cancelled()),
            insights = self.understand(&cx, &request, from) => insights,
        }
    }
}

/// What is said in one conversation is never told of another.
fn are_all_of(conversation: ConversationId, utterances: &[Utterance]) -> Result<(), CallError> {
    match utterances.iter().find(|u| u.conversation != conversation) {
        None => Ok(()),
        Some(stray) => Err(CallError::invalid(format!("utterance {} is of {}: expected {conversation}", stray.id, stray.conversation))),
    }
}

/// What was said before an utterance of the request: the context, and earlier turns of the request.
fn before(request: &Analyze, at: usize) -> Vec<&Utterance> {
    let earlier: Vec<&Utterance> = request.context.iter().chain(&request.utterances[..at]).collect();
    earlier[earlier.len().saturating_sub(CONTEXT)..].to_vec()
}

/// One question per utterance. What was said before it by the same role goes along.
fn questions(request: &Analyze) -> Vec<Question> {
    let question = |(at, utterance): (usize, &Utterance)| {
        let turn = Turn::beginning_of(&utterance.words);
        let tasks = request.tasks.iter().copied().filter(|t| plain_answer(*t, utterance.role, &turn).is_none()).collect();
        let before = before(request, at).into_iter().filter(|u| u.role == utterance.role).map(|u| Turn::beginning_of(&u.words)).collect();
        Question { turn, role: utterance.role, before, tasks, evidence: true }
    };
    request.utterances.iter().enumerate().map(question).collect()
}

impl Question {
    /// The same for the tasks that have no answer yet.
    fn without(&self, answers: &[Option<Answer>]) -> Self {
        let open = |at: &usize| answers.get(*at).is_none_or(Option::is_none);
        let tasks = (0..self.tasks.len()).filter(open).map(|at| self.tasks[at]).collect();
        Self { tasks, ..self.clone() }
    }
}

/// What needs neither model nor rules to say.
fn plain_answer(task: Task, role: Role, turn: &Turn) -> Option<&'static str> {
    if turn.is_empty() {
        return Some("no words");
    }
    (task == Task::Intent && role == Role::Agent).then_some("agent turn")
}

#[async_trait]
impl Inference for Local {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.analyze_from(cx, request, Rungs::All).await
    }

    /// By the language model within its time, else by the sentences that the rungs in this process choose.
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        are_all_of(request.conversation, &request.utterances)?;
        let items = match self.point_out(&cx, &request).await? {
            Some(items) => items,
            None => self.extract(cx, &request).await?,
        };
        Ok(Box::pin(futures::stream::iter(items.into_iter().map(Ok))))
    }

    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let stale = self.stale.lock().clone();
        let (tier, degraded) = match self.llm.as_ref().map(Llm::resting) {
            Some(None) => (Tier::Llm, None),
            Some(Some(reason)) => (self.lower_rung(&cx).await.0, Some(format!("the language model is left alone: {reason}"))),
            None => self.lower_rung(&cx).await,
        };
        Ok(Task::ALL.map(|task| TierStatus { task, tier, degraded: degraded.clone(), stale: stale.clone() }).into())
    }
}
