//! Any rate from 8 to 48 kHz to the model's 16 kHz, as a stream.
//!
//! Invariants: the result does not depend on how the input was cut into pieces; after `flush` there are exactly as many samples as the
//! input lasted (rounded up), none delayed: the filter's delay is dropped at the start and made up for at the end.

use audioadapter_buffers::direct::SequentialSlice;
use rubato::{Async, Fft, FixedAsync, FixedSync, Indexing, SincInterpolationParameters, SincInterpolationType, WindowFunction};
use std::fmt;

/// Samples per second that come out.
pub const OUT_RATE: u32 = 16_000;
/// Blocks longer than this, in ms, cost too much delay; rates that share no large factor with 16 000 go through the other filter.
const LONGEST_BLOCK_MS: u32 = 25;

pub struct Resampler {
    rate: u32,
    filter: Option<Box<dyn rubato::Resampler<f32>>>,
    waiting: Vec<f32>,
    out: Vec<f32>,
    taken: u64,
    given: u64,
    to_skip: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot resample from {rate} Hz: {cause}")]
pub struct ResampleError {
    rate: u32,
    cause: String,
}

impl Resampler {
    pub fn new(rate: u32) -> Result<Self, ResampleError> {
        let failed = |cause: &dyn fmt::Display| ResampleError { rate, cause: cause.to_string() };
        let mut filter: Option<Box<dyn rubato::Resampler<f32>>> = None;
        if rate != OUT_RATE {
            let block = rate / gcd(rate, OUT_RATE);
            let wanted = (rate / 50) as usize; // 20 ms
            // The delay of odd blocks is no whole number of samples.
            let even = (wanted as u32).next_multiple_of(block).is_multiple_of(2);
            if even && block * 1000 <= rate * LONGEST_BLOCK_MS {
                let fft = Fft::<f32>::new_custom(
                    rate as usize,
                    OUT_RATE as usize,
                    wanted,
                    1,
                    1,
                    WindowFunction::BlackmanHarris2,
                    FixedSync::Both,
                );
                filter = Some(Box::new(fft.map_err(|e| failed(&e))?));
            } else {
                let sinc = SincInterpolationParameters {
                    sinc_len: 256,
                    f_cutoff: None,
                    oversampling_factor: 128,
                    interpolation: SincInterpolationType::Cubic,
                    window: WindowFunction::BlackmanHarris2,
                };
                let ratio = f64::from(OUT_RATE) / f64::from(rate);
                let sinc = Async::<f32>::new_sinc(ratio, 1.0, &sinc, wanted, 1, FixedAsync::Input);
                filter = Some(Box::new(sinc.map_err(|e| failed(&e))?));
            }
        }
        let to_skip = filter.as_ref().map_or(0, |f| f.output_delay());
        Ok(Self { rate, filter, waiting: vec![], out: vec![], taken: 0, given: 0, to_skip })
    }

    /// Takes samples; appends what is ready to `into`.
    pub fn push(&mut self, samples: &[f32], into: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.taken += samples.len() as u64;
        if self.filter.is_none() {
            into.extend_from_slice(samples);
            self.given = self.taken;
            return Ok(());
        }
        self.waiting.extend_from_slice(samples);
        self.run(into, u64::MAX)
    }

    /// Appends the rest to `into` and starts over: what is pushed next is a new beginning.
    pub fn flush(&mut self, into: &mut Vec<f32>) -> Result<(), ResampleError> {
        let due = (self.taken * u64::from(OUT_RATE)).div_ceil(u64::from(self.rate));
        while self.given < due {
            let Some(filter) = &self.filter else { break };
            let missing = filter.input_frames_next().saturating_sub(self.waiting.len());
            self.waiting.resize(self.waiting.len() + missing, 0.0);
            self.run(into, due)?;
        }
        self.waiting.clear();
        (self.taken, self.given) = (0, 0);
        if let Some(filter) = &mut self.filter {
            filter.reset();
            self.to_skip = filter.output_delay();
        }
        Ok(())
    }

