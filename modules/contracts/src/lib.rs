//! What the modules promise each other: domain types, three traits, one error type, the context of a call.
//!
//! Invariants: no I/O, no framework; every argument is owned and could cross a wire; a promise written on a trait is a case
//! in its suite (`testing`), and the suite passes wherever the implementation runs.
//! Deliberately absent: wire types (they stay in `fabric`), storage, sockets, models.

pub mod audio;
pub mod call_cx;
pub mod conversation;
pub mod error;
pub mod ids;
pub mod inference;
pub mod pcm;
pub mod redaction;
pub mod route;
pub mod signal;
#[cfg(feature = "testing")]
pub mod testing;

pub use audio::Audio;
pub use call_cx::{CallCx, TraceCx};
pub use conversation::Conversations;
pub use error::{CallError, ErrorKind, Origin, Retry};
pub use ids::{ChannelIndex, ConversationId, Epoch, InsightId, RunId, TenantId, UtteranceId};
pub use inference::Inference;
pub use pcm::{Encoding, SamplePos, SampleRate};

/// Items of a server stream. An `Err` is the last item.
pub type EventStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, CallError>> + Send>>;
