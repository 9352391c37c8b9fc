//! Rungs that fail on purpose.

use super::*;
use crate::classifier::{Load, ReadTurn, Reading};
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
    let load: Arc<Load> = Arc::new(move || Ok(Box::new(Scripted { before: before.clone(), turns: turns.clone() }) as Box<dyn ReadTurn>));
    let definitions = Arc::new(Definitions::read(settings).unwrap());
    (Local::with(Ok(Classifier::spawn(load, settings)), None, definitions, settings), counted)
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

/// A busy machine must not pass for a slow classifier.
fn patient() -> Settings {
    Settings { timeout_ms: 15_000, ..Settings::default() }
}

#[tokio::test]
async fn a_panic_costs_its_own_turn_and_the_thread_goes_on() {
    let (local, _) = scripted(&patient(), |turn| assert_ne!(turn, 1, "the second turn is poisoned"));
    assert_eq!([tier(&local).await, tier(&local).await, tier(&local).await], [Tier::Local, Tier::Rules, Tier::Local]);
    local.shutdown().await;
}

#[tokio::test]
async fn after_failures_in_a_row_the_classifier_rests_and_is_tried_again() {
    let settings = Settings { breaker_failures: 2, breaker_pause_ms: 200, ..patient() };
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
