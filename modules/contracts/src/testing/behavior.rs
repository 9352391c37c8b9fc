//! What a fake can be told to do instead of answering, and what it remembers of the calls it got.

use crate::{CallCx, CallError, ConversationId, TenantId, TraceCx, call_cx::RouteKey};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum Behavior {
    #[default]
    Answer,
    Fail(CallError),
    Panic(Cow<'static, str>),
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
    calls: watch::Sender<usize>,
    running: Arc<AtomicUsize>,
    far: OnceLock<Box<dyn Strings>>,
}

/// How a fake in another process is told and asked the same. Each answers when the other process has done it.
pub trait Strings: Send + Sync {
    fn behave(&self, behavior: Behavior);
    fn seen(&self) -> Vec<CallCx>;
    fn running(&self) -> usize;
}

/// Counts as running until dropped.
pub(super) struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Conduct {
    /// From now on this is the conduct of a fake in another process.
    pub fn is_elsewhere(&self, strings: Box<dyn Strings>) {
        assert!(self.far.set(strings).is_ok(), "a fake is put into one place");
    }

    /// From the next call on.
    pub fn behave(&self, behavior: Behavior) {
        match self.far.get() {
            Some(far) => far.behave(behavior),
            None => *self.behavior.lock() = behavior,
        }
    }

    /// The context of every call so far, as the implementation got it.
    pub fn seen(&self) -> Vec<CallCx> {
        self.far.get().map_or_else(|| self.seen.lock().clone(), |far| far.seen())
    }

    /// Waits until there were so many calls.
    pub async fn called(&self, times: usize) {
        self.calls.subscribe().wait_for(|calls| *calls >= times).await.expect("its sender is ours");
    }

    /// Calls and sessions now under way.
    pub fn running(&self) -> usize {
        self.far.get().map_or_else(|| self.running.load(Ordering::SeqCst), |far| far.running())
    }

    pub(super) fn enter(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.running.clone())
    }

    pub(super) async fn act(&self, cx: &CallCx) -> Result<(), CallError> {
        self.seen.lock().push(cx.clone());
        self.calls.send_modify(|calls| *calls += 1);
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

/// A context as a fake in another process tells of it: all of it but the cancellation, which only lives where it was made.
#[derive(Serialize, Deserialize)]
pub struct Seen {
    remaining: Duration,
    trace: TraceCx,
    tenant: TenantId,
    conversation: Option<ConversationId>,
    attempt: u8,
    depth: u8,
    shadow: bool,
}

impl From<CallCx> for Seen {
    fn from(cx: CallCx) -> Self {
        let conversation = if let RouteKey::Conversation(id) = cx.key { Some(id) } else { None };
        let (remaining, CallCx { trace, tenant, attempt, depth, shadow, .. }) = (cx.remaining(), cx);
        Self { remaining, trace, tenant, conversation, attempt, depth, shadow }
    }
}

impl From<Seen> for CallCx {
    fn from(seen: Seen) -> Self {
        let Seen { remaining, trace, tenant, conversation, attempt, depth, shadow } = seen;
        let key = conversation.map_or(RouteKey::None, RouteKey::Conversation);
        Self { trace, tenant, key, attempt, depth, shadow, ..Self::new(remaining) }
    }
}
