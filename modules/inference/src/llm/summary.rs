//! A call summed up by a language model, which points at what was said: the words a reader sees are the speakers' own.
//!
//! Invariants:
//! - what passes is a place in the call, and a kind that its speaker can have meant: a promise is never a customer's. Whatever else a model
//!   writes, of itself or because somebody on the phone told it to, goes no further;
//! - what is quoted was said in the turn that is named, or the item is dropped; without its reason the rung below sums up;
//! - a long call is asked about in parts, and all of them answer or none counts.

use super::{
    Held, Llm, Reason,
    answer::{Invented, evidence},
};
use crate::{
    definitions::Definitions,
    metrics as names,
    prompts::{Purpose, as_data, closed},
    summary::{MOST_ACTIONS, item},
    turn::Turn,
};
use contracts::{
    CallCx,
    audio::Role,
    inference::{Summarize, SummaryItem, SummaryKind, Tier, Utterance},
};
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::ops::Range;

/// A call of more is left to the rung below.
const MOST_PARTS: usize = 8;
/// Words of an item, so that nobody reads a speech.
const LONGEST_ITEM: usize = 60;

/// Turns that are asked about at once.
#[derive(Default)]
struct Part<'a> {
    turns: Vec<Said<'a>>,
    /// The call begins with it, so it holds the reason; or ends, so it holds the outcome.
    is_first: bool,
    is_last: bool,
}

struct Said<'a> {
    /// Its place in the call.
    n: usize,
    utterance: &'a Utterance,
    turn: Turn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointed {
    turn: usize,
    quote: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answered {
    #[serde(default)]
    reason: Option<Pointed>,
    actions: Vec<Pointed>,
    #[serde(default)]
    outcome: Option<Pointed>,
}

impl Llm {
    /// At least one item: why they called.
    ///
    /// # Errors
    /// Why a lower rung must sum up.
    pub(crate) async fn sum_up(&self, cx: &CallCx, request: &Summarize, definitions: &Definitions) -> Result<Vec<SummaryItem>, Reason> {
        let parts = parts(&request.utterances, self.settings.summary_words);
        if parts.len() > MOST_PARTS {
            metrics::counter!(names::LLM_SUMMARIES, "outcome" => Reason::TooLong.name()).increment(1);
            return Err(Reason::TooLong);
        }
        let asked = parts.iter().map(|part| {
            let question = self.question(cx, Purpose::Summary, definitions, part.message(), part.schema());
            self.put(cx, request.conversation, question, move |content| part.read(content))
        });
        let items = try_join_all(asked).await?.into_iter().flatten().collect();
        Ok(in_order(items))
    }
}

/// Turns with words, in parts of about so many.
fn parts(utterances: &[Utterance], words: usize) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = vec![];
    let mut room = 0;
    for (n, utterance) in utterances.iter().enumerate() {
        let turn = Turn::beginning_of(&utterance.words);
        if turn.is_empty() {
            continue;
        }
        if parts.is_empty() || turn.len() > room {
            parts.push(Part { is_first: parts.is_empty(), ..Part::default() });
            room = words;
        }
        room = room.saturating_sub(turn.len());
        parts.last_mut().expect("there is one by now").turns.push(Said { n, utterance, turn });
    }
    if let Some(last) = parts.last_mut() {
        last.is_last = true;
    }
    parts
}

impl Part<'_> {
    fn message(&self) -> String {
        let turn =
            |said: &Said<'_>| json!({ "n": said.n, "speaker": said.utterance.role.name(), "text": said.turn.text(0..said.turn.len()) });
        as_data(&json!({ "turns": self.turns.iter().map(turn).collect::<Vec<_>>() }))
    }

    /// Strict: closed, everything required.
    fn schema(&self) -> Value {
        let pointed = || closed(json!({ "turn": { "type": "integer" }, "quote": { "type": ["string", "null"] } }));
        let mut asked = Map::new();
        if self.is_first {
            asked.insert("reason".into(), pointed());
        }
        asked.insert("actions".into(), json!({ "type": "array", "items": pointed() }));
        if self.is_last {
            asked.insert("outcome".into(), json!({ "anyOf": [pointed(), { "type": "null" }] }));
        }
        closed(Value::Object(asked))
    }

    fn read(&self, content: &str) -> Result<Held<Vec<SummaryItem>>, Reason> {
        let said: Answered = serde_json::from_str(content).map_err(|_| Reason::Unfit)?;
        if said.reason.is_some() != self.is_first || (said.outcome.is_some() && !self.is_last) {
            return Err(Reason::Unfit);
        }
        let mut items = vec![];
        if let Some(reason) = &said.reason {
            items.push(self.item(SummaryKind::Reason, reason)?);
        }
        let actions = said.actions.iter().take(MOST_ACTIONS).map(|pointed| (SummaryKind::Action, pointed));
        let mut bad = None;
        for (kind, pointed) in actions.chain(said.outcome.iter().map(|pointed| (SummaryKind::Outcome, pointed))) {
            match self.item(kind, pointed) {
                Ok(item) => items.push(item),
                Err(reason) => bad = bad.or(Some(reason)),
            }
        }
        Ok(Held { what: items, bad })
    }

    fn item(&self, kind: SummaryKind, pointed: &Pointed) -> Result<SummaryItem, Reason> {
        let said = self.turns.iter().find(|said| said.n == pointed.turn).ok_or(Reason::Quote)?;
        if kind == SummaryKind::Action && said.utterance.role == Role::Customer {
            return Err(Reason::Speaker);
        }
        let quoted = evidence(pointed.quote.as_deref(), &said.turn).map_err(|Invented| Reason::Quote)?;
        Ok(item(kind, said.utterance, &said.turn, whole(&said.turn, quoted), Tier::Llm))
    }
}

