//! The record as its callers meet it, on a real database.

mod commit_rule;
mod dead_letters;
mod feed;
mod group;
mod kept;
mod read;

use super::*;
use contracts::{
    CallCx, ChannelIndex, Conversations as _, Encoding, Epoch, InsightId, RunId, SamplePos, SampleRate, TraceCx, UtteranceId,
    audio::{ChannelSpec, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, Close, CommitOutcome, OpenConversation, Segment},
    inference::{Insight, Label, Provenance, Tier},
};
use platform::bus::Memory;
use std::{ops::Range, time::Duration};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const AGENT: ChannelIndex = ChannelIndex(0);
const CUSTOMER: ChannelIndex = ChannelIndex(1);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(20))
}

/// A record on a folder of its own, recorder and relay running.
struct Running {
    record: Arc<Record>,
    bus: Arc<dyn Bus>,
    folder: TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bus: Arc<dyn Bus> = Arc::new(Memory::default());
        let record = Record::open(folder.path(), bus.clone(), &settings).await.expect("an empty folder opens");
        let stop = CancellationToken::new();
        let task = tokio::spawn(record.clone().run(stop.clone()));
        Self { record, bus, folder, stop, task }
    }

    /// Ends in order; the folder stays.
    async fn end(self) -> TempDir {
        self.stop.cancel();
        self.task.await.expect("recorder and relay end");
        self.record.drain().await;
        self.folder
    }

    /// A conversation with an agent and a customer, 8 kHz each; attached to both.
    async fn call(&self) -> Call {
        self.call_named(None, &[]).await
    }

    async fn call_named(&self, title: Option<&str>, tags: &[&str]) -> Call {
        let id = ConversationId::fresh();
        self.record.open(cx(), opening(id, title, tags)).await.expect("a new conversation opens");
        let mut epochs = vec![];
        for channel in [AGENT, CUSTOMER] {
            epochs.push(self.record.attach(cx(), Attach { conversation: id, channel }).await.expect("attaches").epoch);
        }
        Call { id, epochs }
    }

    async fn commit(&self, segments: &[Segment]) -> Vec<CommitOutcome> {
        self.record.commit(cx(), segments.to_vec()).await.expect("a commit is answered")
    }

    async fn close(&self, call: &Call, state: ConversationState) {
        self.record.close(cx(), Close { conversation: call.id, state, ended_at: Utc::now() }).await.expect("closes");
    }
}

fn opening(id: ConversationId, title: Option<&str>, tags: &[&str]) -> OpenConversation {
    let channel = |index, role| ChannelSpec { index, role, encoding: Encoding::Mulaw, rate: SampleRate::HZ_8000 };
    OpenConversation {
        id,
        external_id: None,
        title: title.map(str::to_owned),
        source: "native".into(),
        language: "en".into(),
        tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        channels: vec![channel(AGENT, Role::Agent), channel(CUSTOMER, Role::Customer)],
        started_at: Utc::now(),
    }
}

struct Call {
    id: ConversationId,
    epochs: Vec<Epoch>,
}

impl Call {
    /// `range` in ms.
    fn segment(&self, channel: ChannelIndex, seq: u64, range: Range<u64>, body: SegmentBody) -> Segment {
        Segment {
            conversation: self.id,
            channel,
            epoch: self.epochs[channel.0 as usize],
            seq,
            start: SamplePos(range.start * 8),
            end: SamplePos(range.end * 8),
            body,
            trace: TraceCx::root(),
        }
    }

    fn says(&self, channel: ChannelIndex, seq: u64, range: Range<u64>, text: &str) -> Segment {
        self.segment(channel, seq, range.clone(), speech(text, range))
    }

    fn insight(&self, utterance: UtteranceId, task: Task, config: &str, label: Option<(&str, f32)>) -> Insight {
        let run = RunId::live(self.id, task.name(), config);
        Insight {
            id: InsightId::of(run, utterance),
            run,
            conversation: self.id,
            utterance,
            task,
            labels: label.iter().map(|(name, score)| Label { name: (*name).into(), score: *score }).collect(),
            abstained: label.is_none().then(|| "too little was said".into()),
            evidence: vec![],
            provenance: Provenance {
                tier: Tier::Local,
                model: "model 1".into(),
                degraded_from: None,
                config_hash: config.into(),
                latency_ms: 3,
            },
        }
    }
}

/// Words spread evenly over `range`, in ms.
fn speech(text: &str, range: Range<u64>) -> SegmentBody {
    let words: Vec<&str> = text.split(' ').collect();
    let each = (range.end - range.start) / words.len() as u64;
    let word = |(n, text): (usize, &&str)| {
        let start = range.start + n as u64 * each;
        Word { text: (*text).into(), start_ms: start as u32, end_ms: (start + each) as u32, confidence: 0.9 }
    };
    SegmentBody::Speech(Spoken {
        words: words.iter().enumerate().map(word).collect(),
        from: SamplePos(range.start * 8),
        to: SamplePos(range.end * 8),
        confidence: 0.9,
        speech_final: true,
        word_times: WordTimes::Estimated,
        model: "model 1".into(),
        decode_ms: 40,
    })
}
