//! What readers see of one conversation: what is in the record, and what is not (yet).
//!
//! Invariants:
//! - applying the same change twice tells nobody anything the second time, so a load and the changes around it may overlap;
//! - unfinished text disappears with its final, with its retraction, with the conversation, or with age, and never comes back after that.
//!
//! Pure: no locks, no sockets; time comes in as an argument.

use super::wire::{ConversationSnapshot, Event, Partial, SentimentPoint, WallTile};
use crate::record::{ChangeRows, ConversationRow, InsightRow, TalkMetrics, UtteranceKind, UtteranceRow, WordRow};
use chrono::{DateTime, TimeDelta, Utc};
use contracts::{
    ChannelIndex, InsightId, UtteranceId,
    audio::{Role, text_of},
    conversation::ConversationState,
    inference::Task,
    signal::{Live as Signal, LiveBody},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// Utterances of which late news may still arrive.
const REMEMBERED_UTTERANCES: usize = 256;
const SENTIMENT_POINTS: usize = 20;

pub(crate) struct Call {
    row: ConversationRow,
    connected: bool,
    lags: Vec<u32>,
    talking: Vec<bool>,
    partials: BTreeMap<UtteranceId, (Partial, Instant)>,
    finals: VecDeque<UtteranceId>,
    /// Taken back. Nothing unfinished may be shown of these, nor of `finals`.
    retracted: VecDeque<UtteranceId>,
    last: Option<LastLine>,
    /// Where recent turns of everyone but agents stand, for the sentiment line.
    turns: VecDeque<(UtteranceId, u64)>,
    sentiments: VecDeque<Feeling>,
    detail: Option<Detail>,
}

struct LastLine {
    text: String,
    role: Role,
    end_ms: u64,
}

struct Feeling {
    insight: InsightId,
    utterance: UtteranceId,
    at_ms: u64,
    name: String,
    score: f32,
}

/// Everything, for those who look at this one conversation.
pub(crate) struct Detail {
    pub(crate) utterances: Vec<UtteranceRow>,
    pub(crate) insights: Vec<InsightRow>,
    pub(crate) metrics: TalkMetrics,
    /// Something was said since `metrics` was computed.
    pub(crate) stale_metrics: bool,
}

/// A conversation as the record had it at one moment.
pub(crate) struct Loaded {
    pub(crate) row: ConversationRow,
    pub(crate) utterances: Vec<UtteranceRow>,
    pub(crate) insights: Vec<InsightRow>,
    pub(crate) metrics: Option<TalkMetrics>,
}

impl Call {
    pub(crate) fn new(row: ConversationRow) -> Self {
        let channels = row.channels.len();
        Self {
            row,
            connected: true,
            lags: vec![0; channels],
            talking: vec![false; channels],
            partials: BTreeMap::new(),
            finals: VecDeque::new(),
            retracted: VecDeque::new(),
            last: None,
            turns: VecDeque::new(),
            sentiments: VecDeque::new(),
            detail: None,
        }
    }

    pub(crate) fn row(&self) -> &ConversationRow {
        &self.row
    }

    pub(crate) fn is_live(&self) -> bool {
        self.row.state == ConversationState::Live
    }

    /// As the record has it.
    pub(crate) fn load(loaded: Loaded) -> Self {
        let mut call = Self::new(loaded.row);
        call.take_all(loaded.utterances, loaded.insights, loaded.metrics);
        call
    }

    /// What passes by is not in the record: it is taken over from another view of the same conversation.
    pub(crate) fn inherit(&mut self, seen: &Call) {
        if self.is_live() && seen.row.channels.len() == self.row.channels.len() {
            let unfinished = seen.partials.iter().filter(|(utterance, _)| !self.finals.contains(utterance));
            self.partials = unfinished.map(|(utterance, partial)| (*utterance, partial.clone())).collect();
            (self.retracted, self.connected) = (seen.retracted.clone(), seen.connected);
            (self.talking, self.lags) = (seen.talking.clone(), seen.lags.clone());
        }
    }

    fn take_all(&mut self, utterances: Vec<UtteranceRow>, insights: Vec<InsightRow>, metrics: Option<TalkMetrics>) {
        for utterance in &utterances {
            self.finish(utterance.id);
            self.take_line(utterance);
        }
        for insight in &insights {
            self.take_feeling(insight, &[]);
        }
        self.detail = metrics.map(|metrics| Detail { utterances, insights, metrics, stale_metrics: false });
    }

    pub(crate) fn has_stale_metrics(&self) -> bool {
        self.detail.as_ref().is_some_and(|d| d.stale_metrics)
    }

    /// Something was stored. `recording` is filled in by the caller.
    pub(crate) fn apply(&mut self, rows: ChangeRows) -> Vec<Event> {
        let mut events = vec![];
        match rows {
            ChangeRows::Conversation(row) => self.take_row(row, &mut events),
            ChangeRows::Utterance { utterance, conversation } => {
                self.take_utterance(utterance, &mut events);
                self.take_row(self.not_ended_yet(conversation), &mut events);
            }
            ChangeRows::Insight { insight, superseded, conversation } => {
                self.take_insight(insight, &superseded, &mut events);
                self.take_row(self.not_ended_yet(conversation), &mut events);
            }
        }
        events
    }

    /// A row that comes with an utterance is as it is now, so it may tell of an end that is announced later, after more utterances. The end
    /// waits for its own announcement: nothing that was said follows it.
    fn not_ended_yet(&self, row: ConversationRow) -> ConversationRow {
        match self.is_live() {
            true => ConversationRow { state: self.row.state, ended_at: self.row.ended_at, finalization: self.row.finalization, ..row },
            false => row,
        }
    }

    fn take_row(&mut self, row: ConversationRow, events: &mut Vec<Event>) {
        if row == self.row {
            return;
        }
        let ends = self.is_live() && row.state != ConversationState::Live;
        self.row = row.clone();
        if ends {
            self.silence(events);
            events.push(Event::Ended(row));
        } else {
            events.push(Event::Updated(row));
        }
    }

    /// Nothing passes by any more.
    fn silence(&mut self, events: &mut Vec<Event>) {
        let unfinished: Vec<_> = self.partials.keys().copied().collect();
        for utterance in unfinished {
            self.retract(utterance);
            events.push(Event::Retracted(utterance));
        }
        for (channel, talking) in self.talking.iter_mut().enumerate() {
            if std::mem::take(talking) {
                events.push(Event::Activity { channel: ChannelIndex(channel as u8), talking: false });
            }
        }
        if self.lag_ms() > 0 {
            self.lags.fill(0);
            events.push(Event::Lag { ms: 0 });
        }
    }

    fn take_utterance(&mut self, utterance: UtteranceRow, events: &mut Vec<Event>) {
        let known = match &mut self.detail {
            None => self.finals.contains(&utterance.id),
            Some(detail) => match detail.utterances.iter().rposition(|u| u.id == utterance.id) {
                Some(at) if detail.utterances[at] == utterance => true,
                Some(at) => {
                    detail.utterances[at] = utterance.clone();
                    detail.stale_metrics = true;
                    false
                }
                None => {
                    let place = |u: &UtteranceRow| (u.start_ms, u.id); // the record's order
                    let at = detail.utterances.partition_point(|u| place(u) < place(&utterance));
                    detail.utterances.insert(at, utterance.clone());
                    detail.stale_metrics = true;
                    false
                }
            },
        };
        self.finish(utterance.id);
        if !known {
            self.take_line(&utterance);
            events.push(Event::Final(utterance));
        }
    }

    fn take_insight(&mut self, insight: InsightRow, superseded: &[InsightId], events: &mut Vec<Event>) {
        self.take_feeling(&insight, superseded);
        let (id, replaced_by) = (insight.id, insight.superseded_by);
        match (&mut self.detail, replaced_by) {
            // Announced late: what took its place is here, or on its way.
            (None, Some(_)) => {}
            (Some(detail), Some(by)) => {
                let before = detail.insights.len();
                detail.insights.retain(|i| i.id != id);
                if detail.insights.len() < before {
                    events.push(Event::InsightSuperseded { insight_id: id, by });
                }
            }
            (None, None) => events.push(Event::InsightCreated(insight)),
            (Some(detail), None) => {
                let at = detail.insights.iter().rposition(|i| i.id == id);
                if at.is_none_or(|at| !says_the_same(&detail.insights[at], &insight)) {
                    match at {
                        Some(at) => detail.insights[at] = insight.clone(),
                        None => detail.insights.push(insight.clone()),
                    }
                    events.push(Event::InsightCreated(insight));
                }
            }
        }
        for insight_id in superseded {
            let shown = match &mut self.detail {
                None => true,
                Some(detail) => {
                    let before = detail.insights.len();
                    detail.insights.retain(|i| i.id != *insight_id);
                    detail.insights.len() < before
                }
            };
            if shown {
                events.push(Event::InsightSuperseded { insight_id: *insight_id, by: id });
            }
        }
    }

    fn take_line(&mut self, utterance: &UtteranceRow) {
        if utterance.kind != UtteranceKind::Speech {
            return;
        }
        if utterance.role != Role::Agent && !self.turns.iter().any(|(id, _)| *id == utterance.id) {
            remember(&mut self.turns, (utterance.id, utterance.start_ms), REMEMBERED_UTTERANCES);
        }
        if self.last.as_ref().is_none_or(|last| last.end_ms <= utterance.end_ms) {
            self.last = Some(LastLine { text: utterance.text.clone(), role: utterance.role, end_ms: utterance.end_ms });
        }
    }

    fn take_feeling(&mut self, insight: &InsightRow, superseded: &[InsightId]) {
        if insight.task != Task::Sentiment {
            return;
        }
        self.sentiments.retain(|f| f.insight != insight.id && f.utterance != insight.utterance_id && !superseded.contains(&f.insight));
        let Some((_, at_ms)) = self.turns.iter().find(|(id, _)| *id == insight.utterance_id) else { return };
        let (Some(best), None) = (insight.labels.first(), insight.superseded_by) else { return };
        let feeling =
            Feeling { insight: insight.id, utterance: insight.utterance_id, at_ms: *at_ms, name: best.name.clone(), score: best.score };
        let at = self.sentiments.partition_point(|f| f.at_ms <= feeling.at_ms);
        self.sentiments.insert(at, feeling);
        if self.sentiments.len() > SENTIMENT_POINTS {
            self.sentiments.pop_front();
        }
    }

    /// Its final is stored: nothing unfinished of it is shown from now on.
    fn finish(&mut self, utterance: UtteranceId) {
        self.partials.remove(&utterance);
        if !self.finals.contains(&utterance) {
            remember(&mut self.finals, utterance, REMEMBERED_UTTERANCES);
        }
    }

    /// Says whether something was shown.
    fn retract(&mut self, utterance: UtteranceId) -> bool {
        if !self.retracted.contains(&utterance) {
            remember(&mut self.retracted, utterance, REMEMBERED_UTTERANCES);
        }
        self.partials.remove(&utterance).is_some()
    }

    /// Something passes by. News of an ended conversation, or of a channel it has not, is no news.
    pub(crate) fn hear(&mut self, signal: Signal, now: Instant) -> Option<Event> {
        let at = usize::from(signal.channel.0);
        if !self.is_live() || at >= self.row.channels.len() {
            return None;
        }
        match signal.body {
            LiveBody::Partial { utterance, rev, start_ms, end_ms, words, stable_words } => {
                let outdated = self.partials.get(&utterance).is_some_and(|(shown, _)| shown.rev >= rev);
                if outdated || self.finals.contains(&utterance) || self.retracted.contains(&utterance) {
                    return None;
                }
                let partial = Partial {
                    utterance_id: utterance,
                    channel: signal.channel,
                    role: self.row.channels[at].role,
                    rev,
                    start_ms,
                    end_ms,
                    text: text_of(&words),
                    stable_words,
                    words: words
                        .into_iter()
                        .map(|w| WordRow { text: w.text, start_ms: w.start_ms, end_ms: w.end_ms, confidence: w.confidence })
                        .collect(),
                };
                self.partials.insert(utterance, (partial.clone(), now));
                Some(Event::Partial(partial))
            }
            LiveBody::Retracted { utterance } => self.retract(utterance).then_some(Event::Retracted(utterance)),
            LiveBody::Activity { talking } => {
                let changed = std::mem::replace(&mut self.talking[at], talking) != talking;
                changed.then_some(Event::Activity { channel: signal.channel, talking })
            }
            LiveBody::Link { connected } => {
                let changed = std::mem::replace(&mut self.connected, connected) != connected;
                changed.then_some(Event::Link { connected })
            }
            LiveBody::Lag { ms } => {
                let before = self.lag_ms();
                self.lags[at] = ms;
                let after = self.lag_ms();
                (after != before).then_some(Event::Lag { ms: after })
            }
        }
    }

    /// Takes unfinished text without news since `limit` off the screen: its retraction, or its sender, was lost.
    pub(crate) fn forget_old(&mut self, now: Instant, limit: Duration) -> Vec<Event> {
        let old: Vec<_> =
            self.partials.iter().filter(|(_, (_, at))| now.duration_since(*at) > limit).map(|(utterance, _)| *utterance).collect();
        old.into_iter()
            .map(|utterance| {
                self.partials.remove(&utterance); // not `retract`: it may only have been late
                Event::Retracted(utterance)
            })
            .collect()
    }

    pub(crate) fn measured(&mut self, metrics: TalkMetrics) -> Option<Event> {
        let detail = self.detail.as_mut()?;
        (detail.metrics != metrics).then(|| {
            detail.metrics = metrics.clone();
            Event::Metrics(metrics)
        })
    }

    pub(crate) fn needs_measuring(&mut self, stale: bool) {
        if let Some(detail) = &mut self.detail {
            detail.stale_metrics = stale;
        }
    }

    /// What passes by, as it stands now: for a reader who was away.
    pub(crate) fn passing_state(&self) -> Vec<Event> {
        let mut events = vec![Event::Lag { ms: self.lag_ms() }];
        events.extend(
            self.talking.iter().enumerate().map(|(n, talking)| Event::Activity { channel: ChannelIndex(n as u8), talking: *talking }),
        );
        events.extend(self.partials.values().map(|(partial, _)| Event::Partial(partial.clone())));
        events.extend(self.detail.iter().map(|detail| Event::Metrics(detail.metrics.clone())));
        events
    }

    fn lag_ms(&self) -> u32 {
        self.lags.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn tile(&self) -> WallTile<'_> {
        WallTile {
            row: &self.row,
            last_text: self.last.as_ref().map(|last| last.text.as_str()),
            last_role: self.last.as_ref().map(|last| last.role),
            last_at: self.last.as_ref().map(|last| at_ms(self.row.started_at, last.end_ms)),
            talking: &self.talking,
            lag_ms: self.lag_ms(),
            connected: self.connected,
            sentiments: self.sentiments.iter().map(|f| SentimentPoint { at_ms: f.at_ms, name: &f.name, score: f.score }).collect(),
        }
    }

    /// `None` until the detail has been loaded.
    pub(crate) fn snapshot(&self) -> Option<ConversationSnapshot<'_>> {
        let detail = self.detail.as_ref()?;
        Some(ConversationSnapshot {
            conversation: &self.row,
            utterances: &detail.utterances,
            insights: &detail.insights,
            partials: self.partials.values().map(|(partial, _)| partial).collect(),
            metrics: &detail.metrics,
            connected: self.connected,
            lag_ms: self.lag_ms(),
            talking: &self.talking,
        })
    }
}

