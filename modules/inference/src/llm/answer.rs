//! What a language model said, held against the turn it was asked about. Pure.
//!
//! Invariant: what passes is a label of the set, a certainty of three, and words of the turn; nothing else that a model writes, of itself or
//! because somebody on the phone told it to, goes any further.

use super::{Held, Reason};
use crate::{
    definitions::Definitions,
    prompts::{Asked, CERTAINTIES},
    turn::{Turn, token},
};
use serde::Deserialize;
use std::{collections::HashMap, ops::Range};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Its place in the label set.
    pub label: usize,
    pub certainty: Certainty,
    pub evidence: Option<Range<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    Sure,
    Likely,
    Unsure,
}

impl Certainty {
    /// As a score beside those of the rungs below.
    pub(crate) fn score(self) -> f32 {
        match self {
            Self::Sure => 0.9,
            Self::Likely => 0.7,
            Self::Unsure => 0.4,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    label: String,
    certainty: String,
    quote: Option<String>,
}

/// One for each task that was asked about, in that order, or why it does not count.
pub(crate) type Answers = Vec<Result<Answer, Reason>>;

/// # Errors
/// The whole is not of the shape that was asked for.
pub(super) fn read(content: &str, asked: &Asked<'_>, definitions: &Definitions) -> Result<Held<Answers>, Reason> {
    let mut said: HashMap<String, Said> = serde_json::from_str(content).map_err(|_| Reason::Unfit)?;
    let mut answers = Vec::with_capacity(asked.tasks.len());
    for task in asked.tasks {
        let said = said.remove(task.name()).ok_or(Reason::Unfit)?;
        let certainty = match CERTAINTIES.iter().position(|name| *name == said.certainty) {
            Some(0) => Certainty::Sure,
            Some(1) => Certainty::Likely,
            Some(_) => Certainty::Unsure,
            None => return Err(Reason::Unfit),
        };
        let label = definitions.labels(*task).labels.iter().position(|l| l.name == said.label);
        answers.push(match (label, evidence(said.quote.as_deref(), asked.turn)) {
            (None, _) => Err(Reason::Label),
            // A model that makes up what was said may as well have made up the label.
            (_, Err(Invented)) => Err(Reason::Quote),
            (Some(label), Ok(evidence)) => Ok(Answer { label, certainty, evidence }),
        });
    }
    let bad = answers.iter().find_map(|answer| answer.as_ref().err().copied());
    if said.is_empty() { Ok(Held { what: answers, bad }) } else { Err(Reason::Unfit) }
}

pub(super) struct Invented;

/// Where the quote stands, word for word; how words are spelt in capitals and set off by stops is the recognizer's guess, and no part of it.
pub(super) fn evidence(quote: Option<&str>, turn: &Turn) -> Result<Option<Range<usize>>, Invented> {
    let quoted: Vec<String> = quote.unwrap_or_default().split_whitespace().map(token).filter(|t| !t.is_empty()).collect();
    if quoted.is_empty() {
        return Ok(None);
    }
    // Words without a letter are skipped in the quote, so they are in the turn.
    let words: Vec<(usize, &String)> = turn.tokens().iter().enumerate().filter(|(_, t)| !t.is_empty()).collect();
    let found = words.windows(quoted.len()).find(|window| window.iter().zip(&quoted).all(|((_, said), quoted)| *said == quoted));
    found.map(|window| Some(window[0].0..window[window.len() - 1].0 + 1)).ok_or(Invented)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use contracts::{audio::Role, inference::Task};

    fn hold(text: &str, content: &str) -> Result<Answers, Reason> {
        let turn = Turn::from_text(text);
        let asked = Asked { tasks: &Task::ALL, role: Role::Customer, turn: &turn, before: vec![] };
        read(content, &asked, &Definitions::read(&Settings::default()).unwrap()).map(|held| held.what)
    }

    fn saying(label: &str, quote: &str) -> String {
        let neutral = r#"{"label":"neutral","certainty":"sure","quote":null}"#;
        format!(r#"{{"intent":{{"label":"{label}","certainty":"likely","quote":{quote}}},"sentiment":{neutral}}}"#)
    }

    #[test]
    fn words_of_the_turn_are_evidence_and_other_words_are_not() {
        let turn = "Well — I want to CANCEL my plan, please. Two lines.";
        let evidence = |quote: &str| hold(turn, &saying("cancel_service", quote)).unwrap()[0].clone().map(|a| a.evidence);
        assert_eq!(evidence("\"cancel my plan\""), Ok(Some(5..8)));
        assert_eq!(evidence("\"well, I want\""), Ok(Some(0..4)), "what has no letters is no word");
        assert_eq!(evidence("\"2 lines\""), Ok(Some(9..11)));
        assert_eq!(evidence("null"), Ok(None));
        assert_eq!(evidence("\" … \""), Ok(None));
        for invented in ["\"cancel your plan\"", "\"cancel plan\"", "\"Two lines. And more\"", "\"cancel my pla\""] {
            assert_eq!(evidence(invented), Err(Reason::Quote), "{invented}");
        }
    }

    #[test]
    fn only_labels_of_the_set_pass_and_one_bad_answer_leaves_the_other() {
        let answers = hold("hello", &saying("give_refund_of_1000", "null")).unwrap();
        assert_eq!(answers[0], Err(Reason::Label));
        assert!(matches!(&answers[1], Ok(Answer { certainty: Certainty::Sure, evidence: None, .. })));
    }

    #[test]
    fn whatever_is_not_of_the_shape_is_unfit_as_a_whole() {
        let extra = saying("none", "null").replacen('{', r#"{"note":"hi","#, 1);
        let surer = saying("none", "null").replace("likely", "certain");
        for content in ["", "null", "[]", "Sure! Here is the label: none", r#"{"intent":{}}"#, "{}", &extra, &surer, "\u{0}"] {
            assert_eq!(hold("hello", content), Err(Reason::Unfit), "{content}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(hold("hello", &deep), Err(Reason::Unfit));
    }
}
