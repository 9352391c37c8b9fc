//! The rung above the classifier: a language model behind any server of OpenAI's chat API.
//!
//! Invariants:
//! - a turn is asked about by itself: nothing said in one conversation stands in a question about another, so it can change no other answer;
//! - what comes back is a label of the set, a certainty and words of the turn, for a summary words of turns, or a [`Reason`]; the rung below
//!   answers then;
//! - it is given no more time than the call leaves beside the rungs below; what fails in a row is left alone, and so is who asks for it.
//!
//! Deliberately absent: trying again within a call. The rung below is there at once, and the worker asks again when the model is back.

mod answer;
mod answers;
mod client;
mod settings;
mod summary;

pub(crate) use answer::{Answer, Certainty};
pub use settings::LlmSettings;

use crate::{
    StartError,
    breaker::Breaker,
    definitions::Definitions,
    metrics as names,
    prompts::{Asked, Purpose},
};
use answers::{Before, Remembered};
use bytes::Bytes;
use client::{Client, Completion, Failure, Usage};
use contracts::{CallCx, ConversationId};
use parking_lot::Mutex;
use platform::{
    cache::{Front, Key, Place},
    trace::{Side, Span},
};
use serde_json::{Map, Value, json};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

/// A server that is back is found within this time, as soon as there is something to ask.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Kept of the time for a summary, for the rungs below: they read up to 40 turns.
const SUMMARY_FALLBACK: Duration = Duration::from_secs(2);

pub(crate) struct Llm {
    client: Client,
    settings: LlmSettings,
    slots: Semaphore,
    /// Apart from those of turns, which are waited for by somebody who looks at a screen.
    summary_slots: Semaphore,
    health: Mutex<Health>,
    remembered: Remembered,
}

/// A question as it is sent.
struct Question<'a> {
    purpose: Purpose,
    body: Bytes,
    key: Key,
    slots: &'a Semaphore,
}

/// What was read in an answer.
struct Held<T> {
    what: T,
    /// Why some of it is not used.
    bad: Option<Reason>,
}

struct Health {
    breaker: Breaker,
    /// Whose turns had answers that do not fit since the last that did. A speaker can talk a model into such answers, so each conversation
    /// counts once: nobody closes the rung for others.
    unfit: HashSet<ConversationId>,
}

/// Why the model's answer is not used: a closed set, as in the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is left alone for a while.
    Resting,
    /// The call leaves it too little time.
    TooLate,
    /// As much as may be is being asked about.
    Crowded,
    /// The call has more words than are asked about.
    TooLong,
    Timeout,
    /// There was no connection, or it broke.
    Unreachable,
    /// 429.
    Limited,
    /// 503.
    Overloaded,
    /// Another 4xx: key, address or model are wrong, or the server does not know schemas.
    Refused,
    /// Another 5xx.
    Failed,
    /// No chat completion, or too long a one.
    Garbage,
    /// Cut off at `max_tokens`.
    Truncated,
    /// The model would not.
    Declined,
    /// Not of the shape of the schema.
    Unfit,
    /// No label of the set.
    Label,
    /// It quotes what was not said.
    Quote,
    /// It was said by somebody who cannot have meant that.
    Speaker,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::TooLate => "too_late",
            Self::Crowded => "crowded",
            Self::TooLong => "too_long",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Limited => "limited",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::Declined => "declined",
            Self::Unfit => "unfit",
            Self::Label => "label",
            Self::Quote => "quote",
            Self::Speaker => "speaker",
        }
    }

    /// What was said may have brought it about.
    fn may_be_spoken(self) -> bool {
        matches!(self, Self::Truncated | Self::Declined | Self::Unfit | Self::Label | Self::Quote | Self::Speaker)
    }
}

impl Llm {
    /// `None` where no server is named.
    ///
    /// # Errors
    /// A key or an authority that cannot be read.
    pub(crate) fn new(settings: &LlmSettings) -> Result<Option<Self>, StartError> {
        let Some(client) = Client::new(settings)? else { return Ok(None) };
        let breaker = Breaker::new(settings.breaker_failures, Duration::from_millis(settings.breaker_pause_ms), LONGEST_PAUSE);
        info!(model = settings.model, "turns go to a language model first");
        Ok(Some(Self {
            client,
            slots: Semaphore::new(settings.concurrency),
            summary_slots: Semaphore::new(settings.summaries),
            health: Mutex::new(Health { breaker, unfit: HashSet::new() }),
            remembered: Remembered::nothing(),
            settings: settings.clone(),
        }))
    }

