//! What must not leave ingest as it was said: long numbers (cards, accounts), as digits or as spoken words.
//!
//! Pure; words keep their number, order and times, so evidence and highlighting still fit. What only a model can find comes later, as a
//! correction. A phone number (up to 11 digits) stays: agents read them back, and callers search for them.

use crate::audio::Word;

/// Runs of at least this many digits are hidden: shorter than any payment card, longer than any phone number.
pub const MIN_DIGITS: usize = 12;
pub const MASK: &str = "•••";

/// Replaces the text of every word that belongs to a run of [`MIN_DIGITS`] digits or more. Returns how many words it changed.
pub fn redact(words: &mut [Word]) -> usize {
    let mut changed = 0;
    let mut from = 0;
    while from < words.len() {
        let mut to = from;
        let mut digits = 0;
        while to < words.len() {
            let Some(n) = digits_in(&words[to].text) else { break };
            digits += n;
            to += 1;
        }
        if digits >= MIN_DIGITS {
            for word in &mut words[from..to] {
                word.text = MASK.into();
                changed += 1;
            }
        }
        from = to.max(from + 1);
    }
    changed
}

/// How many digits a word stands for; `None` when it is no part of a number.
fn digits_in(word: &str) -> Option<usize> {
    let bare: String = word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if bare.is_empty() {
        return None;
    }
    if bare.bytes().all(|b| b.is_ascii_digit()) {
        return Some(bare.len());
    }
    let parts = word.split('-').map(|p| p.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase());
    let mut sum = 0;
    for part in parts.filter(|p| !p.is_empty()) {
        sum += match part.as_str() {
            "zero" | "oh" | "one" | "two" | "three" | "four" | "five" | "six" | "seven" | "eight" | "nine" => 1,
            "ten" | "eleven" | "twelve" | "thirteen" | "fourteen" | "fifteen" | "sixteen" | "seventeen" | "eighteen" | "nineteen" => 2,
            "twenty" | "thirty" | "forty" | "fifty" | "sixty" | "seventy" | "eighty" | "ninety" => 1,
            "double" | "triple" | "hundred" | "thousand" => 1,
            p if p.bytes().all(|b| b.is_ascii_digit()) => p.len(),
            _ => return None,
        };
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, kept: &str) {
        let mut words: Vec<Word> = said.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 0, confidence: 1.0 }).collect();
        redact(&mut words);
        assert_eq!(crate::audio::text_of(&words), kept);
    }

    #[test]
    fn a_card_number_is_hidden_however_it_is_said() {
        check("it is 4111 1111 1111 1111, thanks", "it is ••• ••• ••• •••, thanks".replace("•••,", "•••").as_str());
        check("card four one one one two two two two three three three three four", &format!("card{}", " •••".repeat(13)));
        check("4111-1111-1111-1111.", "•••");
    }

    #[test]
    fn phone_numbers_and_amounts_stay() {
        check("call five five five one two three four", "call five five five one two three four");
        check("you charged me eighty nine dollars twice", "you charged me eighty nine dollars twice");
        check("two thousand twenty six", "two thousand twenty six");
    }
}
