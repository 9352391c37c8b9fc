//! Over gRPC on a pipe in memory.

use super::elsewhere::Beyond;
use crate::{
    hello::Introduction,
    link::{self, Io, Link, Liveness, NoLink},
    role::{Caller, Role},
    serve::{Drain, Services, run},
};
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Default)]
pub(crate) struct Pipe {
    stops: Mutex<Vec<DropGuard>>,
}

impl Pipe {
    pub(crate) fn serve(&self, services: Services) -> Link {
        let (connections, incoming) = mpsc::unbounded_channel::<DuplexStream>();
        let stop = CancellationToken::new();
        self.stops.lock().push(stop.clone().drop_guard());
        let incoming = UnboundedReceiverStream::new(incoming).map(|io| (Box::new(io) as Box<dyn Io>, Caller::Neighbor));
        tokio::spawn(run(incoming, Arc::default(), services, Drain::within(Duration::from_millis(100)), stop));
        let dial: link::Dial = Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let gone = |_| NoLink::Unreachable { peer: "pipe".into(), cause: "its process has ended".into() };
            let sent = connections.send(theirs).map_err(gone);
            Box::pin(async move { sent.map(|()| Box::new(ours) as Box<dyn Io>) })
        });
        Link::new("pipe", dial, Arc::new(Introduction::default()), Liveness::default())
    }
}

#[async_trait]
impl Beyond for Pipe {
    async fn reach(&self, _: Role, services: Services) -> Link {
        self.serve(services)
    }
}
