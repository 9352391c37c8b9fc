//! Many callers in real time, each with speech whose last voiced samples are known from the scripts.

use super::{cpu_seconds, quantile};
use bytes::Bytes;
use contracts::{Encoding, audio::Role};
use quickcomm::{
    calls,
    client::{Call, Options, ServerMessage},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// As telephony sends.
const FRAME: Duration = Duration::from_millis(20);

/// A stretch of speech from the demo calls.
#[derive(Clone)]
struct Turn {
    samples: Arc<[f32]>,
    /// First and one past the last voiced sample within `samples`.
    voiced: (usize, usize),
}

/// One caller's audio with its speech ends.
#[derive(Clone)]
pub struct Track {
    pub rate: u32,
    pub encoding: Encoding,
    pub sound: Bytes,
    /// Share of it that is speech.
    pub speech: f64,
    /// Start and end of each turn that counts, in seconds from the start.
    pub turns: Vec<(f64, f64)>,
}

/// Every turn of the bundled calls, at 8 kHz µ-law or 16 kHz.
fn turns(rate: u32) -> Vec<Turn> {
    let mut all = vec![];
    for name in calls::names() {
        let call = calls::load(&name).expect("a bundled call loads");
        if call.rate.hz() != rate {
            continue;
        }
        for turn in &call.script.turns {
            let mut decoded = vec![];
            audio::engine::decode::samples(call.encoding, &call.channels[usize::from(turn.channel)], &mut decoded);
            let at = |s: f64| ((s * f64::from(rate)) as usize).min(decoded.len());
            // A little of the line around it; nobody else speaks on this channel there.
            let (from, to) = (at((turn.start_s - 0.15).max(0.0)), at(turn.end_s + 0.15));
            all.push(Turn { samples: decoded[from..to].into(), voiced: (at(turn.start_s) - from, at(turn.end_s) - from) });
        }
    }
    assert!(!all.is_empty(), "no bundled call has {rate} Hz");
    all
}

/// Share of a track in which somebody speaks.
const SPEECH: f64 = 0.6;

/// Tracks of at least `seconds`, 60 % of it speech, all different: other turns in another order with other pauses between them, from
/// another moment on.
pub fn tracks(count: usize, seconds: f64) -> Vec<Track> {
    let telephony = turns(8_000);
    let wide = turns(16_000);
    (0..count)
        .map(|n| {
            let (rate, encoding, pool) =
                if n % 2 == 0 { (8_000, Encoding::Mulaw, &telephony) } else { (16_000, Encoding::Linear16, &wide) };
            let mut state = n as u32 * 2_654_435_761 + 1;
            let mut random = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) as f32 / 65_536.0
            };
            let (mut said, mut voiced, mut length) = (vec![], 0, 0);
            while (voiced as f64) < seconds * f64::from(rate) * SPEECH {
                let turn = &pool[(n * 5 + said.len() * 3) % pool.len()];
                voiced += turn.voiced.1 - turn.voiced.0;
                length += turn.samples.len();
                said.push(turn);
            }
            let total = (voiced as f64 / SPEECH) as usize;
            let pauses: Vec<f32> = (0..=said.len()).map(|_| 0.3 + random()).collect();
            let unit = (total - length) as f32 / pauses.iter().sum::<f32>();
            // A line is never digitally silent: faint noise, different at every sample.
            let mut sound: Vec<f32> = (0..total).map(|_| (random() - 0.5) * 0.001).collect();
            let mut spoken = vec![];
            let mut at = 0;
            for (turn, pause) in said.iter().zip(&pauses) {
                at += (pause * unit) as usize;
                for (into, sample) in sound[at..].iter_mut().zip(turn.samples.iter()) {
                    *into += sample;
                }
                let place = |s: usize| (at + s) as f64 / f64::from(rate);
                spoken.push((place(turn.voiced.0), place(turn.voiced.1)));
                at += turn.samples.len();
            }
            // Each begins somewhere in it, some in the middle of a word: people do not start to talk all at once.
            let begin = (n as f64 * 0.618_034).fract() * total as f64;
            sound.rotate_left(begin as usize);
            let whole = total as f64 / f64::from(rate);
            for (from, to) in &mut spoken {
                *to = (*to - begin / f64::from(rate)).rem_euclid(whole);
                *from = (*from - begin / f64::from(rate)).rem_euclid(whole);
                if *from > *to {
                    *from = 0.0;
                }
            }
            // Where some callers have hung up already the others have it easier: not counted.
            spoken.retain(|(_, to)| *to <= seconds);
            spoken.sort_by(|a: &(f64, f64), b| a.1.total_cmp(&b.1));
            Track { rate, encoding, sound: calls::encode(encoding, &sound), speech: voiced as f64 / total as f64, turns: spoken }
        })
        .collect()
}

/// How callers listen.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    pub endpointing_ms: u32,
    /// `None`: finals only.
    pub partial_ms: Option<u32>,
}

