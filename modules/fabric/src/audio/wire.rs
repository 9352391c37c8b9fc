//! `Audio` on the wire.

use crate::wire::{HEAD, NUMBER, Unreadable, Weight, channel, each, nanos, quickcomm::audio::v1 as pb, some, sum, text};
use contracts::{
    Encoding, SamplePos, SampleRate,
    audio::{
        ChannelSpec, Endpointing, Frame, HeardSegment, ModelInfo, Pace, Role, SegmentBody, SessionInfo, SpeechEvent, Spoken, StreamSpec,
        Word, WordTimes,
    },
};
use std::time::Duration;

impl From<StreamSpec> for pb::StreamSpec {
    fn from(spec: StreamSpec) -> Self {
        let pace = match spec.pace {
            Pace::Live => pb::Pace::Live,
            Pace::Batch => pb::Pace::Batch,
        };
        Self {
            encoding: encoding(spec.encoding).into(),
            rate_hz: spec.rate.hz(),
            start: spec.start.0,
            first_seq: spec.first_seq,
            language: spec.language,
            endpointing_ns: match spec.endpointing {
                Endpointing::Silence(time) => Some(nanos(time)),
                Endpointing::Off => None,
            },
            partials_ns: spec.partials.map(nanos),
            pace: pace.into(),
        }
    }
}

impl TryFrom<pb::StreamSpec> for StreamSpec {
    type Error = Unreadable;
    fn try_from(spec: pb::StreamSpec) -> Result<Self, Unreadable> {
        Ok(Self {
            encoding: read_encoding(spec.encoding)?,
            rate: rate(spec.rate_hz)?,
            start: SamplePos(spec.start),
            first_seq: spec.first_seq,
            language: spec.language,
            endpointing: spec.endpointing_ns.map_or(Endpointing::Off, |ns| Endpointing::Silence(Duration::from_nanos(ns))),
            partials: spec.partials_ns.map(Duration::from_nanos),
            pace: match pb::Pace::try_from(spec.pace) {
                Ok(pb::Pace::Live) => Pace::Live,
                Ok(pb::Pace::Batch) => Pace::Batch,
                Ok(pb::Pace::Unspecified) | Err(_) => return Err(Unreadable::unknown("pace", spec.pace)),
            },
        })
    }
}

impl Weight for StreamSpec {
    fn weight(&self) -> usize {
        text(&self.language) + 7 * NUMBER
    }
}

fn encoding(encoding: Encoding) -> pb::Encoding {
    match encoding {
        Encoding::Linear16 => pb::Encoding::Linear16,
        Encoding::Float32 => pb::Encoding::Float32,
        Encoding::Mulaw => pb::Encoding::Mulaw,
        Encoding::Alaw => pb::Encoding::Alaw,
    }
}

fn read_encoding(number: i32) -> Result<Encoding, Unreadable> {
    Ok(match pb::Encoding::try_from(number) {
        Ok(pb::Encoding::Linear16) => Encoding::Linear16,
        Ok(pb::Encoding::Float32) => Encoding::Float32,
        Ok(pb::Encoding::Mulaw) => Encoding::Mulaw,
        Ok(pb::Encoding::Alaw) => Encoding::Alaw,
        Ok(pb::Encoding::Unspecified) | Err(_) => return Err(Unreadable::unknown("encoding", number)),
    })
}

fn rate(hz: u32) -> Result<SampleRate, Unreadable> {
    SampleRate::new(hz).map_err(|_| Unreadable::unknown("a sample rate of", hz))
}

impl From<Frame> for pb::Frame {
    fn from(frame: Frame) -> Self {
        Self { pos: frame.pos.0, data: frame.data }
    }
}

impl From<pb::Frame> for Frame {
    fn from(frame: pb::Frame) -> Self {
        Self { pos: SamplePos(frame.pos), data: frame.data }
    }
}

impl From<SessionInfo> for pb::SessionInfo {
    fn from(info: SessionInfo) -> Self {
        let ModelInfo { name, version, family } = info.model;
        Self { model: name, version, family, credit_ns: nanos(info.credit) }
    }
}

impl From<pb::SessionInfo> for SessionInfo {
    fn from(info: pb::SessionInfo) -> Self {
        let model = ModelInfo { name: info.model, version: info.version, family: info.family };
        Self { model, credit: Duration::from_nanos(info.credit_ns) }
    }
}