    pub(crate) fn remembering(self, cache: Arc<Front>) -> Self {
        let (life, limit) = (Duration::from_secs(self.settings.remember_s), Duration::from_millis(self.settings.recall_ms));
        Self { remembered: Remembered::within(cache, life, limit), ..self }
    }

    pub(crate) fn model(&self) -> &str {
        &self.settings.model
    }

    /// Part of a run's configuration: what is sent with every question.
    pub(crate) fn sampling(&self) -> String {
        format!("{} {}", self.settings.max_tokens, json!(self.settings.extra))
    }

    /// Why it is left alone, while it is.
    pub(crate) fn resting(&self) -> Option<String> {
        self.health.lock().breaker.reason(Instant::now())
    }

    /// One answer per task, or why it does not count.
    ///
    /// # Errors
    /// Why there is no answer at all.
    pub(crate) async fn ask(
        &self,
        cx: &CallCx,
        conversation: ConversationId,
        asked: &Asked<'_>,
        definitions: &Definitions,
    ) -> Result<answer::Answers, Reason> {
        let schema = asked.schema(&definitions.labels);
        let question = self.question(cx, Purpose::Turn, definitions, asked.message(), schema);
        self.put(cx, conversation, question, |content| answer::read(content, asked, definitions)).await
    }

    /// What an answer to the question came to; `read` holds it against what was asked.
    async fn put<T>(
        &self,
        cx: &CallCx,
        conversation: ConversationId,
        question: Question<'_>,
        read: impl Fn(&str) -> Result<Held<T>, Reason> + Send,
    ) -> Result<T, Reason> {
        let counter = match question.purpose {
            Purpose::Turn => names::LLM_ANSWERS,
            Purpose::Summary => names::LLM_SUMMARIES,
        };
        let place = match self.remembered.find(&question.key).await {
            Before::Said(content) => match read(&content) {
                Ok(Held { what, bad: None }) => {
                    metrics::counter!(counter, "outcome" => "remembered").increment(1);
                    return Ok(what);
                }
                _ => Place::default(),
            },
            Before::Nothing(place) => place,
        };
        let outcome = self.put_anew(cx, conversation, question, place, read).await;
        let told = match &outcome {
            Ok(held) => held.bad.map_or("answered", Reason::name),
            Err(reason) => reason.name(),
        };
        metrics::counter!(counter, "outcome" => told).increment(1);
        outcome.map(|held| held.what)
    }

    async fn put_anew<T>(
        &self,
        cx: &CallCx,
        conversation: ConversationId,
        question: Question<'_>,
        place: Place,
        read: impl Fn(&str) -> Result<Held<T>, Reason> + Send,
    ) -> Result<Held<T>, Reason> {
        if self.resting().is_some() {
            return Err(Reason::Resting);
        }
        let purpose = question.purpose;
        let least = Duration::from_millis(self.settings.least_ms);
        let patience = self.time(cx, purpose).checked_sub(least).ok_or(Reason::TooLate)?;
        let slot = tokio::time::timeout(patience, question.slots.acquire()).await.map_err(|_| Reason::Crowded)?;
        let _slot = slot.expect("nobody closes it");
        let time = self.time(cx, purpose);
        if time < least {
            return Err(Reason::TooLate);
        }
        if !self.health.lock().breaker.admits(Instant::now()) {
            return Err(Reason::Resting);
        }
        let mut span = Span::begin("llm", Side::Caller, cx.trace.child(), cx.trace);
        span.note("gen_ai.request.model", self.settings.model.clone());
        span.note("purpose", purpose.name());
        let _flying = Flying::begin();
        let begun = Instant::now();
        let said = tokio::time::timeout(time, self.client.complete(question.body)).await;
        let took = begun.elapsed();
        metrics::histogram!(names::LLM_SECONDS, "purpose" => purpose.name()).record(took.as_secs_f64());
        let said = said.unwrap_or_else(|_| Err(Failure::new(Reason::Timeout, format!("no answer within {} ms", time.as_millis()))));
        let usage = said.as_ref().map_or_else(|failure| failure.usage, |completion| completion.usage);
        count(usage, &mut span);
        let outcome = match said {
            Ok(Completion { content, .. }) => match read(&content) {
                Ok(held) => {
                    // What does not fit may fit the next time.
                    if held.bad.is_none() {
                        self.remembered.keep(&question.key, place, &content).await;
                    }
                    Ok(held)
                }
                Err(Reason::Unfit) => Err(Failure::new(Reason::Unfit, "its answer is not of the shape that was asked for")),
                Err(reason) => Err(Failure::new(reason, format!("its answer does not fit ({})", reason.name()))),
            },
            Err(failure) => Err(failure),
        };
        let bad = match &outcome {
            Ok(held) => held.bad,
            Err(failure) => Some(failure.reason),
        };
        if let Some(reason) = bad {
            span.note("outcome", reason.name());
            span.failed(reason.name());
        }
        // A server that had less time than it may take has not failed by being slower, and a long call takes as long as it is.
        let hurried = purpose == Purpose::Summary || time < Duration::from_millis(self.settings.deadline_ms) / 2;
        if bad != Some(Reason::Timeout) || !hurried {
            self.judge(conversation, bad, outcome.as_ref().err());
        }
        outcome.map_err(|failure| failure.reason)
    }

