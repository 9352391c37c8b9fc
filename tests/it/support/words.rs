//! Word errors between what was said and what was heard.

/// Lower case, no punctuation, numbers as they are spoken: the recognizer writes `$45` where the script says "forty five dollars".
pub fn normal(text: &str) -> Vec<String> {
    let mut words = vec![];
    for piece in text.to_lowercase().replace(['-', '–', '—', '/'], " ").split_whitespace() {
        let bare: String = piece.chars().filter(|c| c.is_alphanumeric()).collect();
        match bare.parse::<u32>() {
            Ok(number) if bare.len() < 4 => {
                spoken(number, &mut words);
                match (piece.starts_with('$'), piece.contains('%')) {
                    (true, _) => words.push("dollars".into()),
                    (_, true) => words.push("percent".into()),
                    _ => {}
                }
            }
            _ if bare.is_empty() => {}
            _ => words.push(bare),
        }
    }
    words
}

/// A number below a thousand in words.
fn spoken(number: u32, words: &mut Vec<String>) {
    const ONES: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    match number {
        100.. => {
            words.extend([ONES[number as usize / 100].to_owned(), "hundred".into()]);
            if !number.is_multiple_of(100) {
                spoken(number % 100, words);
            }
        }
        20..100 => {
            words.push(TENS[number as usize / 10].into());
            if !number.is_multiple_of(10) {
                words.push(ONES[number as usize % 10].into());
            }
        }
        _ => words.push(ONES[number as usize].into()),
    }
}

/// Substitutions, deletions and insertions between two word sequences (Levenshtein), and the reference's length.
pub fn errors(reference: &str, heard: &str) -> (usize, usize) {
    let (r, h) = (normal(reference), normal(heard));
    let mut row: Vec<usize> = (0..=h.len()).collect();
    for (i, want) in r.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, got) in h.iter().enumerate() {
            let substitution = diagonal + usize::from(want != got);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    (row[h.len()], r.len())
}

#[test]
fn errors_are_counted_in_words() {
    assert_eq!(errors("I want to cancel.", "i want to cancel"), (0, 4));
    assert_eq!(errors("one two three", "one three four"), (2, 3));
    assert_eq!(errors("", "ghost"), (1, 0));
    assert_eq!(errors("forty five dollars and ten percent", "$45 and 10%"), (0, 6));
}
