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
use platform::trace::{self, Side};
use prost::Message;
use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    time::SystemTime,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What ends a call from outside.
#[derive(Clone)]
pub(crate) struct Bounds {
    deadline: Instant,
    cancel: CancellationToken,
    depth: u8,
    /// The call's own place in the trace, the span it is below, and, in one process, the callee's below it.
    trace: TraceCx,
    above: u64,
    below: u64,
    /// The process that serves the call is going down.
    leaving: Option<CancellationToken>,
}

impl Bounds {
    #[must_use]
    pub(crate) fn until(mut self, leaving: &CancellationToken) -> Self {
        self.leaving = Some(leaving.clone());
        self
    }

    /// Why it must not begin.
    fn check(&self, now: Instant) -> Result<(), CallError> {
        if self.depth > MAX_DEPTH {
            let detail = format!("the call is {} calls deep: modules call each other in a circle", self.depth);
            return Err(CallError::new(ErrorKind::Internal, Retry::Never, detail).from(Origin::Policy));
        }
        if self.cancel.is_cancelled() {
            return Err(CallError::cancelled());
        }
        if self.deadline <= now {
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

/// The answer to a new call, and the end of a session, while what is under way is finished. Another place can take it at once.
pub(crate) fn draining() -> CallError {
    CallError::unavailable("draining: the process that hosts the module is stopping").from(Origin::Policy)
}

/// Whether a process that stops has refused the call before it began: it says nothing about how well that process works.
pub(crate) fn is_draining(error: &CallError) -> bool {
    (error.kind, error.retry, error.origin) == (ErrorKind::Unavailable, Retry::Safe, Origin::Policy)
}

/// The answer of a module whose process goes down.
pub(crate) fn leaving() -> CallError {
    CallError::unavailable("the process that hosts the module is stopping")
}

/// Counts a call as cancelled when it is dropped before its answer.
struct Timer<'a> {
    meter: &'a Meter,
    began: Instant,
    spans: Option<[trace::Span; 2]>,
    answered: bool,
}

impl Timer<'_> {
    fn ended<T>(&mut self, answer: &Result<T, CallError>) {
        self.answered = true;
        let took = self.began.elapsed();
        self.meter.record(took, answer);
        for span in self.spans.iter_mut().flatten() {
            span.took(took);
            match answer {
                Ok(_) => span.note("outcome", "ok"),
                Err(error) => {
                    span.note("outcome", error.kind.name());
                    span.failed(error.detail.clone());
                }
            }
        }
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.ended::<()>(&Err(CallError { detail: String::new(), ..CallError::cancelled() }));
        }
    }
}

impl Meter {
    /// Begins a call: from here on it has its own place in the trace, and what it calls stands below it.
    pub(crate) fn enter(&self, cx: &mut CallCx) -> Bounds {
        let above = cx.trace.span_id;
        let mut trace = cx.trace;
        // Where a call is routed to has the spans; the way there adds none.
        if self.locality != Locality::Routed && (above == 0 || trace::wants(&trace)) {
            trace = trace.child();
            cx.trace = if self.locality == Locality::Local { trace.child() } else { trace };
        }
        let below = cx.trace.span_id;
        Bounds { deadline: cx.deadline, cancel: cx.cancel.clone(), depth: cx.depth, trace, above, below, leaving: None }
    }

    /// Both sides of a call are seen, whether or not they share a process: a trace is the same tree wherever its modules run.
    fn spans(&self, bounds: &Bounds) -> Option<[trace::Span; 2]> {
        if self.locality == Locality::Routed || !trace::wants(&bounds.trace) {
            return None;
        }
        let now = SystemTime::now();
        let span = |name, side, own, above| {
            let mut span = trace::Span::begun_at(now, name, side, own, above);
            span.note("locality", self.locality.name());
            span
        };
        let (call, serve) = (self.call, self.serve);
        let at = |span_id| TraceCx { span_id, ..bounds.trace };
        let (trace, above, below) = (bounds.trace, at(bounds.above), at(bounds.below));
        Some(match self.locality {
            Locality::Local => [span(call, Side::Caller, trace, above), span(serve, Side::Callee, below, trace)],
            Locality::Remote => [span(call, Side::Caller, trace, above), trace::Span::none()],
            Locality::Served | Locality::Routed => [trace::Span::none(), span(serve, Side::Callee, trace, above)],
        })
    }

    /// One call, or the opening of a stream. Bounds and work stay where they are: each layer that took them by value would keep them twice,
    /// and every call is copied into its box.
    pub(crate) async fn call<T>(
        &self,
        bounds: &Bounds,
        work: Pin<&mut (impl Future<Output = Result<T, CallError>> + ?Sized)>,
    ) -> Result<T, CallError> {
        let began = Instant::now();
        let mut timer = Timer { meter: self, began, spans: self.spans(bounds), answered: false };
        let mut work = AssertUnwindSafe(work).catch_unwind();
        let answer = match bounds.check(began) {
            Ok(()) => {
                // The work is polled first: an answer that is there at once costs no timer.
                let bounded = pin!(async {
                    tokio::select! {
                        biased;
                        answer = &mut work => answer.unwrap_or_else(|panic| Err(CallError::panicked(&*panic))),
                        reason = async { bounds.broken(true).await } => Err(reason),
                    }
                });
                bounded.instrument(self.span(bounds)).await
            }
            Err(reason) => Err(reason),
        };
        let answer = answer.map_err(concise);
        timer.ended(&answer);
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
                let bounds = || meter.enter(&mut CallCx::new(Duration::from_secs(1)));
                meter.call(&bounds(), pin!(async { Ok(()) })).await.expect("an answer");
                let _ = meter.call::<()>(&bounds(), pin!(async { Err(CallError::busy(Duration::ZERO, "full")) })).await;
                let (bounds, mut never) = (bounds(), std::future::pending());
                let dropped = meter.call::<()>(&bounds, Pin::new(&mut never));
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
        let bounds = Meter::new(Locality::Local, &"local".into(), "inference", "summarize").enter(&mut CallCx::new(Duration::from_secs(1)));
        let wild = futures::stream::iter(0..3).map(|n| if n == 1 { panic!("on purpose") } else { Ok(n) }).boxed();
        let seen: Vec<Result<i32, CallError>> = items(bounds, Deadline::Whole, wild, |_| Ok(())).collect().await;
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].as_ref().map_err(|e| e.kind), Err(ErrorKind::Panicked));
    }
}