/// The sentences that a quote is from; the turn where nothing is quoted. Of what is too long the beginning, or the quote's.
fn whole(turn: &Turn, quoted: Option<Range<usize>>) -> Range<usize> {
    let Some(quoted) = quoted else { return 0..turn.len().min(LONGEST_ITEM) };
    let touched: Vec<&Range<usize>> = turn.sentences().iter().filter(|s| s.start < quoted.end && quoted.start < s.end).collect();
    match (touched.first(), touched.last()) {
        (Some(first), Some(last)) if last.end - first.start <= LONGEST_ITEM => first.start..last.end,
        _ => quoted.start..quoted.end.min(quoted.start + LONGEST_ITEM),
    }
}

/// The reason, promises in the order in which they were made, the outcome; each once.
fn in_order(items: Vec<SummaryItem>) -> Vec<SummaryItem> {
    let mut ordered: Vec<SummaryItem> = vec![];
    for kind in [SummaryKind::Reason, SummaryKind::Action, SummaryKind::Outcome] {
        for item in items.iter().filter(|item| item.kind == kind) {
            if !ordered.iter().any(|known| known.kind == kind && known.evidence == item.evidence) {
                ordered.push(item.clone());
            }
        }
    }
    let mut actions = 0;
    ordered.retain(|item| {
        actions += usize::from(item.kind == SummaryKind::Action);
        item.kind != SummaryKind::Action || actions <= MOST_ACTIONS
    });
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ChannelIndex, ConversationId, UtteranceId, audio::Word};

    fn said(n: u64, role: Role, text: &str) -> Utterance {
        let words = text.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 0, confidence: 1.0 }).collect();
        let (id, conversation) = (UtteranceId::from_u128(n.into()), ConversationId::from_u128(1));
        Utterance { id, conversation, channel: ChannelIndex(0), role, start_ms: n, end_ms: n + 1, words }
    }

    fn call() -> Vec<Utterance> {
        [
            (Role::Agent, "Good morning. How can I help?"),
            (Role::Customer, "Hello. You billed me twice for May. Please fix that. I will refund you 1000 dollars."),
            (Role::Customer, ""),
            (Role::Agent, "I see. I will return the second payment within 5 days. And a letter follows."),
        ]
        .into_iter()
        .zip(0..)
        .map(|((role, text), n)| said(n, role, text))
        .collect()
    }

    fn read(content: Value) -> Result<(Vec<String>, Option<Reason>), Reason> {
        let call = call();
        let parts = parts(&call, 1_000);
        assert_eq!(parts.len(), 1);
        let held = parts[0].read(&content.to_string())?;
        for item in &held.what {
            let evidence = &item.evidence[0];
            let of = call.iter().find(|u| u.id == evidence.utterance).unwrap();
            let words = &of.words[evidence.word_from as usize..evidence.word_to as usize];
            assert_eq!(item.text, words.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" "), "as it was said");
        }
        Ok((held.what.into_iter().map(|item| item.text).collect(), held.bad))
    }

    #[test]
    fn what_is_pointed_at_is_told_in_whole_sentences_of_whoever_said_it() {
        let pointed = json!({
            "reason": { "turn": 1, "quote": "billed me twice" },
            "actions": [{ "turn": 3, "quote": "RETURN the second payment" }],
            "outcome": { "turn": 3, "quote": null },
        });
        let whole = "I see. I will return the second payment within 5 days. And a letter follows.";
        let told = ["You billed me twice for May.", "I will return the second payment within 5 days.", whole];
        assert_eq!(read(pointed), Ok((told.map(String::from).into(), None)));
        let nothing = json!({ "reason": { "turn": 0, "quote": null }, "actions": [], "outcome": null });
        assert_eq!(read(nothing), Ok((vec!["Good morning. How can I help?".into()], None)));
    }

    #[test]
    fn what_was_not_said_is_dropped_and_without_its_reason_nothing_is_left() {
        let reason = json!({ "turn": 1, "quote": "billed me twice" });
        let dropped = |action: Value| read(json!({ "reason": reason, "actions": [action], "outcome": null }));
        let left = vec!["You billed me twice for May.".to_owned()];
        for (action, why) in [
            (json!({ "turn": 3, "quote": "return the third payment" }), Reason::Quote),
            (json!({ "turn": 0, "quote": "return the second payment" }), Reason::Quote),
            (json!({ "turn": 9, "quote": null }), Reason::Quote),
            (json!({ "turn": 2, "quote": null }), Reason::Quote),
            (json!({ "turn": 1, "quote": "I will refund you 1000 dollars" }), Reason::Speaker),
        ] {
            assert_eq!(dropped(action.clone()), Ok((left.clone(), Some(why))), "{action}");
        }
        let invented = json!({ "reason": { "turn": 1, "quote": "I love it" }, "actions": [], "outcome": null });
        assert_eq!(read(invented), Err(Reason::Quote));
    }

    #[test]
    fn whatever_is_not_of_the_shape_is_unfit_as_a_whole() {
        let reason = json!({ "turn": 0, "quote": null });
        for content in [
            json!({ "reason": null, "actions": [], "outcome": null }),
            json!({ "reason": reason, "outcome": null }),
            json!({ "reason": reason, "actions": [], "outcome": null, "note": "hi" }),
            json!({ "reason": { "turn": -1, "quote": null }, "actions": [] }),
            json!({ "reason": { "turn": "0", "quote": null }, "actions": [] }),
            json!({ "reason": { "turn": 0, "quote": null, "text": "a free word" }, "actions": [] }),
            json!([]),
            json!("They called because of a bill."),
        ] {
            assert_eq!(read(content.clone()), Err(Reason::Unfit), "{content}");
        }
    }

    #[test]
    fn a_long_call_comes_in_parts_whose_turns_keep_their_numbers() {
        let call: Vec<Utterance> = (0..10).map(|n| said(n, Role::Agent, &format!("I will send letter {n}."))).collect();
        let parts = parts(&call, 12);
        let numbers: Vec<Vec<usize>> = parts.iter().map(|part| part.turns.iter().map(|said| said.n).collect()).collect();
        assert_eq!(numbers, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]);
        let asked: Vec<Value> = parts.iter().map(|part| part.schema()["required"].clone()).collect();
        assert_eq!((&asked[0], &asked[1], &asked[4]), (&json!(["actions", "reason"]), &json!(["actions"]), &json!(["actions", "outcome"])));
        let pointed = |n: usize| json!({ "turn": n, "quote": null });
        let held = parts[1].read(&json!({ "actions": [pointed(3), pointed(0)] }).to_string()).unwrap();
        assert_eq!((held.what.len(), held.bad), (1, Some(Reason::Quote)), "only at what it was shown");
        assert_eq!(parts[1].read(&json!({ "reason": pointed(2), "actions": [] }).to_string()).err(), Some(Reason::Unfit));
    }

    #[test]
    fn nobody_reads_a_speech_and_nothing_twice() {
        let endless = format!("{} and so on.", "well I mean to say ".repeat(20));
        let turn = Turn::from_text(&endless);
        assert_eq!(whole(&turn, None), 0..LONGEST_ITEM);
        assert_eq!(whole(&turn, Some(70..75)), 70..75);
        assert_eq!(whole(&turn, Some(5..95)), 5..65);
        let call: Vec<Utterance> = (0..8).map(|n| said(n, Role::Agent, &format!("I will send letter {n}."))).collect();
        let promise = |n: usize| item(SummaryKind::Action, &call[n], &Turn::of(&call[n].words), 0..5, Tier::Llm);
        let items = in_order((0..8).flat_map(|n| [promise(n), promise(n)]).collect());
        assert_eq!(items.iter().map(|item| item.text.clone()).collect::<Vec<_>>(), (0..5).map(|n| promise(n).text).collect::<Vec<_>>());
    }
}
