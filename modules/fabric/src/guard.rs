//! What every call has around it, wherever its module runs.
//!
//! Invariants, the same in all localities:
//! - a call ends at its deadline and when its caller gives up; one without time, or too deep, does not begin;
//! - a panic of the module is an answer, [`ErrorKind::Panicked`], and never reaches the caller's task;
//! - nothing larger than [`MAX_MESSAGE_BYTES`] passes, in either direction.
//!
//! The decoration of a local call costs well under a microsecond: no task, no lookup, a span only where somebody listens.

use crate::{
    error::concise,
    metrics::{Locality, Meter},
    wire::Weight,
};
use contracts::{CallCx, CallError, ErrorKind, EventStream, Origin, Retry, TraceCx, audio::MAX_MESSAGE_BYTES, call_cx::MAX_DEPTH};
use futures::{FutureExt, StreamExt};
use prost::Message;
use std::panic::AssertUnwindSafe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What ends a call from outside.
#[derive(Clone)]
pub(crate) struct Bounds {
    deadline: Instant,
    cancel: CancellationToken,
    depth: u8,
    trace: TraceCx,
    /// The process that serves the call is going down.
    leaving: Option<CancellationToken>,
}

impl Bounds {
    pub(crate) fn of(cx: &CallCx) -> Self {
        Self { deadline: cx.deadline, cancel: cx.cancel.clone(), depth: cx.depth, trace: cx.trace, leaving: None }
    }

    #[must_use]
    pub(crate) fn until(mut self, leaving: &CancellationToken) -> Self {
        self.leaving = Some(leaving.clone());
        self
    }

    /// Why it must not begin.
    fn check(&self) -> Result<(), CallError> {
        if self.depth > MAX_DEPTH {
            let detail = format!("the call is {} calls deep: modules call each other in a circle", self.depth);
            return Err(CallError::new(ErrorKind::Internal, Retry::Never, detail).from(Origin::Policy));
        }
        if self.cancel.is_cancelled() {
            return Err(CallError::cancelled());
        }
        if self.deadline <= Instant::now() {
            return Err(CallError::deadline());
        }
        Ok(())
    }

    /// Completes when the call must end, with the reason.
    async fn broken(&self, deadline: bool) -> CallError {
        tokio::select! {
            () = self.cancel.cancelled() => CallError::cancelled(),
            () = tokio::time::sleep_until(self.deadline), if deadline => CallError::deadline(),
            () = async { self.leaving.as_ref().expect("checked").cancelled().await }, if self.leaving.is_some() => leaving(),
        }
    }
}

/// The answer of a module whose process goes down.
pub(crate) fn leaving() -> CallError {
    CallError::unavailable("the process that hosts the module is stopping")
}

/// Counts a call as cancelled when it is dropped before its answer.
struct Timer<'a> {
    meter: &'a Meter,
    began: std::time::Instant,
    answered: bool,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.meter.record::<()>(self.began.elapsed(), &Err(CallError { detail: String::new(), ..CallError::cancelled() }));
        }
    }
}

impl Meter {
    /// One call, or the opening of a stream.
    pub(crate) async fn call<T>(&self, bounds: Bounds, work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let mut timer = Timer { meter: self, began: std::time::Instant::now(), answered: false };
        let answer = match bounds.check() {
            Ok(()) => {
                // The work is polled first: an answer that is there at once costs no timer.
                let bounded = async {
                    tokio::select! {
                        biased;
                        answer = AssertUnwindSafe(work).catch_unwind() => answer.unwrap_or_else(|panic| Err(CallError::panicked(&*panic))),
                        reason = async { bounds.broken(true).await } => Err(reason),
                    }
                };
                bounded.instrument(self.span(&bounds)).await
            }
            Err(reason) => Err(reason),
        };
        let answer = answer.map_err(concise);
        timer.answered = true;
        self.record(timer.began.elapsed(), &answer);
        answer
    }

