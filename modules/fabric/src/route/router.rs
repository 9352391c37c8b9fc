//! One call through the table: shadow, retry, pick, breaker, slots, attempt timeout.

use super::{
    breaker::{BreakerLimits, Verdict},
    live::Live,
    retry::{self, Again, Failed},
    shadow::{Comparison, Shadowed},
    table::{Connect, LOCAL, RouteTable, Target},
};
use crate::{
    connect::{ConnectError, Health},
    metrics as names,
};
use arc_swap::ArcSwap;
use contracts::{
    CallCx, CallError, ErrorKind, Origin, Retry,
    route::{Dial, Mode},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// What one target may be asked at the same time, and when it is no longer asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub slots: usize,
    pub shadows: usize,
    pub breaker: BreakerLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { slots: 256, shadows: 16, breaker: BreakerLimits::default() }
    }
}

/// A caller who finds every breaker open may come back after this.
const REST: Duration = Duration::from_millis(500);

/// What the router must know of a method.
#[derive(Clone, Copy)]
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) idempotent: bool,
    /// A target gets this long for an answer, or for the beginning of a stream, while there is another one to ask.
    pub(super) attempt: Duration,
    /// How long it takes says how well its target is.
    pub(super) brisk: bool,
}

pub(super) struct Router<T: ?Sized> {
    pub(super) module: &'static str,
    pub(super) table: ArcSwap<RouteTable<T>>,
    pub(super) live: Live,
    connect: Connect<T>,
    limits: Limits,
    budget: retry::Budget,
    shadow_slots: Arc<Semaphore>,
}

