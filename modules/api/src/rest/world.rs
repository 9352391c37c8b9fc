//! A record on a temporary folder with the API on it, and people who talk: what the tests of `rest` and `live` stand on.

use super::{Api, ApiDeps};
use crate::{Record, Settings, admin::Status};
use chrono::Utc;
use contracts::{
    CallCx, ChannelIndex, ConversationId, Conversations, Encoding, InsightId, RunId, SamplePos, SampleRate, TenantId, TraceCx, UtteranceId,
    audio::{ChannelSpec, Role, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, Attached, Close, CommitOutcome, ConversationState, OpenConversation, Segment},
    inference::{Evidence, Insight, Label, Provenance, Task, Tier},
    signal::{LIVE, Live, LiveBody},
    testing::FakeInference,
};
use parking_lot::Mutex;
use platform::bus::{Bus, Memory};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

pub(crate) const RATE: SampleRate = SampleRate::HZ_8000;

pub(crate) struct World {
    pub(crate) record: Arc<Record>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) inference: FakeInference,
    pub(crate) status: Status,
    pub(crate) api: Api,
    pub(crate) tenant: TenantId,
    /// Stops record and live feed.
    pub(crate) stop: CancellationToken,
    /// Ends with the world: stops listeners.
    pub(crate) over: CancellationToken,
    channels: Mutex<HashMap<(ConversationId, u8), Attached>>,
    _data: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.over.cancel();
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let data = tempfile::tempdir().unwrap();
        let bus: Arc<dyn Bus> = Arc::new(Memory::default());
        let record = Record::open(data.path(), bus.clone(), &settings).await.unwrap();
        let (inference, status, stop) = (FakeInference::default(), Status::new("0.0.0", true), CancellationToken::new());
        let api = Api::new(ApiDeps {
            record: record.clone(),
            inference: Arc::new(inference.clone()),
            bus: bus.clone(),
            status: status.clone(),
            has_recording: Arc::new(|id| id.as_u128() % 2 == 1),
            settings,
        });
        tokio::spawn(record.clone().run(stop.clone()));
        let (running, stopping) = (api.clone(), stop.clone());
        tokio::spawn(async move { running.run(stopping).await });
        Self {
            record,
            bus,
            inference,
            status,
            api,
            tenant: TenantId::default(),
            stop,
            over: CancellationToken::new(),
            channels: Mutex::default(),
            _data: data,
        }
    }

    fn cx(&self) -> CallCx {
        let mut cx = CallCx::new(Duration::from_secs(10));
        cx.tenant = self.tenant.clone();
        cx
    }

    pub(crate) async fn open(&self, title: &str) -> ConversationId {
        self.open_as(ConversationId::fresh(), title).await
    }

    pub(crate) async fn open_as(&self, id: ConversationId, title: &str) -> ConversationId {
        let channel = |index, role| ChannelSpec { index: ChannelIndex(index), role, encoding: Encoding::Mulaw, rate: RATE };
        let request = OpenConversation {
            id,
            external_id: None,
            title: Some(title.into()),
            source: "native".into(),
            language: "en".into(),
            tags: vec!["test".into()],
            channels: vec![channel(0, Role::Agent), channel(1, Role::Customer)],
            started_at: Utc::now(),
        };
        self.record.open(self.cx(), request).await.unwrap();
        for channel in 0..2 {
            let attach = Attach { conversation: id, channel: ChannelIndex(channel) };
            let attached = self.record.attach(self.cx(), attach).await.unwrap();
            self.channels.lock().insert((id, channel), attached);
        }
        id
    }

    /// Id of what is said next on this channel.
    pub(crate) fn next(&self, id: ConversationId, channel: u8) -> UtteranceId {
        let at = self.channels.lock()[&(id, channel)];
        UtteranceId::of(id, ChannelIndex(channel), at.epoch, at.next_seq)
    }

    /// Half a second per word.
    pub(crate) async fn say(&self, id: ConversationId, channel: u8, text: &str) -> UtteranceId {
        let from = self.channels.lock()[&(id, channel)].safe;
        let start_ms = RATE.ms_at(from) as u32;
        let word = |(n, text): (usize, &str)| {
            let start_ms = start_ms + 500 * n as u32;
            Word { text: text.into(), start_ms, end_ms: start_ms + 400, confidence: 0.9 }
        };
        let words: Vec<Word> = text.split(' ').enumerate().map(word).collect();
        let samples = RATE.samples_in(Duration::from_millis(500 * words.len() as u64));
        let spoken = Spoken {
            words,
            from,
            to: from + samples,
            confidence: 0.9,
            speech_final: true,
            word_times: WordTimes::Estimated,
            model: "test 1".into(),
            decode_ms: 5,
        };
        self.commit(id, channel, samples, SegmentBody::Speech(spoken)).await
    }

    pub(crate) async fn gap(&self, id: ConversationId, channel: u8, ms: u64) -> UtteranceId {
        self.commit(id, channel, RATE.samples_in(Duration::from_millis(ms)), SegmentBody::Gap { reason: "lost".into() }).await
    }

    pub(crate) async fn silence(&self, id: ConversationId, channel: u8, ms: u64) {
        self.commit(id, channel, RATE.samples_in(Duration::from_millis(ms)), SegmentBody::Silence).await;
    }

    async fn commit(&self, id: ConversationId, channel: u8, samples: u64, body: SegmentBody) -> UtteranceId {
        let at = self.channels.lock()[&(id, channel)];
        let segment = Segment {
            conversation: id,
            channel: ChannelIndex(channel),
            epoch: at.epoch,
            seq: at.next_seq,
            start: at.safe,
            end: SamplePos(at.safe.0 + samples),
            body,
            trace: TraceCx::root(),
        };
        let (utterance, end) = (segment.utterance_id(), segment.end);
        assert_eq!(self.record.commit(self.cx(), vec![segment]).await.unwrap(), [CommitOutcome::Committed]);
        self.channels.lock().insert((id, channel), Attached { safe: end, next_seq: at.next_seq + 1, ..at });
        utterance
    }

    /// `run` tells runs apart: a higher one supersedes.
    pub(crate) async fn mean(&self, id: ConversationId, utterance: UtteranceId, task: Task, label: &str, run: u32) -> InsightId {
        let run = RunId::live(id, task.name(), &run.to_string());
        let insight = Insight {
            id: InsightId::of(run, utterance),
            run,
            conversation: id,
            utterance,
            task,
            labels: vec![Label { name: label.into(), score: 0.8 }],
            abstained: None,
            evidence: vec![Evidence { utterance, word_from: 0, word_to: 1 }],
            provenance: Provenance {
                tier: Tier::Rules,
                model: "test 1".into(),
                degraded_from: None,
                config_hash: "test".into(),
                latency_ms: 1,
                prompt: None,
                late: false,
            },
        };
        let id = insight.id;
        self.record.record(self.cx(), vec![insight]).await.unwrap();
        id
    }

    pub(crate) async fn close(&self, id: ConversationId) {
        let close = Close { conversation: id, state: ConversationState::Complete, ended_at: Utc::now(), heard: vec![] };
        self.record.close(self.cx(), close).await.unwrap();
    }

    pub(crate) async fn signal(&self, id: ConversationId, channel: u8, body: LiveBody) {
        let signal = Live { tenant: self.tenant.clone(), conversation: id, channel: ChannelIndex(channel), trace: TraceCx::root(), body };
        self.bus.signal(LIVE, serde_json::to_vec(&signal).unwrap().into()).await.unwrap();
    }

    pub(crate) async fn partial(&self, id: ConversationId, channel: u8, utterance: UtteranceId, rev: u32, text: &str) {
        let words = text.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 1, confidence: 0.5 }).collect();
        self.signal(id, channel, LiveBody::Partial { utterance, rev, start_ms: 0, end_ms: 1, words, stable_words: 0 }).await
    }
}
