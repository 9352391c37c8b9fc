//! A summary by extraction: sentences that were said, chosen, never rewritten; each with the words it stands on. Pure.

use crate::turn::Turn;
use contracts::{
    audio::Role,
    inference::{Evidence, Insight, SummaryItem, SummaryKind, Tier, Utterance},
};
use std::{collections::HashMap, ops::Range};

pub(crate) const MOST_ACTIONS: usize = 5;
/// Each later turn says this much less about why someone called.
const FADES: f32 = 0.1;

/// Who promises, and how. The verb that follows decides whether it is one.
const PROMISES: [&[&str]; 22] = [
    &["i", "will"],
    &["ill"],
    &["we", "will"],
    &["im", "going", "to"],
    &["i", "am", "going", "to"],
    &["were", "going", "to"],
    &["we", "are", "going", "to"],
    &["someone", "will"],
    &["somebody", "will"],
    &["technician", "will"],
    &["engineer", "will"],
    &["team", "will"],
    &["colleague", "will"],
    &["manager", "will"],
    &["supervisor", "will"],
    &["you", "will", "get"],
    &["you", "will", "receive"],
    &["youll", "get"],
    &["youll", "receive"],
    &["they", "will"],
    &["theyll"],
    &["well"], // "we'll" without its apostrophe; counts only where the apostrophe was written
];
/// What is done while talking, and is over when the call is.
const IN_PASSING: [&str; 26] = [
    "be", "check", "look", "see", "pull", "help", "need", "have", "just", "take", "verify", "find", "hold", "explain", "wait", "stay",
    "try", "ask", "not", "never", "walk", "do", "let", "bring", "want", "gladly",
];
/// How a call ends well, or at least ends.
const SETTLED: [&str; 34] = [
    "resolved",
    "solved",
    "fixed",
    "credited",
    "refunded",
    "refund",
    "credit",
    "cancelled",
    "canceled",
    "confirmed",
    "booked",
    "scheduled",
    "rescheduled",
    "approved",
    "waived",
    "updated",
    "changed",
    "ordered",
    "activated",
    "restored",
    "replaced",
    "removed",
    "closed",
    "works",
    "working",
    "back",
    "set",
    "done",
    "sorted",
    "upgraded",
    "added",
    "sent",
    "escalated",
    "noted",
];

/// `insights` are the intents of customer turns; `passing` names intents that no one calls for, such as a plain yes.
pub fn extract(utterances: &[Utterance], insights: &[Insight], passing: &[&str]) -> Vec<SummaryItem> {
    let reason = reason(utterances, insights, passing);
    let actions = actions(utterances);
    let outcome = outcome(utterances);
    reason.into_iter().chain(actions).chain(outcome).collect()
}

/// The turn that best carries the intent that weighs most over the call, early turns before late ones.
fn reason(utterances: &[Utterance], insights: &[Insight], passing: &[&str]) -> Option<SummaryItem> {
    let mut weights: HashMap<&str, f32> = HashMap::new();
    let mut best: HashMap<&str, (f32, &Insight)> = HashMap::new();
    for (at, insight) in insights.iter().enumerate() {
        let Some(label) = insight.labels.first().filter(|l| !passing.contains(&l.name.as_str())) else { continue };
        let weight = label.score / (1.0 + FADES * at as f32);
        *weights.entry(&label.name).or_default() += weight;
        let kept = best.entry(&label.name).or_insert((weight, insight));
        if weight > kept.0 {
            *kept = (weight, insight);
        }
    }
    let main = weights.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(a.0)))?.0;
    let (_, insight) = best[main];
    let utterance = utterances.iter().find(|u| u.id == insight.utterance)?;
    let turn = Turn::of(&utterance.words);
    let at = insight.evidence.first().map_or(0, |e| e.word_from as usize);
    let sentence = turn.sentences().iter().find(|s| s.contains(&at))?.clone();
    Some(item(SummaryKind::Reason, utterance, &turn, sentence, insight.provenance.tier))
}

