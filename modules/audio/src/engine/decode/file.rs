//! Sound files (wav, flac, mp3, ogg vorbis) to samples, piece by piece or whole.
//!
//! Invariants: nothing about a file is believed: limits hold while it is read, and a decoder that panics on it is a broken file. A file
//! that ends early gives what is there and says what is missing.

use bytes::Bytes;
use contracts::SampleRate;
use std::{
    any::Any,
    io::{Cursor, Read, Seek, SeekFrom},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use symphonia::core::{
    codecs::audio::{AudioDecoder, AudioDecoderOptions},
    errors::Error as Symphonia,
    formats::{FormatOptions, FormatReader, TrackType, probe::Hint},
    io::{MediaSource, MediaSourceStream},
    meta::MetadataOptions,
};

/// What a file may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_seconds: u32,
    pub max_channels: usize,
}

impl Default for Limits {
    /// Four hours, two channels.
    fn default() -> Self {
        Self { max_seconds: 4 * 3600, max_channels: 2 }
    }
}

/// A decoded file.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub rate: SampleRate,
    /// One vector per channel, all of one length.
    pub channels: Vec<Vec<f32>>,
    /// `wave`, `flac`, `mp3` or `ogg`.
    pub format: &'static str,
    /// The file ends before its header says so.
    pub truncated: Option<Truncated>,
}

/// Bytes of sound that a header promises, and that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    pub expected: u64,
    pub found: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("not a sound file that can be read: expected wav, flac, mp3 or ogg vorbis ({0})")]
    Format(String),
    #[error("{0} channels are not supported: expected 1 to {1}")]
    Channels(usize, usize),
    #[error("a sample rate of {0} Hz is not supported: expected 8000 to 48000")]
    Rate(u32),
    #[error("longer than {0} seconds")]
    TooLong(u32),
    #[error("the file has no sound in it: expected {expected} bytes, found {found}")]
    Truncated { expected: u64, found: u64 },
    #[error("the file has no sound in it")]
    Empty,
    #[error("the file is broken: {0}")]
    Broken(String),
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
}

/// Decodes a whole file held in memory.
pub fn bytes(data: Bytes, limits: Limits) -> Result<Decoded, DecodeError> {
    whole(Reader::open(Box::new(Cursor::new(data)), limits)?, &mut |_| ControlFlow::Continue(()))
}

/// Decodes a whole file on disk. `progress` is told the share done, 0 to 1, and may stop it.
pub fn path(file: &Path, limits: Limits, progress: &mut dyn FnMut(f32) -> ControlFlow<()>) -> Result<Decoded, DecodeError> {
    whole(Reader::open(Box::new(std::fs::File::open(file)?), limits)?, progress)
}

fn whole(mut reader: Reader, progress: &mut dyn FnMut(f32) -> ControlFlow<()>) -> Result<Decoded, DecodeError> {
    let mut channels = vec![vec![]; reader.channels];
    while let Some(piece) = reader.next()? {
        for (channel, samples) in channels.iter_mut().zip(piece) {
            channel.extend_from_slice(samples);
        }
        let done = channels.first().map_or(0, Vec::len);
        if progress(reader.frames.map_or(0.0, |all| (done as f32 / all.max(1) as f32).min(1.0))).is_break() {
            break;
        }
    }
    Ok(Decoded { rate: reader.rate, channels, format: reader.format, truncated: reader.truncated })
}

/// A file being decoded.
pub struct Reader {
    pub rate: SampleRate,
    pub channels: usize,
    pub format: &'static str,
    /// Samples per channel, where the header tells.
    pub frames: Option<u64>,
    pub truncated: Option<Truncated>,
    limits: Limits,
    demuxer: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    piece: Vec<Vec<f32>>,
    interleaved: Vec<f32>,
    given: u64,
}

