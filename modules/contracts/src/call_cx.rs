//! What travels with every call: how long it may take, whose it is, which trace it belongs to, when to stop.

use crate::{ConversationId, TenantId};
use std::{fmt, str::FromStr, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Deeper than this is a loop between modules.
pub const MAX_DEPTH: u8 = 8;

#[derive(Clone, Debug)]
pub struct CallCx {
    /// On the wire this is what remains, in milliseconds; clocks of two machines are never compared.
    pub deadline: Instant,
    pub trace: TraceCx,
    pub tenant: TenantId,
    /// Calls with the same key go to the same place while it lives.
    pub key: RouteKey,
    /// 0 for the first try.
    pub attempt: u8,
    /// Calls above this one.
    pub depth: u8,
    /// The answer is only compared, never used.
    pub shadow: bool,
    pub cancel: CancellationToken,
}

/// What routing sticks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKey {
    Conversation(ConversationId),
    None,
}

impl CallCx {
    pub fn new(budget: Duration) -> Self {
        Self {
            deadline: Instant::now() + budget,
            trace: TraceCx::unbegun(),
            tenant: TenantId::default(),
            key: RouteKey::None,
            attempt: 0,
            depth: 0,
            shadow: false,
            cancel: CancellationToken::new(),
        }
    }

    #[must_use]
    pub fn for_conversation(mut self, id: ConversationId) -> Self {
        self.key = RouteKey::Conversation(id);
        self
    }

    #[must_use]
    pub fn traced(mut self, trace: TraceCx) -> Self {
        self.trace = trace;
        self
    }

    /// A call made on behalf of this one: at most `budget`, never more than what remains; stops when this one stops.
    pub fn child(&self, budget: Duration) -> Self {
        Self {
            deadline: self.deadline.min(Instant::now() + budget),
            depth: self.depth.saturating_add(1),
            attempt: 0,
            cancel: self.cancel.child_token(),
            ..self.clone()
        }
    }

    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// W3C trace context: `00-{trace}-{span}-{flags}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceCx {
    pub trace_id: u128,
    pub span_id: u64,
    pub sampled: bool,
}

impl TraceCx {
    pub fn root() -> Self {
        Self { trace_id: rand::random::<u128>() | 1, span_id: rand::random::<u64>() | 1, sampled: true }
    }
    /// A new trace in which no span has begun: the first one stands below nothing.
    pub fn unbegun() -> Self {
        Self { span_id: 0, ..Self::root() }
    }
    /// The same trace, a new span.
    pub fn child(self) -> Self {
        Self { span_id: rand::random::<u64>() | 1, ..self }
    }
    pub fn trace_id_hex(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}
impl fmt::Debug for TraceCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not a W3C traceparent: expected version-trace-span-flags")]
pub struct BadTraceParent;

impl FromStr for TraceCx {
    type Err = BadTraceParent;
    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        let mut parts = text.trim().split('-');
        let mut hex =
            |len: usize| parts.next().filter(|p| p.len() == len && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(BadTraceParent);
        let version = u8::from_str_radix(hex(2)?, 16).map_err(|_| BadTraceParent)?;
        let trace_id = u128::from_str_radix(hex(32)?, 16).map_err(|_| BadTraceParent)?;
        let span_id = u64::from_str_radix(hex(16)?, 16).map_err(|_| BadTraceParent)?;
        let flags = u8::from_str_radix(hex(2)?, 16).map_err(|_| BadTraceParent)?;
        if version == 0xff || trace_id == 0 || span_id == 0 {
            return Err(BadTraceParent);
        }
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

impl serde::Serialize for TraceCx {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> serde::Deserialize<'de> for TraceCx {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_and_rubbish_does_not() {
        let trace = TraceCx::root();
        assert_eq!(trace.to_string().parse::<TraceCx>().unwrap(), trace);
        for bad in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-0000000000000001-01",
            "ff-00000000000000000000000000000001-0000000000000001-01",
        ] {
            assert!(bad.parse::<TraceCx>().is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_never_outlives_its_parent() {
        let cx = CallCx::new(Duration::from_millis(100));
        assert_eq!(cx.child(Duration::from_secs(5)).remaining(), Duration::from_millis(100));
        assert_eq!(cx.child(Duration::from_millis(20)).remaining(), Duration::from_millis(20));
        let child = cx.child(Duration::from_millis(20));
        cx.cancel.cancel();
        assert!(child.cancel.is_cancelled());
    }
}