    /// What it may take of the call's time.
    fn time(&self, cx: &CallCx, purpose: Purpose) -> Duration {
        let (deadline, fallback) = match purpose {
            Purpose::Turn => (self.settings.deadline_ms, Duration::from_millis(self.settings.fallback_ms)),
            Purpose::Summary => (self.settings.summary_ms, SUMMARY_FALLBACK),
        };
        let (left, deadline) = (cx.remaining().saturating_sub(fallback), Duration::from_millis(deadline));
        // A call that another place did not answer has waited already.
        left.min(if cx.attempt > 0 { deadline / 2 } else { deadline })
    }

    fn judge(&self, conversation: ConversationId, bad: Option<Reason>, failure: Option<&Failure>) {
        let now = Instant::now();
        let mut health = self.health.lock();
        let Some(reason) = bad else {
            health.unfit.clear();
            health.breaker.succeeded();
            return;
        };
        let detail = failure.map_or_else(|| format!("its answers do not fit ({})", reason.name()), |f| f.detail.clone());
        debug!(reason = reason.name(), %detail, "the language model's answer is not used");
        if reason.may_be_spoken() && !health.unfit.insert(conversation) {
            return;
        }
        if let Some(rest) = failure.and_then(|f| f.rest) {
            warn!(%detail, rest_ms = rest.as_millis() as u64, "the language model asks to be left alone; the rungs below answer");
            health.breaker.rest(now, rest, detail);
        } else if health.breaker.failed(now, detail.clone()) {
            warn!(%detail, "the language model is left alone for a while; the rungs below answer");
        }
    }

    fn question(&self, cx: &CallCx, purpose: Purpose, definitions: &Definitions, message: String, schema: Value) -> Question<'_> {
        let (prompt, tokens, slots) = match purpose {
            Purpose::Turn => (&definitions.prompt, self.settings.max_tokens, &self.slots),
            Purpose::Summary => (&definitions.summary, self.settings.summary_tokens, &self.summary_slots),
        };
        let mut request = Map::new();
        request.insert("model".into(), self.settings.model.clone().into());
        request.insert("temperature".into(), 0.into());
        request.insert("max_tokens".into(), tokens.into());
        let told = json!([
            { "role": "system", "content": prompt.system(&definitions.labels) },
            { "role": "user", "content": message },
        ]);
        request.insert("messages".into(), told);
        // Nested: servers take the flat form too, and ignore it.
        let schema = json!({ "name": purpose.name(), "strict": true, "schema": schema });
        request.insert("response_format".into(), json!({ "type": "json_schema", "json_schema": schema }));
        request.extend(self.settings.extra.clone());
        if let Some(given) = self.settings.extra.get("max_completion_tokens") {
            request.remove("max_tokens");
            if purpose == Purpose::Summary {
                request.insert("max_completion_tokens".into(), given.as_u64().unwrap_or_default().max(tokens.into()).into());
            }
        }
        let body: Bytes = serde_json::to_vec(&Value::Object(request)).expect("JSON is plain data").into();
        Question { purpose, key: answers::key(&cx.tenant, &prompt.name(), &body), body, slots }
    }
}

fn count(usage: Usage, span: &mut Span) {
    metrics::counter!(names::LLM_TOKENS, "kind" => "prompt").increment(usage.prompt_tokens);
    metrics::counter!(names::LLM_TOKENS, "kind" => "completion").increment(usage.completion_tokens);
    span.note("gen_ai.usage.input_tokens", usage.prompt_tokens as i64);
    span.note("gen_ai.usage.output_tokens", usage.completion_tokens as i64);
}

/// One more question is on its way, until this is dropped.
struct Flying;

impl Flying {
    fn begin() -> Self {
        metrics::gauge!(names::LLM_FLYING).increment(1.0);
        Self
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        metrics::gauge!(names::LLM_FLYING).decrement(1.0);
    }
}