impl Reader {
    pub fn open(mut source: Box<dyn MediaSource>, limits: Limits) -> Result<Self, DecodeError> {
        let truncated = if source.is_seekable() { missing(&mut source)? } else { None };
        let cut_short = |otherwise: DecodeError| match truncated {
            Some(Truncated { expected, found }) => DecodeError::Truncated { expected, found },
            None => otherwise,
        };
        if source.is_seekable() {
            source = with_whole_format(source)?;
        }
        let stream = MediaSourceStream::new(source, Default::default());
        let demuxer = guarded(|| {
            let (format, meta) = (FormatOptions::default(), MetadataOptions::default());
            symphonia::default::get_probe().probe(&Hint::new(), stream, format, meta)
        })?
        .map_err(|e| cut_short(DecodeError::Format(e.to_string())))?;
        let track = demuxer.default_track(TrackType::Audio).ok_or_else(|| DecodeError::Format("no sound track".into()))?;
        let parameters = track
            .codec_params
            .as_ref()
            .and_then(|p| p.audio())
            .ok_or_else(|| DecodeError::Format("a sound track that says nothing about itself".into()))?;
        let hz = parameters.sample_rate.ok_or_else(|| DecodeError::Format("no sample rate".into()))?;
        let rate = SampleRate::new(hz).map_err(|_| DecodeError::Rate(hz))?;
        let channels = parameters.channels.as_ref().map_or(0, |c| c.count());
        if channels == 0 || channels > limits.max_channels {
            return Err(DecodeError::Channels(channels, limits.max_channels));
        }
        let frames = track.num_frames;
        // A header may promise anything; only a whole file's promise counts.
        if truncated.is_none() && frames.is_some_and(|f| f > u64::from(hz) * u64::from(limits.max_seconds)) {
            return Err(DecodeError::TooLong(limits.max_seconds));
        }
        let decoder = guarded(|| symphonia::default::get_codecs().make_audio_decoder(parameters, &AudioDecoderOptions::default()))?
            .map_err(|e| DecodeError::Format(e.to_string()))?;
        let (track, format) = (track.id, demuxer.format_info().short_name);
        let piece = vec![vec![]; channels];
        Ok(Self { rate, channels, format, frames, truncated, limits, demuxer, decoder, track, piece, interleaved: vec![], given: 0 })
    }

    /// The next piece, one slice per channel; `None` after the last.
    #[expect(clippy::should_implement_trait, reason = "it lends its piece, which an iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&[Vec<f32>]>, DecodeError> {
        loop {
            let (demuxer, decoder) = (&mut self.demuxer, &mut self.decoder);
            let (track, interleaved) = (self.track, &mut self.interleaved);
            let step = guarded(|| -> Result<Step, Symphonia> {
                let Some(packet) = demuxer.next_packet()? else { return Ok(Step::End) };
                if packet.track_id != track {
                    return Ok(Step::Nothing);
                }
                match decoder.decode(&packet) {
                    Ok(audio) => {
                        audio.copy_to_vec_interleaved(interleaved);
                        Ok(Step::Samples(audio.num_planes()))
                    }
                    // One damaged packet is no reason to lose the rest.
                    Err(Symphonia::DecodeError(_)) => Ok(Step::Nothing),
                    Err(e) => Err(e),
                }
            })?;
            match step {
                Ok(Step::Nothing) => {}
                Ok(Step::Samples(planes)) if planes == self.channels => {
                    let frames = self.interleaved.len() / planes;
                    self.given += frames as u64;
                    if self.given > u64::from(self.rate.hz()) * u64::from(self.limits.max_seconds) {
                        return Err(DecodeError::TooLong(self.limits.max_seconds));
                    }
                    for (index, channel) in self.piece.iter_mut().enumerate() {
                        channel.clear();
                        let samples = self.interleaved.iter().skip(index).step_by(planes);
                        channel.extend(samples.map(|s| if s.is_finite() { s.clamp(-1.0, 1.0) } else { 0.0 }));
                    }
                    return Ok(Some(&self.piece));
                }
                Ok(Step::Samples(planes)) => {
                    return Err(DecodeError::Broken(format!("it changes from {} to {planes} channels", self.channels)));
                }
                Ok(Step::End) => return self.end(None),
                Err(Symphonia::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return self.end(None),
                Err(Symphonia::IoError(e)) => return Err(DecodeError::Io(e)),
                Err(Symphonia::ResetRequired) => return self.end(None),
                Err(e) => return self.end(Some(e.to_string())),
            }
        }
    }

    /// What was decoded counts; a file that gave nothing says why.
    fn end(&self, cause: Option<String>) -> Result<Option<&[Vec<f32>]>, DecodeError> {
        match (self.given, self.truncated, cause) {
            (0, Some(Truncated { expected, found }), _) => Err(DecodeError::Truncated { expected, found }),
            (_, _, Some(cause)) => Err(DecodeError::Broken(cause)),
            (0, None, None) => Err(DecodeError::Empty),
            _ => Ok(None),
        }
    }
}

enum Step {
    Samples(usize),
    Nothing,
    End,
}

fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        DecodeError::Broken(text.unwrap_or_else(|| "the decoder gave up".into()))
    })
}

