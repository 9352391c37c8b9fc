//! Which words of a growing utterance will not change any more: those that two hearings in a row agree on (LocalAgreement-2).
//!
//! Invariant: what has been called stable neither shrinks nor changes until the utterance is over; only its final may differ.

use super::HeardWord;

#[derive(Default)]
pub struct Agreement {
    stable: Vec<HeardWord>,
    previous: Vec<HeardWord>,
}

impl Agreement {
    /// Takes the next hearing; returns the words to show and how many of them are stable.
    pub fn hear(&mut self, heard: Vec<HeardWord>) -> (Vec<HeardWord>, usize) {
        let from = self.continues_at(&heard);
        let before = self.continues_at(&self.previous);
        // The last word of a hearing may be half a word: it never becomes stable.
        let agreed = heard[from..]
            .iter()
            .zip(&self.previous[before..])
            .take_while(|(a, b)| same(&a.text, &b.text))
            .count()
            .min((heard.len() - from).saturating_sub(1));
        self.stable.extend_from_slice(&heard[from..from + agreed]);
        let mut shown = self.stable.clone();
        shown.extend_from_slice(&heard[from + agreed..]);
        self.previous = heard;
        (shown, self.stable.len())
    }

    /// Where a hearing goes on after the stable words. It may have heard one of them differently, as none or as two.
    fn continues_at(&self, heard: &[HeardWord]) -> usize {
        let Some(last) = self.stable.last() else { return 0 };
        let expected = self.stable.len().min(heard.len());
        let near = [expected, expected + 1, expected.saturating_sub(1), expected + 2, expected.saturating_sub(2)];
        near.into_iter().find(|at| *at >= 1 && *at <= heard.len() && same(&heard[at - 1].text, &last.text)).unwrap_or(expected)
    }
}

/// Case and punctuation come and go while a sentence grows.
fn same(a: &str, b: &str) -> bool {
    let letters = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    a == b || letters(a) == letters(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is a hearing; `|` in what comes out stands after the last stable word.
    #[track_caller]
    fn check(hearings: &[(&str, &str)]) {
        let mut agreement = Agreement::default();
        for (heard, shown) in hearings {
            let heard = heard.split_whitespace().map(|w| HeardWord { text: w.into(), confidence: 1.0 }).collect();
            let (words, stable) = agreement.hear(heard);
            let (a, b) = words.split_at(stable);
            let join = |w: &[HeardWord]| w.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" ");
            assert_eq!(format!("{} | {}", join(a), join(b)).trim(), shown.trim());
        }
    }

    #[test]
    fn words_heard_twice_become_stable() {
        check(&[("I want", "| I want"), ("I want to pay", "I want | to pay"), ("I want to pay my bill.", "I want to pay | my bill.")]);
    }

    #[test]
    fn the_last_word_may_be_half_a_word() {
        check(&[("can", "| can"), ("can", "| can"), ("cancel it", "| cancel it"), ("cancel it now", "cancel it | now")]);
    }

    #[test]
    fn a_stable_word_heard_differently_later_stays_as_it_was() {
        check(&[
            ("my name is Ann", "| my name is Ann"),
            ("my name is Anna", "my name is | Anna"),
            ("why name is Anna Bell", "my name is Anna | Bell"),
            ("Anna Bell speaking", "my name is Anna Bell | speaking"),
        ]);
    }

    #[test]
    fn a_shorter_hearing_shrinks_nothing() {
        check(&[("one two three", "| one two three"), ("one two three four", "one two three | four"), ("one", "one two three |")]);
    }
}
