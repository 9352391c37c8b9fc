//! A recording as a WAV file of 16-bit samples, made while it is read: any byte range without reading what is before it.

use super::silence;
use crate::engine::decode;
use contracts::{Encoding, SampleRate, audio::ChannelSpec};
use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

const HEADER_BYTES: u64 = 44;

pub(in crate::ingest) struct View {
    rate: SampleRate,
    channels: Vec<Track>,
    /// Samples of the longest channel; shorter ones end in silence.
    frames: u64,
}

struct Track {
    /// Absent: nothing was ever received on this channel.
    file: Option<File>,
    encoding: Encoding,
    samples: u64,
}

impl View {
    /// `None` when none of the files exists.
    pub(super) fn open(files: Vec<(PathBuf, ChannelSpec)>) -> io::Result<Option<Self>> {
        let Some(rate) = files.first().map(|(_, spec)| spec.rate) else { return Ok(None) };
        let mut channels = vec![];
        for (path, spec) in files {
            let file = match File::open(&path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let bytes = file.as_ref().map(File::metadata).transpose()?.map_or(0, |file| file.len());
            channels.push(Track { file, encoding: spec.encoding, samples: bytes / spec.encoding.bytes_per_sample() as u64 });
        }
        if channels.iter().all(|track| track.file.is_none()) {
            return Ok(None);
        }
        let most = (u64::from(u32::MAX) - HEADER_BYTES) / (2 * channels.len() as u64); // the format counts bytes in 32 bits
        let frames = channels.iter().map(|track| track.samples).max().unwrap_or(0).min(most);
        Ok(Some(Self { rate, channels, frames }))
    }

    fn frame_bytes(&self) -> u64 {
        2 * self.channels.len() as u64
    }

    /// Length of the whole file.
    pub(in crate::ingest) fn len(&self) -> u64 {
        HEADER_BYTES + self.frames * self.frame_bytes()
    }

    /// Bytes `from..to` of it. Reads the disk.
    pub(in crate::ingest) fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let to = to.min(self.len());
        let mut out = Vec::with_capacity(to.saturating_sub(from) as usize);
        if from >= to {
            return Ok(out);
        }
        if from < HEADER_BYTES {
            out.extend_from_slice(&self.header()[from as usize..to.min(HEADER_BYTES) as usize]);
        }
        if to <= HEADER_BYTES {
            return Ok(out);
        }
        let width = self.frame_bytes();
        let start = from.max(HEADER_BYTES) - HEADER_BYTES;
        let end = to - HEADER_BYTES;
        let (first, last) = (start / width, end.div_ceil(width));
        let interleaved = self.frames(first, last)?;
        let skip = (start - first * width) as usize;
        out.extend_from_slice(&interleaved[skip..skip + (end - start) as usize]);
        Ok(out)
    }

    fn frames(&self, first: u64, last: u64) -> io::Result<Vec<u8>> {
        let count = (last - first) as usize;
        let mut out = vec![0; count * self.frame_bytes() as usize];
        for (n, track) in self.channels.iter().enumerate() {
            for (at, sample) in track.read(first, count)?.into_iter().enumerate() {
                let at = (at * self.channels.len() + n) * 2;
                let sample = (sample * 32_768.0).round().clamp(-32_768.0, 32_767.0) as i16;
                out[at..at + 2].copy_from_slice(&sample.to_le_bytes());
            }
        }
        Ok(out)
    }

    fn header(&self) -> Vec<u8> {
        let channels = self.channels.len() as u16;
        let data = (self.frames * self.frame_bytes()) as u32;
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend_from_slice(b"RIFF");
        header.extend_from_slice(&(data + 36).to_le_bytes());
        header.extend_from_slice(b"WAVEfmt ");
        header.extend_from_slice(&16u32.to_le_bytes());
        header.extend_from_slice(&1u16.to_le_bytes()); // PCM
        header.extend_from_slice(&channels.to_le_bytes());
        header.extend_from_slice(&self.rate.hz().to_le_bytes());
        header.extend_from_slice(&(self.rate.hz() * u32::from(channels) * 2).to_le_bytes());
        header.extend_from_slice(&(channels * 2).to_le_bytes());
        header.extend_from_slice(&16u16.to_le_bytes());
        header.extend_from_slice(b"data");
        header.extend_from_slice(&data.to_le_bytes());
        header
    }
}

impl Track {
    fn read(&self, first: u64, count: usize) -> io::Result<Vec<f32>> {
        let width = self.encoding.bytes_per_sample();
        let held = (self.samples.saturating_sub(first) as usize).min(count);
        let mut raw = vec![silence(self.encoding); count * width];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut raw[..held * width], first * width as u64)?;
        }
        let mut samples = Vec::with_capacity(count);
        decode::samples(self.encoding, &raw, &mut samples);
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ChannelIndex, audio::Role};
    use proptest::prelude::*;

    fn view(folder: &std::path::Path, tracks: &[&[i16]]) -> View {
        let files = tracks.iter().enumerate().map(|(n, samples)| {
            let path = folder.join(format!("{n}.raw"));
            std::fs::write(&path, samples.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>()).unwrap();
            let index = ChannelIndex(n as u8);
            (path, ChannelSpec { index, role: Role::Unknown, encoding: Encoding::Linear16, rate: SampleRate::HZ_8000 })
        });
        View::open(files.collect()).unwrap().unwrap()
    }

    #[test]
    fn channels_are_interleaved_and_the_shorter_one_ends_in_silence() {
        let folder = tempfile::tempdir().unwrap();
        let view = view(folder.path(), &[&[1, -2, i16::MIN], &[10, 20]]);
        let whole = view.read(0, u64::MAX).unwrap();
        assert_eq!(whole.len() as u64, view.len());
        let samples: Vec<i16> = whole[44..].chunks(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(samples, [1, 10, -2, 20, i16::MIN, 0]);
        assert_eq!(&whole[..4], b"RIFF");
        assert_eq!(u32::from_le_bytes(whole[40..44].try_into().unwrap()), 12);
    }

    #[test]
    fn without_files_there_is_nothing_to_hear() {
        let spec = ChannelSpec { index: ChannelIndex(0), role: Role::Unknown, encoding: Encoding::Alaw, rate: SampleRate::HZ_8000 };
        assert!(View::open(vec![("/nonexistent/0.raw".into(), spec)]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_range_reads_as_that_part_of_the_whole(from in 0u64..70, to in 0u64..70) {
            let folder = tempfile::tempdir().unwrap();
            let view = view(folder.path(), &[&[1, 2, 3, 4], &[5, 6, 7]]);
            let whole = view.read(0, u64::MAX).unwrap();
            let end = (to as usize).min(whole.len());
            let expected = whole.get(from as usize..end).unwrap_or_default();
            prop_assert_eq!(view.read(from, to).unwrap(), expected);
        }
    }
}
