//! `Audio` for other processes: each call is one session, and the call's response stream owns it. Whoever drops the stream ends both.

use super::Methods;
use crate::{
    context,
    error::to_status,
    guard::{draining, leaving},
    metrics::Locality,
    served::Served,
    wire::{Unreadable, quickcomm::audio::v1 as pb},
};
use contracts::{
    Audio, CallCx, CallError,
    audio::{Carried, CarriedRx, FrameTx, Session, SpeechEvent, StreamSpec},
};
use futures::{Stream, StreamExt};
use pb::{down::Message as Down, up::Message as Up};
use std::{
    pin::{Pin, pin},
    sync::Arc,
};
use tokio::time::Sleep;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

#[derive(Clone)]
pub(crate) struct Server {
    served: Arc<Hosted>,
}

struct Hosted {
    module: Arc<dyn Audio>,
    methods: Methods,
    process: Served,
}

impl Server {
    pub(crate) fn new(module: Arc<dyn Audio>, process: Served) -> Self {
        Self { served: Arc::new(Hosted { module, methods: Methods::new(Locality::Served), process }) }
    }
}

#[tonic::async_trait]
impl pb::audio_server::Audio for Server {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<pb::Down, Status>> + Send>>;

    /// Returns headers at once; the admission's answer is the first message. A caller must not wait here while we wait for its spec.
    async fn open(&self, request: Request<Streaming<pb::Up>>) -> Result<Response<Self::OpenStream>, Status> {
        let under_way = self.served.process.admit().map_err(to_status)?;
        let cx = context::read(request.metadata()).map_err(to_status)?;
        let span = tracing::info_span!("session", module = super::MODULE, trace_id = %cx.trace.trace_id_hex());
        let begun = Stage::Opening { served: self.served.clone(), cx, up: request.into_inner() };
        let messages = futures::stream::unfold(begun, move |stage| {
            let _ = &under_way; // lives as long as the session
            let next = async move {
                let (message, stage) = stage.next().await?;
                Some((message.map(|message| pb::Down { message: Some(message) }).map_err(to_status), stage))
            };
            next.instrument(span.clone())
        });
        Ok(Response::new(messages.boxed()))
    }
}

enum Stage {
    Opening { served: Arc<Hosted>, cx: CallCx, up: Streaming<pb::Up> },
    Live(Live),
    Over,
}

struct Live {
    served: Arc<Hosted>,
    up: Streaming<pb::Up>,
    /// None after `finish`, and after we have parted.
    frames: Option<FrameTx>,
    parting: Parting,
    events: CarriedRx,
    /// Audio the caller may have under way, in bytes, and how much of it is.
    credit: usize,
    unconsumed: usize,
    /// The caller will send nothing more.
    half_closed: bool,
    _gone: DropGuard,
}

/// How a session of a process that stops comes to its end.
enum Parting {
    Not,
    /// The caller was told to move, and has until then.
    Told(Pin<Box<Sleep>>),
    /// It stayed. What was heard is flushed; what still comes in is for the next place.
    Flushing,
    /// The caller has finished: the end comes by itself.
    Needless,
}

impl Stage {
    /// The next message down, and what comes after it. Dropping it anywhere drops the session.
    async fn next(self) -> Option<(Result<Down, CallError>, Self)> {
        let answer = match self {
            Self::Opening { served, cx, up } => Live::open(served, cx, up).await,
            Self::Live(live) => live.next().await.transpose()?,
            Self::Over => return None,
        };
        Some(match answer {
            Ok((message, live)) => (Ok(message), Self::Live(live)),
            Err(error) => (Err(error), Self::Over),
        })
    }
}