impl From<SpeechEvent> for pb::Event {
    fn from(event: SpeechEvent) -> Self {
        use pb::event::Event;
        let event = match event {
            SpeechEvent::Started { at } => Event::Started(pb::event::Started { at: at.0 }),
            SpeechEvent::Partial { seq, rev, start, end, words, stable_words } => Event::Partial(pb::event::Partial {
                seq,
                rev,
                start: start.0,
                end: end.0,
                words: each(words),
                stable_words: stable_words as u64,
            }),
            SpeechEvent::Segment(HeardSegment { seq, start, end, body }) => {
                Event::Segment(pb::event::Segment { seq, start: start.0, end: end.0, body: Some(body.into()) })
            }
            SpeechEvent::Retracted { seq } => Event::Retracted(pb::event::Retracted { seq }),
            SpeechEvent::Flushed { token } => Event::Flushed(pb::event::Flushed { token }),
            SpeechEvent::Handover => Event::Handover(pb::event::Handover {}),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<pb::Event> for SpeechEvent {
    type Error = Unreadable;
    fn try_from(event: pb::Event) -> Result<Self, Unreadable> {
        use pb::event::Event;
        Ok(match event.event.ok_or_else(|| Unreadable::missing("event known to this release"))? {
            Event::Started(started) => Self::Started { at: SamplePos(started.at) },
            Event::Partial(partial) => Self::Partial {
                seq: partial.seq,
                rev: partial.rev,
                start: SamplePos(partial.start),
                end: SamplePos(partial.end),
                words: each(partial.words),
                stable_words: partial.stable_words as usize,
            },
            Event::Segment(segment) => Self::Segment(HeardSegment {
                seq: segment.seq,
                start: SamplePos(segment.start),
                end: SamplePos(segment.end),
                body: some(segment.body, "segment body")?,
            }),
            Event::Retracted(retracted) => Self::Retracted { seq: retracted.seq },
            Event::Flushed(flushed) => Self::Flushed { token: flushed.token },
            Event::Handover(_) => Self::Handover,
        })
    }
}

impl From<SegmentBody> for pb::SegmentBody {
    fn from(body: SegmentBody) -> Self {
        use pb::segment_body::{Body, Gap, Silence};
        let body = match body {
            SegmentBody::Speech(spoken) => Body::Speech(spoken.into()),
            SegmentBody::Silence => Body::Silence(Silence {}),
            SegmentBody::Gap { reason } => Body::Gap(Gap { reason }),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<pb::SegmentBody> for SegmentBody {
    type Error = Unreadable;
    fn try_from(body: pb::SegmentBody) -> Result<Self, Unreadable> {
        use pb::segment_body::Body;
        Ok(match body.body.ok_or_else(|| Unreadable::missing("segment body known to this release"))? {
            Body::Speech(spoken) => Self::Speech(spoken.try_into()?),
            Body::Silence(_) => Self::Silence,
            Body::Gap(gap) => Self::Gap { reason: gap.reason },
        })
    }
}

impl From<Spoken> for pb::Spoken {
    fn from(spoken: Spoken) -> Self {
        let word_times = match spoken.word_times {
            WordTimes::Estimated => pb::WordTimes::Estimated,
            WordTimes::Model => pb::WordTimes::Model,
        };
        Self {
            words: each(spoken.words),
            from: spoken.from.0,
            to: spoken.to.0,
            confidence: spoken.confidence,
            speech_final: spoken.speech_final,
            word_times: word_times.into(),
            model: spoken.model,
            decode_ms: spoken.decode_ms,
        }
    }
}

impl TryFrom<pb::Spoken> for Spoken {
    type Error = Unreadable;
    fn try_from(spoken: pb::Spoken) -> Result<Self, Unreadable> {
        Ok(Self {
            words: each(spoken.words),
            from: SamplePos(spoken.from),
            to: SamplePos(spoken.to),
            confidence: spoken.confidence,
            speech_final: spoken.speech_final,
            word_times: match pb::WordTimes::try_from(spoken.word_times) {
                Ok(pb::WordTimes::Estimated) => WordTimes::Estimated,
                Ok(pb::WordTimes::Model) => WordTimes::Model,
                Ok(pb::WordTimes::Unspecified) | Err(_) => return Err(Unreadable::unknown("sort of word times", spoken.word_times)),
            },
            model: spoken.model,
            decode_ms: spoken.decode_ms,
        })
    }
}

impl From<Word> for pb::Word {
    fn from(word: Word) -> Self {
        Self { text: word.text, start_ms: word.start_ms, end_ms: word.end_ms, confidence: word.confidence }
    }
}

impl From<pb::Word> for Word {
    fn from(word: pb::Word) -> Self {
        Self { text: word.text, start_ms: word.start_ms, end_ms: word.end_ms, confidence: word.confidence }
    }
}

impl Weight for Word {
    fn weight(&self) -> usize {
        text(&self.text) + 3 * NUMBER
    }
}

impl Weight for SegmentBody {
    fn weight(&self) -> usize {
        HEAD + match self {
            Self::Speech(spoken) => sum(&spoken.words) + text(&spoken.model) + 6 * NUMBER,
            Self::Silence => 0,
            Self::Gap { reason } => text(reason),
        }
    }
}

pub(crate) fn role(role: Role) -> pb::Role {
    match role {
        Role::Agent => pb::Role::Agent,
        Role::Customer => pb::Role::Customer,
        Role::Unknown => pb::Role::Unknown,
    }
}

pub(crate) fn read_role(number: i32) -> Result<Role, Unreadable> {
    Ok(match pb::Role::try_from(number) {
        Ok(pb::Role::Agent) => Role::Agent,
        Ok(pb::Role::Customer) => Role::Customer,
        Ok(pb::Role::Unknown) => Role::Unknown,
        Ok(pb::Role::Unspecified) | Err(_) => return Err(Unreadable::unknown("role", number)),
    })
}

impl From<ChannelSpec> for pb::ChannelSpec {
    fn from(spec: ChannelSpec) -> Self {
        Self { index: spec.index.0.into(), role: role(spec.role).into(), encoding: encoding(spec.encoding).into(), rate_hz: spec.rate.hz() }
    }
}

impl TryFrom<pb::ChannelSpec> for ChannelSpec {
    type Error = Unreadable;
    fn try_from(spec: pb::ChannelSpec) -> Result<Self, Unreadable> {
        Ok(Self {
            index: channel(spec.index)?,
            role: read_role(spec.role)?,
            encoding: read_encoding(spec.encoding)?,
            rate: rate(spec.rate_hz)?,
        })
    }
}

impl Weight for ChannelSpec {
    fn weight(&self) -> usize {
        4 * NUMBER
    }
}
