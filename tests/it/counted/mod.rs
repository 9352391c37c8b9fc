//! Faults under callers whose sound counts its samples: whatever is killed, forgotten or repeated, the record holds each sample once, and the
//! rows of a call are those it leaves without the fault.

mod base;
mod bus;
mod house;
mod llm;
pub mod process;
mod sound;
mod watch;

use crate::{
    crash::check_database,
    support::{
        Program, Server,
        faults::{Tally, times},
        ground::Ground,
    },
};
use house::{Base, Callers, File, House, Scene};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::Duration;
use watch::Sink;

/// Of the moments at which something is struck: each run has the same ones.
const SEED: u64 = 20_261_123;
/// Strikes that one set of calls lives through.
const IN_A_ROW: usize = 10;
const CALLS: usize = 8;

/// A house, whom it tells, and how often it is struck.
struct Strikes {
    house: House,
    scene: Scene<Base>,
    moments: StdRng,
    tally: Tally,
    /// The last strike on each set of calls comes while they are finished.
    to_the_end: bool,
}

impl Strikes {
    /// On the shared PostgreSQL. `None` after it was said what is missing.
    fn on_house(fault: &'static str, usual: usize, settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(fault, usual, Ground::lay(), settings)
    }

    fn on(fault: &'static str, usual: usize, ground: Option<Ground>, settings: &[(&str, &str)]) -> Option<Self> {
        let (house, scene) = open(ground?, settings);
        Some(Self { house, scene, moments: StdRng::seed_from_u64(SEED), tally: Tally::of(fault, times(usual)), to_the_end: true })
    }

    /// All strikes, at moments of their own, under calls to the process that hears and to the one that keeps.
    async fn survive(&mut self, mut strike: impl AsyncFnMut(&mut House, &mut StdRng)) {
        let Self { house, scene, moments, tally, to_the_end } = self;
        while !tally.is_whole() {
            let strikes = tally.left().min(IN_A_ROW);
            let strike_all = async |callers: &Callers| {
                for n in 1..=strikes {
                    await_moment(callers, moments, *to_the_end && n > 1 && n == strikes).await;
                    strike(house, moments).await;
                }
                vec![]
            };
            scene.plays(CALLS, strike_all).await;
            tally.survived(strikes);
        }
    }

    fn end(self) {
        self.house.stop();
    }
}

/// A house that tells a webhook.
fn open(mut ground: Ground, settings: &[(&str, &str)]) -> (House, Scene<Base>) {
    let sink = Sink::open();
    ground.settings.extend(sink.settings());
    // One rung that is always there: what a turn means then depends on nothing but its words.
    ground.settings.push(("QUICKCOMM_INFERENCE__CLASSIFIER".into(), "false".into()));
    ground.settings.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let house = House::build(ground);
    let scene = house.scene(sink);
    (house, scene)
}

/// When something is struck: in the midst of calls, or while they are heard to their end, summed up, published and told of.
async fn await_moment(callers: &Callers, moments: &mut StdRng, at_the_end: bool) {
    if at_the_end {
        callers.hang_up();
    }
    let range = if at_the_end { 0..3000 } else { 300..1500 };
    tokio::time::sleep(Duration::from_millis(moments.random_range(range))).await;
}

/// kill -9 of one of them, and the same process again.
pub fn again(server: &mut Server) {
    tokio::task::block_in_place(|| server.kill_and_restart());
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_a_killed_process_that_hears_leaves_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on_house("F01n", 10, &[]) else { return };
    struck.survive(async |house: &mut House, _| again(&mut house.hears)).await;
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f02_a_killed_process_that_understands_leaves_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on_house("F02n", 10, &[]) else { return };
    struck.survive(async |house: &mut House, _| again(&mut house.understands)).await;
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f03_a_killed_process_that_keeps_the_record_leaves_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on_house("F03", 10, &[]) else { return };
    struck.survive(async |house: &mut House, _| again(&mut house.keeps)).await;
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_a_killed_process_that_does_everything_leaves_the_rows_of_a_run_without() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::open();
    let mut settings = sink.settings();
    settings.push(("QUICKCOMM_INFERENCE__CLASSIFIER".into(), "false".into()));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut server = Server::try_start_as(Program::Counting, folder.path(), &[], &settings).unwrap();
    let mut scene =
        Scene { doors: vec![server.http.clone()], node: server.http.clone(), watched: 1, tables: File::of(folder.path()), sink };
    let mut moments = StdRng::seed_from_u64(SEED);
    let mut tally = Tally::of("F04n", times(10));
    while !tally.is_whole() {
        let strikes = tally.left().min(IN_A_ROW);
        scene
            .plays(CALLS, async |callers: &Callers| {
                for n in 1..=strikes {
                    await_moment(callers, &mut moments, n > 1 && n == strikes).await;
                    again(&mut server);
                }
                vec![]
            })
            .await;
        tally.survived(strikes);
    }
    server.kill();
    check_database(folder.path());
}
