//! `Conversations` on the wire.

use crate::{
    inference::wire::conversation,
    wire::{
        HEAD, ID, NUMBER, Unreadable, Weight, all, bytes, channel, each, maybe, quickcomm::api::v1 as pb, quickcomm::call::v1::Time, some,
        sum, text,
    },
};
use chrono::{DateTime, Utc};
use contracts::{
    ConversationId, Epoch, SamplePos, TenantId,
    conversation::{
        Attach, Attached, ChannelView, Close, CommitOutcome, Conversation, ConversationState, ConversationView, Gap, HeardTo,
        OpenConversation, RecordEvent, Segment,
    },
    inference::Insight,
};

impl From<OpenConversation> for pb::OpenRequest {
    fn from(request: OpenConversation) -> Self {
        Self {
            id: bytes(request.id.as_u128()),
            external_id: request.external_id,
            title: request.title,
            source: request.source,
            language: request.language,
            tags: request.tags,
            channels: each(request.channels),
            started_at: Some(time(request.started_at)),
        }
    }
}

impl TryFrom<pb::OpenRequest> for OpenConversation {
    type Error = Unreadable;
    fn try_from(request: pb::OpenRequest) -> Result<Self, Unreadable> {
        Ok(Self {
            id: conversation(&request.id)?,
            external_id: request.external_id,
            title: request.title,
            source: request.source,
            language: request.language,
            tags: request.tags,
            channels: all(request.channels)?,
            started_at: read_time(request.started_at, "time of start")?,
        })
    }
}

impl Weight for OpenConversation {
    fn weight(&self) -> usize {
        let texts = maybe(&self.external_id) + maybe(&self.title) + text(&self.source) + text(&self.language);
        ID + texts + self.tags.iter().map(|tag| text(tag)).sum::<usize>() + sum(&self.channels) + TIME
    }
}

impl From<Conversation> for pb::Conversation {
    fn from(conversation: Conversation) -> Self {
        Self {
            tenant: conversation.tenant.as_str().to_owned(),
            id: bytes(conversation.id.as_u128()),
            external_id: conversation.external_id,
            title: conversation.title,
            source: conversation.source,
            language: conversation.language,
            tags: conversation.tags,
            state: state(conversation.state).into(),
            started_at: Some(time(conversation.started_at)),
            ended_at: conversation.ended_at.map(time),
        }
    }
}

impl TryFrom<pb::Conversation> for Conversation {
    type Error = Unreadable;
    fn try_from(kept: pb::Conversation) -> Result<Self, Unreadable> {
        Ok(Self {
            tenant: TenantId::new(&kept.tenant),
            id: conversation(&kept.id)?,
            external_id: kept.external_id,
            title: kept.title,
            source: kept.source,
            language: kept.language,
            tags: kept.tags,
            state: read_state(kept.state)?,
            started_at: read_time(kept.started_at, "time of start")?,
            ended_at: kept.ended_at.map(|time| read_time(Some(time), "time of end")).transpose()?,
        })
    }
}

impl Weight for Conversation {
    fn weight(&self) -> usize {
        let texts = maybe(&self.external_id) + maybe(&self.title) + text(&self.source) + text(&self.language) + text(self.tenant.as_str());
        ID + texts + self.tags.iter().map(|tag| text(tag)).sum::<usize>() + NUMBER + 2 * TIME
    }
}

fn state(state: ConversationState) -> pb::State {
    match state {
        ConversationState::Live => pb::State::Live,
        ConversationState::Complete => pb::State::Complete,
        ConversationState::Abandoned => pb::State::Abandoned,
    }
}

fn read_state(number: i32) -> Result<ConversationState, Unreadable> {
    Ok(match pb::State::try_from(number) {
        Ok(pb::State::Live) => ConversationState::Live,
        Ok(pb::State::Complete) => ConversationState::Complete,
        Ok(pb::State::Abandoned) => ConversationState::Abandoned,
        Ok(pb::State::Unspecified) | Err(_) => return Err(Unreadable::unknown("state of a conversation", number)),
    })
}

impl From<Attach> for pb::AttachRequest {
    fn from(request: Attach) -> Self {
        Self { conversation: bytes(request.conversation.as_u128()), channel: request.channel.0.into() }
    }
}

impl TryFrom<pb::AttachRequest> for Attach {
    type Error = Unreadable;
    fn try_from(request: pb::AttachRequest) -> Result<Self, Unreadable> {
        Ok(Self { conversation: conversation(&request.conversation)?, channel: channel(request.channel)? })
    }
}

impl Weight for Attach {
    fn weight(&self) -> usize {
        ID + NUMBER
    }
}

impl From<Attached> for pb::Attached {
    fn from(attached: Attached) -> Self {
        Self { epoch: attached.epoch.0, safe: attached.safe.0, next_seq: attached.next_seq }
    }
}