impl Live {
    async fn open(served: Arc<Hosted>, mut cx: CallCx, mut up: Streaming<pb::Up>) -> Result<(Down, Self), CallError> {
        let gone = cx.cancel.clone().drop_guard();
        let bounds = served.methods.open.enter(&mut cx).until(&served.process.leaving);
        let opening = async {
            let first = up.message().await.ok().flatten().and_then(|up| up.message);
            let Some(Up::Spec(spec)) = first else { return Err(Unreadable::missing("spec at its beginning").in_request()) };
            let spec = StreamSpec::try_from(spec).map_err(Unreadable::in_request)?;
            let width = spec.encoding.bytes_per_sample();
            let rate = spec.rate;
            let Session { frames, events, info } = served.module.open(cx, spec).await?;
            Ok((frames, events, rate.samples_in(info.credit) as usize * width, info))
        };
        let (frames, events, credit, info) = served.methods.open.call(&bounds, pin!(opening)).await?;
        let live = Self {
            up,
            frames: Some(frames),
            parting: Parting::Not,
            events: events.carry(),
            credit,
            unconsumed: 0,
            half_closed: false,
            _gone: gone,
            served: served.clone(),
        };
        Ok((Down::Opened(info.into()), live))
    }

    /// `None` when the session has ended well, or when nobody is there to be told.
    async fn next(mut self) -> Result<Option<(Down, Self)>, CallError> {
        loop {
            // All sources are cancel-safe. Events before frames: they are few, and they end.
            tokio::select! {
                biased;
                () = self.served.process.parted.cancelled() => return Err(leaving()),
                () = self.served.process.stopping.cancelled(), if matches!(self.parting, Parting::Not) => {
                    if self.frames.is_none() {
                        self.parting = Parting::Needless;
                        continue;
                    }
                    self.parting = Parting::Told(Box::pin(tokio::time::sleep(self.served.process.to_move)));
                    return Ok(Some((Down::Event(SpeechEvent::Handover.into()), self)));
                }
                () = too_late(&mut self.parting) => self.flush(),
                carried = self.events.next() => return match carried {
                    Some(Ok(Carried::Event(event))) => Ok(Some((Down::Event(event.into()), self))),
                    Some(Ok(Carried::Consumed(bytes))) => {
                        self.unconsumed = self.unconsumed.saturating_sub(bytes);
                        Ok(Some((Down::Consumed(bytes as u64), self)))
                    }
                    Some(Err(error)) => Err(error),
                    None if matches!(self.parting, Parting::Flushing) => Err(draining()),
                    None => Ok(None),
                },
                message = self.up.message(), if !self.half_closed => match message {
                    Ok(Some(up)) => self.take(up).await?,
                    Ok(None) if self.frames.is_none() => self.half_closed = true, // after `finish`; its tail is on its way
                    Ok(None) | Err(_) => return Ok(None), // gone without `finish`: abandoned
                },
            }
        }
    }

    /// A caller who has finished anyway is left alone.
    fn flush(&mut self) {
        self.parting = match self.frames.take() {
            Some(frames) => {
                frames.finish();
                Parting::Flushing
            }
            None => Parting::Needless,
        };
    }

    async fn take(&mut self, up: pb::Up) -> Result<(), CallError> {
        if let (Parting::Flushing, Some(Up::Frame(_) | Up::Finalize(_) | Up::Finish(_))) = (&self.parting, &up.message) {
            return Ok(());
        }
        let message = up.message.ok_or_else(|| Unreadable::missing("input known to this release").in_request())?;
        let frames = self.frames.as_mut().ok_or_else(|| CallError::invalid("the audio was finished: nothing can follow"));
        match message {
            Up::Frame(frame) => {
                self.unconsumed += frame.data.len();
                if self.unconsumed > self.credit {
                    return Err(CallError::invalid(format!("more audio under way than the credit of {} bytes", self.credit)));
                }
                frames?.send_at(frame.into()).await // within its credit, so it does not wait
            }
            Up::Finalize(token) => {
                frames?.finalize(token);
                Ok(())
            }
            Up::Finish(_) => {
                frames?;
                self.frames.take().expect("there are frames").finish();
                Ok(())
            }
            Up::Taken(events) => {
                self.events.acknowledge(events as usize);
                Ok(())
            }
            Up::Spec(_) => Err(CallError::invalid("the stream has its spec already")),
        }
    }
}

/// Completes when the caller has had its time.
async fn too_late(parting: &mut Parting) {
    match parting {
        Parting::Told(sleep) => sleep.await,
        Parting::Not | Parting::Flushing | Parting::Needless => std::future::pending().await,
    }
}
