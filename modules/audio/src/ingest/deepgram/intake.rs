//! Bytes as a Deepgram caller sends them to whole samples of single channels: interleaving, torn samples, downmix, and the head of a wav
//! file that is streamed without saying what it holds.

use crate::engine::decode;
use bytes::{Bytes, BytesMut};
use contracts::{Encoding, SampleRate};

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) encoding: Encoding,
    pub(super) rate: SampleRate,
    pub(super) channels: usize,
}

/// Splits a stream into channels.
pub(super) struct Intake {
    format: Format,
    downmix: bool,
    /// The beginning of a frame whose rest is in the next message.
    torn: BytesMut,
}

impl Intake {
    /// Without `multichannel` several channels become one.
    pub(super) fn new(format: Format, multichannel: bool) -> Self {
        Self { format, downmix: format.channels > 1 && !multichannel, torn: BytesMut::new() }
    }

    /// Channels that come out, and their encoding.
    pub(super) fn out(&self) -> (usize, Encoding) {
        if self.downmix { (1, Encoding::Linear16) } else { (self.format.channels, self.format.encoding) }
    }

    /// The whole samples so far, one stretch per channel.
    pub(super) fn take(&mut self, data: Bytes) -> Vec<Bytes> {
        let Format { encoding, channels, .. } = self.format;
        let width = encoding.bytes_per_sample();
        let frame = width * channels;
        let mut data = if self.torn.is_empty() {
            data
        } else {
            self.torn.extend_from_slice(&data);
            self.torn.split().freeze()
        };
        let whole = data.len() - data.len() % frame;
        self.torn.extend_from_slice(&data.split_off(whole));
        if channels == 1 {
            return vec![data];
        }
        if self.downmix {
            let mut samples = vec![];
            decode::samples(encoding, &data, &mut samples);
            let mixed = samples.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32);
            return vec![linear16(mixed)];
        }
        let mut out: Vec<BytesMut> = (0..channels).map(|_| BytesMut::with_capacity(data.len() / channels)).collect();
        for frame in data.chunks_exact(frame) {
            for (channel, sample) in out.iter_mut().zip(frame.chunks_exact(width)) {
                channel.extend_from_slice(sample);
            }
        }
        out.into_iter().map(BytesMut::freeze).collect()
    }
}

/// Samples from -1 to 1 as 16-bit ones.
pub(super) fn linear16(samples: impl Iterator<Item = f32>) -> Bytes {
    samples.flat_map(|sample| ((sample * 32_768.0).round().clamp(-32_768.0, 32_767.0) as i16).to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Reads the head of a wav file that arrives in pieces.
#[derive(Default)]
pub(super) struct Sniffer {
    head: BytesMut,
}

/// More than this before the sound begins is no wav file anybody streams.
const MOST_HEAD_BYTES: usize = 1 << 20;

#[derive(Debug, PartialEq)]
pub(super) enum Sniffed {
    /// Not enough yet.
    More,
    /// The sound begins with these bytes.
    Wav(Format, Bytes),
    /// What was expected.
    Unknown(String),
}

impl Sniffer {
    pub(super) fn take(&mut self, data: &[u8]) -> Sniffed {
        self.head.extend_from_slice(data);
        let expected = "the bytes are no wav stream: expected a RIFF/WAVE header, or encoding and sample_rate in the query";
        for (at, text) in [(0, b"RIFF"), (8, b"WAVE")] {
            let found = self.head.get(at..self.head.len().min(at + 4)).unwrap_or_default();
            if !text.starts_with(found) {
                return Sniffed::Unknown(expected.into());
            }
        }
        match self.chunks() {
            Ok(Some((format, start))) => Sniffed::Wav(format, self.head.split_off(start).freeze()),
            Ok(None) if self.head.len() > MOST_HEAD_BYTES => Sniffed::Unknown(expected.into()),
            Ok(None) => Sniffed::More,
            Err(reason) => Sniffed::Unknown(reason),
        }
    }

    /// The format and where the sound begins, once both are there.
    fn chunks(&self) -> Result<Option<(Format, usize)>, String> {
        let mut at = 12;
        let mut format = None;
        loop {
            let Some(chunk) = self.head.get(at..at + 8) else { return Ok(None) };
            let size = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]) as usize;
            match &chunk[..4] {
                b"fmt " => {
                    let Some(body) = self.head.get(at + 8..at + 8 + size.min(40)) else { return Ok(None) };
                    format = Some(wave_format(body)?);
                }
                b"data" => {
                    let format = format.ok_or("the wav stream has sound before its format: expected a fmt chunk first")?;
                    return Ok(Some((format, at + 8)));
                }
                _ => {}
            }
            at = at.saturating_add(8).saturating_add(size).saturating_add(size % 2);
        }
    }
}

