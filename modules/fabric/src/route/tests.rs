//! Calls through a table with the module in this process on one side and two peers over pipes on the other.

use super::*;
use crate::{audio, connect::Health, inference, local, serve::Services, suites::Pipe};
use contracts::{
    Audio, CallCx, CallError, ConversationId, Encoding, ErrorKind, Inference, Origin, SampleRate,
    audio::{SpeechEvent, StreamSpec},
    inference::Analyze,
    route::{By, Dial, Mode, Routes, Step, StepBack, Turn, TurnRefused},
    testing::{Behavior, FakeAudio, FakeInference},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const PEERS: [&str; 2] = ["http://127.0.0.1:1", "http://127.0.0.1:2"];

struct House {
    here: FakeInference,
    there: [FakeInference; 2],
    dials: Dials,
    inference: Arc<dyn Inference>,
    _pipe: Pipe,
}

impl House {
    fn new(dial: Dial) -> Self {
        Self::with(dial, Limits::default())
    }

    fn with(dial: Dial, limits: Limits) -> Self {
        let (here, there, pipe) = (FakeInference::default(), [FakeInference::default(), FakeInference::default()], Pipe::default());
        let channels = there.clone().map(|fake| pipe.serve(Services { inference: Some(Arc::new(fake)), ..Default::default() }));
        let connect: Connect<dyn Inference> = Arc::new(move |endpoint| {
            let channel = channels[usize::from(endpoint == PEERS[1])].clone();
            Ok((Arc::new(inference::client::Remote::new(channel.clone(), endpoint)), Health::over(channel)))
        });
        let mut dials = Dials::with_limits(limits);
        let place = Place { dial, endpoints: PEERS.map(str::to_owned).to_vec() };
        let inference = dials.inference(Some(local::inference(Arc::new(here.clone()))), &place, connect).expect("pipes are always there");
        Self { here, there, dials, inference, _pipe: pipe }
    }

    /// Calls seen here, and by all peers together.
    fn seen(&self) -> (usize, usize) {
        (self.here.seen().len(), self.there.iter().map(|fake| fake.seen().len()).sum())
    }

    fn peers_behave(&self, behavior: Behavior) {
        self.there.iter().for_each(|fake| fake.behave(behavior.clone()));
    }

    async fn analyze(&self, cx: CallCx) -> Result<usize, CallError> {
        let conversation = ConversationId::fresh();
        let request = Analyze { conversation, tasks: vec![], utterances: vec![], context: vec![] };
        Ok(self.inference.analyze(cx, request).await?.len())
    }

    async fn turn(&self, turn: Turn) -> Result<contracts::route::Turned, TurnRefused> {
        self.dials.turn("inference", turn, By::Operator).await
    }
}

fn routed(remote_percent: u8, shadow_percent: u8) -> Dial {
    Dial { mode: Mode::Routed, remote_percent, shadow_percent, ..Dial::default() }
}

fn remote() -> Dial {
    Dial { mode: Mode::Remote, ..Dial::default() }
}

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(10))
}

fn broken() -> Behavior {
    Behavior::Fail(CallError::unavailable("on purpose"))
}

#[tokio::test(start_paused = true)]
async fn local_and_remote_mean_exactly_that() {
    let house = House::new(Dial::default());
    house.here.behave(broken());
    house.inference.tiers(cx()).await.unwrap_err();
    assert_eq!(house.seen(), (1, 0), "nobody else is asked");
    let house = House::new(remote());
    house.peers_behave(broken());
    house.inference.tiers(cx()).await.unwrap_err();
    assert_eq!(house.seen(), (0, 3), "both peers, and one of them again");
}