impl From<pb::Attached> for Attached {
    fn from(attached: pb::Attached) -> Self {
        Self { epoch: Epoch(attached.epoch), safe: SamplePos(attached.safe), next_seq: attached.next_seq }
    }
}

impl Weight for Attached {
    fn weight(&self) -> usize {
        3 * NUMBER
    }
}

impl From<Vec<Segment>> for pb::CommitRequest {
    fn from(segments: Vec<Segment>) -> Self {
        Self { segments: each(segments) }
    }
}

impl From<Segment> for pb::Segment {
    fn from(segment: Segment) -> Self {
        Self {
            conversation: bytes(segment.conversation.as_u128()),
            channel: segment.channel.0.into(),
            epoch: segment.epoch.0,
            seq: segment.seq,
            start: segment.start.0,
            end: segment.end.0,
            body: Some(segment.body.into()),
            trace: segment.trace.to_string(),
        }
    }
}

impl TryFrom<pb::Segment> for Segment {
    type Error = Unreadable;
    fn try_from(segment: pb::Segment) -> Result<Self, Unreadable> {
        Ok(Self {
            conversation: conversation(&segment.conversation)?,
            channel: channel(segment.channel)?,
            epoch: Epoch(segment.epoch),
            seq: segment.seq,
            start: SamplePos(segment.start),
            end: SamplePos(segment.end),
            body: some(segment.body, "segment body")?,
            trace: segment.trace.parse().map_err(|_| Unreadable::missing("traceparent in a segment"))?,
        })
    }
}

impl Weight for Segment {
    fn weight(&self) -> usize {
        ID + 6 * NUMBER + 64 + HEAD + self.body.weight()
    }
}

impl From<Vec<CommitOutcome>> for pb::CommitReply {
    fn from(outcomes: Vec<CommitOutcome>) -> Self {
        Self { outcomes: each(outcomes) }
    }
}

