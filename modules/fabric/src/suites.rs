//! The contracts' suites, in every place a module can be.
//!
//! Beside the suites, what the issue of a module's place stands on is tested here: the six differences between a call in a process and
//! plain gRPC, and cancelling, in `call_suite`; repetitions in `repeated`; peers killed or silent in `broken`; hung shadows in
//! `route/tests.rs`; draining under load in `tests/it/drain.rs`; one tree of spans in `tests/it/trace.rs`; the codec in `round_trip.rs`.

mod broken;
mod child;
mod elsewhere;
mod half;
mod here;
mod pipe;
mod repeated;
mod socket;

pub(crate) use pipe::Pipe;

use child::Child;
use contracts::testing::{
    FakeAudio, FakeConversations, FakeInference, Place, Sound, audio_suite, call_suite, conversations_suite, inference_suite,
};
use elsewhere::Elsewhere;
use half::HalfAndHalf;
use here::Here;
use repeated::Repeated;
use socket::{Socket, tls, unix};

/// What holds for any implementation, held by the fakes behind `place`.
async fn contracts_hold(place: &dyn Place) {
    audio_suite(place.audio(FakeAudio::default()).await, Sound::noise()).await;
    inference_suite(place.inference(FakeInference::default()).await).await;
    conversations_suite(place.conversations(FakeConversations::default()).await).await;
}

/// A place's test, for the contracts and, unless calls are repeated there, for the way a call takes.
macro_rules! in_place {
    ($($name:ident: $suite:ident($place:expr);)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $suite(&$place).await;
            }
        )*
    };
}

in_place! {
    contracts_hold_in_this_process: contracts_hold(Here);
    contracts_hold_over_a_pipe: contracts_hold(Elsewhere(Pipe::default()));
    contracts_hold_over_tcp: contracts_hold(Elsewhere(Socket::default()));
    contracts_hold_over_tls: contracts_hold(Elsewhere(tls()));
    contracts_hold_over_a_unix_socket: contracts_hold(Elsewhere(unix()));
    contracts_hold_in_a_process_of_its_own: contracts_hold(Child::start().await);
    contracts_hold_half_here_and_half_over_a_pipe: contracts_hold(HalfAndHalf(Elsewhere(Pipe::default())));
    contracts_hold_half_here_and_half_over_tls: contracts_hold(HalfAndHalf(Elsewhere(tls())));
    contracts_hold_when_calls_are_repeated: contracts_hold(Repeated(Elsewhere(Pipe::default())));

    calls_are_alike_in_this_process: call_suite(Here);
    calls_are_alike_over_a_pipe: call_suite(Elsewhere(Pipe::default()));
    calls_are_alike_over_tcp: call_suite(Elsewhere(Socket::default()));
    calls_are_alike_over_tls: call_suite(Elsewhere(tls()));
    calls_are_alike_over_a_unix_socket: call_suite(Elsewhere(unix()));
    calls_are_alike_in_a_process_of_its_own: call_suite(Child::start().await);
    calls_are_alike_half_here_and_half_over_a_pipe: call_suite(HalfAndHalf(Elsewhere(Pipe::default())));
    calls_are_alike_half_here_and_half_over_tls: call_suite(HalfAndHalf(Elsewhere(tls())));
}
