//! Names long tasks, watches them, and stops them one after another.
//!
//! Invariant: every task has a name, a rule for its end, and is waited for. Absent on purpose: restarting; a module that loses a task ends
//! the process, and the process is what gets restarted.

use std::{any::Any, fmt, panic::AssertUnwindSafe, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

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
        let work = AssertUnwindSafe(run(stop.clone()));
        let asked = stop.clone();
        let handle = tokio::spawn(async move {
            let ended = futures::FutureExt::catch_unwind(work).await;
            let cause = match ended {
                Ok(Ok(())) if asked.is_cancelled() || on_end == OnEnd::Fine => return,
                Ok(Ok(())) => "it returned although nobody stopped it".to_owned(),
                Ok(Err(cause)) => format!("{cause:#}"),
                Err(panic) => format!("it panicked: {}", panic_text(&*panic)),
            };
            error!(task = name, cause, "task failed");
            if on_end == OnEnd::ExitProcess {
                let _ = failures.send(Failure { task: name, cause });
            }
        });
        self.tasks.push(Task { name, stop, limit, handle });
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
    async fn a_task_that_will_not_stop_is_aborted() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("stubborn", OnEnd::ExitProcess, LIMIT, |_| std::future::pending());
        supervisor.stop().await;
    }
}