fn actions(utterances: &[Utterance]) -> Vec<SummaryItem> {
    let mut items: Vec<SummaryItem> = vec![];
    for utterance in utterances.iter().filter(|u| u.role == Role::Agent) {
        let turn = Turn::of(&utterance.words);
        for sentence in turn.sentences().iter().filter(|s| is_promise(&turn, s, utterance)) {
            let item = item(SummaryKind::Action, utterance, &turn, sentence.clone(), Tier::Rules);
            if items.len() < MOST_ACTIONS && !items.iter().any(|i| i.text.eq_ignore_ascii_case(&item.text)) {
                items.push(item);
            }
        }
    }
    items
}

fn is_promise(turn: &Turn, sentence: &Range<usize>, utterance: &Utterance) -> bool {
    if is_question(utterance, sentence) {
        return false;
    }
    let tokens = &turn.tokens()[sentence.clone()];
    (0..tokens.len()).any(|at| {
        PROMISES.iter().any(|promise| {
            let after = &tokens[at..];
            let starts = after.len() > promise.len() && after.iter().zip(*promise).all(|(t, p)| t == p);
            let written = promise[0] != "well" || utterance.words[sentence.start + at].text.contains(['\'', '’']);
            let verb = after.get(promise.len()).map_or("", |v| v.as_str());
            starts && written && !IN_PASSING.contains(&verb)
        })
    })
}

/// The last statement that settles something, in the second half of the call.
fn outcome(utterances: &[Utterance]) -> Option<SummaryItem> {
    for utterance in utterances[utterances.len() / 2..].iter().rev() {
        let turn = Turn::of(&utterance.words);
        for sentence in turn.sentences().iter().rev() {
            let settles = turn.tokens()[sentence.clone()].iter().any(|t| SETTLED.contains(&t.as_str()));
            if settles && sentence.len() >= 3 && !is_question(utterance, sentence) {
                return Some(item(SummaryKind::Outcome, utterance, &turn, sentence.clone(), Tier::Rules));
            }
        }
    }
    None
}

fn is_question(utterance: &Utterance, sentence: &Range<usize>) -> bool {
    utterance.words[sentence.end - 1].text.ends_with('?')
}

pub(crate) fn item(kind: SummaryKind, utterance: &Utterance, turn: &Turn, words: Range<usize>, tier: Tier) -> SummaryItem {
    let text = turn.text(words.clone());
    SummaryItem {
        kind,
        text,
        evidence: vec![Evidence { utterance: utterance.id, word_from: words.start as u32, word_to: words.end as u32 }],
        tier,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ChannelIndex, ConversationId, UtteranceId, audio::Word};

    fn said(role: Role, text: &str) -> Utterance {
        let words = text.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 0, confidence: 1.0 }).collect();
        let id = UtteranceId::from_u128(text.len() as u128);
        Utterance { id, conversation: ConversationId::from_u128(1), channel: ChannelIndex(0), role, start_ms: 0, end_ms: 0, words }
    }

    fn texts(items: &[SummaryItem], kind: SummaryKind) -> Vec<&str> {
        items.iter().filter(|i| i.kind == kind).map(|i| i.text.as_str()).collect()
    }

    #[test]
    fn promises_are_kept_and_pleasantries_are_not() {
        let call = [
            said(Role::Customer, "I will send you the papers."),
            said(Role::Agent, "I will look into it. We'll mail you a new card tomorrow. Will that help?"),
            said(Role::Agent, "Well, that is that. Someone will call you on Monday."),
        ];
        let items = extract(&call, &[], &[]);
        assert_eq!(texts(&items, SummaryKind::Action), ["We'll mail you a new card tomorrow.", "Someone will call you on Monday."]);
    }

    #[test]
    fn the_outcome_is_the_last_thing_settled_and_points_at_its_words() {
        let call = [
            said(Role::Customer, "My bill is wrong."),
            said(Role::Agent, "Okay. I have credited the amount. Is that okay?"),
            said(Role::Customer, "Thanks, goodbye."),
        ];
        let items = extract(&call, &[], &[]);
        assert_eq!(texts(&items, SummaryKind::Outcome), ["I have credited the amount."]);
        let evidence = &items[0].evidence[0];
        assert_eq!((evidence.utterance, evidence.word_from, evidence.word_to), (call[1].id, 1, 6));
        assert!(extract(&[], &[], &[]).is_empty());
    }
}
