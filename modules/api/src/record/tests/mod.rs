//! The record as its callers meet it, on real databases: SQLite, and a PostgreSQL of the tests' own.

mod commit_rule;
mod copy;
mod dead_letters;
mod failover;
mod faults;
mod feed;
mod finalize;
mod group;
mod kept;
mod migrations;
#[path = "../../../../../tests/it/support/faults.rs"]
mod often;
#[path = "../../../../../tests/it/support/postgres.rs"]
mod postgres;
mod read;
mod reconcile;
mod relocate;
mod replica;
mod shared;
#[path = "../../../../../tests/it/support/volume.rs"]
mod volume;

/// Makes each of these functions a test on both databases.
macro_rules! on_both {
    ($($name:ident,)+) => {
        $(mod $name {
            use super::super::On;
            #[tokio::test]
            async fn on_sqlite() {
                super::$name(On::Sqlite).await;
            }
            #[tokio::test]
            async fn on_postgres() {
                if On::Postgres.is_here() {
                    super::$name(On::Postgres).await;
                }
            }
        })+
    };
}
use on_both;

use super::*;
use crate::settings::DatabaseUrl;
use contracts::{
    CallCx, ChannelIndex, Conversations as _, Encoding, Epoch, InsightId, RunId, SamplePos, SampleRate, TraceCx, UtteranceId,
    audio::{ChannelSpec, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, Close, CommitOutcome, OpenConversation, Segment},
    inference::{Insight, Label, Provenance, Tier},
};
use platform::bus::Memory;
use std::{ops::Range, sync::OnceLock, time::Duration};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const AGENT: ChannelIndex = ChannelIndex(0);
const CUSTOMER: ChannelIndex = ChannelIndex(1);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(20))
}

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Sqlite,
    Postgres,
}

impl On {
    fn is_here(self) -> bool {
        self == Self::Sqlite || postgres::shared().is_some()
    }

    /// Of a record that is empty and nobody else's.
    fn settings(self) -> Settings {
        let mut settings = Settings::default();
        if self == Self::Postgres {
            let server = postgres::shared().expect("looked for before");
            let database = server.database(template(server));
            settings.record.url = DatabaseUrl::new(server.url("postgres", &database));
        }
        settings
    }
}

/// An empty database with our schema, to be copied.
fn template(server: &postgres::Postgres) -> &'static str {
    static TEMPLATE: OnceLock<String> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let name = server.database("template0");
        migrate(&server.url("postgres", &name));
        name
    })
}

fn migrate(url: &str) {
    let settings = RecordSettings { url: DatabaseUrl::new(url), ..RecordSettings::default() };
    // A thread of its own: some tests are on a runtime, which must not be blocked.
    let migrating = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(operate::migrate(PathBuf::new(), settings)).expect("the schema");
    });
    migrating.join().expect("no panic");
}

/// A record on a folder of its own, recorder and relay running.
struct Running {
    record: Arc<Record>,
    bus: Arc<dyn Bus>,
    settings: Settings,
    folder: TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(on: On) -> Self {
        Self::with(on.settings()).await
    }

    async fn with(settings: Settings) -> Self {
        Self::again(tempfile::tempdir().expect("a temporary folder"), Arc::new(Memory::default()), settings).await
    }

    /// On what another one has left.
    async fn again(folder: TempDir, bus: Arc<dyn Bus>, settings: Settings) -> Self {
        let record = Record::open(folder.path(), bus.clone(), &settings).await.expect("the record opens");
        let stop = CancellationToken::new();
        let task = tokio::spawn(record.clone().run(stop.clone()));
        Self { record, bus, settings, folder, stop, task }
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
        self.record.close(cx(), Close { conversation: call.id, state, ended_at: Utc::now(), heard: vec![] }).await.expect("closes");
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
                prompt: None,
                late: false,
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
