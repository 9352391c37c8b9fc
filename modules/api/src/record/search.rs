//! Full text over what was said.
//!
//! Invariant: what people type is words, never query syntax; each word is quoted before the database's parser sees it.

use super::{
    Page, SearchFilter,
    conversations::{id_of, role_of, state_of},
    cursor::{Cut, Key, foreign},
    rows::{HitConversation, HitUtterance, SearchHit, SnippetPart},
    schema::{channels, conversations, heard_segments, segments},
    store::{Conn, StoreError, on_conn},
};
use chrono::NaiveDateTime;
use contracts::{CallError, ChannelIndex, TenantId};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, JoinOnDsl as _, QueryDsl as _, RunQueryDsl as _,
    dsl::sql,
    sql_types::{Bool, Text},
};

const MOST_WORDS: usize = 32;
const LONGEST_QUERY: usize = 500;
/// As SQLite is asked for.
const SNIPPET_WORDS: usize = 32;
/// Around what matched in a snippet; control characters, which no speech contains.
const HIT: char = '\u{2}';
const END: char = '\u{3}';

/// The one point where databases differ: how a match and its snippet are spelt. The words go between each pair.
trait Dialect {
    const MATCH: (&'static str, &'static str);
    const SNIPPET: (&'static str, &'static str);
    /// The snippet is the whole text, to be cut here.
    const WHOLE: bool;
    fn words(words: &[&str]) -> String;
}

impl Dialect for diesel::sqlite::Sqlite {
    const MATCH: (&'static str, &'static str) = ("segments.row_id IN (SELECT rowid FROM segments_fts WHERE segments_fts MATCH ", ")");
    const SNIPPET: (&'static str, &'static str) = (
        "(SELECT snippet(segments_fts, 0, char(2), char(3), '…', 32) FROM segments_fts WHERE segments_fts MATCH ",
        " AND segments_fts.rowid = segments.row_id)",
    );
    const WHOLE: bool = false;
    fn words(words: &[&str]) -> String {
        let mut query = words.iter().map(|w| format!("\"{}\"", w.replace('"', "\"\""))).collect::<Vec<_>>().join(" ");
        query.push('*'); // the last word may still be being typed
        query
    }
}

impl Dialect for diesel::pg::Pg {
    const MATCH: (&'static str, &'static str) = ("segments.tsv @@ to_tsquery('quickcomm', ", ")");
    const SNIPPET: (&'static str, &'static str) = (
        "ts_headline('quickcomm', segments.text, to_tsquery('quickcomm', ",
        "), 'HighlightAll=true, StartSel=' || chr(2) || ', StopSel=' || chr(3))",
    );
    const WHOLE: bool = true; // ts_headline would begin with the first match
    fn words(words: &[&str]) -> String {
        // Only letters and digits are left within the quotes; what was one word with a sign in it becomes words that follow one another.
        let plain = |word: &&str| -> String {
            let signs_out: String = word.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
            format!("'{}'", signs_out.trim())
        };
        let mut query = words.iter().map(plain).collect::<Vec<_>>().join(" & ");
        query.push_str(":*"); // the last word may still be being typed
        query
    }
}

/// What was asked, as words. `None`: nothing that could be found.
pub(super) fn words(q: &str) -> Result<Vec<&str>, CallError> {
    if q.len() > LONGEST_QUERY {
        return Err(CallError::invalid(format!("q has {} bytes: expected at most {LONGEST_QUERY}", q.len())));
    }
    if q.trim().is_empty() {
        return Err(CallError::invalid("q is empty: expected at least one word"));
    }
    // Without a letter or digit a "word" is no token of the index; a zero would end the query.
    let words = q.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| w.chars().any(char::is_alphanumeric));
    Ok(words.take(MOST_WORDS).collect())
}

type Found = (
    (i64, String, i64, i64, i64, String), // row, utterance, channel, start, end, text
    (String, Option<String>, String, NaiveDateTime),
    String, // role
    String, // snippet
);

/// Newest first; the key is the row's number, which rises with arrival.
pub(super) fn page(
    conn: &mut Conn,
    tenant: &TenantId,
    words: &[&str],
    filter: &SearchFilter,
    before: Option<i64>,
    limit: usize,
) -> Result<Page<SearchHit>, StoreError> {
    use conversations as conv;
    if words.is_empty() {
        return Ok(Page { data: vec![], next_cursor: None });
    }
    let (mut found, whole): (Vec<Found>, bool) = on_conn!(conn, |c: B| {
        let asked = <B as Dialect>::words(words);
        let mut query = heard_segments!()
            .inner_join(conv::table.on(conv::tenant_id.eq(segments::tenant_id).and(conv::id.eq(segments::conversation_id))))
            .filter(segments::tenant_id.eq(tenant.as_str()))
            .filter(sql::<Bool>(<B as Dialect>::MATCH.0).bind::<Text, _>(asked.clone()).sql(<B as Dialect>::MATCH.1))
            .order(segments::row_id.desc())
            .limit(limit as i64 + 1)
            .select((
                (segments::row_id, segments::utterance_id, segments::channel, segments::start_ms, segments::end_ms, segments::text),
                (conv::id, conv::title, conv::state, conv::started_at),
                channels::role,
                sql::<Text>(<B as Dialect>::SNIPPET.0).bind::<Text, _>(asked).sql(<B as Dialect>::SNIPPET.1),
            ))
            .into_boxed::<B>();
        if let Some(role) = filter.role {
            query = query.filter(channels::role.eq(role.name()));
        }
        if let Some(state) = filter.state {
            query = query.filter(conv::state.eq(state.name()));
        }
        if let Some(from) = filter.from {
            query = query.filter(conv::started_at.ge(from.naive_utc()));
        }
        if let Some(to) = filter.to {
            query = query.filter(conv::started_at.lt(to.naive_utc()));
        }
        if let Some(row) = before {
            query = query.filter(segments::row_id.lt(row));
        }
        (query.load(c)?, <B as Dialect>::WHOLE)
    });
    if whole {
        found.iter_mut().for_each(|(.., snippet)| *snippet = around_hits(snippet));
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|(segment, ..)| Key::Search { row: segment.0 }.encode());
    Ok(Page { data: found.into_iter().map(hit).collect::<Result<_, _>>()?, next_cursor })
}

