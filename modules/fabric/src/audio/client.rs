//! `Audio` in another process. Credit, events and ends mean the same as next door: [`Session::pair`] makes both.

use super::Methods;
use crate::{
    context,
    error::from_status,
    guard::passes,
    link::Link,
    metrics::Locality,
    wire::{
        Unreadable,
        quickcomm::audio::v1::{self as pb, audio_client::AudioClient},
    },
};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError,
    audio::{EventTx, Input, InputSink, MAX_MESSAGE_BYTES, Session, StreamSpec},
};
use parking_lot::Mutex;
use pb::{down::Message as Down, up::Message as Up};
use std::{pin::pin, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::Instrument;

pub(crate) struct Remote {
    client: AudioClient<Link>,
    methods: Methods,
}

impl Remote {
    pub(crate) fn new(link: Link, endpoint: &str) -> Self {
        let client = AudioClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, methods: Methods::at(Locality::Remote, &endpoint.into()) }
    }

    async fn begin(&self, cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        // Unbounded in name only: frames are bounded by the session's credit, `taken` by the events that were sent.
        let (up, requests) = mpsc::unbounded_channel();
        let first = message(Up::Spec(spec.clone().into()));
        passes(&first)?;
        let _ = up.send(first);
        let request = context::request(&cx, UnboundedReceiverStream::new(requests));
        let mut down = self.client.clone().open(request).await.map_err(from_status)?.into_inner();
        let info = match down.message().await.map_err(from_status)?.and_then(|down| down.message) {
            Some(Down::Opened(info)) => info.into(),
            Some(_) | None => return Err(Unreadable::missing("answer to the opening").in_answer()),
        };
        let gone = CancellationToken::new();
        let sink = Arc::new(Sink { up: Mutex::new(Some(up)), gone: gone.clone() });
        let (session, events) = Session::pair(&spec, info, sink);
        tokio::spawn(relay(down, events, gone).instrument(tracing::Span::current())); // ends with the session
        Ok(session)
    }
}

#[async_trait]
impl Audio for Remote {
    async fn open(&self, mut cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let bounds = self.methods.open.enter(&mut cx);
        self.methods.open.call(&bounds, pin!(self.begin(cx, spec))).await
    }
}

fn message(message: Up) -> pb::Up {
    pb::Up { message: Some(message) }
}

/// Puts on the wire what the caller's halves do.
struct Sink {
    up: Mutex<Option<mpsc::UnboundedSender<pb::Up>>>,
    gone: CancellationToken,
}

impl Sink {
    fn send(&self, up: Up) {
        if let Some(sender) = &*self.up.lock() {
            let _ = sender.send(message(up)); // the call is over: `relay` has said why
        }
    }
}

impl InputSink for Sink {
    fn push(&self, input: Input) {
        match input {
            Input::Frame(frame) => self.send(Up::Frame(frame.into())),
            Input::Finalize { token } => self.send(Up::Finalize(token)),
            Input::Finish => self.send(Up::Finish(pb::Finish {})),
            Input::Abandon => {
                self.up.lock().take();
                self.gone.cancel();
            }
            Input::Drained => {} // the far end counts for itself
        }
    }

    fn taken(&self) {
        self.send(Up::Taken(1));
    }
}

/// From the wire to the session, until either is over. Dropping `down` resets the call, which ends the far session at once.
async fn relay(mut down: Streaming<pb::Down>, events: EventTx, gone: CancellationToken) {
    loop {
        let message = tokio::select! {
            biased;
            () = gone.cancelled() => return,
            message = down.message() => message,
        };
        match message {
            Ok(Some(pb::Down { message: Some(Down::Event(event)) })) => match event.try_into() {
                Ok(event) => events.send(event),
                Err(unreadable) => return events.fail(Unreadable::in_answer(unreadable)),
            },
            Ok(Some(pb::Down { message: Some(Down::Consumed(bytes)) })) => events.consumed(bytes as usize),
            Ok(Some(pb::Down { message: Some(Down::Opened(_)) | None })) => {
                return events.fail(Unreadable::missing("event known to this release").in_answer());
            }
            Ok(None) => return events.end(),
            Err(status) => return events.fail(from_status(status)),
        }
    }
}
