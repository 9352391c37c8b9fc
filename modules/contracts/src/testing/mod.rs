//! Fakes, and the suite every implementation passes.
//!
//! [`FakeAudio`], [`FakeInference`] and [`FakeConversations`] keep their contract for real, and can be told to misbehave.
//! [`audio_suite`], [`inference_suite`] and [`conversations_suite`] hold for any implementation: call them with yours.

mod behavior;
mod conversations_suite;
mod fake_audio;
mod fake_conversations;
mod fake_inference;

pub use behavior::Behavior;
pub use conversations_suite::conversations_suite;
pub use fake_audio::FakeAudio;
pub use fake_conversations::FakeConversations;
pub use fake_inference::FakeInference;