#[tokio::test(start_paused = true)]
async fn each_side_answers_for_the_other() {
    for percent in [0, 100] {
        let house = House::new(routed(percent, 0));
        house.peers_behave(broken());
        house.inference.tiers(cx()).await.expect("the other side answers");
        house.peers_behave(Behavior::Answer);
        house.here.behave(broken());
        house.inference.tiers(cx()).await.expect("the other side answers");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversation_stays_with_one_peer_and_all_get_their_share() {
    let house = House::new(remote());
    for _ in 0..100 {
        let (conversation, before) = (ConversationId::fresh(), house.there[0].seen().len());
        for _ in 0..3 {
            house.inference.tiers(cx().for_conversation(conversation)).await.expect("an answer");
        }
        let first = house.there[0].seen().len() - before;
        assert!(first == 0 || first == 3, "{first} of three calls went to the first peer");
    }
    let first = house.there[0].seen().len();
    assert!((90..210).contains(&first), "{first} of 300 calls went to the first peer");
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_left_for_another_one() {
    let house = House::new(routed(100, 0));
    house.peers_behave(Behavior::Hang);
    let begun = Instant::now();
    house.inference.tiers(cx()).await.expect("the other side answers");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_fails_is_soon_not_asked_any_more_and_later_again() {
    let house = House::new(routed(100, 0));
    house.peers_behave(broken());
    for _ in 0..50 {
        house.inference.tiers(cx()).await.expect("the other side answers");
    }
    let (_, asked) = house.seen();
    assert!((18..=22).contains(&asked), "each breaker opened at its tenth failure: {asked}");
    house.peers_behave(Behavior::Answer);
    tokio::time::advance(BreakerLimits::default().pause).await;
    for _ in 0..50 {
        house.inference.tiers(cx()).await.expect("an answer");
    }
    assert!(house.seen().1 >= asked + 49, "peers are asked again");
}

#[tokio::test(start_paused = true)]
async fn without_slots_or_closed_breakers_the_refusal_says_when_to_come_back() {
    let house = House::with(remote(), Limits { slots: 1, ..Limits::default() });
    house.peers_behave(Behavior::Hang);
    let mut hung = vec![];
    for _ in 0..2 {
        let inference = house.inference.clone();
        hung.push(tokio::spawn(async move { inference.tiers(cx()).await }));
    }
    while house.seen().1 < 2 {
        tokio::task::yield_now().await;
    }
    let refused = house.inference.tiers(cx()).await.unwrap_err();
    assert_eq!((refused.kind, refused.origin), (ErrorKind::Busy, Origin::Policy), "{refused}");
    hung.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_time_is_skipped() {
    let house = House::new(routed(50, 100));
    assert_eq!(house.analyze(CallCx::new(Duration::ZERO)).await, Err(CallError::deadline()));
    assert_eq!(house.seen(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hung_shadow_delays_nothing() {
    let house = House::with(routed(0, 100), Limits { shadows: 2, ..Limits::default() });
    house.peers_behave(Behavior::Hang);
    let begun = Instant::now();
    for _ in 0..10 {
        house.analyze(cx()).await.expect("an answer");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    while house.seen().1 < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.seen(), (10, 2), "without a slot there is no shadow");
    assert!(house.there.iter().flat_map(FakeInference::seen).all(|cx| cx.shadow));
    house.peers_behave(Behavior::Panic("on purpose".into()));
    house.analyze(cx()).await.expect("nor does a shadow that fails");
}

#[test]
fn shadows_are_compared_and_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let house = House::new(routed(0, 100));
            house.analyze(cx()).await.expect("an answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
            house.peers_behave(broken());
            house.analyze(cx()).await.expect("an answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
            house.peers_behave(Behavior::Hang);
            house.analyze(cx()).await.expect("an answer");
            tokio::time::sleep(Duration::from_secs(6)).await;
        });
    });
    let text = handle.render();
    for outcome in ["same", "failed", "late"] {
        let line = format!("quickcomm_shadows_total{{module=\"inference\",method=\"analyze\",outcome=\"{outcome}\"}} 1");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_dial_is_versioned_told_and_undone() {
    let house = House::new(Dial::default());
    let dry = house.turn(Turn { remote_percent: Some(25), dry_run: true, ..Turn::default() }).await.expect("it could be");
    assert_eq!((dry.to, dry.version), (routed(25, 0), 1));
    assert_eq!(house.dials.views()[0].dial, Dial::default(), "nothing has changed");
    let turned = house.turn(Turn { remote_percent: Some(25), shadow_percent: Some(5), ..Turn::default() }).await.expect("it can be");
    assert_eq!((turned.to, turned.version), (routed(25, 5), 2));
    let stale = house.turn(Turn { mode: Some(Mode::Local), version: Some(1), ..Turn::default() }).await;
    assert_eq!(stale, Err(TurnRefused::Stale { module: "inference".into(), is: 2, expected: 1 }));
    let said = Turn { step: Some(Step::Forward), by: Some("ana".into()), reason: Some("fewer cores here".into()), ..Turn::default() };
    house.turn(said).await.expect("one stage on");
    let latest = house.dials.changes().remove(0);
    assert_eq!((latest.by, latest.who.as_deref(), latest.reason.as_deref()), (By::Operator, Some("ana"), Some("fewer cores here")));
    let broken = Turn { mode: Some(Mode::Local), reason: Some("two\nlines".into()), ..Turn::default() };
    assert!(matches!(house.turn(broken).await, Err(TurnRefused::Invalid(why)) if why.contains("control character")));
    assert_eq!(house.dials.views()[0].dial, routed(50, 5));
    house.turn(Turn { undo: true, ..Turn::default() }).await.expect("one back");
    let told: Vec<_> = house.dials.changes().into_iter().map(|change| (change.version, change.to)).collect();
    let expected = ["25 % remote, 5 % shadowed", "50 % remote, 5 % shadowed", "25 % remote, 5 % shadowed"];
    assert_eq!(told, [(4, expected[0].into()), (3, expected[1].into()), (2, expected[2].into())]);
    assert!(matches!(house.turn(Turn { remote_percent: Some(101), ..Turn::default() }).await, Err(TurnRefused::Invalid(_))));
    assert!(matches!(house.dials.turn("video", Turn::default(), By::Operator).await, Err(TurnRefused::UnknownModule { .. })));
}

#[tokio::test]
async fn a_dial_that_nobody_would_answer_is_refused_with_who_was_tried() {
    let house = House::new(Dial::default());
    let place = Place { dial: remote(), endpoints: vec!["http://127.0.0.1:9".into()] };
    let mut dials = Dials::default();
    let connect: Connect<dyn Inference> =
        Arc::new(|endpoint| Ok((crate::connect::inference(endpoint)?, crate::connect::health(endpoint)?)));
    dials.inference(None, &place, connect).expect("a handle exists before its peer");
    for (turn, says) in [
        (Turn { remote_percent: Some(100), ..Turn::default() }, ["http://127.0.0.1:9", "refused"]),
        (Turn { mode: Some(Mode::Local), ..Turn::default() }, ["local", "without inference"]),
    ] {
        let refused = dials.turn("inference", turn, By::Operator).await.unwrap_err().to_string();
        assert!(says.iter().all(|part| refused.contains(part)), "{refused}");
    }
    let none = Place { dial: remote(), endpoints: vec![] };
    let refused = house.dials.configure("inference", &none).await.unwrap_err();
    assert!(refused.to_string().contains("endpoints names none"), "{refused}");
    assert_eq!(house.dials.views()[0].version, 1, "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn a_remote_side_that_fails_turns_the_dial_back_stage_by_stage() {
    let step_back = StepBack { window_s: 30, ..StepBack::default() };
    let house = House::new(Dial { step_back, ..routed(50, 0) });
    house.peers_behave(broken());
    let House { dials, inference, .. } = house;
    let dials = Arc::new(dials);
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(dials.clone().run(stop.clone()));
    for _ in 0..200 {
        inference.tiers(cx()).await.expect("the other side answers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    running.await.expect("it ends");
    let changes = dials.changes();
    let first = changes.last().expect("it stepped back");
    assert_eq!((first.by, first.from.as_str(), first.to.as_str()), (By::StepBack, "50 % remote", "10 % remote"));
    assert!(first.reason.as_ref().is_some_and(|reason| reason.contains("failed")), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_stay_until_they_are_asked_and_go_elsewhere_when_their_place_fails() {
    let (here, there, pipe) = (FakeAudio::default(), FakeAudio::default(), Pipe::default());
    let channel = pipe.serve(Services { audio: Some(Arc::new(there.clone())), ..Default::default() });
    let connect: Connect<dyn Audio> =
        Arc::new(move |endpoint| Ok((Arc::new(audio::client::Remote::new(channel.clone(), endpoint)), Health::over(channel.clone()))));
    let mut dials = Dials::default();
    let place = Place { dial: Dial::default(), endpoints: vec![PEERS[0].into()] };
    let audio = dials.audio(Some(local::audio(Arc::new(here.clone()))), &place, connect).expect("a pipe is always there");
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let call = || cx().for_conversation(ConversationId::fresh());
    let mut sessions = vec![];
    for _ in 0..3 {
        sessions.push(audio.open(call(), spec.clone()).await.expect("a session"));
    }
    let turn = |turn| dials.turn("audio", turn, By::Operator);
    let to_remote = Turn { remote_percent: Some(100), ..Turn::default() };
    assert_eq!(turn(to_remote.clone()).await.expect("it can be").asked_to_move, 0);
    assert_eq!((here.running(), there.running()), (3, 0), "live streams stay");
    assert_eq!(turn(Turn { move_live: true, ..to_remote.clone() }).await.expect("it can be").asked_to_move, 3);
    for session in &mut sessions {
        assert_eq!(session.events.next().await, Some(Ok(SpeechEvent::Handover)));
    }
    sessions.clear();
    let moved = audio.open(call(), spec.clone()).await.expect("a session");
    assert_eq!((here.seen().len(), there.seen().len()), (3, 1));
    assert_eq!(turn(Turn { move_live: true, ..to_remote }).await.expect("it can be").asked_to_move, 0, "it is there already");
    drop(moved);
    let again = CallCx { attempt: 1, ..call() };
    audio.open(again, spec).await.expect("a session");
    assert_eq!((here.seen().len(), there.seen().len()), (4, 1), "after a failure it goes to the other side");
    assert!(turn(Turn { shadow_percent: Some(5), ..Turn::default() }).await.unwrap_err().to_string().contains("shadowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_looked_at_while_streams_are_asked_to_move() {
    let here = FakeAudio::default();
    let mut dials = Dials::default();
    let place = Place { dial: routed(0, 0), endpoints: vec![PEERS[0].into()] };
    let connect: Connect<dyn Audio> = Arc::new(|endpoint| Ok((crate::connect::audio(endpoint)?, crate::connect::health(endpoint)?)));
    let audio = dials.audio(Some(local::audio(Arc::new(here))), &place, connect).expect("a handle exists before its peer");
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let session = audio.open(cx().for_conversation(ConversationId::fresh()), spec).await.expect("a session");
    let dials = Arc::new(dials);
    // Both take the locks of targets and of streams; the other way round they would wait for each other for ever.
    let looking = {
        let dials = dials.clone();
        tokio::task::spawn_blocking(move || (0..20_000).for_each(|_| drop(dials.views())))
    };
    let moving = tokio::spawn(async move {
        for _ in 0..20_000 {
            let turn = Turn { remote_percent: Some(0), move_live: true, ..Turn::default() };
            dials.turn("audio", turn, By::Operator).await.expect("it can be");
        }
    });
    let both = async { tokio::join!(looking, moving) };
    let (looked, moved) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("neither waits for the other");
    looked.expect("no panic");
    moved.expect("no panic");
    drop(session);
}