impl From<CommitOutcome> for pb::CommitOutcome {
    fn from(outcome: CommitOutcome) -> Self {
        use pb::commit_outcome::{Ahead, Committed, Duplicate, Mismatch, Outcome, Stale};
        let outcome = match outcome {
            CommitOutcome::Committed => Outcome::Committed(Committed {}),
            CommitOutcome::Duplicate => Outcome::Duplicate(Duplicate {}),
            CommitOutcome::Stale => Outcome::Stale(Stale {}),
            CommitOutcome::Ahead { next_seq, safe } => Outcome::Ahead(Ahead { next_seq, safe: safe.0 }),
            CommitOutcome::Mismatch => Outcome::Mismatch(Mismatch {}),
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<pb::CommitOutcome> for CommitOutcome {
    type Error = Unreadable;
    fn try_from(outcome: pb::CommitOutcome) -> Result<Self, Unreadable> {
        use pb::commit_outcome::Outcome;
        Ok(match outcome.outcome.ok_or_else(|| Unreadable::missing("outcome known to this release"))? {
            Outcome::Committed(_) => Self::Committed,
            Outcome::Duplicate(_) => Self::Duplicate,
            Outcome::Stale(_) => Self::Stale,
            Outcome::Ahead(ahead) => Self::Ahead { next_seq: ahead.next_seq, safe: SamplePos(ahead.safe) },
            Outcome::Mismatch(_) => Self::Mismatch,
        })
    }
}

impl Weight for CommitOutcome {
    fn weight(&self) -> usize {
        HEAD + 2 * NUMBER
    }
}

impl From<Vec<Insight>> for pb::RecordRequest {
    fn from(insights: Vec<Insight>) -> Self {
        Self { insights: each(insights) }
    }
}

impl From<Close> for pb::CloseRequest {
    fn from(request: Close) -> Self {
        Self {
            conversation: bytes(request.conversation.as_u128()),
            state: state(request.state).into(),
            ended_at: Some(time(request.ended_at)),
            heard: each(request.heard),
        }
    }
}

impl From<HeardTo> for pb::HeardTo {
    fn from(heard: HeardTo) -> Self {
        Self { channel: heard.channel.0.into(), to: heard.to.0 }
    }
}

impl Weight for HeardTo {
    fn weight(&self) -> usize {
        2 * NUMBER
    }
}

impl TryFrom<pb::HeardTo> for HeardTo {
    type Error = Unreadable;
    fn try_from(heard: pb::HeardTo) -> Result<Self, Unreadable> {
        Ok(Self { channel: channel(heard.channel)?, to: SamplePos(heard.to) })
    }
}

impl TryFrom<pb::CloseRequest> for Close {
    type Error = Unreadable;
    fn try_from(request: pb::CloseRequest) -> Result<Self, Unreadable> {
        Ok(Self {
            conversation: conversation(&request.conversation)?,
            state: read_state(request.state)?,
            ended_at: read_time(request.ended_at, "time of end")?,
            heard: all(request.heard)?,
        })
    }
}

impl Weight for Close {
    fn weight(&self) -> usize {
        ID + NUMBER + TIME + self.heard.weight()
    }
}

impl From<ConversationView> for pb::ConversationView {
    fn from(view: ConversationView) -> Self {
        Self {
            conversation: Some(view.conversation.into()),
            channels: each(view.channels),
            utterances: each(view.utterances),
            gaps: each(view.gaps),
            insights: each(view.insights),
        }
    }
}

impl TryFrom<pb::ConversationView> for ConversationView {
    type Error = Unreadable;
    fn try_from(view: pb::ConversationView) -> Result<Self, Unreadable> {
        Ok(Self {
            conversation: some(view.conversation, "conversation")?,
            channels: all(view.channels)?,
            utterances: all(view.utterances)?,
            gaps: all(view.gaps)?,
            insights: all(view.insights)?,
        })
    }
}

impl Weight for ConversationView {
    fn weight(&self) -> usize {
        HEAD + self.conversation.weight() + sum(&self.channels) + sum(&self.utterances) + sum(&self.gaps) + sum(&self.insights)
    }
}

impl From<ChannelView> for pb::ChannelView {
    fn from(view: ChannelView) -> Self {
        Self { spec: Some(view.spec.into()), attached: Some(view.attached.into()) }
    }
}

impl TryFrom<pb::ChannelView> for ChannelView {
    type Error = Unreadable;
    fn try_from(view: pb::ChannelView) -> Result<Self, Unreadable> {
        let attached = view.attached.ok_or_else(|| Unreadable::missing("standing of a channel"))?;
        Ok(Self { spec: some(view.spec, "declaration of a channel")?, attached: attached.into() })
    }
}

impl Weight for ChannelView {
    fn weight(&self) -> usize {
        2 * HEAD + self.spec.weight() + self.attached.weight()
    }
}

impl From<Gap> for pb::Gap {
    fn from(gap: Gap) -> Self {
        Self { channel: gap.channel.0.into(), start_ms: gap.start_ms, end_ms: gap.end_ms, reason: gap.reason }
    }
}

impl TryFrom<pb::Gap> for Gap {
    type Error = Unreadable;
    fn try_from(gap: pb::Gap) -> Result<Self, Unreadable> {
        Ok(Self { channel: channel(gap.channel)?, start_ms: gap.start_ms, end_ms: gap.end_ms, reason: gap.reason })
    }
}

impl Weight for Gap {
    fn weight(&self) -> usize {
        3 * NUMBER + text(&self.reason)
    }
}

impl From<RecordEvent> for pb::RecordEvent {
    fn from(event: RecordEvent) -> Self {
        use pb::record_event::Event;
        let event = match event {
            RecordEvent::Changed(conversation) => Event::Changed(conversation.into()),
            RecordEvent::Utterance(utterance) => Event::Utterance(utterance.into()),
            RecordEvent::Gap(gap) => Event::Gap(gap.into()),
            RecordEvent::Insight(insight) => Event::Insight(insight.into()),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<pb::RecordEvent> for RecordEvent {
    type Error = Unreadable;
    fn try_from(event: pb::RecordEvent) -> Result<Self, Unreadable> {
        use pb::record_event::Event;
        Ok(match event.event.ok_or_else(|| Unreadable::missing("event known to this release"))? {
            Event::Changed(conversation) => Self::Changed(conversation.try_into()?),
            Event::Utterance(utterance) => Self::Utterance(utterance.try_into()?),
            Event::Gap(gap) => Self::Gap(gap.try_into()?),
            Event::Insight(insight) => Self::Insight(insight.try_into()?),
        })
    }
}

impl Weight for RecordEvent {
    fn weight(&self) -> usize {
        HEAD + match self {
            Self::Changed(conversation) => conversation.weight(),
            Self::Utterance(utterance) => utterance.weight(),
            Self::Gap(gap) => gap.weight(),
            Self::Insight(insight) => insight.weight(),
        }
    }
}

impl Weight for ConversationId {
    fn weight(&self) -> usize {
        ID
    }
}

impl From<ConversationId> for pb::ViewRequest {
    fn from(id: ConversationId) -> Self {
        Self { conversation: bytes(id.as_u128()) }
    }
}

impl From<ConversationId> for pb::WatchRequest {
    fn from(id: ConversationId) -> Self {
        Self { conversation: bytes(id.as_u128()) }
    }
}

const TIME: usize = HEAD + 2 * NUMBER;

fn time(time: DateTime<Utc>) -> Time {
    Time { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() }
}

fn read_time(time: Option<Time>, what: &str) -> Result<DateTime<Utc>, Unreadable> {
    let time = time.ok_or_else(|| Unreadable::missing(what))?;
    DateTime::from_timestamp(time.seconds, time.nanos).ok_or_else(|| Unreadable::unknown(what, time.seconds))
}