/// Compares the length of a wav file's data chunk with what follows it. Leaves the source at its beginning.
fn missing(source: &mut Box<dyn MediaSource>) -> Result<Option<Truncated>, DecodeError> {
    let length = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(0))?;
    let found = data_chunk(source, length);
    source.seek(SeekFrom::Start(0))?;
    let Some((start, expected)) = found else { return Ok(None) };
    let found = length.saturating_sub(start);
    // Writers that could not know the length put 0 or the largest number there.
    let known = expected != 0 && expected < u64::from(u32::MAX) - 64;
    Ok((known && found < expected).then_some(Truncated { expected, found }))
}

/// Where a wav file's sound starts and how long the header says it is.
fn data_chunk(source: &mut Box<dyn MediaSource>, length: u64) -> Option<(u64, u64)> {
    let mut head = [0; 12];
    source.read_exact(&mut head).ok()?;
    if &head[..4] != b"RIFF" || &head[8..] != b"WAVE" {
        return None;
    }
    let mut at = 12;
    while at + 8 <= length {
        let mut chunk = [0; 8];
        source.seek(SeekFrom::Start(at)).ok()?;
        source.read_exact(&mut chunk).ok()?;
        let size = u64::from(u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]));
        if &chunk[..4] == b"data" {
            return Some((at + 8, size));
        }
        at += 8 + size + size % 2;
    }
    None
}

/// Telephony writers leave out the length of the format's extension, two bytes that symphonia insists on for µ-law and A-law.
fn with_whole_format(mut source: Box<dyn MediaSource>) -> Result<Box<dyn MediaSource>, DecodeError> {
    let mut head = [0; SHORT_FORMAT];
    let read = source.read_exact(&mut head);
    source.seek(SeekFrom::Start(0))?;
    let telephone = matches!(head[20..22], [6 | 7, 0]);
    if read.is_err() || &head[..4] != b"RIFF" || &head[8..20] != b"WAVEfmt \x10\0\0\0" || !telephone {
        return Ok(source);
    }
    head[16] += 2;
    source.seek(SeekFrom::Start(SHORT_FORMAT as u64))?;
    Ok(Box::new(Headed { head: [&head[..], &[0; 2]].concat(), replaces: SHORT_FORMAT as u64, at: 0, rest: source }))
}

/// Bytes of a wav file up to the end of a format chunk of 16 bytes.
const SHORT_FORMAT: usize = 36;

/// A source that begins otherwise: `head` stands for the first `replaces` bytes.
struct Headed {
    head: Vec<u8>,
    replaces: u64,
    at: u64,
    rest: Box<dyn MediaSource>,
}

impl Read for Headed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = match self.head.get(self.at as usize..) {
            Some(mut head @ [_, ..]) => head.read(buffer)?,
            _ => self.rest.read(buffer)?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Headed {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let longer = self.head.len() as u64 - self.replaces;
        let to = match to {
            SeekFrom::Start(to) => to,
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            SeekFrom::End(by) => (self.rest.seek(SeekFrom::End(0))? + longer).saturating_add_signed(by),
        };
        self.rest.seek(SeekFrom::Start(to.saturating_sub(longer).max(self.replaces)))?;
        self.at = to;
        Ok(to)
    }
}

