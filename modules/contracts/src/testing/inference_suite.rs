//! What every `Inference` keeps, however little it understands.

use crate::{
    CallCx, ChannelIndex, ConversationId, Epoch, Inference, InsightId, UtteranceId,
    audio::{Role, Word},
    inference::{Analyze, Evidence, Insight, Summarize, Task, Utterance},
};
use futures::StreamExt;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// Panics with the first promise that is not kept.
pub async fn inference_suite(inference: Arc<dyn Inference>) {
    let inference = &*inference;
    every_task_and_utterance_has_its_insight(inference).await;
    the_same_request_yields_the_same_insights(inference).await;
    context_is_read_and_not_analyzed(inference).await;
    what_cannot_be_told_abstains(inference).await;
    nothing_asked_is_nothing_answered(inference).await;
    every_task_has_a_tier(inference).await;
    a_summary_points_at_what_was_said(inference).await;
}

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(30))
}

fn said(conversation: ConversationId, seq: u64, role: Role, text: &str) -> Utterance {
    let channel = ChannelIndex(role as u8);
    let start = seq * 3000;
    let words = text.split_whitespace().enumerate().map(|(at, text)| {
        let start_ms = (start + at as u64 * 250) as u32;
        Word { text: text.into(), start_ms, end_ms: start_ms + 240, confidence: 0.9 }
    });
    Utterance {
        id: UtteranceId::of(conversation, channel, Epoch(1), seq),
        conversation,
        channel,
        role,
        start_ms: start,
        end_ms: start + 2900,
        words: words.collect(),
    }
}

fn call(conversation: ConversationId) -> Vec<Utterance> {
    vec![
        said(conversation, 0, Role::Agent, "Thank you for calling, how can I help you today?"),
        said(conversation, 1, Role::Customer, "I was charged twice for my last bill and I am really unhappy about it."),
        said(conversation, 2, Role::Agent, "I am sorry, I will refund the second charge right away."),
        said(conversation, 3, Role::Customer, "Great, thank you so much, that was quick!"),
    ]
}

fn everything() -> Analyze {
    let conversation = ConversationId::fresh();
    Analyze { conversation, tasks: Task::ALL.into(), utterances: call(conversation), context: vec![] }
}

async fn analyze(inference: &dyn Inference, request: &Analyze) -> Vec<Insight> {
    let insights = inference.analyze(cx(), request.clone()).await.expect("analysis never fails for want of a model");
    let known: BTreeMap<_, _> = request.utterances.iter().chain(&request.context).map(|u| (u.id, u)).collect();
    for insight in &insights {
        assert_eq!(insight.conversation, request.conversation);
        assert_eq!(insight.id, InsightId::of(insight.run, insight.utterance), "the id follows from the run and the utterance");
        assert_ne!(insight.labels.is_empty(), insight.abstained.is_none(), "labels, or the reason why none: {insight:?}");
        assert!(insight.labels.iter().all(|label| (0.0..=1.0).contains(&label.score) && !label.name.is_empty()), "{insight:?}");
        assert!(insight.labels.is_sorted_by(|a, b| a.score >= b.score), "best first: {insight:?}");
        check_evidence(&insight.evidence, &known);
    }
    insights
}

fn check_evidence(evidence: &[Evidence], known: &BTreeMap<UtteranceId, &Utterance>) {
    for piece in evidence {
        let utterance = known.get(&piece.utterance).unwrap_or_else(|| panic!("{piece:?} was not in the request"));
        assert!(piece.word_from <= piece.word_to && piece.word_to as usize <= utterance.words.len(), "{piece:?} of {:?}", utterance.text());
    }
}

async fn every_task_and_utterance_has_its_insight(inference: &dyn Inference) {
    let request = everything();
    let insights = analyze(inference, &request).await;
    let answered: HashSet<_> = insights.iter().map(|i| (i.utterance, i.task)).collect();
    let asked: HashSet<_> = request.utterances.iter().flat_map(|u| Task::ALL.map(|task| (u.id, task))).collect();
    assert_eq!(answered, asked);
    assert_eq!(insights.len(), asked.len(), "one each");
    assert_eq!(insights.iter().map(|i| i.id).collect::<HashSet<_>>().len(), insights.len(), "ids are distinct");
}

async fn the_same_request_yields_the_same_insights(inference: &dyn Inference) {
    let request = everything();
    let told =
        |insights: Vec<Insight>| -> BTreeMap<_, _> { insights.into_iter().map(|i| (i.id, (i.task, i.labels, i.abstained))).collect() };
    assert_eq!(told(analyze(inference, &request).await), told(analyze(inference, &request).await));
}

async fn context_is_read_and_not_analyzed(inference: &dyn Inference) {
    let mut request = everything();
    let last = request.utterances.pop().expect("the call has turns");
    request.context = std::mem::replace(&mut request.utterances, vec![last.clone()]);
    let insights = analyze(inference, &request).await;
    assert!(insights.iter().all(|insight| insight.utterance == last.id));
    assert_eq!(insights.len(), Task::ALL.len());
}

async fn what_cannot_be_told_abstains(inference: &dyn Inference) {
    let conversation = ConversationId::fresh();
    let silent = said(conversation, 0, Role::Customer, "");
    let request = Analyze { conversation, tasks: vec![Task::Intent], utterances: vec![silent], context: vec![] };
    let insights = analyze(inference, &request).await;
    assert!(insights.len() == 1 && insights[0].abstained.as_ref().is_some_and(|why| !why.is_empty()), "{insights:?}");
}

async fn nothing_asked_is_nothing_answered(inference: &dyn Inference) {
    let request = everything();
    assert_eq!(analyze(inference, &Analyze { tasks: vec![], ..request.clone() }).await, []);
    assert_eq!(analyze(inference, &Analyze { utterances: vec![], ..request }).await, []);
}

async fn every_task_has_a_tier(inference: &dyn Inference) {
    let tiers = inference.tiers(cx()).await.expect("tiers are always known");
    let mut tasks: Vec<_> = tiers.iter().map(|status| status.task).collect();
    tasks.sort();
    assert_eq!(tasks, Task::ALL);
}

async fn a_summary_points_at_what_was_said(inference: &dyn Inference) {
    let conversation = ConversationId::fresh();
    let utterances = call(conversation);
    let known: BTreeMap<_, _> = utterances.iter().map(|u| (u.id, u)).collect();
    let summary = inference.summarize(cx(), Summarize { conversation, utterances: utterances.clone() }).await;
    let items: Vec<_> = summary.expect("a summary never fails for want of a model").collect().await;
    for item in items {
        let item = item.expect("a summary ends well");
        assert!(!item.text.is_empty());
        check_evidence(&item.evidence, &known);
    }
    let nothing = inference.summarize(cx(), Summarize { conversation, utterances: vec![] }).await.expect("of nothing there is a summary");
    assert!(nothing.collect::<Vec<_>>().await.iter().all(Result::is_ok));
}