/// What the callers felt. Seconds.
#[derive(Clone, Debug, Default)]
pub struct Felt {
    /// From the send time of a turn's last voiced sample to its final.
    pub to_final: Vec<f64>,
    /// Since the newest text of a speaking channel came in, looked at every 100 ms from one second into each turn.
    pub partial_age: Vec<f64>,
    /// The same, counted from the end of the sound that the newest text is of.
    pub text_age: Vec<f64>,
    pub turns: usize,
    pub missing: usize,
    pub refused: usize,
    pub server_cpu: f64,
    pub generator_cpu: f64,
    pub wall: f64,
    pub speech_share: f64,
}

impl Felt {
    pub fn final_ms(&self, share: f64) -> f64 {
        quantile(&mut self.to_final.clone(), share) * 1000.0
    }
    pub fn age_ms(&self, share: f64) -> f64 {
        quantile(&mut self.partial_age.clone(), share) * 1000.0
    }
}

/// Lets every track call the server at once, in real time, spread over the first two seconds.
pub async fn run(http: &str, pid: u32, tracks: &[Track], listening: Listening) -> Felt {
    let (server_before, own_before, begin) = (cpu_seconds(pid), cpu_seconds(std::process::id()), Instant::now());
    let callers = tracks.iter().enumerate().map(|(n, track)| {
        let (track, http) = (track.clone(), http.to_owned());
        let starts = begin + Duration::from_millis(2000 * n as u64 / tracks.len().max(1) as u64);
        tokio::spawn(async move { call(&http, track, listening, starts).await })
    });
    let mut felt = Felt::default();
    for (caller, track) in futures::future::join_all(callers).await.into_iter().zip(tracks) {
        felt.speech_share += track.speech / tracks.len() as f64;
        match caller.expect("a caller does not panic") {
            Some(one) => {
                felt.to_final.extend(one.to_final);
                felt.partial_age.extend(one.partial_age);
                felt.text_age.extend(one.text_age);
                felt.turns += one.turns;
                felt.missing += one.missing;
            }
            None => felt.refused += 1,
        }
    }
    felt.wall = begin.elapsed().as_secs_f64();
    felt.server_cpu = cpu_seconds(pid) - server_before;
    felt.generator_cpu = cpu_seconds(std::process::id()) - own_before;
    felt
}

async fn call(http: &str, track: Track, listening: Listening, starts: Instant) -> Option<Felt> {
    tokio::time::sleep_until(starts).await;
    let mut options = Options::new(http, track.encoding, track.rate, &[Role::Customer]);
    options.endpointing_ms = Some(listening.endpointing_ms);
    options.partial_ms = listening.partial_ms;
    let (open, mut events) = Call::open(options).await.ok()?;
    let begin = Instant::now();
    let sound = track.sound.clone();
    let frame_bytes = track.rate as usize / 50 * track.encoding.bytes_per_sample();
    let sender = tokio::spawn(async move {
        for (n, at) in (0..sound.len()).step_by(frame_bytes).enumerate() {
            tokio::time::sleep_until(begin + FRAME * (n as u32 + 1)).await;
            open.send(0, sound.slice(at..sound.len().min(at + frame_bytes))).await;
        }
        open.close().await;
        open
    });
    // Finals and partials as (arrival, end of the text in stream seconds), finals with its start as well.
    let (mut finals, mut starts, mut partials) = (vec![], vec![], vec![]);
    while let Some(Ok(event)) = events.recv().await {
        let arrived = (event.at - begin).as_secs_f64();
        match event.message {
            ServerMessage::Final(said) => {
                starts.push(said.start_ms as f64 / 1000.0);
                finals.push((arrived, said.end_ms as f64 / 1000.0));
            }
            ServerMessage::Partial { end_ms, .. } => partials.push((arrived, end_ms as f64 / 1000.0)),
            _ => {}
        }
    }
    drop(sender.await);
    let mut felt = Felt { turns: track.turns.len(), ..Felt::default() };
    for &(from, to) in &track.turns {
        // The last voiced sample belongs to the first final whose words reach to within its fading end.
        // A word cut off by the track's beginning may not be heard at all: what begins later is another's.
        let found = finals.iter().zip(&starts).find(|((_, end), _)| *end > to - 0.35).filter(|(_, start)| **start < to);
        match found.map(|(said, _)| said) {
            Some((arrived, _)) if *arrived >= to => felt.to_final.push(arrived - to),
            Some(_) => felt.to_final.push(0.0),
            None => felt.missing += 1,
        }
        if listening.partial_ms.is_some() {
            let mut now = from + 1.0;
            while now < to {
                let seen = || partials.iter().chain(&finals).filter(|(arrived, _)| *arrived <= now);
                felt.partial_age.push(now - seen().map(|(arrived, _)| *arrived).fold(from, f64::max));
                felt.text_age.push(now - seen().map(|(_, end)| *end).fold(from, f64::max));
                now += 0.1;
            }
        }
    }
    Some(felt)
}
