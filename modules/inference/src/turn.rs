//! A turn as understanding reads it: one token per word, so that every index is an index into the utterance's words.

use contracts::audio::Word;
use std::ops::Range;

/// Words of a turn that are read; the rest of a longer one is not.
const READ: usize = 200;

/// Words of a turn, as spoken and as compared.
#[derive(Clone, Debug)]
pub struct Turn {
    spoken: Vec<String>,
    tokens: Vec<String>,
    /// Something ends after this word: a negation does not reach across it.
    breaks: Vec<bool>,
    /// Word ranges that end at a full stop, question mark or exclamation mark.
    sentences: Vec<Range<usize>>,
}

impl Turn {
    pub fn of(words: &[Word]) -> Self {
        Self::from_spoken(words.iter().map(|w| w.text.clone()).collect())
    }

    /// As far as a turn is read.
    pub fn beginning_of(words: &[Word]) -> Self {
        Self::of(&words[..words.len().min(READ)])
    }

    pub fn from_text(text: &str) -> Self {
        Self::from_spoken(text.split_whitespace().map(str::to_owned).collect())
    }

    fn from_spoken(spoken: Vec<String>) -> Self {
        let tokens = spoken.iter().map(|w| token(w)).collect();
        let breaks = spoken.iter().map(|w| w.ends_with([',', '.', '!', '?', ';', ':'])).collect();
        let mut sentences = vec![];
        let mut from = 0;
        for (i, word) in spoken.iter().enumerate() {
            if word.ends_with(['.', '!', '?']) || i + 1 == spoken.len() {
                sentences.push(from..i + 1);
                from = i + 1;
            }
        }
        Self { spoken, tokens, breaks, sentences }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// No word of it can be compared.
    pub fn is_empty(&self) -> bool {
        self.tokens.iter().all(String::is_empty)
    }
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }
    pub fn breaks(&self) -> &[bool] {
        &self.breaks
    }
    pub fn sentences(&self) -> &[Range<usize>] {
        &self.sentences
    }

    pub fn text(&self, words: Range<usize>) -> String {
        self.spoken[words].join(" ")
    }

    /// These words as a turn of their own.
    pub fn part(&self, words: Range<usize>) -> Self {
        Self::from_spoken(self.spoken[words].to_vec())
    }

    /// The turn with these words left out.
    pub fn without(&self, words: Range<usize>) -> Self {
        let mut spoken = self.spoken.clone();
        spoken.drain(words);
        Self::from_spoken(spoken)
    }
}

/// Lower case, letters and digits only, small numbers as digits: "Don't" and "dont", "two" and "2" are the same.
pub fn token(word: &str) -> String {
    let bare: String = word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let digits = match bare.as_str() {
        "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        "eleven" => "11",
        "twelve" => "12",
        _ => return bare,
    };
    digits.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_compare_however_they_are_written() {
        assert_eq!(Turn::from_text("I DON'T have Two, wi-fi.").tokens(), ["i", "dont", "have", "2", "wifi"]);
    }

    #[test]
    fn sentences_cover_every_word_once() {
        let turn = Turn::from_text("Hi. I was charged twice! Why? And then");
        assert_eq!(turn.sentences(), [0..1, 1..5, 5..6, 6..8]);
        assert_eq!(turn.without(1..5).text(0..4), "Hi. Why? And then");
        assert!(Turn::from_text("— …").is_empty());
    }
}
