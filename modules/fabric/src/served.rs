//! What every handler does around the module it hands a call to.

use crate::{
    context,
    error::to_status,
    guard::{Deadline, draining, items, passes},
    metrics::Meter,
};
use contracts::{CallCx, CallError, EventStream};
use futures::StreamExt;
use prost::Message;
use std::{
    pin::{Pin, pin},
    time::Duration,
};
use tokio_util::{
    sync::CancellationToken,
    task::task_tracker::{TaskTracker, TaskTrackerToken},
};
use tonic::{Request, Response, Status};

/// The process as its handlers know it.
#[derive(Clone)]
pub(crate) struct Served {
    /// Cancelled when the process begins to stop: refuses what is new, and ends what would never end by itself.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when open calls have had their time.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when sessions have had theirs.
    pub(crate) parted: CancellationToken,
    /// For a session's caller to go on elsewhere, before what was heard is flushed.
    pub(crate) to_move: Duration,
    /// Calls and sessions under way.
    pub(crate) calls: TaskTracker,
}

pub(crate) type Stream<M> = Pin<Box<dyn futures::Stream<Item = Result<M, Status>> + Send>>;

impl Served {
    pub(crate) fn new(stopping: CancellationToken, to_move: Duration) -> Self {
        Self { stopping, leaving: CancellationToken::new(), parted: CancellationToken::new(), to_move, calls: TaskTracker::new() }
    }

    /// Counts a call until the token is dropped, or refuses it.
    pub(crate) fn admit(&self) -> Result<TaskTrackerToken, CallError> {
        let token = self.calls.token(); // first: whoever waits for the last call must not miss this one
        if self.stopping.is_cancelled() { Err(draining()) } else { Ok(token) }
    }

    /// A handler dropped before its answer has lost its caller: the module's context is cancelled.
    pub(crate) async fn unary<Q, A: Message>(
        &self,
        meter: &Meter,
        request: Request<Q>,
        work: impl AsyncFnOnce(CallCx, Q) -> Result<A, CallError>,
    ) -> Result<Response<A>, Status> {
        let _under_way = self.admit().map_err(to_status)?;
        let mut cx = context::read(request.metadata()).map_err(to_status)?;
        let _gone = cx.cancel.clone().drop_guard();
        let bounds = meter.enter(&mut cx).until(&self.leaving);
        let answer = async {
            let answer = work(cx.clone(), request.into_inner()).await?;
            passes(&answer)?;
            Ok(Response::new(answer))
        };
        meter.call(&bounds, pin!(answer)).await.map_err(to_status)
    }

    pub(crate) async fn stream<Q, T, M>(
        &self,
        meter: &Meter,
        deadline: Deadline,
        request: Request<Q>,
        work: impl AsyncFnOnce(CallCx, Q) -> Result<EventStream<T>, CallError>,
    ) -> Result<Response<Stream<M>>, Status>
    where
        T: Send + 'static,
        M: Message + From<T> + 'static,
    {
        let under_way = self.admit().map_err(to_status)?;
        let mut cx = context::read(request.metadata()).map_err(to_status)?;
        let gone = cx.cancel.clone().drop_guard();
        let bounds = meter.enter(&mut cx).until(match deadline {
            Deadline::Whole => &self.leaving,
            Deadline::Opening => &self.stopping,
        });
        let begun = meter.call(&bounds, pin!(work(cx, request.into_inner()))).await.map_err(to_status)?;
        let messages = items(bounds, deadline, begun, |_| Ok(())).scan(false, move |ended, item| {
            let _ = (&gone, &under_way); // live as long as the stream
            let message = item.and_then(|item| {
                let message = M::from(item);
                passes(&message)?;
                Ok(message)
            });
            let last = std::mem::replace(ended, message.is_err());
            std::future::ready((!last).then(|| message.map_err(to_status)))
        });
        Ok(Response::new(messages.boxed()))
    }
}
