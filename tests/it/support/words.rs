//! Word errors between what was said and what was heard.

/// Lower case, no punctuation, one spelling for what is said the same way.
pub fn normal(text: &str) -> Vec<String> {
    text.to_lowercase()
        .replace(['-', '–', '—'], " ")
        .split_whitespace()
        .map(|w| w.chars().filter(|c| c.is_alphanumeric()).collect::<String>())
        .filter(|w| !w.is_empty())
        .collect()
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
}
