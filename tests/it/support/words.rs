//! Word errors between what was said and what was heard. The bench of the same name counts by it too.

/// Substitutions, deletions and insertions (Levenshtein), and the reference's words.
pub fn errors(reference: &str, heard: &str) -> (usize, usize) {
    let (reference, heard) = (normal(reference), normal(heard));
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, expected) in reference.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, word) in heard.iter().enumerate() {
            let substituted = diagonal + usize::from(word != expected);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    (row[heard.len()], reference.len())
}

/// Lower case, no punctuation, numbers as they are spoken: the recognizer writes `$45` where the script says "forty five dollars".
pub fn normal(text: &str) -> Vec<String> {
    let mut words = vec![];
    for word in text.to_lowercase().replace(['-', '–', '—', '|', '/'], " ").split_whitespace() {
        let bare: String = word.chars().filter(|c| c.is_alphanumeric() || *c == '\'').collect();
        let bare = bare.trim_matches('\'');
        let digits: String = bare.chars().take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(number @ 0..10_000) => {
                spoken(number, &mut words);
                let rest = &bare[digits.len()..];
                if !rest.is_empty() {
                    words.push(rest.into());
                }
            }
            _ if bare.is_empty() => {}
            _ => words.push(bare.into()),
        }
        if word.starts_with('$') {
            words.push("dollars".into());
        }
        if word.contains('%') {
            words.push("percent".into());
        }
    }
    words
}

const ONES: &str = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen \
                    nineteen";
const TENS: &str = "twenty thirty forty fifty sixty seventy eighty ninety";

/// A number below ten thousand in words.
fn spoken(number: usize, words: &mut Vec<String>) {
    let pick = |list: &'static str, n: usize| list.split(' ').nth(n).into_iter().map(str::to_owned);
    let rest = match number {
        0..20 => {
            words.extend(pick(ONES, number));
            0
        }
        20..100 => {
            words.extend(pick(TENS, number / 10 - 2));
            number % 10
        }
        100..1000 => {
            words.extend(pick(ONES, number / 100));
            words.push("hundred".into());
            number % 100
        }
        _ => {
            words.extend(pick(ONES, number / 1000));
            words.push("thousand".into());
            number % 1000
        }
    };
    if rest > 0 {
        spoken(rest, words);
    }
}

#[test]
fn errors_are_counted_in_words() {
    assert_eq!(errors("I want to cancel.", "i want to cancel"), (0, 4));
    assert_eq!(errors("one two three", "one three four"), (2, 3));
    assert_eq!(errors("", "ghost"), (1, 0));
    assert_eq!(errors("forty five dollars and ten percent", "$45 and 10%"), (0, 6));
    assert_eq!(errors("two thousand three hundred and nineteen", "2,300 and 19"), (0, 6));
}
