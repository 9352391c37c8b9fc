//! Names long tasks, watches them, starts some of them again, and stops them one after another.
//!
//! Invariant: every task has a name, a rule for its end, and is waited for. What can be started again without the rest of the process
//! noticing is [`Supervisor::keep`]'s; a lost listener, or a task that fails again and again, ends the process, which is what gets restarted.

use std::{any::Any, collections::VecDeque, fmt, panic::AssertUnwindSafe, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// A task is started again so often in so much time; once more means that starting again does not help.
pub const RESTARTS: usize = 5;
pub const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Before the first of them; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Labels: `task`.
pub const RESTARTED: &str = "quickcomm_task_restarts_total";

/// What the end of a task means while nobody asked it to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEnd {
    /// The process cannot serve without it: say so and exit.
    ExitProcess,
    /// It had something to do and has done it.
    Fine,
}

#[derive(Debug)]
pub struct Failure {
    pub task: &'static str,
    pub cause: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended: {}", self.task, self.cause)
    }
}

impl std::error::Error for Failure {}

pub struct Supervisor {
    tasks: Vec<Task>,
    failures: (mpsc::UnboundedSender<Failure>, mpsc::UnboundedReceiver<Failure>),
}

struct Task {
    name: &'static str,
    stop: CancellationToken,
    /// How long it may take to stop before it is aborted.
    limit: Duration,
    handle: JoinHandle<()>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self { tasks: vec![], failures: mpsc::unbounded_channel() }
    }
}

impl Supervisor {
    /// Starts a task. Tasks are stopped in the order in which they were started.
    pub fn spawn<F>(&mut self, name: &'static str, on_end: OnEnd, limit: Duration, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let failures = self.failures.0.clone();
        let work = run(stop.clone());
        let asked = stop.clone();
        let handle = tokio::spawn(async move {
            let cause = match outcome(work).await {
                Ok(()) if asked.is_cancelled() || on_end == OnEnd::Fine => return,
                Ok(()) => "it returned although nobody stopped it".to_owned(),
                Err(cause) => cause,
            };
            error!(task = name, cause, "task failed");
            if on_end == OnEnd::ExitProcess {
                let _ = failures.send(Failure { task: name, cause });
            }
        });
        self.tasks.push(Task { name, stop, limit, handle });
    }

    /// Starts a task that is started again when it fails or panics, at most [`RESTARTS`] times in [`RESTART_WINDOW`].
    pub fn keep<F>(&mut self, name: &'static str, limit: Duration, mut run: impl FnMut(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn(name, OnEnd::ExitProcess, limit, move |stop| async move {
            let mut failures = VecDeque::new();
            loop {
                let Err(cause) = outcome(run(stop.clone())).await else { return Ok(()) };
                let now = Instant::now();
                failures.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
                failures.push_back(now);
                if stop.is_cancelled() || failures.len() > RESTARTS {
                    anyhow::bail!("{cause}; it was started again {} times in {} s", failures.len() - 1, RESTART_WINDOW.as_secs());
                }
                error!(task = name, cause, "task failed and is started again");
                metrics::counter!(RESTARTED, "task" => name).increment(1);
                let pause = FIRST_PAUSE * (1 << (failures.len() - 1));
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return Ok(()) }
            }
        });
    }

    /// Waits until a task that the process needs has ended. Cancel-safe.
    pub async fn failed(&mut self) -> Failure {
        self.failures.1.recv().await.expect("the supervisor holds a sender itself")
    }

    /// Stops every task in order; one that takes longer than its limit is aborted.
    pub async fn stop(self) {
        for task in self.tasks {
            task.stop.cancel();
            let abort = task.handle.abort_handle();
            if timeout(task.limit, task.handle).await.is_err() {
                warn!(task = task.name, limit_ms = task.limit.as_millis() as u64, "task did not stop in time");
                abort.abort();
            } else {
                info!(task = task.name, "task stopped");
            }
        }
    }
}

/// Of a task, or why it has none.
async fn outcome(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), String> {
    match futures::FutureExt::catch_unwind(AssertUnwindSafe(work)).await {
        Ok(ended) => ended.map_err(|cause| format!("{cause:#}")),
        Err(panic) => Err(format!("it panicked: {}", panic_text(&*panic))),
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn tasks_stop_in_the_order_they_were_started() {
        let order = Arc::new(Mutex::new(vec![]));
        let mut supervisor = Supervisor::default();
        for name in ["listener", "worker", "store"] {
            let order = order.clone();
            supervisor.spawn(name, OnEnd::ExitProcess, LIMIT, |stop| async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
                Ok(())
            });
        }
        supervisor.stop().await;
        assert_eq!(*order.lock().unwrap(), ["listener", "worker", "store"]);
    }

    #[tokio::test]
    async fn a_lost_task_is_named_and_a_finished_one_is_not() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("recovery", OnEnd::Fine, LIMIT, |_| async { Ok(()) });
        supervisor.spawn("listener", OnEnd::ExitProcess, LIMIT, |_| async { panic!("socket lost") });
        let failure = supervisor.failed().await;
        assert_eq!(failure.to_string(), "listener ended: it panicked: socket lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_and_its_neighbor_does_not_notice() {
        let starts = Arc::new(Mutex::new(0));
        let mut supervisor = Supervisor::default();
        supervisor.spawn("neighbor", OnEnd::ExitProcess, LIMIT, |stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        let counted = starts.clone();
        supervisor.keep("worker", LIMIT, move |stop| {
            *counted.lock().unwrap() += 1;
            let first = *counted.lock().unwrap() <= 3;
            async move {
                assert!(!first, "on purpose");
                stop.cancelled().await;
                Ok(())
            }
        });
        let lost = timeout(Duration::from_secs(10), supervisor.failed()).await;
        assert!(lost.is_err(), "nothing ends the process: {lost:?}");
        assert_eq!(*starts.lock().unwrap(), 4);
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_again_and_again_ends_the_process_and_a_rare_panic_does_not() {
        for (every, ends) in [(Duration::from_secs(1), true), (Duration::from_secs(20), false)] {
            let mut supervisor = Supervisor::default();
            supervisor.keep("worker", LIMIT, move |_| async move {
                tokio::time::sleep(every).await;
                panic!("on purpose")
            });
            let lost = timeout(Duration::from_secs(600), supervisor.failed()).await;
            assert_eq!(lost.is_ok(), ends, "{lost:?}");
            if let Ok(lost) = lost {
                assert_eq!(lost.to_string(), "worker ended: it panicked: on purpose; it was started again 5 times in 60 s");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_stop_is_aborted() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("stubborn", OnEnd::ExitProcess, LIMIT, |_| std::future::pending());
        supervisor.stop().await;
    }
}
