//! Turns on a bus, and the insights that come of them.
#![allow(dead_code)] // each of those who use it uses its own part
#![allow(clippy::unwrap_used)] // as in any test

use contracts::{
    ChannelIndex, ConversationId, Epoch, SamplePos, TraceCx,
    audio::{SegmentBody, Spoken, Word, WordTimes},
    conversation::Segment,
    inference::Insight,
    signal::UTTERANCES,
};
use platform::bus::{Bus, Consumer, NewEntry};
use std::time::Duration;

/// More than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A second of somebody's words, as they leave the ingest.
pub fn speech(conversation: ConversationId, seq: u64, text: &str) -> Segment {
    let word = |w: &str| Word { text: w.into(), start_ms: seq as u32 * 1_000, end_ms: seq as u32 * 1_000 + 500, confidence: 1.0 };
    let (start, end) = (SamplePos(seq * 16_000), SamplePos((seq + 1) * 16_000));
    let spoken = Spoken {
        words: text.split(' ').map(word).collect(),
        from: start,
        to: end,
        confidence: 1.0,
        speech_final: true,
        word_times: WordTimes::Estimated,
        model: "fake".into(),
        decode_ms: 1,
    };
    let body = SegmentBody::Speech(spoken);
    Segment { conversation, channel: ChannelIndex(0), epoch: Epoch(1), seq, start, end, body, trace: TraceCx::root() }
}

pub fn entry(segment: &Segment) -> NewEntry {
    let payload = serde_json::to_vec(segment).unwrap().into();
    NewEntry { key: segment.conversation.to_string(), payload, trace: segment.trace }
}

pub async fn say(bus: &dyn Bus, segment: &Segment) {
    bus.publish(UTTERANCES, vec![entry(segment)]).await.unwrap();
}

/// Waits for at least `count` insights, acknowledging them.
pub async fn hear(insights: &mut dyn Consumer, count: usize) -> Vec<Insight> {
    let mut heard = vec![];
    while heard.len() < count {
        let more = tokio::time::timeout(PATIENCE, insights.next(count)).await.expect("insights come").unwrap();
        insights.ack(&more.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
        heard.extend(more.iter().map(|d| serde_json::from_slice::<Insight>(&d.payload).unwrap()));
    }
    heard
}
