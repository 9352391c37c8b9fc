//! Fakes, and the suite every implementation passes.
//!
//! [`FakeAudio`], [`FakeInference`] and [`FakeConversations`] keep their contract for real, and can be told to misbehave.
//! [`audio_suite`], [`inference_suite`] and [`conversations_suite`] hold for any implementation: call them with yours.
//! [`call_suite`] is about the way a call takes; it brings its own fakes and is run in every [`Place`].

mod audio_suite;
mod behavior;
mod calls;
mod conversations_suite;
mod fake_audio;
mod fake_conversations;
mod fake_inference;
mod inference_suite;
mod place;

pub use audio_suite::{Sound, audio_suite};
pub use behavior::{Behavior, Conduct, Seen, Strings};
pub use calls::call_suite;
pub use conversations_suite::conversations_suite;
pub use fake_audio::FakeAudio;
pub use fake_conversations::FakeConversations;
pub use fake_inference::FakeInference;
pub use inference_suite::inference_suite;
pub use place::Place;
