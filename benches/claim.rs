//! The claim that started it all: the same mix of live callers, turns to be understood and reads, with the same cores, on two whole
//! monoliths with half of everything each, and on roles that share the cores by need. One whole process stands beside them.
//!
//! Limits: finals within 500 ms of the end of speech and text at most 1 s old (p95), understanding within 2 s (p95) and by the rung that
//! was asked for (98 of 100), reads within 250 ms (p99), nothing failed. The number of callers climbs until one of them breaks; turns to be
//! understood and reads stay as they are. The load generator shares the two cores with all three.

mod support;

use contracts::CallCx;
use std::time::Duration;
use support::{
    house::House,
    load::{Felt, Listening, Track, run, tracks},
    quantile,
    questions::question,
    quick,
};
use tokio::time::Instant;

const LISTENING: Listening = Listening { endpointing_ms: 250, partial_ms: Some(250) };
/// A second, of all houses together.
const ANALYSES: f64 = 16.0;
const READS: f64 = 100.0;
/// For one answer; whoever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number of callers is told this exactly.
const STEP: usize = 4;

/// How the cores are given out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Halves,
    Roles,
    Whole,
}

impl Plan {
    fn name(self) -> &'static str {
        match self {
            Self::Halves => "two monoliths, one core each",
            Self::Roles => "three roles on two cores",
            Self::Whole => "one monolith on two cores",
        }
    }

    fn build(self) -> Vec<House> {
        // Whoever does not fit shows in the figures, not in a refusal; and the classifier has as long as the limit gives it.
        let env = [("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"), ("QUICKCOMM_INFERENCE__TIMEOUT_MS", "2000")];
        match self {
            Self::Halves => ["0", "1"].map(|core| House::whole(Some(core), &env)).into(),
            Self::Roles => vec![House::apart(&env)],
            Self::Whole => vec![House::whole(None, &env)],
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().expect("a runtime");
    let (mut rows, start) = (vec![], if quick() { 8 } else { 32 });
    for plan in [Plan::Halves, Plan::Roles, Plan::Whole] {
        rows.push((plan, runtime.block_on(most(plan, start))));
    }
    println!("| | callers held | cores used | cores per 100 callers | finals p95 ms | understood p95 ms | reads p99 ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (plan, held) in &rows {
        match held {
            None => println!("| {} | 0 | - | - | - | - | - |", plan.name()),
            Some((callers, seen)) => println!(
                "| {} | {callers} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
                plan.name(),
                seen.cores,
                seen.cores / *callers as f64 * 100.0,
                seen.felt.final_ms(0.95),
                seen.understood.ms(0.95),
                seen.reads.ms(0.99)
            ),
        }
    }
    if let (Some((halves, one)), Some((roles, other))) = (&rows[0].1, &rows[1].1) {
        let cost = (other.cores / *roles as f64) / (one.cores / *halves as f64) - 1.0;
        println!("\nRoles against halves: {:.2}x the callers, {:+.0} % cores per caller.", *roles as f64 / *halves as f64, cost * 100.0);
    }
}

/// The most callers that keep the limits, to a step. What fails is tried once more.
async fn most(plan: Plan, start: usize) -> Option<(usize, Seen)> {
    let (mut held, mut broke, mut callers) = (None::<(usize, Seen)>, None::<usize>, start);
    loop {
        let mut seen = trial(plan, callers).await;
        if !seen.keeps() && !quick() {
            seen = trial(plan, callers).await;
        }
        if seen.keeps() {
            held = Some((callers, seen));
        } else {
            broke = Some(callers);
        }
        let floor = held.as_ref().map_or(0, |(callers, _)| *callers);
        callers = match broke {
            None => floor + (floor / 4 / STEP * STEP).max(STEP),
            Some(broke) if broke - floor <= STEP => return held,
            Some(broke) => floor + (broke - floor) / 2 / STEP * STEP,
        };
    }
}

/// Answers to questions that come one by one, whether or not those before them are answered. Seconds since each was due.
#[derive(Default)]
struct Answers {
    took: Vec<f64>,
    /// By a lower rung than the one that was asked for.
    lower: usize,
    failed: usize,
}

enum Answer {
    Full,
    Lower,
    Failed,
}

impl Answers {
    fn ms(&self, share: f64) -> f64 {
        quantile(&mut self.took.clone(), share) * 1000.0
    }

    fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.lower += other.lower;
        self.failed += other.failed;
    }
}

