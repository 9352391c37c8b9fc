//! A record full of conversations, written by the record itself.

use api::Record;
use chrono::Utc;
use contracts::{
    CallCx, ChannelIndex, ConversationId, Conversations as _, Encoding, InsightId, RunId, SamplePos, SampleRate, TraceCx,
    audio::{ChannelSpec, Role, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, OpenConversation, Segment},
    inference::{Insight, Label, Provenance, Task, Tier},
};
use platform::bus::Memory;
use std::{path::Path, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const UTTERANCES: u64 = 12;
const WORDS: u32 = 8;

/// With a dozen utterances of eight words, intent and sentiment of each. Newest last. Left open: what closes is summed up, which is another
/// question.
pub async fn conversations(folder: &Path, settings: &api::Settings, count: usize) -> anyhow::Result<Vec<String>> {
    let record = Record::open(folder, Arc::new(Memory::default()), settings).await?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(record.clone().run(stop.clone()));
    let mut ids = vec![];
    for chunk in 0..count.div_ceil(50) {
        let made = (chunk * 50..count.min(chunk * 50 + 50)).map(|n| conversation(&record, n));
        ids.extend(futures::future::try_join_all(made).await?);
    }
    stop.cancel();
    running.await?;
    record.drain().await;
    Ok(ids)
}

async fn conversation(record: &Record, n: usize) -> anyhow::Result<String> {
    let cx = || CallCx::new(Duration::from_secs(60));
    let id = ConversationId::fresh();
    let rate = SampleRate::HZ_8000;
    let channel = ChannelIndex(0);
    let request = OpenConversation {
        id,
        external_id: None,
        title: Some(format!("Call {n}")),
        source: "native".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![ChannelSpec { index: channel, role: Role::Customer, encoding: Encoding::Mulaw, rate }],
        started_at: Utc::now(),
    };
    record.open(cx(), request).await?;
    let epoch = record.attach(cx(), Attach { conversation: id, channel }).await?.epoch;
    let segments: Vec<Segment> = (0..UTTERANCES)
        .map(|seq| {
            let (start, end) = (SamplePos(seq * 32_000), SamplePos((seq + 1) * 32_000));
            let word = |n: u32| {
                let start_ms = seq as u32 * 4_000 + n * 500;
                Word {
                    text: ["about", "the", "bill", "that", "came", "on", "Monday", "again"][n as usize].into(),
                    start_ms,
                    end_ms: start_ms + 400,
                    confidence: 0.9,
                }
            };
            let spoken = Spoken {
                words: (0..WORDS).map(word).collect(),
                from: start,
                to: end,
                confidence: 0.9,
                speech_final: true,
                word_times: WordTimes::Estimated,
                model: "bench 1".into(),
                decode_ms: 40,
            };
            Segment { conversation: id, channel, epoch, seq, start, end, body: SegmentBody::Speech(spoken), trace: TraceCx::root() }
        })
        .collect();
    let mut insights = vec![];
    for (task, label) in [(Task::Intent, "billing"), (Task::Sentiment, "negative")] {
        let run = RunId::live(id, task.name(), "bench");
        insights.extend(segments.iter().map(|segment| Insight {
            id: InsightId::of(run, segment.utterance_id()),
            run,
            conversation: id,
            utterance: segment.utterance_id(),
            task,
            labels: vec![Label { name: label.into(), score: 0.8 }],
            abstained: None,
            evidence: vec![],
            provenance: Provenance {
                tier: Tier::Local,
                model: "bench 1".into(),
                degraded_from: None,
                config_hash: "bench".into(),
                latency_ms: 3,
                prompt: None,
                late: false,
            },
        }));
    }
    record.commit(cx(), segments).await?;
    record.record(cx(), insights).await?;
    Ok(id.to_string())
}
