//! Models on disk, labelled turns, and how well answers fit them. Shared by tests and examples.
#![allow(dead_code)] // each of them uses its own part
#![allow(clippy::unwrap_used)] // as in any test

use contracts::{
    CallCx, ChannelIndex, ConversationId, Inference, UtteranceId,
    audio::{Role, Word},
    inference::{Analyze, Insight, Task, Utterance},
};
use inference::{Local, Settings};
use platform::onnx::Runtime;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

/// Turns before one that are known when it is understood, as the worker gives them.
const CONTEXT: usize = 3;

/// `QUICKCOMM_MODELS`, or `.quickcomm/models` in a folder above.
pub fn models() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("QUICKCOMM_MODELS") {
        return Some(set.into());
    }
    let up = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    up.map(|dir| dir.join(".quickcomm/models")).find(|dir| dir.join("minilm-l6-v2/model.toml").exists())
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The library allows one environment per process.
pub fn runtime(models: &Path) -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::load(models).unwrap()).clone()
}

pub async fn local() -> Option<Local> {
    let Some(models) = models() else {
        eprintln!("SKIPPED: no models on disk; `make models` fetches them");
        return None;
    };
    let local = Local::start(Some(&runtime(&models)), &models, &patient()).unwrap();
    local.ready().await.unwrap();
    Some(local)
}

pub fn rules() -> Local {
    Local::start(None, Path::new("nowhere"), &Settings { classifier: false, ..patient() }).unwrap()
}

/// A busy machine must not turn a test of quality into one of speed.
pub fn patient() -> Settings {
    Settings { timeout_ms: 30_000, ..Settings::default() }
}

pub fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(60))
}

#[derive(Clone, Debug, Deserialize)]
pub struct Labelled {
    pub text: String,
    pub speaker: String,
    #[serde(default)]
    pub intent: Option<String>,
    #[serde(default)]
    pub sentiment: Option<String>,
}

impl Labelled {
    pub fn role(&self) -> Role {
        match self.speaker.as_str() {
            "agent" => Role::Agent,
            "customer" => Role::Customer,
            _ => Role::Unknown,
        }
    }
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    name: String,
    turns: Vec<Labelled>,
}

/// The calls that may be tuned on.
pub fn tuning() -> Vec<(String, Vec<Labelled>)> {
    #[derive(Deserialize)]
    struct File {
        calls: Vec<Call>,
    }
    let file: File = toml::from_str(include_str!("../tuning.toml")).unwrap();
    file.calls.into_iter().map(|c| (c.name, c.turns)).collect()
}

/// Every demo call's turns, by the call's name.
pub fn calls() -> Vec<(String, Vec<Labelled>)> {
    let folder = repository().join("tests/fixtures/calls");
    let mut calls: Vec<(String, Vec<Labelled>)> = fs::read_dir(&folder)
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "json")).collect())
        .unwrap_or_else(|_| Vec::<PathBuf>::new())
        .into_iter()
        .map(|path| {
            let call: Call = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), call.turns)
        })
        .collect();
    calls.sort_by(|a, b| a.0.cmp(&b.0));
    calls
}

/// The turns written apart from everything else.
pub fn turns() -> Vec<Labelled> {
    fs::read_to_string(repository().join("tests/fixtures/turns.json")).map(|t| serde_json::from_str(&t).unwrap()).unwrap_or_default()
}

pub fn utterance(role: Role, text: &str, number: u64) -> Utterance {
    let words = text
        .split_whitespace()
        .zip(0u32..)
        .map(|(w, i)| Word { text: w.into(), start_ms: i * 300, end_ms: i * 300 + 250, confidence: 0.9 })
        .collect();
    let id = UtteranceId::from_u128(u128::from(number) + 1);
    Utterance { id, conversation: ConversationId::from_u128(1), channel: ChannelIndex(0), role, start_ms: 0, end_ms: 1_000, words }
}

pub fn ask(tasks: &[Task], utterances: Vec<Utterance>) -> Analyze {
    Analyze { conversation: ConversationId::from_u128(1), tasks: tasks.to_vec(), utterances, context: vec![] }
}