fn hit((segment, conversation, role, snippet): Found) -> Result<SearchHit, StoreError> {
    let (_, utterance, channel, start_ms, end_ms, text) = segment;
    let (id, title, state, started_at) = conversation;
    Ok(SearchHit {
        conversation: HitConversation { id: id_of(&id)?, title, state: state_of(&state)?, started_at: started_at.and_utc() },
        utterance: HitUtterance {
            id: id_of(&utterance)?,
            channel: ChannelIndex(channel as u8),
            role: role_of(&role)?,
            start_ms: start_ms as u64,
            end_ms: end_ms as u64,
            text,
        },
        snippet: parts(&snippet),
    })
}

/// At most [`SNIPPET_WORDS`], a few of them before the first hit.
fn around_hits(marked: &str) -> String {
    let words: Vec<&str> = marked.split(' ').collect();
    if words.len() <= SNIPPET_WORDS {
        return marked.to_owned();
    }
    let first = words.iter().position(|word| word.contains(HIT)).unwrap_or(0);
    let from = first.saturating_sub(SNIPPET_WORDS / 4).min(words.len() - SNIPPET_WORDS);
    let to = from + SNIPPET_WORDS;
    let (before, after) = (if from > 0 { "…" } else { "" }, if to < words.len() { "…" } else { "" });
    format!("{before}{}{after}", words[from..to].join(" "))
}

fn parts(marked: &str) -> Vec<SnippetPart> {
    let mut parts = vec![];
    let mut push = |text: &str, hit: bool| {
        if !text.is_empty() {
            parts.push(SnippetPart { text: text.into(), hit });
        }
    };
    for (n, piece) in marked.split(HIT).enumerate() {
        match piece.split_once(END) {
            Some((inside, after)) if n > 0 => {
                push(inside, true);
                push(after, false);
            }
            _ => push(piece, false),
        }
    }
    parts
}

/// Where a cursor of [`page`] points.
pub(super) fn place(cut: &Cut) -> Result<Option<i64>, CallError> {
    match cut.key()? {
        None => Ok(None),
        Some(Key::Search { row }) => Ok(Some(row)),
        Some(_) => Err(foreign()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_parts() {
        let parts: Vec<(String, bool)> = parts("you \u{2}charged\u{3} me \u{2}twice\u{3}").into_iter().map(|p| (p.text, p.hit)).collect();
        assert_eq!(parts, [("you ".into(), false), ("charged".into(), true), (" me ".into(), false), ("twice".into(), true)]);
    }

    #[test]
    fn a_long_text_is_cut_around_what_was_found() {
        let words: Vec<String> = (0..100).map(|n| if n == 50 { format!("{HIT}fifty{END}") } else { n.to_string() }).collect();
        let cut = around_hits(&words.join(" "));
        assert!(cut.starts_with("…42 43") && cut.ends_with("72 73…") && cut.contains("49 \u{2}fifty\u{3} 51"), "{cut}");
        assert_eq!(around_hits("short \u{2}hit\u{3}"), "short \u{2}hit\u{3}");
        let late: Vec<String> = (0..40).map(|n| if n == 39 { format!("{HIT}end{END}") } else { n.to_string() }).collect();
        assert!(around_hits(&late.join(" ")).ends_with("38 \u{2}end\u{3}"));
    }

    #[test]
    fn what_is_typed_stays_words() {
        let typed = words("  refund OR (card* \"-- NEAR ").unwrap();
        assert_eq!(<diesel::sqlite::Sqlite as Dialect>::words(&typed), r#""refund" "OR" "(card*" "NEAR"*"#);
        assert_eq!(<diesel::pg::Pg as Dialect>::words(&typed), "'refund' & 'OR' & 'card' & 'NEAR':*");
        assert_eq!(<diesel::pg::Pg as Dialect>::words(&["it's", "' | x:*\\"]), "'it s' & 'x':*");
        assert!(words(" \t").is_err());
        assert_eq!(words("-- ?!").unwrap(), [""; 0]);
    }
}
