//! What a fake can be told to do instead of answering, and what it remembers of the calls it got.

use crate::{CallCx, CallError};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

#[derive(Clone, Debug, Default)]
pub enum Behavior {
    #[default]
    Answer,
    Fail(CallError),
    Panic(&'static str),
    /// Answers after this time.
    Slow(Duration),
    /// Never answers.
    Hang,
}

/// Shared by the fakes: one behavior for all methods, the contexts seen, and the calls under way.
#[derive(Default)]
pub struct Conduct {
    behavior: Mutex<Behavior>,
    seen: Mutex<Vec<CallCx>>,
    running: Arc<AtomicUsize>,
}

/// Counts as running until dropped.
pub(super) struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Conduct {
    /// From the next call on.
    pub fn behave(&self, behavior: Behavior) {
        *self.behavior.lock() = behavior;
    }

    /// The context of every call so far, as the implementation got it.
    pub fn seen(&self) -> Vec<CallCx> {
        self.seen.lock().clone()
    }

    /// Calls and sessions now under way.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn enter(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.running.clone())
    }

    pub(super) async fn act(&self, cx: &CallCx) -> Result<(), CallError> {
        self.seen.lock().push(cx.clone());
        let behavior = self.behavior.lock().clone();
        match behavior {
            Behavior::Answer => Ok(()),
            Behavior::Fail(error) => Err(error),
            Behavior::Panic(text) => panic!("{text}"),
            Behavior::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Behavior::Hang => std::future::pending().await,
        }
    }
}
