//! A second opinion that nobody waits for.
//!
//! Invariants: a shadow has slots, a deadline and a cancellation of its own; when there is no slot it is skipped; its answer is compared
//! and dropped.

use super::{recent::Recent, table::Target};
use crate::metrics as names;
use contracts::{CallCx, CallError, ErrorKind};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const BUDGET: Duration = Duration::from_secs(5);

/// Gives the shadow the answer to compare with. Dropped without: the call failed.
pub(super) struct Shadowed<A>(Option<oneshot::Sender<A>>);

impl<A: Clone> Shadowed<A> {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn compare_with(self, answer: &A) {
        if let Some(sender) = self.0 {
            let _ = sender.send(answer.clone()); // the shadow has failed and said so
        }
    }
}

/// What is compared, and under which names.
pub(super) struct Comparison<A> {
    pub(super) module: &'static str,
    pub(super) method: &'static str,
    pub(super) same: fn(&A, &A) -> bool,
}

impl<A: Clone + Send + 'static> Comparison<A> {
    pub(super) fn cast<T: ?Sized + Send + Sync + 'static, F>(
        self,
        slots: &Arc<Semaphore>,
        target: Arc<Target<T>>,
        cx: &CallCx,
        ask: impl FnOnce(Arc<T>, CallCx) -> F + Send + 'static,
    ) -> Shadowed<A>
    where
        F: Future<Output = Result<A, CallError>> + Send,
    {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            self.count("skipped");
            return Shadowed::none();
        };
        let (sender, answer) = oneshot::channel();
        let cancel = CancellationToken::new();
        let cx = CallCx { shadow: true, cancel, deadline: Instant::now() + BUDGET, ..cx.child(BUDGET) };
        tokio::spawn(async move {
            let _slot = slot;
            let began = Instant::now();
            let shadow = timeout(BUDGET, ask(target.peer.clone(), cx)).await.unwrap_or_else(|_| Err(CallError::deadline()));
            note(&target.recent, &shadow, began.elapsed());
            let outcome = match (shadow, answer.await) {
                (Err(error), _) if error.kind == ErrorKind::DeadlineExceeded => "late",
                (Err(_), _) => "failed",
                (Ok(_), Err(_)) => "alone",
                (Ok(shadow), Ok(answer)) if (self.same)(&answer, &shadow) => "same",
                (Ok(_), Ok(_)) => "differs",
            };
            self.count(outcome);
        });
        Shadowed(Some(sender))
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!(names::SHADOWS, "module" => self.module, "method" => self.method, "outcome" => outcome).increment(1);
    }
}

/// Shadows are how a target is known before it answers for anybody.
fn note<A>(recent: &Recent, answer: &Result<A, CallError>, took: Duration) {
    match super::breaker::Verdict::of(answer) {
        super::breaker::Verdict::Good => recent.note(Instant::now(), took, false),
        super::breaker::Verdict::Bad => recent.note(Instant::now(), took, true),
        super::breaker::Verdict::Neither => {}
    }
}