impl MediaSource for Headed {
    fn is_seekable(&self) -> bool {
        self.rest.is_seekable()
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.rest.byte_len()? + self.head.len() as u64 - self.replaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wav file: format tag, bits, channels, rate, the data chunk, and how long the header says it is.
    fn wav(tag: u16, bits: u16, channels: u16, rate: u32, data: &[u8], says: u32) -> Bytes {
        let block = channels * bits / 8;
        let mut file = vec![];
        file.extend(b"RIFF");
        file.extend((38 + says).to_le_bytes());
        file.extend(b"WAVEfmt ");
        file.extend(18u32.to_le_bytes());
        file.extend(tag.to_le_bytes());
        file.extend(channels.to_le_bytes());
        file.extend(rate.to_le_bytes());
        file.extend((rate * u32::from(block)).to_le_bytes());
        file.extend(block.to_le_bytes());
        file.extend(bits.to_le_bytes());
        file.extend([0; 2]); // no extension
        file.extend(b"data");
        file.extend(says.to_le_bytes());
        file.extend(data);
        file.into()
    }

    fn decode(file: Bytes) -> Result<Decoded, DecodeError> {
        bytes(file, Limits::default())
    }

    #[test]
    fn sixteen_bits_two_channels() {
        let data: Vec<u8> = [100i16, -100, 200, -200].iter().flat_map(|s| s.to_le_bytes()).collect();
        let decoded = decode(wav(1, 16, 2, 16_000, &data, 8)).unwrap();
        assert_eq!((decoded.rate.hz(), decoded.format, decoded.truncated), (16_000, "wave", None));
        assert_eq!(decoded.channels, [[100.0 / 32_768.0, 200.0 / 32_768.0], [-100.0 / 32_768.0, -200.0 / 32_768.0]]);
    }

    #[test]
    fn telephone_codes_24_bits_and_floats() {
        let mulaw = decode(wav(7, 8, 1, 8000, &[0x80; 400], 400)).unwrap();
        assert!((mulaw.channels[0][0] - 0.98).abs() < 0.01 && mulaw.channels[0].len() == 400);
        let alaw = decode(wav(6, 8, 1, 8000, &[0xaa; 400], 400)).unwrap();
        assert!((alaw.channels[0][0] - 0.98).abs() < 0.01);
        let deep = decode(wav(1, 24, 1, 48_000, &[0, 0, 0x40].repeat(300), 900)).unwrap();
        assert!((deep.channels[0][299] - 0.5).abs() < 1e-6);
        let floats: Vec<u8> = [0.25f32, f32::NAN, 9.0].iter().flat_map(|f| f.to_le_bytes()).collect();
        assert_eq!(decode(wav(3, 32, 1, 44_100, &floats, 12)).unwrap().channels[0], [0.25, 0.0, 1.0]);
    }

    #[test]
    fn telephone_codes_without_the_length_of_their_extension() {
        for tag in [6, 7] {
            let sound: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
            let whole = wav(tag, 8, 1, 8000, &sound, 20_000);
            let mut short = [&whole[..36], &whole[38..]].concat();
            short[16] = 16;
            let short = Bytes::from(short);
            let decoded = decode(short.clone()).unwrap();
            assert_eq!(decoded.channels, decode(whole).unwrap().channels);
            assert_eq!(decoded.truncated, None);
            let cut = decode(short.slice(..short.len() - 500)).unwrap();
            assert_eq!((cut.channels[0].len(), cut.truncated), (19_500, Some(Truncated { expected: 20_000, found: 19_500 })));
            assert!(decode(short.slice(..36)).is_err());
        }
    }

    #[test]
    fn another_beginning_reads_and_seeks_as_one_file() {
        let rest = Box::new(Cursor::new(b"abcdef".to_vec()));
        let mut source = Headed { head: b"ABCDE".to_vec(), replaces: 3, at: 0, rest };
        for (to, is_at, says) in [
            (SeekFrom::Start(0), 0, "ABCDEdef"),
            (SeekFrom::Start(4), 4, "Edef"),
            (SeekFrom::End(-2), 6, "ef"),
            (SeekFrom::Current(-3), 5, "def"),
            (SeekFrom::Start(7), 7, "f"),
        ] {
            assert_eq!(source.seek(to).unwrap(), is_at);
            let mut text = String::new();
            source.read_to_string(&mut text).unwrap();
            assert_eq!(text, says);
        }
        assert_eq!(source.byte_len(), Some(8));
    }

    #[test]
    fn a_file_cut_short_gives_what_is_there_and_says_what_is_missing() {
        let decoded = decode(wav(1, 16, 1, 8000, &[1; 1000], 4000)).unwrap();
        assert_eq!(decoded.truncated, Some(Truncated { expected: 4000, found: 1000 }));
        assert_eq!(decoded.channels[0].len(), 500);
        let nothing = decode(wav(1, 16, 1, 8000, &[], 4000)).unwrap_err().to_string();
        assert!(nothing.contains("expected 4000 bytes, found 0"), "{nothing}");
    }

    #[test]
    fn what_is_no_sound_file_is_told_what_was_expected() {
        for rubbish in [&b""[..], b"RIFF", b"hello, this is no sound at all, only text", &[0xff; 5000]] {
            let error = decode(Bytes::copy_from_slice(rubbish)).unwrap_err().to_string();
            assert!(error.contains("sound"), "{error}");
        }
    }

    #[test]
    fn limits_are_named() {
        assert!(matches!(decode(wav(1, 16, 3, 8000, &[0; 60], 60)), Err(DecodeError::Channels(3, 2))));
        assert!(matches!(decode(wav(1, 16, 1, 96_000, &[0; 60], 60)), Err(DecodeError::Rate(96_000))));
        let short = Limits { max_seconds: 1, ..Limits::default() };
        assert!(matches!(bytes(wav(1, 16, 1, 8000, &[0; 20_000], 20_000), short), Err(DecodeError::TooLong(1))));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in 0usize..1046, byte: u8, cut in 0usize..=1046) {
            let mut file = wav(1, 16, 1, 8000, &[7; 1000], 1000).to_vec();
            file[at] = byte;
            file.truncate(cut);
            let _ = decode(file.into());
        }
    }
}