fn wave_format(body: &[u8]) -> Result<Format, String> {
    let number =
        |at: usize| body.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).ok_or("the wav stream's fmt chunk is too short");
    let (mut tag, channels, bits) = (number(0)?, number(2)?, number(14)?);
    let hz = u32::from(number(4)?) | u32::from(number(6)?) << 16;
    if tag == 0xfffe {
        tag = number(24)?; // extensible: the real tag is the head of a GUID
    }
    let encoding = match (tag, bits) {
        (1, 16) => Encoding::Linear16,
        (3, 32) => Encoding::Float32,
        (7, 8) => Encoding::Mulaw,
        (6, 8) => Encoding::Alaw,
        _ => {
            return Err(format!(
                "wav format {tag} with {bits} bits is not supported live: expected 16-bit PCM, 32-bit float, mu-law or A-law"
            ));
        }
    };
    let rate = SampleRate::new(hz).map_err(|error| error.to_string())?;
    if !(1..=2).contains(&channels) {
        return Err(format!("{channels} channels are not supported: expected 1 or 2"));
    }
    Ok(Format { encoding, rate, channels: channels.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEREO: Format = Format { encoding: Encoding::Linear16, rate: SampleRate::HZ_8000, channels: 2 };

    fn wav(tag: u16, bits: u16, channels: u16, hz: u32) -> Vec<u8> {
        let mut head = b"RIFF\xff\xff\xff\xffWAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        for part in [tag, channels] {
            head.extend(part.to_le_bytes());
        }
        head.extend(hz.to_le_bytes());
        head.extend([0; 6]);
        head.extend(bits.to_le_bytes());
        head.extend(b"data\xff\xff\xff\xff");
        head
    }

    #[test]
    fn channels_are_taken_apart_however_the_bytes_are_cut() {
        let samples: Vec<u8> = (0..40i16).flat_map(i16::to_le_bytes).collect();
        for cut in 1..9 {
            let mut intake = Intake::new(STEREO, true);
            let mut out = [vec![], vec![]];
            for piece in samples.chunks(cut) {
                for (all, part) in out.iter_mut().zip(intake.take(Bytes::copy_from_slice(piece))) {
                    all.extend_from_slice(&part);
                }
            }
            let expected = |odd: i16| (0..20).flat_map(|n| (2 * n + odd).to_le_bytes()).collect::<Vec<u8>>();
            assert_eq!(out, [expected(0), expected(1)], "in pieces of {cut} bytes");
        }
    }

    #[test]
    fn two_channels_become_one_without_multichannel() {
        let mut intake = Intake::new(STEREO, false);
        let bytes: Vec<u8> = [100i16, 300, -50, 50].iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!(intake.out(), (1, Encoding::Linear16));
        assert_eq!(intake.take(bytes.into())[0].as_ref(), [200i16.to_le_bytes(), 0i16.to_le_bytes()].concat());
    }

    #[test]
    fn a_streamed_wav_says_what_it_holds_at_any_cut() {
        let mut file = wav(7, 8, 2, 8000);
        file.extend(b"abcd");
        for cut in 1..file.len() {
            let mut sniffer = Sniffer::default();
            let mut sound = vec![];
            let mut found = None;
            for piece in file.chunks(cut) {
                match (found, sniffer.take(piece)) {
                    (None, Sniffed::Wav(format, rest)) => {
                        found = Some(format);
                        sound.extend_from_slice(&rest);
                    }
                    (None, Sniffed::More) => {}
                    (Some(_), _) => sound.extend_from_slice(piece),
                    (None, other) => panic!("{other:?}"),
                }
                if found.is_some() {
                    sniffer = Sniffer::default();
                }
            }
            assert_eq!(found, Some(Format { encoding: Encoding::Mulaw, rate: SampleRate::HZ_8000, channels: 2 }));
            assert_eq!(sound, b"abcd", "in pieces of {cut} bytes");
        }
    }

    #[test]
    fn what_cannot_be_heard_is_told_what_was_expected() {
        for (bytes, says) in [
            (b"OggS\0\0".to_vec(), "expected a RIFF/WAVE"),
            (b"RIFFxxxxAVI ".to_vec(), "expected a RIFF/WAVE"),
            (wav(1, 24, 1, 8000), "expected 16-bit"),
            (wav(1, 16, 3, 8000), "expected 1 or 2"),
            (wav(1, 16, 1, 96_000), "8000 to 48000"),
        ] {
            let Sniffed::Unknown(reason) = Sniffer::default().take(&bytes) else { panic!("{bytes:?} was taken for sound") };
            assert!(reason.contains(says), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), lie in any::<bool>()) {
            if lie {
                bytes.splice(0..bytes.len().min(12), b"RIFF\0\0\0\0WAVE".iter().copied());
            }
            let _ = Sniffer::default().take(&bytes);
        }
    }
}
