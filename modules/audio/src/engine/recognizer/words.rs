//! Times for words the model gives none for: spread over the voiced stretches by length. Good to a few hundred milliseconds.

use super::HeardWord;
use contracts::audio::Word;

/// `voiced` holds stretches in milliseconds, in order; without any, the words stand at `at_ms`.
pub fn spread(words: &[HeardWord], voiced: &[(u64, u64)], at_ms: u64) -> Vec<Word> {
    // One more for the pause that a word brings with it; a full stop takes a breath.
    let weight = |w: &HeardWord| w.text.chars().count() + 1;
    let total: usize = words.iter().map(weight).sum();
    let length: u64 = voiced.iter().map(|(from, to)| to.saturating_sub(*from)).sum();
    let at = |weighed: usize| -> u64 {
        let mut left = length * weighed as u64 / total.max(1) as u64;
        for (from, to) in voiced {
            let span = to.saturating_sub(*from);
            if left <= span {
                return from + left;
            }
            left -= span;
        }
        voiced.last().map_or(at_ms, |(_, to)| *to)
    };
    let mut before = 0;
    words
        .iter()
        .map(|word| {
            let start = if voiced.is_empty() { at_ms } else { at(before) };
            before += weight(word);
            let end = if voiced.is_empty() { at_ms } else { at(before) };
            Word { text: word.text.clone(), start_ms: start as u32, end_ms: end.max(start) as u32, confidence: word.confidence }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Vec<HeardWord> {
        text.split(' ').map(|w| HeardWord { text: w.into(), confidence: 0.5 }).collect()
    }

    #[test]
    fn words_fill_the_voiced_stretches_in_order() {
        let words = spread(&heard("abc abc abc"), &[(100, 200), (500, 700)], 0);
        assert_eq!(words.iter().map(|w| (w.start_ms, w.end_ms)).collect::<Vec<_>>(), [(100, 200), (200, 600), (600, 700)]);
    }

    #[test]
    fn without_a_voiced_stretch_they_stand_where_it_was() {
        assert_eq!(spread(&heard("yes"), &[], 40)[0].start_ms, 40);
        assert!(spread(&[], &[(0, 5)], 0).is_empty());
    }
}
