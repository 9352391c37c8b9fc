//! A whole file through the contract `Audio`, as fast as there is room. What the command line uses; conversations and sockets are absent.

use bytes::Bytes;
use contracts::{
    Audio, CallCx, CallError, ChannelIndex, Encoding, SampleRate,
    audio::{Endpointing, HeardSegment, Pace, Session, SpeechEvent, StreamSpec},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What to hear: decoded samples, one vector per channel, full scale ±1.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub rate: SampleRate,
    pub channels: Vec<Vec<f32>>,
    /// BCP-47.
    pub language: String,
    pub endpointing: Endpointing,
}

/// How far it is: audio heard of audio there is, all channels together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub heard: Duration,
    pub total: Duration,
}

/// Hears every channel and returns the segments of all of them, ordered by their start.
///
/// # Errors
/// What the module answered to the first channel it would not hear, or the reason it stopped with.
pub async fn transcribe(
    audio: &dyn Audio,
    cx: CallCx,
    recorded: Recorded,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<Vec<(ChannelIndex, HeardSegment)>, CallError> {
    let Recorded { rate, channels, language, endpointing } = recorded;
    let total: u64 = channels.iter().map(|samples| samples.len() as u64).sum();
    let spec = StreamSpec { language, endpointing, partials: None, pace: Pace::Batch, ..StreamSpec::live(Encoding::Float32, rate) };
    // Everybody is admitted before anybody is heard.
    let mut sessions = Vec::with_capacity(channels.len());
    for _ in &channels {
        sessions.push(audio.open(cx.clone(), spec.clone()).await?);
    }
    let heard = AtomicU64::new(0);
    let moved = |samples: u64| {
        let heard = heard.fetch_add(samples, Ordering::Relaxed) + samples;
        progress(Progress { heard: rate.time_of(heard), total: rate.time_of(total) });
    };
    let each = sessions.into_iter().zip(channels).zip(0u8..);
    let hearing = each.map(|((session, samples), index)| hear(session, samples, rate, &moved, ChannelIndex(index)));
    let mut segments: Vec<_> = futures::future::try_join_all(hearing).await?.into_iter().flatten().collect();
    segments.sort_by_key(|(channel, segment)| (segment.start, *channel));
    Ok(segments)
}

async fn hear(
    session: Session,
    samples: Vec<f32>,
    rate: SampleRate,
    moved: &(impl Fn(u64) + Sync),
    channel: ChannelIndex,
) -> Result<Vec<(ChannelIndex, HeardSegment)>, CallError> {
    let Session { mut frames, mut events, .. } = session;
    let send = async move {
        for piece in samples.chunks(rate.hz() as usize / 10) {
            let bytes: Vec<u8> = piece.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            frames.send(Bytes::from(bytes)).await?;
        }
        frames.finish();
        Ok(())
    };
    let listen = async {
        let mut segments = vec![];
        while let Some(event) = events.next().await {
            if let SpeechEvent::Segment(segment) = event? {
                moved(segment.end.since(segment.start));
                segments.push((channel, segment));
            }
        }
        Ok(segments)
    };
    let ((), segments) = tokio::try_join!(send, listen)?;
    Ok(segments)
}