    fn run(&mut self, into: &mut Vec<f32>, due: u64) -> Result<(), ResampleError> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let failed = |cause: &dyn fmt::Display| ResampleError { rate: self.rate, cause: cause.to_string() };
        let mut used = 0;
        while self.waiting.len() - used >= filter.input_frames_next() && self.given < due {
            let room = filter.output_frames_max();
            self.out.resize(room, 0.0);
            let waiting = &self.waiting[used..];
            let input = SequentialSlice::new(waiting, 1, waiting.len()).map_err(|e| failed(&e))?;
            let mut output = SequentialSlice::new_mut(&mut self.out, 1, room).map_err(|e| failed(&e))?;
            let (read, written) = filter.process_into_buffer(&input, &mut output, None::<&Indexing>).map_err(|e| failed(&e))?;
            used += read;
            let skipped = self.to_skip.min(written);
            self.to_skip -= skipped;
            let ready = &self.out[skipped..written];
            let ready = &ready[..ready.len().min((due - self.given) as usize)];
            into.extend_from_slice(ready);
            self.given += ready.len() as u64;
        }
        self.waiting.drain(..used);
        Ok(())
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    const RATES: [u32; 10] = [8000, 11_025, 11_127, 16_000, 22_050, 24_000, 32_000, 44_100, 47_999, 48_000];

    fn tone(hz: f64, rate: u32, samples: usize) -> Vec<f32> {
        (0..samples).map(|i| (0.5 * (TAU * hz * i as f64 / f64::from(rate)).sin()) as f32).collect()
    }

    fn resampled(rate: u32, input: &[f32], piece: usize) -> Vec<f32> {
        let mut resampler = Resampler::new(rate).unwrap();
        let mut out = vec![];
        for piece in input.chunks(piece) {
            resampler.push(piece, &mut out).unwrap();
        }
        resampler.flush(&mut out).unwrap();
        out
    }

    fn power(samples: &[f32]) -> f32 {
        samples.iter().map(|s| s * s).sum::<f32>() / samples.len() as f32
    }

    #[test]
    fn it_lasts_exactly_as_long_and_keeps_its_place() {
        for rate in RATES {
            for samples in [1, 7, 800, 12_345] {
                let out = resampled(rate, &tone(440.0, rate, samples), 160);
                assert_eq!(out.len() as u64, (samples as u64 * 16_000).div_ceil(u64::from(rate)), "{samples} samples at {rate} Hz");
            }
            // The filter's delay is dropped in whole samples: half a sample may remain, which is -28 dB of a 100 Hz tone.
            let out = resampled(rate, &tone(100.0, rate, rate as usize), 160);
            let expected = tone(100.0, 16_000, 16_000);
            let error: Vec<f32> = out.iter().zip(&expected).skip(800).take(14_400).map(|(a, b)| a - b).collect();
            let db = 10.0 * (power(&error) / power(&expected)).log10();
            assert!(db < -28.0, "a 100 Hz tone from {rate} Hz is off by {db} dB");
        }
    }

    #[test]
    fn the_tail_is_not_lost() {
        for rate in RATES {
            let mut input = vec![0.0; rate as usize / 2];
            let from = input.len() - rate as usize / 100;
            input[from..].fill(0.5);
            let out = resampled(rate, &input, 480);
            let tail = &out[out.len() - 100..];
            assert!(power(tail) > 0.15, "the last 6 ms from {rate} Hz have power {}", power(tail));
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        for rate in RATES {
            let input = tone(300.0, rate, 9000);
            let whole = resampled(rate, &input, 9000);
            for piece in [1, 13, 160, 4000] {
                assert_eq!(resampled(rate, &input, piece), whole, "pieces of {piece} at {rate} Hz");
            }
        }
    }

    #[test]
    fn what_would_alias_is_70_db_down() {
        for rate in [22_050, 24_000, 32_000, 44_100, 47_999, 48_000] {
            for hz in [9500.0f64, 10_000.0, 10_900.0, 15_000.0, 20_000.0] {
                if hz * 2.0 < f64::from(rate) {
                    let out = resampled(rate, &tone(hz, rate, rate as usize), 480);
                    let db = 10.0 * (power(&out[1600..14_400]) / 0.125).log10();
                    assert!(db < -70.0, "{hz} Hz at {rate} Hz comes through at {db} dB");
                }
            }
        }
    }

    #[test]
    fn after_a_flush_it_starts_afresh() {
        let input = tone(440.0, 8000, 3000);
        let mut resampler = Resampler::new(8000).unwrap();
        let (mut once, mut twice) = (vec![], vec![]);
        resampler.push(&input, &mut once).unwrap();
        resampler.flush(&mut once).unwrap();
        resampler.push(&input, &mut twice).unwrap();
        resampler.flush(&mut twice).unwrap();
        assert_eq!(once, twice);
    }
}
