//! A record in memory, with the whole commit rule.

use super::behavior::{Behavior, Conduct};
use crate::{
    CallCx, CallError, ChannelIndex, ConversationId, Conversations, EventStream, SamplePos, SampleRate, TenantId,
    audio::SegmentBody,
    conversation::{
        Attach, Attached, ChannelView, Close, CommitOutcome, Conversation, ConversationState, ConversationView, Gap, OpenConversation,
        RecordEvent, Segment,
    },
    inference::{Insight, Utterance},
};
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::sync::mpsc;

/// Keeps everything the trait promises, short of surviving kill -9.
#[derive(Clone, Default)]
pub struct FakeConversations {
    conduct: Arc<Conduct>,
    kept: Arc<Mutex<All>>,
    /// How many standbys have taken over: each begins with epochs that none before it has given out.
    timeline: Arc<AtomicU32>,
}

type All = BTreeMap<(TenantId, ConversationId), Kept>;

/// What a record held at one moment.
pub struct Standby(All);

impl Standby {
    /// The state of a conversation, if it knows it.
    pub fn knows(&self, id: ConversationId) -> Option<ConversationState> {
        self.0.values().find(|kept| kept.conversation.id == id).map(|kept| kept.conversation.state)
    }
}

#[derive(Clone)]
struct Kept {
    conversation: Conversation,
    channels: BTreeMap<ChannelIndex, Channel>,
    /// In the order they came; the last one per task and utterance is current.
    insights: Vec<Insight>,
    watchers: Vec<mpsc::UnboundedSender<RecordEvent>>,
}

#[derive(Clone)]
struct Channel {
    view: ChannelView,
    segments: Vec<Segment>,
}

impl FakeConversations {
    /// From the next call on, in every method.
    pub fn behave(&self, behavior: Behavior) {
        self.conduct.behave(behavior)
    }

    /// Contexts of all calls so far.
    pub fn seen(&self) -> Vec<CallCx> {
        self.conduct.seen()
    }

    /// Waits until there were so many calls.
    pub async fn called(&self, times: usize) {
        self.conduct.called(times).await
    }

    /// Calls and watches now under way.
    pub fn running(&self) -> usize {
        self.conduct.running()
    }

    pub fn conduct(&self) -> Arc<Conduct> {
        self.conduct.clone()
    }

    /// Everything committed to a channel, in order.
    pub fn segments(&self, conversation: ConversationId, channel: ChannelIndex) -> Vec<Segment> {
        let kept = self.kept.lock();
        let found = kept.values().find(|kept| kept.conversation.id == conversation);
        found.and_then(|kept| kept.channels.get(&channel)).map(|channel| channel.segments.clone()).unwrap_or_default()
    }

    /// A standby that follows no more.
    pub fn standby(&self) -> Standby {
        Standby(self.kept.lock().clone())
    }

    /// The standby takes the record's place: what came after it is lost.
    pub fn promote(&self, standby: Standby) {
        let mut kept = self.kept.lock();
        self.timeline.fetch_add(1, Ordering::Relaxed);
        *kept = standby.0;
    }

    fn with<T>(&self, cx: &CallCx, id: ConversationId, f: impl FnOnce(&mut Kept) -> Result<T, CallError>) -> Result<T, CallError> {
        let mut kept = self.kept.lock();
        f(kept.get_mut(&(cx.tenant.clone(), id)).ok_or_else(|| CallError::not_found(format!("no conversation {id}")))?)
    }
}