impl<T: ?Sized + Send + Sync + 'static> Router<T> {
    pub(super) fn new(
        module: &'static str,
        local: Option<Arc<T>>,
        dial: Dial,
        endpoints: &[String],
        connect: Connect<T>,
        limits: Limits,
    ) -> Result<Self, ConnectError> {
        let local = local.map(|peer| Arc::new(Target::new(module, LOCAL, peer, None, limits.slots, limits.breaker)));
        let router = Self {
            module,
            table: ArcSwap::from_pointee(RouteTable { version: 0, dial, local, remote: vec![] }),
            live: Live::default(),
            connect,
            limits,
            budget: retry::Budget::default(),
            shadow_slots: Arc::new(Semaphore::new(limits.shadows)),
        };
        router.swap(dial, endpoints)?;
        Ok(router)
    }

    /// Puts a new table in place; targets that were known stay as they are. Whoever calls it sees to it that nobody else does.
    pub(super) fn swap(&self, dial: Dial, endpoints: &[String]) -> Result<u64, ConnectError> {
        let old = self.table.load();
        let known = |endpoint: &String| old.remote.iter().find(|target| target.name == *endpoint).cloned();
        let mut remote = vec![];
        for endpoint in endpoints {
            remote.push(match known(endpoint) {
                Some(target) => target,
                None => {
                    let (peer, health) = (self.connect)(endpoint)?;
                    Arc::new(Target::new(self.module, endpoint, peer, Some(health), self.limits.slots, self.limits.breaker))
                }
            });
        }
        let version = old.version + 1;
        self.table.store(Arc::new(RouteTable { version, dial, local: old.local.clone(), remote }));
        metrics::gauge!(names::ROUTE_VERSION, "module" => self.module).set(version as f64);
        metrics::gauge!(names::ROUTE_REMOTE, "module" => self.module).set(dial.remote_share());
        Ok(version)
    }

    pub(super) fn slots(&self) -> usize {
        self.limits.slots
    }

    /// What asks `endpoint` for its health, whether it stands in the table or not.
    pub(super) fn health_of(&self, endpoint: &str) -> Result<Health, ConnectError> {
        let known = self.table.load().remote.iter().find(|target| target.name == endpoint).and_then(|target| target.health.clone());
        known.map_or_else(|| Ok((self.connect)(endpoint)?.1), Ok)
    }

    /// A call that may be shadowed.
    pub(super) async fn shadowed<R, A, F>(
        &self,
        method: Method,
        same: fn(&A, &A) -> bool,
        cx: CallCx,
        request: R,
        ask: impl Fn(Arc<T>, CallCx, R) -> F + Copy + Send + 'static,
    ) -> Result<A, CallError>
    where
        R: Clone + Send + 'static,
        A: Clone + Send + 'static,
        F: Future<Output = Result<A, CallError>> + Send,
    {
        let table = self.table.load_full();
        let (order, cx) = self.order(&table, cx);
        let sampled = table.dial.mode == Mode::Routed && rand::random_range(0..100) < table.dial.shadow_percent;
        let other = order.first().filter(|_| sampled).and_then(|first| table.shadow_of(first, cx.key));
        let shadow = other.map_or_else(Shadowed::none, |other| {
            let comparison = Comparison { module: self.module, method: method.name, same };
            let copy = request.clone();
            comparison.cast(&self.shadow_slots, other, &cx, move |peer, cx| ask(peer, cx, copy))
        });
        let (answer, _) = self.ask_in_turn(order, method, cx, request, ask).await?;
        shadow.compare_with(&answer);
        Ok(answer)
    }

    /// The answer, and who gave it. Not an `async fn`: that would keep what it was given beside what it passes on, and every call is copied
    /// into its box.
    pub(super) fn call<'a, R, A, F>(
        &'a self,
        method: Method,
        cx: CallCx,
        request: R,
        ask: impl Fn(Arc<T>, CallCx, R) -> F + Send + 'a,
    ) -> impl Future<Output = Result<(A, Arc<Target<T>>), CallError>> + Send + 'a
    where
        R: Clone + Send + 'a,
        A: Send + 'a,
        F: Future<Output = Result<A, CallError>> + Send + 'a,
    {
        let (order, cx) = self.order(&self.table.load(), cx);
        self.ask_in_turn(order, method, cx, request, ask)
    }

    /// Who is asked, and with what: whoever stands in for a side that is down is told so, as if that had been asked in vain.
    fn order(&self, table: &RouteTable<T>, cx: CallCx) -> (Vec<Arc<Target<T>>>, CallCx) {
        let order = table.order(self.module, &cx);
        let stands_in = order.first().is_some_and(|first| table.stands_in(first, self.module, cx.key));
        let attempt = cx.attempt.max(stands_in.into());
        (order, CallCx { attempt, ..cx })
    }

    async fn ask_in_turn<R, A, F>(
        &self,
        order: Vec<Arc<Target<T>>>,
        method: Method,
        cx: CallCx,
        request: R,
        ask: impl Fn(Arc<T>, CallCx, R) -> F + Send,
    ) -> Result<(A, Arc<Target<T>>), CallError>
    where
        R: Clone + Send,
        F: Future<Output = Result<A, CallError>> + Send,
    {
        let mut queue = VecDeque::from(order);
        let (deadline, attempt) = (cx.deadline, cx.attempt);
        let remaining = || deadline.saturating_duration_since(Instant::now());
        let (mut request, mut cx) = (Some(request), Some(cx));
        let mut why = None;
        let mut attempts = 0;
        self.budget.earn();
        while let Some(target) = queue.pop_front() {
            let Some(permit) = target.breaker.enter() else {
                why.get_or_insert_with(|| self.unwell(&target));
                continue;
            };
            let Ok(slot) = target.slots.try_acquire() else {
                why.get_or_insert_with(|| self.full(&target));
                continue;
            };
            // Nobody after it, and this process is not asked twice: nothing needs to be kept for another attempt.
            let last = queue.is_empty() && !target.is_remote();
            let asked = if last { request.take().zip(cx.take()) } else { request.clone().zip(cx.clone()) };
            let Some((asked, context)) = asked else { break };
            let context = CallCx { attempt: attempt.saturating_add(attempts), ..context };
            let began = Instant::now();
            let work = ask(target.peer.clone(), context, asked);
            // Whoever is asked last gets all the time there is.
            let answer = if !queue.is_empty() && method.attempt < remaining() {
                timeout(method.attempt, work).await.unwrap_or_else(|_| Err(self.silent(&target, method)))
            } else {
                work.await
            };
            attempts += 1;
            drop(slot);
            let verdict = Verdict::of(&answer);
            let now = Instant::now();
            permit.report(verdict, now);
            if verdict == Verdict::Bad || verdict == Verdict::Good && method.brisk {
                target.recent.note(now, now - began, verdict == Verdict::Bad);
            }
            let error = match answer {
                Ok(answer) => return Ok((answer, target)),
                Err(error) => error,
            };
            let failed = Failed {
                error: &error,
                idempotent: method.idempotent,
                untried: !queue.is_empty(),
                remote: target.is_remote(),
                attempts,
                remaining: remaining(),
            };
            match failed.again() {
                Again::No => return Err(error),
                // Asking somebody else because nobody was there loads no target twice.
                Again::Elsewhere if retry::never_arrived(&error) || self.budget.spend() => self.count(method, "elsewhere"),
                Again::Here(wait) if self.budget.spend() => {
                    tokio::time::sleep(wait).await;
                    self.count(method, "here");
                    queue.push_back(target);
                }
                Again::Elsewhere | Again::Here(_) => return Err(error),
            }
            why = Some(error);
        }
        Err(why.unwrap_or_else(|| {
            let detail = format!("{} is {} and has no target there", self.module, self.table.load().dial);
            CallError::new(ErrorKind::Unavailable, Retry::Never, detail).from(Origin::Policy)
        }))
    }

    fn count(&self, method: Method, again: &'static str) {
        metrics::counter!(names::RETRIES, "module" => self.module, "method" => method.name, "again" => again).increment(1);
    }

    fn unwell(&self, target: &Target<T>) -> CallError {
        let detail = format!("{} at {} fails too often to be asked now", self.module, target.name);
        CallError::new(ErrorKind::Unavailable, Retry::After(REST), detail).from(Origin::Policy)
    }

    fn full(&self, target: &Target<T>) -> CallError {
        let detail = format!("{} at {} has {} calls of ours under way", self.module, target.name, self.limits.slots);
        CallError::busy(REST, detail).from(Origin::Policy)
    }

    fn silent(&self, target: &Target<T>, method: Method) -> CallError {
        let detail = format!("{} at {} did not answer {} within {:?}", self.module, target.name, method.name, method.attempt);
        CallError::new(ErrorKind::DeadlineExceeded, Retry::Safe, detail).from(Origin::Policy)
    }
}
