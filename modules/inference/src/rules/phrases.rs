//! Patterns of words, found in one pass. A pattern is looked up by its first word, so the time does not grow with the list.

use crate::turn::token;
use std::{collections::HashMap, ops::Range};

/// Words that `..` may stand for.
const GAP: usize = 3;

pub struct Phrases<T> {
    patterns: Vec<(Vec<Part>, T)>,
    by_first_word: HashMap<String, Vec<usize>>,
    by_first_prefix: HashMap<String, Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Word(String),
    Prefix(String),
    Gap,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    pub tag: T,
    pub words: Range<usize>,
}

impl<T> Default for Phrases<T> {
    fn default() -> Self {
        Self { patterns: vec![], by_first_word: HashMap::new(), by_first_prefix: HashMap::new() }
    }
}

impl<T: Copy> Phrases<T> {
    /// A pattern without words is ignored.
    pub fn add(&mut self, pattern: &str, tag: T) {
        let parts: Vec<Part> = pattern.split_whitespace().filter_map(Part::of).skip_while(|p| *p == Part::Gap).collect();
        let index = match parts.first() {
            Some(Part::Word(word)) => self.by_first_word.entry(word.clone()),
            Some(Part::Prefix(prefix)) => self.by_first_prefix.entry(prefix.clone()),
            _ => return,
        };
        index.or_default().push(self.patterns.len());
        self.patterns.push((parts, tag));
    }

    pub fn find(&self, tokens: &[String]) -> Vec<Found<T>> {
        let mut found = vec![];
        for (at, first) in tokens.iter().enumerate() {
            let prefixes = first.char_indices().map(|(i, c)| &first[..i + c.len_utf8()]);
            let starting = prefixes.filter_map(|p| self.by_first_prefix.get(p)).chain(self.by_first_word.get(first));
            for index in starting.flatten() {
                let (parts, tag) = &self.patterns[*index];
                if let Some(length) = matched(&parts[1..], &tokens[at + 1..]) {
                    found.push(Found { tag: *tag, words: at..at + 1 + length });
                }
            }
        }
        found
    }
}

/// Words taken by `parts` from the front of `tokens`; the shortest way.
fn matched(parts: &[Part], tokens: &[String]) -> Option<usize> {
    match parts.split_first() {
        None => Some(0),
        Some((Part::Gap, rest)) => (0..=GAP.min(tokens.len())).find_map(|n| matched(rest, &tokens[n..]).map(|m| n + m)),
        Some((part, rest)) => {
            let (first, others) = tokens.split_first()?;
            if part.fits(first) { matched(rest, others).map(|m| m + 1) } else { None }
        }
    }
}

impl Part {
    fn of(text: &str) -> Option<Self> {
        if text == ".." {
            return Some(Self::Gap);
        }
        let word = token(text);
        match (word.is_empty(), text.ends_with('*')) {
            (true, _) => None,
            (false, true) => Some(Self::Prefix(word)),
            (false, false) => Some(Self::Word(word)),
        }
    }

    fn fits(&self, token: &str) -> bool {
        match self {
            Self::Word(word) => token == word,
            Self::Prefix(prefix) => token.starts_with(prefix.as_str()),
            Self::Gap => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::Turn;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: Option<Range<usize>>) {
        let mut phrases = Phrases::default();
        phrases.add(pattern, ());
        assert_eq!(phrases.find(Turn::from_text(text).tokens()).first().map(|f| f.words.clone()), expected, "{pattern} in {text}");
    }

    #[test]
    fn words_prefixes_and_gaps_are_found() {
        check("paid .. twice", "I paid the bill twice", Some(1..5));
        check("paid .. twice", "I paid twice", Some(1..3));
        check("paid .. twice", "I paid for a b c d twice", None);
        check("cancel*", "Cancelling, please", Some(0..1));
        check("don't want", "I DONT want it", Some(1..3));
        check("2 times", "two times", Some(0..2));
        check(".. *", "anything", None);
    }

    #[test]
    fn long_turns_take_linear_time() {
        let mut phrases = Phrases::default();
        for i in 0..500 {
            phrases.add(&format!("a .. b .. c .. word{i}"), i);
        }
        let tokens = vec!["a".to_owned(); 20_000];
        let begun = std::time::Instant::now();
        assert!(phrases.find(&tokens).is_empty());
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }
}
