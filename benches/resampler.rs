//! What resampling to 16 kHz costs, and what it lets through: CPU per second of audio in 20 ms frames, and the loudest of the tones above
//! 9.5 kHz that must not come back as another one.

mod support;

use audio::engine::resample::Resampler;
use std::time::Instant;
use support::{median, quick};

fn main() {
    println!("| from | CPU per audio second | loudest alias |");
    println!("| --- | --- | --- |");
    for rate in [8_000, 11_025, 22_050, 24_000, 44_100, 48_000] {
        let runs: Vec<f64> = (0..if quick() { 1 } else { 7 }).map(|_| cost(rate)).collect();
        // A rate that holds nothing above 8 kHz has nothing to alias.
        let alias = (9_500..rate / 2).step_by(500).map(|hz| let_through(rate, hz)).max_by(f64::total_cmp);
        let alias = alias.map_or("-".into(), |db| format!("{db:.0} dB"));
        println!("| {:.3} kHz | {:.0} us | {alias} |", f64::from(rate) / 1000.0, median(&runs) * 1e6);
    }
}

/// Seconds of work for a second of sound.
fn cost(rate: u32) -> f64 {
    const SECONDS: u32 = 20;
    let sound = tone(rate, 440, SECONDS);
    let mut resampler = Resampler::new(rate).expect("a rate that is taken");
    let mut out = Vec::with_capacity(16_000 * SECONDS as usize + 16_000);
    let begin = Instant::now();
    for frame in sound.chunks(rate as usize / 50) {
        resampler.push(frame, &mut out).expect("resampling does not fail");
    }
    begin.elapsed().as_secs_f64() / f64::from(SECONDS)
}

/// How loud a tone that 16 kHz cannot hold comes through, in dB of itself.
fn let_through(rate: u32, hz: u32) -> f64 {
    let mut resampler = Resampler::new(rate).expect("a rate that is taken");
    let mut out = vec![];
    resampler.push(&tone(rate, hz, 1), &mut out).expect("resampling does not fail");
    let settled = &out[out.len() / 10..];
    let power = settled.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / settled.len() as f64;
    10.0 * (power / 0.125).max(1e-20).log10()
}

/// Half of full scale.
fn tone(rate: u32, hz: u32, seconds: u32) -> Vec<f32> {
    let step = std::f64::consts::TAU * f64::from(hz) / f64::from(rate);
    (0..rate * seconds).map(|n| ((f64::from(n) * step).sin() * 0.5) as f32).collect()
}