/// Answers to the turns of one call, each with the turns before it as context.
pub async fn answers(inference: &Local, task: Task, turns: &[Labelled]) -> Vec<Insight> {
    let utterances: Vec<Utterance> = turns.iter().zip(0..).map(|(t, n)| utterance(t.role(), &t.text, n)).collect();
    let mut insights = vec![];
    for (at, utterance) in utterances.iter().enumerate() {
        let context = utterances[at.saturating_sub(CONTEXT)..at].to_vec();
        let request = Analyze { context, ..ask(&[task], vec![utterance.clone()]) };
        insights.extend(inference.analyze(cx(), request).await.unwrap());
    }
    insights
}

/// The same for turns that belong to no call.
pub async fn answers_apart(inference: &Local, task: Task, turns: &[Labelled]) -> Vec<Insight> {
    let mut insights = vec![];
    for turn in turns {
        insights.extend(answers(inference, task, std::slice::from_ref(turn)).await);
    }
    insights
}

/// How answers fit the truth. For intents `none` is a truth of its own, and abstaining is how it is told.
#[derive(Debug, Default)]
pub struct Fit {
    pub turns: usize,
    pub right: usize,
    pub answered: usize,
    pub answered_right: usize,
    pub abstained_with_truth: usize,
    pub with_truth: usize,
    counts: BTreeMap<String, [usize; 3]>,
    pub wrong: Vec<String>,
}

impl Fit {
    pub fn of(turns: &[Labelled], insights: &[Insight], truth: impl Fn(&Labelled) -> Option<String>) -> Self {
        let mut fit = Self::default();
        for (turn, insight) in turns.iter().zip(insights) {
            let Some(truth) = truth(turn) else { continue };
            let said = insight.labels.first().map_or("none", |l| l.name.as_str());
            let right = said == truth;
            fit.turns += 1;
            fit.right += usize::from(right);
            fit.answered += usize::from(said != "none");
            fit.answered_right += usize::from(said != "none" && right);
            fit.with_truth += usize::from(truth != "none");
            fit.abstained_with_truth += usize::from(truth != "none" && said == "none");
            fit.counts.entry(truth.clone()).or_default()[usize::from(!right)] += 1;
            if !right {
                fit.counts.entry(said.into()).or_default()[2] += 1;
                let score = insight.labels.first().map_or(0.0, |l| l.score);
                let why = insight.abstained.clone().unwrap_or_default();
                fit.wrong.push(format!("{truth} heard as {said} {score:.2} {why}: {}", turn.text));
            }
        }
        fit
    }

    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.turns.max(1) as f64
    }
    pub fn precision_when_answering(&self) -> f64 {
        self.answered_right as f64 / self.answered.max(1) as f64
    }
    pub fn abstained(&self) -> f64 {
        self.abstained_with_truth as f64 / self.with_truth.max(1) as f64
    }

    /// Over the labels that occur in the truth.
    pub fn macro_f1(&self) -> f64 {
        let f1s: Vec<f64> = self
            .counts
            .values()
            .filter(|[hit, missed, _]| hit + missed > 0)
            .map(|[hit, missed, stray]| 2.0 * *hit as f64 / (2 * hit + missed + stray).max(1) as f64)
            .collect();
        f1s.iter().sum::<f64>() / f1s.len().max(1) as f64
    }

    pub fn row(&self) -> String {
        format!(
            "{:>5} turns  accuracy {:.3}  macro-F1 {:.3}  when answering {:.3}  abstained {:.3}",
            self.turns,
            self.accuracy(),
            self.macro_f1(),
            self.precision_when_answering(),
            self.abstained()
        )
    }
}

pub fn intent_of(turn: &Labelled) -> Option<String> {
    turn.intent.clone().filter(|_| turn.role() != Role::Agent)
}

pub fn sentiment_of(turn: &Labelled) -> Option<String> {
    turn.sentiment.clone()
}

/// Six words in a row, as compared.
pub fn six_grams(text: &str) -> BTreeSet<String> {
    let tokens = normalized(text);
    tokens.windows(6).map(|w| w.join(" ")).collect()
}

pub fn normalized(text: &str) -> Vec<String> {
    text.split_whitespace().map(inference::turn::token).filter(|t| !t.is_empty()).collect()
}
