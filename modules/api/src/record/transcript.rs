//! What was said, read back: utterances and gaps.

use super::{
    Page,
    conversations::{id_of, role_of},
    cursor::{Cut, Key, foreign},
    rows::{UtteranceKind, UtteranceRow, WordRow},
    schema::{channels, heard_segments, segments},
    store::{Conn, StoreError, on_conn},
};
use contracts::{
    CallError, ChannelIndex, ConversationId, TenantId,
    audio::{Word, WordTimes},
    conversation::{Gap, RecordEvent},
    inference::Utterance,
};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, JoinOnDsl as _, QueryDsl as _, Queryable, RunQueryDsl as _, Selectable,
    SelectableHelper as _,
};

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = segments)]
struct SegmentEntry {
    utterance_id: String,
    conversation_id: String,
    channel: i64,
    seq: i64,
    kind: String,
    start_ms: i64,
    end_ms: i64,
    text: String,
    words: serde_json::Value,
    confidence: f64,
    speech_final: bool,
    word_times: String,
    model: String,
    reason: Option<String>,
    trace_id: String,
}

impl SegmentEntry {
    fn row(self, role: &str) -> Result<UtteranceRow, StoreError> {
        let words: Vec<WordRow> = serde_json::from_value(self.words).map_err(|e| StoreError::damaged("words of an utterance", e))?;
        Ok(UtteranceRow {
            id: id_of(&self.utterance_id)?,
            conversation_id: id_of(&self.conversation_id)?,
            channel: ChannelIndex(self.channel as u8),
            role: role_of(role)?,
            seq: self.seq as u64,
            kind: if self.kind == "gap" { UtteranceKind::Gap } else { UtteranceKind::Speech },
            start_ms: self.start_ms as u64,
            end_ms: self.end_ms as u64,
            text: self.text,
            confidence: self.confidence as f32,
            speech_final: self.speech_final,
            word_times: if self.word_times == "model" { WordTimes::Model } else { WordTimes::Estimated },
            words,
            model: self.model,
            reason: self.reason,
            trace_id: self.trace_id,
        })
    }
}

impl UtteranceRow {
    /// As the contract says it.
    pub fn event(&self) -> RecordEvent {
        match self.kind {
            UtteranceKind::Gap => RecordEvent::Gap(self.gap()),
            UtteranceKind::Speech => RecordEvent::Utterance(self.utterance()),
        }
    }
    pub(super) fn gap(&self) -> Gap {
        Gap { channel: self.channel, start_ms: self.start_ms, end_ms: self.end_ms, reason: self.reason.clone().unwrap_or_default() }
    }
    /// The turn as inference reads it.
    pub fn utterance(&self) -> Utterance {
        let word = |w: &WordRow| Word { text: w.text.clone(), start_ms: w.start_ms, end_ms: w.end_ms, confidence: w.confidence };
        Utterance {
            id: self.id,
            conversation: self.conversation_id,
            channel: self.channel,
            role: self.role,
            start_ms: self.start_ms,
            end_ms: self.end_ms,
            words: self.words.iter().map(word).collect(),
        }
    }
}

/// Start in ms, channel and seq: together unique within a conversation.
type Place = (i64, i64, i64);

/// Segments with their speaker's role; a macro, because the type of a joined query has no name.
macro_rules! with_role {
    () => {
        heard_segments!().select((SegmentEntry::as_select(), channels::role))
    };
}

/// By (start, channel, seq), after the given key.
pub(super) fn page(
    conn: &mut Conn,
    tenant: &TenantId,
    id: ConversationId,
    after: Option<Place>,
    limit: usize,
) -> Result<Page<UtteranceRow>, StoreError> {
    let mut found: Vec<(SegmentEntry, String)> = on_conn!(conn, |c: B| {
        let mut query = with_role!()
            .filter(segments::tenant_id.eq(tenant.as_str()))
            .filter(segments::conversation_id.eq(id.to_string()))
            .order((segments::start_ms.asc(), segments::channel.asc(), segments::seq.asc()))
            .limit(limit as i64 + 1)
            .into_boxed::<B>();
        if let Some((start_ms, channel, seq)) = after {
            let same_start = segments::channel.gt(channel).or(segments::channel.eq(channel).and(segments::seq.gt(seq)));
            // The first bound says nothing new, but lets an index begin there.
            query = query.filter(segments::start_ms.ge(start_ms));
            query = query.filter(segments::start_ms.gt(start_ms).or(segments::start_ms.eq(start_ms).and(same_start)));
        }
        query.load(c)?
    });
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next_cursor = last.map(|(e, _)| Key::Utterances { start_ms: e.start_ms, channel: e.channel, seq: e.seq }.encode());
    let data = found.into_iter().map(|(entry, role)| entry.row(&role)).collect::<Result<_, _>>()?;
    Ok(Page { data, next_cursor })
}

/// Those with these ids, in no particular order; unknown ids are left out.
pub(super) fn by_ids(conn: &mut Conn, tenant: &TenantId, ids: &[String]) -> Result<Vec<UtteranceRow>, StoreError> {
    let found: Vec<(SegmentEntry, String)> = on_conn!(conn, |c: B| {
        with_role!().filter(segments::tenant_id.eq(tenant.as_str())).filter(segments::utterance_id.eq_any(ids)).load(c)?
    });
    found.into_iter().map(|(entry, role)| entry.row(&role)).collect()
}

/// Where a cursor of [`page`] points.
pub(super) fn place(cut: &Cut) -> Result<Option<Place>, CallError> {
    match cut.key()? {
        None => Ok(None),
        Some(Key::Utterances { start_ms, channel, seq }) => Ok(Some((start_ms, channel, seq))),
        Some(_) => Err(foreign()),
    }
}
