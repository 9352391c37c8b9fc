//! What it costs to come apart, and to be watched: the same callers through one process and through three, and with every span exported or
//! none. Runs alternate, so that what else this machine does falls on both alike.
//!
//! `split -- processes` and `split -- traces` ask one of the questions. Three processes are on this machine, over Unix sockets.

mod support;

use support::{
    collector::{Collector, collect_if_asked},
    house::House,
    load::{Felt, Listening, Track, run, tracks},
    median, quantile, quick,
};

/// Well within what two cores hold, so that queueing is not what is measured.
const CHANNELS: usize = 24;
const LISTENING: Listening = Listening { endpointing_ms: 250, partial_ms: Some(250) };

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().expect("a runtime");
    if runtime.block_on(collect_if_asked()) {
        return;
    }
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let tracks = tracks(CHANNELS, if quick() { 10.0 } else { 30.0 });
    let pairs = if quick() { 1 } else { 3 };
    let asked = |question: &str| only.as_ref().is_none_or(|only| only == question);
    if asked("processes") {
        runtime.block_on(processes(&tracks, pairs));
    }
    if asked("traces") {
        runtime.block_on(traces(&tracks, pairs));
    }
}

/// One run.
struct Run {
    felt: Felt,
    /// Seconds per process.
    cpu: Vec<f64>,
    resident_mb: f64,
    audio_hours: f64,
}

impl Run {
    async fn of(house: &House, tracks: &[Track]) -> Self {
        let before = house.cpu();
        let front = &house.servers[0];
        let felt = run(&front.http, front.pid(), tracks, LISTENING).await;
        assert_eq!((felt.refused, felt.missing * 20 > felt.turns), (0, false), "callers were refused, or not heard");
        let cpu = house.cpu().iter().zip(before).map(|(now, before)| now - before).collect();
        let seconds = |track: &Track| track.sound.len() as f64 / track.encoding.bytes_per_sample() as f64 / f64::from(track.rate);
        Self { felt, cpu, resident_mb: house.resident_mb(), audio_hours: tracks.iter().map(seconds).sum::<f64>() / 3600.0 }
    }

    fn cores(&self) -> f64 {
        self.cpu.iter().sum::<f64>() / self.felt.wall
    }

    fn cpu_per_hour(&self) -> f64 {
        self.cpu.iter().sum::<f64>() / self.audio_hours
    }
}

async fn processes(tracks: &[Track], pairs: usize) {
    let (mut one, mut three) = (vec![], vec![]);
    for pair in 0..pairs {
        // Whoever is first is not always the same.
        for apart in [pair % 2 == 0, pair % 2 == 1] {
            let house = if apart { House::apart(&[]) } else { House::whole(None, &[]) };
            let run = Run::of(&house, tracks).await;
            eprintln!("  {}: {}", if apart { "three processes" } else { "one process" }, told(&run));
            if apart { three.push(run) } else { one.push(run) }
        }
    }
    println!(
        "| {CHANNELS} callers with partials | cores | CPU s per hour of audio | final p50 / p95 ms | text is of, ms ago at p95 | resident MB |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, runs) in [("one process", &one), ("three processes", &three)] {
        let of = |figure: fn(&Run) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
        println!(
            "| {name} | {:.2} | {:.0} | {:.0} / {:.0} | {:.0} | {:.0} |",
            of(Run::cores),
            of(Run::cpu_per_hour),
            of(|run| run.felt.final_ms(0.5)),
            of(|run| run.felt.final_ms(0.95)),
            of(|run| quantile(&mut run.felt.text_age.clone(), 0.95) * 1000.0),
            of(|run| run.resident_mb),
        );
    }
    let share = |n: usize| median(&three.iter().map(|run| run.cpu[n] / run.felt.wall).collect::<Vec<_>>());
    println!("\nOf the three: api {:.2} cores, audio {:.2}, inference {:.2}.", share(0), share(1), share(2));
}

async fn traces(tracks: &[Track], pairs: usize) {
    let collector = Collector::start();
    let endpoint = [("QUICKCOMM_OTLP__ENDPOINT", collector.endpoint.as_str())];
    let (mut on, mut off, mut more) = (vec![], vec![], vec![]);
    for pair in 0..pairs {
        for traced in [pair % 2 == 0, pair % 2 == 1] {
            let house = House::whole(None, if traced { &endpoint } else { &[] });
            let run = Run::of(&house, tracks).await;
            eprintln!("  traces {}: {}", if traced { "exported" } else { "off" }, told(&run));
            if traced { on.push(run.cpu_per_hour()) } else { off.push(run.cpu_per_hour()) }
        }
        more.push((on[pair] / off[pair] - 1.0) * 100.0);
    }
    println!("| traces | CPU s per hour of audio |");
    println!("| --- | --- |");
    println!("| off | {:.0} |", median(&off));
    println!("| every span exported | {:.0} |", median(&on));
    let spread = |differences: &[f64]| differences.iter().fold((f64::MAX, f64::MIN), |(low, high), d| (low.min(*d), high.max(*d)));
    let (low, high) = spread(&more);
    println!("\nMedian of {pairs} pairs: {:+.1} % ({low:+.1} to {high:+.1}).", median(&more));
}

fn told(run: &Run) -> String {
    format!(
        "{:.2} cores, {:.0} CPU s per hour of audio, final p50 {:.0} p95 {:.0} ms, {:.0} MB",
        run.cores(),
        run.cpu_per_hour(),
        run.felt.final_ms(0.5),
        run.felt.final_ms(0.95),
        run.resident_mb
    )
}