    /// Who serves a call wants its lines under the caller's trace; who makes one has a span already.
    fn span(&self, bounds: &Bounds) -> tracing::Span {
        macro_rules! span {
            ($span:ident) => {
                tracing::$span!(
                    "call",
                    module = self.module,
                    method = self.method,
                    locality = self.locality.name(),
                    trace_id = %bounds.trace.trace_id_hex()
                )
            };
        }
        match self.locality {
            Locality::Served => span!(info_span),
            Locality::Local | Locality::Remote | Locality::Routed => span!(debug_span),
        }
    }
}

/// How long the deadline of a stream's call holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// To the last item.
    Whole,
    /// The stream lives until its reader drops it.
    Opening,
}

/// The items of a stream under the same rules as a call. An error is the last item.
pub(crate) fn items<T: Send + 'static>(
    bounds: Bounds,
    deadline: Deadline,
    items: EventStream<T>,
    fits: fn(&T) -> Result<(), CallError>,
) -> EventStream<T> {
    futures::stream::unfold(Some((items, bounds)), move |state| async move {
        let (mut items, bounds) = state?;
        let item = tokio::select! {
            biased;
            reason = bounds.broken(deadline == Deadline::Whole) => Some(Err(reason)),
            item = AssertUnwindSafe(items.next()).catch_unwind() => item.unwrap_or_else(|panic| Some(Err(CallError::panicked(&*panic)))),
        };
        match item?.and_then(|item| fits(&item).map(|()| item)) {
            Ok(item) => Some((Ok(item), Some((items, bounds)))),
            Err(error) => Some((Err(concise(error)), None)),
        }
    })
    .boxed()
}

/// Whether a value would pass as message `M`. Encodes nothing as long as the upper bound is below the limit.
pub(crate) fn fits<M: Message + From<T>, T: Weight + Clone>(value: &T) -> Result<(), CallError> {
    if value.weight() <= MAX_MESSAGE_BYTES { Ok(()) } else { passes(&M::from(value.clone())) }
}

pub(crate) fn passes(message: &impl Message) -> Result<(), CallError> {
    let bytes = message.encoded_len();
    if bytes <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    let detail = format!("a message of {bytes} bytes: at most {MAX_MESSAGE_BYTES} pass between modules");
    Err(CallError::new(ErrorKind::TooLarge, Retry::Never, detail).from(Origin::Policy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::time::Duration;

    /// What a scrape shows of three calls: an answer, an error, and one nobody waited for.
    #[test]
    fn every_call_is_counted_by_its_outcome() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                let meter = Meter::new(Locality::Local, &"local".into(), "inference", "tiers");
                let cx = CallCx::new(Duration::from_secs(1));
                meter.call(Bounds::of(&cx), async { Ok(()) }).await.expect("an answer");
                let _ = meter.call::<()>(Bounds::of(&cx), async { Err(CallError::busy(Duration::ZERO, "full")) }).await;
                let dropped = meter.call::<()>(Bounds::of(&cx), std::future::pending());
                assert!(dropped.now_or_never().is_none());
            });
        });
        let text = handle.render();
        for outcome in ["ok", "busy", "cancelled"] {
            let line = format!(
                "quickcomm_module_call_seconds_count{{module=\"inference\",method=\"tiers\",locality=\"local\",target=\"local\",outcome=\"{outcome}\"}} 1"
            );
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_panics_or_fails_ends_there() {
        let cx = CallCx::new(Duration::from_secs(1));
        let wild = futures::stream::iter(0..3).map(|n| if n == 1 { panic!("on purpose") } else { Ok(n) }).boxed();
        let seen: Vec<Result<i32, CallError>> = items(Bounds::of(&cx), Deadline::Whole, wild, |_| Ok(())).collect().await;
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].as_ref().map_err(|e| e.kind), Err(ErrorKind::Panicked));
    }
}
