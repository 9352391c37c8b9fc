//! What a process stands on: settings, telemetry, supervision, the bus, the cache, model files. Knows nothing of conversations.

pub mod bus;
pub mod cache;
pub mod memory;
pub mod onnx;
pub mod priority;
pub mod settings;
pub mod supervision;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;