#[async_trait]
impl Conversations for FakeConversations {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let mut all = self.kept.lock();
        if let Some(kept) = all.get(&(cx.tenant.clone(), request.id)) {
            return Ok(kept.conversation.clone());
        }
        if let Some(name) = &request.external_id
            && let Some(other) =
                all.values().find(|k| k.conversation.tenant == cx.tenant && k.conversation.external_id.as_ref() == Some(name))
        {
            return Err(CallError::conflict(format!("external id {name:?} belongs to {}", other.conversation.id)));
        }
        let conversation = Conversation {
            tenant: cx.tenant.clone(),
            id: request.id,
            external_id: request.external_id,
            title: request.title,
            source: request.source,
            language: request.language,
            tags: request.tags,
            state: ConversationState::Live,
            started_at: request.started_at,
            ended_at: None,
        };
        let channels = request.channels.into_iter().map(|spec| {
            let attached = Attached { epoch: crate::Epoch(0), safe: SamplePos::ZERO, next_seq: 0 };
            (spec.index, Channel { view: ChannelView { spec, attached }, segments: vec![] })
        });
        let kept = Kept { conversation: conversation.clone(), channels: channels.collect(), insights: vec![], watchers: vec![] };
        all.insert((cx.tenant, request.id), kept);
        Ok(conversation)
    }

    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        self.with(&cx, request.conversation, |kept| {
            let Attach { conversation, channel } = request;
            if kept.conversation.state != ConversationState::Live {
                return Err(CallError::conflict(format!("{conversation} is closed")));
            }
            let channel =
                kept.channels.get_mut(&channel).ok_or_else(|| CallError::not_found(format!("{conversation} has no channel {channel}")))?;
            let epoch = &mut channel.view.attached.epoch.0;
            *epoch = (*epoch + 1).max(self.timeline.load(Ordering::Relaxed) << 20);
            Ok(channel.view.attached)
        })
    }

    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let mut all = self.kept.lock();
        let outcomes = segments.into_iter().map(|segment| match all.get_mut(&(cx.tenant.clone(), segment.conversation)) {
            Some(kept) => kept.commit(segment),
            None => CommitOutcome::Stale,
        });
        Ok(outcomes.collect())
    }

    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let mut new = 0;
        for insight in insights {
            self.with(&cx, insight.conversation, |kept| {
                if kept.insights.iter().all(|known| known.id != insight.id) {
                    new += 1;
                    kept.tell(RecordEvent::Insight(insight.clone()));
                    kept.insights.push(insight);
                }
                Ok(())
            })?;
        }
        Ok(new)
    }

    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        if request.state == ConversationState::Live {
            return Err(CallError::invalid("a conversation is closed as complete or abandoned, not as live"));
        }
        self.with(&cx, request.conversation, |kept| {
            if kept.conversation.state == ConversationState::Live {
                kept.conversation.state = request.state;
                kept.conversation.ended_at = Some(request.ended_at);
                kept.tell(RecordEvent::Changed(kept.conversation.clone()));
            }
            Ok(kept.conversation.clone())
        })
    }

    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        let _running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        self.with(&cx, id, |kept| Ok(kept.view()))
    }

    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        let running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        let (tell, told) = mpsc::unbounded_channel();
        self.with(&cx, id, |kept| {
            kept.watchers.push(tell);
            Ok(())
        })?;
        let events = futures::stream::unfold((told, running), |(mut told, running)| async move {
            let event = told.recv().await?;
            Some((Ok(event), (told, running)))
        });
        Ok(events.boxed())
    }
}

impl Kept {
    fn commit(&mut self, segment: Segment) -> CommitOutcome {
        let live = self.conversation.state == ConversationState::Live;
        let Some(channel) = self.channels.get_mut(&segment.channel) else { return CommitOutcome::Stale };
        let known = channel.segments.iter().find(|s| s.seq == segment.seq && s.epoch == segment.epoch);
        if let Some(known) = known {
            let same = known.start == segment.start && known.end == segment.end;
            return if same { CommitOutcome::Duplicate } else { CommitOutcome::Mismatch };
        }
        let attached = &mut channel.view.attached;
        if !live || segment.epoch != attached.epoch {
            return CommitOutcome::Stale;
        }
        if segment.seq > attached.next_seq {
            return CommitOutcome::Ahead { next_seq: attached.next_seq, safe: attached.safe };
        }
        if segment.seq < attached.next_seq || segment.start != attached.safe || segment.end <= segment.start {
            return CommitOutcome::Mismatch;
        }
        attached.next_seq += 1;
        attached.safe = segment.end;
        let told = channel.event(&segment);
        channel.segments.push(segment);
        if let Some(event) = told {
            self.tell(event);
        }
        CommitOutcome::Committed
    }

    fn tell(&mut self, event: RecordEvent) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    fn view(&self) -> ConversationView {
        let mut view = ConversationView {
            conversation: self.conversation.clone(),
            channels: self.channels.values().map(|channel| channel.view.clone()).collect(),
            utterances: vec![],
            gaps: vec![],
            insights: vec![],
        };
        for channel in self.channels.values() {
            for event in channel.segments.iter().filter_map(|segment| channel.event(segment)) {
                match event {
                    RecordEvent::Utterance(utterance) => view.utterances.push(utterance),
                    RecordEvent::Gap(gap) => view.gaps.push(gap),
                    RecordEvent::Changed(_) | RecordEvent::Insight(_) => {}
                }
            }
        }
        view.utterances.sort_by_key(|utterance| (utterance.start_ms, utterance.channel));
        let newest: BTreeMap<_, _> = self.insights.iter().map(|insight| ((insight.utterance, insight.task), insight.id)).collect();
        view.insights.extend(self.insights.iter().filter(|i| newest.get(&(i.utterance, i.task)) == Some(&i.id)).cloned());
        view
    }
}

impl Channel {
    /// What a segment looks like to a reader; silence looks like nothing.
    fn event(&self, segment: &Segment) -> Option<RecordEvent> {
        let rate: SampleRate = self.view.spec.rate;
        match &segment.body {
            SegmentBody::Speech(spoken) => Some(RecordEvent::Utterance(Utterance {
                id: segment.utterance_id(),
                conversation: segment.conversation,
                channel: segment.channel,
                role: self.view.spec.role,
                start_ms: rate.ms_at(spoken.from),
                end_ms: rate.ms_at(spoken.to),
                words: spoken.words.clone(),
            })),
            SegmentBody::Gap { reason } => Some(RecordEvent::Gap(Gap {
                channel: segment.channel,
                start_ms: rate.ms_at(segment.start),
                end_ms: rate.ms_at(segment.end),
                reason: reason.clone(),
            })),
            SegmentBody::Silence => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        crate::testing::conversations_suite(std::sync::Arc::new(super::FakeConversations::default())).await;
    }
}