/// Asks `per_s` times a second for `time`.
async fn ask<F>(per_s: f64, time: Duration, mut question: impl FnMut(u64) -> F) -> Answers
where
    F: Future<Output = Answer> + Send + 'static,
{
    let begin = Instant::now();
    let mut asked = vec![];
    for n in 0..(time.as_secs_f64() * per_s) as u64 {
        let due = begin + Duration::from_secs_f64(n as f64 / per_s);
        tokio::time::sleep_until(due).await;
        let answer = question(n);
        asked.push(tokio::spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Answer::Failed);
            (answer, due.elapsed().as_secs_f64())
        }));
    }
    let mut answers = Answers::default();
    for answer in asked {
        let (answer, took) = answer.await.expect("it does not panic");
        answers.took.push(took);
        match answer {
            Answer::Full => {}
            Answer::Lower => answers.lower += 1,
            Answer::Failed => answers.failed += 1,
        }
    }
    answers
}

#[derive(Default)]
struct Seen {
    felt: Felt,
    understood: Answers,
    reads: Answers,
    cores: f64,
}

impl Seen {
    fn keeps(&self) -> bool {
        self.felt.refused == 0
            && self.felt.missing * 50 <= self.felt.turns
            && self.felt.final_ms(0.95) <= 500.0
            && self.felt.age_ms(0.95) <= 1000.0
            && self.understood.ms(0.95) <= 2000.0
            && self.understood.lower * 50 <= self.understood.took.len()
            && self.reads.ms(0.99) <= 250.0
            && self.understood.failed + self.reads.failed == 0
    }
}

async fn trial(plan: Plan, callers: usize) -> Seen {
    let houses = plan.build();
    let seconds = if quick() { 10.0 } else { 25.0 };
    let tracks = tracks(callers, seconds);
    let before: f64 = houses.iter().flat_map(House::cpu).sum();
    let begin = Instant::now();
    // Each house has its own share of everything.
    let shares = houses.iter().enumerate().map(|(n, house)| {
        let mine: Vec<Track> = tracks.iter().skip(n).step_by(houses.len()).cloned().collect();
        live(house, mine, houses.len() as f64, Duration::from_secs_f64(seconds))
    });
    let mut seen = Seen::default();
    for (felt, understood, reads) in futures::future::join_all(shares).await {
        seen.felt.to_final.extend(felt.to_final);
        seen.felt.partial_age.extend(felt.partial_age);
        seen.felt.turns += felt.turns;
        seen.felt.missing += felt.missing;
        seen.felt.refused += felt.refused;
        seen.understood.add(understood);
        seen.reads.add(reads);
    }
    seen.cores = (houses.iter().flat_map(House::cpu).sum::<f64>() - before) / begin.elapsed().as_secs_f64();
    eprintln!(
        "  {}, {callers} callers: finals p95 {:.0} ms, text {:.0} ms old, {} of {} turns missing, {} refused; understood p95 {:.0} ms, {} of {} by a lower rung, {} failed; \
         reads p99 {:.0} ms, {} failed; {:.2} cores",
        plan.name(),
        seen.felt.final_ms(0.95),
        seen.felt.age_ms(0.95),
        seen.felt.missing,
        seen.felt.turns,
        seen.felt.refused,
        seen.understood.ms(0.95),
        seen.understood.lower,
        seen.understood.took.len(),
        seen.understood.failed,
        seen.reads.ms(0.99),
        seen.reads.failed,
        seen.cores
    );
    seen
}

/// What one house has to do.
async fn live(house: &House, tracks: Vec<Track>, houses: f64, time: Duration) -> (Felt, Answers, Answers) {
    let inference = fabric::connect::inference(&house.inference).expect("a Unix socket is an endpoint");
    let understanding = ask(ANALYSES / houses, time, move |n| {
        let inference = inference.clone();
        async move {
            match inference.analyze(CallCx::new(PATIENCE), question(n)).await {
                Ok(insights) if insights.iter().all(|insight| insight.provenance.degraded_from.is_none()) => Answer::Full,
                Ok(_) => Answer::Lower,
                Err(_) => Answer::Failed,
            }
        }
    });
    let (client, list) = (reqwest::Client::new(), format!("{}/v1/conversations", house.http()));
    let reading = ask(READS / houses, time, move |_| {
        let answer = client.get(&list).send();
        async move {
            match answer.await.and_then(reqwest::Response::error_for_status) {
                Ok(_) => Answer::Full,
                Err(_) => Answer::Failed,
            }
        }
    });
    futures::join!(run(house.http(), house.servers[0].pid(), &tracks, LISTENING), understanding, reading)
}