/// A promoted standby may have lacked an insight, which then was found out and stored again: that tells nobody anything.
fn says_the_same(shown: &InsightRow, stored: &InsightRow) -> bool {
    let mut again = stored.clone();
    again.created_at = shown.created_at;
    again.provenance.latency_ms = shown.provenance.latency_ms;
    again == *shown
}

fn remember<T>(kept: &mut VecDeque<T>, item: T, most: usize) {
    if kept.len() == most {
        kept.pop_front();
    }
    kept.push_back(item);
}

fn at_ms(start: DateTime<Utc>, ms: u64) -> DateTime<Utc> {
    start + TimeDelta::milliseconds(ms.min(i64::MAX as u64 / 1_000_000) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ConversationId, RunId};
    use serde_json::json;

    fn row() -> ConversationRow {
        let channel = json!({ "channel": 0, "role": "customer", "encoding": "mulaw", "sample_rate": 8000 });
        serde_json::from_value(json!({
            "id": ConversationId::from_u128(1), "external_id": null, "title": null, "source": "native", "language": "en", "tags": [],
            "state": "live", "started_at": "2026-01-31T12:00:00Z", "ended_at": null, "duration_ms": 0, "channels": [channel],
            "utterance_count": 0, "intent": null, "sentiment": null, "finalization": null, "recording": false,
        }))
        .unwrap()
    }

    fn insight(id: u128, superseded_by: Option<u128>) -> InsightRow {
        let provenance = json!({ "tier": "rules", "model": "m", "degraded_from": null, "config_hash": "h", "latency_ms": 1 });
        serde_json::from_value(json!({
            "id": InsightId::from_u128(id), "run_id": RunId::from_u128(id), "conversation_id": ConversationId::from_u128(1),
            "utterance_id": UtteranceId::from_u128(7), "task": "intent", "labels": [{ "name": "outage", "score": 0.5 }], "abstained": null,
            "evidence": [], "provenance": provenance, "superseded_by": superseded_by.map(InsightId::from_u128),
            "created_at": "2026-01-31T12:00:00Z",
        }))
        .unwrap()
    }

    fn watched(insights: Vec<InsightRow>) -> Call {
        let metrics = TalkMetrics {
            conversation_id: ConversationId::from_u128(1),
            duration_ms: 0,
            silence_ms: 0,
            silence_ratio: 0.0,
            overlap_ms: 0,
            channels: vec![],
        };
        Call::load(Loaded { row: row(), utterances: vec![], insights, metrics: Some(metrics) })
    }

    fn announce(call: &mut Call, insight: InsightRow, superseded: &[u128]) -> Vec<&'static str> {
        let superseded = superseded.iter().map(|id| InsightId::from_u128(*id)).collect();
        call.apply(ChangeRows::Insight { insight, superseded, conversation: row() }).iter().map(Event::kind).collect()
    }

    #[test]
    fn an_insight_announced_after_its_successor_was_stored_is_not_shown() {
        // The first announcement already reads "superseded", because both were stored before it went out.
        let mut call = watched(vec![]);
        assert!(announce(&mut call, insight(1, Some(2)), &[]).is_empty());
        assert_eq!(announce(&mut call, insight(2, None), &[1]), ["insight.created"]);
        // A reader's snapshot may even have had it.
        let mut call = watched(vec![insight(1, None)]);
        assert_eq!(announce(&mut call, insight(1, Some(2)), &[]), ["insight.superseded"]);
        assert_eq!(announce(&mut call, insight(2, None), &[1]), ["insight.created"]);
    }

    #[test]
    fn the_end_is_told_after_everything_that_was_said() {
        let mut call = watched(vec![]);
        let ended = ConversationRow { state: ConversationState::Complete, ended_at: Some(Utc::now()), ..row() };
        let late = |id| ChangeRows::Insight { insight: insight(id, None), superseded: vec![], conversation: ended.clone() };
        let kinds = |events: Vec<Event>| events.iter().map(Event::kind).collect::<Vec<_>>();
        assert_eq!(kinds(call.apply(late(1))), ["insight.created"]);
        assert_eq!(kinds(call.apply(ChangeRows::Conversation(ended.clone()))), ["conversation.ended"]);
        assert_eq!(kinds(call.apply(late(2))), ["insight.created"], "what is understood later is still told");
    }

    #[test]
    fn a_change_told_again_tells_nobody_anything() {
        let mut call = watched(vec![]);
        assert_eq!(announce(&mut call, insight(1, None), &[]), ["insight.created"]);
        assert_eq!(announce(&mut call, insight(2, None), &[1]), ["insight.created", "insight.superseded"]);
        assert!(announce(&mut call, insight(2, None), &[1]).is_empty());
        let mut stored_again = insight(2, None);
        (stored_again.created_at, stored_again.provenance.latency_ms) = (Utc::now(), 7);
        assert!(announce(&mut call, stored_again.clone(), &[]).is_empty(), "a promoted standby lacked it");
        stored_again.labels.clear();
        assert_eq!(announce(&mut call, stored_again, &[]), ["insight.created"], "it says something else");
    }
}
