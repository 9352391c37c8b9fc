//! One conversation while its audio comes in: its channels, the socket that listens, and how it ends.
//!
//! - All channels are admitted before any audio flows; if one is refused, the others are given back.
//! - A caller that can come back (native) is awaited for the resume window; any other ends the conversation by leaving.
//! - One who was not heard of for a while holds no place in the engine meanwhile: it is admitted again when it comes back.
//! - It is closed in the record only when everything received is committed.

use super::{
    Shared,
    audience::{Audience, Event, Seat, Unseated},
    channel::{Channel, Door, End, Input, Start},
    metrics as names,
    recording::{ChannelMeta, Meta, MetaState, Recording},
    recovery::Closed,
};
use chrono::{DateTime, Utc};
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, ErrorKind, Retry, SamplePos, TenantId, TraceCx,
    audio::{ChannelSpec, Endpointing, Pace, Session, SessionInfo, StreamSpec},
    conversation::{Attach, Attached, Close, ConversationState, HeardTo, OpenConversation},
    signal::{LIVE, Live, LiveBody},
};
use metrics::gauge;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

/// How long opening may take, all calls together.
const OPEN_BUDGET: Duration = Duration::from_secs(8);
const CLOSE_BUDGET: Duration = Duration::from_secs(5);
const SHOW_BUDGET: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Signals may be lost, and some who show them come later: what stays true for long is said again this often.
pub(super) const SHOWN_AGAIN: Duration = Duration::from_secs(5);

/// The wire a conversation comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Native,
    Deepgram,
    File,
}

impl Source {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Deepgram => "deepgram",
            Self::File => "file",
        }
    }

    pub(super) fn from_name(name: &str) -> Self {
        [Self::Native, Self::Deepgram].into_iter().find(|s| s.name() == name).unwrap_or(Self::File)
    }

    /// Its callers keep what is not `safe` and send it again.
    pub(super) fn is_resumable(self) -> bool {
        self == Self::Native
    }
}

/// What a caller asked for.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) id: ConversationId,
    pub(super) source: Source,
    pub(super) external_id: Option<String>,
    pub(super) title: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) language: String,
    pub(super) endpointing: Endpointing,
    pub(super) partials: Option<Duration>,
    pub(super) pace: Pace,
    pub(super) trace: TraceCx,
    pub(super) tenant: TenantId,
    pub(super) started_at: DateTime<Utc>,
    pub(super) channels: Vec<ChannelSpec>,
}

impl Opening {
    pub(super) fn stream(&self, channel: &ChannelSpec, start: SamplePos, first_seq: u64) -> StreamSpec {
        StreamSpec {
            encoding: channel.encoding,
            rate: channel.rate,
            start,
            first_seq,
            language: self.language.clone(),
            endpointing: self.endpointing,
            partials: self.partials,
            pace: self.pace,
        }
    }

    /// Tells the live feed; lossy, like everything it shows.
    pub(super) async fn show(&self, shared: &Shared, channel: ChannelIndex, trace: TraceCx, body: LiveBody) {
        let live = Live { tenant: self.tenant.clone(), conversation: self.id, channel, trace, body };
        let payload = serde_json::to_vec(&live).expect("a live signal has string keys only");
        let _ = tokio::time::timeout(SHOW_BUDGET, shared.bus.signal(LIVE, payload.into())).await;
    }

    fn cx(&self, budget: Duration) -> CallCx {
        CallCx { tenant: self.tenant.clone(), ..CallCx::new(budget).for_conversation(self.id).traced(self.trace) }
    }

    pub(super) fn request(&self) -> OpenConversation {
        OpenConversation {
            id: self.id,
            external_id: self.external_id.clone(),
            title: self.title.clone(),
            source: self.source.name().into(),
            language: self.language.clone(),
            tags: self.tags.clone(),
            channels: self.channels.clone(),
            started_at: self.started_at,
        }
    }

    fn meta(&self, recorded: bool, from: &[SamplePos]) -> Meta {
        let channels = self.channels.iter().enumerate();
        Meta {
            id: self.id,
            state: MetaState::Open,
            recorded,
            source: self.source.name().into(),
            resumable: self.source.is_resumable(),
            complete: false,
            language: self.language.clone(),
            started_at: self.started_at,
            channels: channels
                .map(|(n, spec)| ChannelMeta { spec: spec.clone(), from: from.get(n).copied().unwrap_or_default() })
                .collect(),
        }
    }
}

/// A caller is refused whose sound could not be kept.
fn no_recording(kind: io::ErrorKind, why: String) -> CallError {
    match kind {
        io::ErrorKind::StorageFull => CallError::spool_full(Duration::from_secs(5), why),
        _ => CallError::busy(Duration::from_secs(5), why),
    }
}

/// Where a conversation begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    New,
    /// The record has it, this process does not: goes on from what is committed, and from what was recorded here beyond that.
    Again {
        safe: Vec<SamplePos>,
    },
}

enum Control {
    Finish {
        state: ConversationState,
        lost: Option<(Duration, &'static str)>,
        ended_at: Option<DateTime<Utc>>,
    },
    Came,
    /// The socket of this number. `silent`: nothing was heard from its caller for as long as that takes to count.
    Gone {
        number: u64,
        silent: bool,
    },
    Leave,
}

pub(super) struct Conversation {
    pub(super) opening: Arc<Opening>,
    pub(super) doors: Vec<Door>,
    pub(super) info: SessionInfo,
    audience: Arc<Audience>,
    control: mpsc::UnboundedSender<Control>, // a handful of messages in a conversation's life
    sockets: AtomicU64,
    /// No new socket may join.
    closing: CancellationToken,
    over: CancellationToken,
}

/// A socket's place in a conversation. Dropping it says that the socket has gone.
pub(super) struct Presence {
    seat: Seat,
    /// Its caller has not been heard of for too long.
    pub(super) silent: bool,
    pub(super) conversation: Arc<Conversation>,
}

impl Presence {
    /// See [`Seat::next`].
    pub(super) async fn next(&mut self) -> Result<Event, Unseated> {
        self.seat.next().await
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let _ = self.conversation.control.send(Control::Gone { number: self.seat.number, silent: self.silent });
    }
}

impl Conversation {
    /// Asks for admission, opens the record and starts hearing.
    ///
    /// # Errors
    /// The first refusal; then nothing is left open.
    pub(super) async fn open(shared: &Arc<Shared>, opening: Opening, begin: Begin) -> Result<Arc<Self>, CallError> {
        let id = opening.id;
        let Some(_opening) = shared.begin_opening(id) else {
            return Err(CallError::conflict(format!("{id} is being opened by somebody else")));
        };
        if shared.leaving.is_cancelled() {
            let after = Retry::After(Duration::from_secs(2));
            return Err(CallError::new(ErrorKind::Unavailable, after, "the server is restarting"));
        }
        if let (Some((kind, why)), Begin::New) = (shared.recordings.failure(), &begin) {
            return Err(no_recording(kind, format!("the disk takes no recordings: {why}")));
        }
        let cx = opening.cx(OPEN_BUDGET);
        let opened = tokio::time::timeout(OPEN_BUDGET, Self::admit(shared, &cx, &opening, &begin)).await;
        let (channels, attached, sessions, recording) = opened.unwrap_or_else(|_| Err(CallError::deadline()))?;
        let info = sessions[0].info.clone();
        let audience = Arc::new(Audience::default());
        let opening = Arc::new(Opening { channels, ..opening });
        let (mut doors, mut hearing) = (vec![], vec![]);
        for (n, (session, attached)) in sessions.into_iter().zip(attached).enumerate() {
            let spec = opening.channels[n].clone();
            let (mut channel, door) = Channel::new(Start {
                shared: shared.clone(),
                audience: audience.clone(),
                opening: opening.clone(),
                follow: shared.watermarks.follow(id, spec.index),
                log: recording.channel(n),
                spec,
                attached,
                session,
            });
            if begin != Begin::New {
                let loaded = tokio::task::spawn_blocking(move || channel.preload().map(|()| channel)).await;
                channel = loaded
                    .map_err(|e| CallError::panicked(&*e.into_panic()))?
                    .map_err(|e| CallError::internal(format!("the recording of {id} cannot be read: {e}")))?;
            }
            doors.push(door);
            hearing.push(channel);
        }
        let (control, controls) = mpsc::unbounded_channel();
        let conversation = Arc::new(Self {
            opening,
            doors,
            info,
            audience,
            control,
            sockets: AtomicU64::new(0),
            closing: CancellationToken::new(),
            over: CancellationToken::new(),
        });
        shared.live.lock().insert(id, conversation.clone());
        let source = conversation.opening.source.name();
        info!(conversation = %id, source, channels = conversation.doors.len(), trace_id = %conversation.opening.trace.trace_id_hex(), again = begin != Begin::New, "conversation opened");
        let span = info_span!("conversation", id = %id);
        let life = Life { shared: shared.clone(), conversation: conversation.clone(), controls, recording };
        shared.runtime.spawn(life.run(hearing).instrument(span));
        Ok(conversation)
    }

    async fn admit(
        shared: &Arc<Shared>,
        cx: &CallCx,
        opening: &Opening,
        begin: &Begin,
    ) -> Result<(Vec<ChannelSpec>, Vec<Attached>, Vec<Session>, Recording), CallError> {
        // Admission first: a refused caller leaves no trace in the record.
        let mut sessions = vec![];
        if *begin == Begin::New {
            for channel in &opening.channels {
                sessions.push(shared.audio.open(cx.clone(), opening.stream(channel, SamplePos::ZERO, 0)).await?);
            }
        }
        let from = match begin {
            Begin::New => vec![],
            Begin::Again { safe } => safe.clone(),
        };
        let meta = opening.meta(shared.recordings.are_on(), &from);
        let recordings = shared.recordings.clone();
        let recording = tokio::task::spawn_blocking(move || recordings.begin(meta)).await;
        let recording = recording
            .map_err(|e| CallError::panicked(&*e.into_panic()))?
            .map_err(|e| no_recording(e.kind(), format!("the recording cannot be begun: {e}")))?;
        let opened = shared.conversations.open(cx.clone(), opening.request()).await.and_then(|opened| match opened.state {
            ConversationState::Live => Ok(()),
            state => Err(CallError::conflict(format!("{} is closed: it is {}", opening.id, state.name()))),
        });
        if let Err(refused) = opened {
            if *begin == Begin::New {
                recording.forget();
            }
            return Err(refused);
        }
        let mut attached = vec![];
        for channel in &opening.channels {
            let request = Attach { conversation: opening.id, channel: channel.index };
            attached.push(shared.conversations.attach(cx.clone(), request).await.inspect_err(|_| shared.recover_later(opening.id))?);
        }
        let fresh = attached.iter().all(|a| a.safe == SamplePos::ZERO && a.next_seq == 0);
        if sessions.is_empty() || !fresh {
            sessions.clear();
            for (channel, attached) in opening.channels.iter().zip(&attached) {
                let stream = opening.stream(channel, attached.safe, attached.next_seq);
                sessions.push(shared.audio.open(cx.clone(), stream).await.inspect_err(|_| shared.recover_later(opening.id))?);
            }
        }
        Ok((opening.channels.clone(), attached, sessions, recording))
    }

    pub(super) fn id(&self) -> ConversationId {
        self.opening.id
    }

    /// Returns when every channel has a place in the engine, which one that rests has given back.
    ///
    /// # Errors
    /// The engine's refusal; then the conversation rests on, and loses nothing.
    pub(super) async fn wake(&self) -> Result<(), CallError> {
        let waking = futures::future::try_join_all(self.doors.iter().map(Door::wake));
        let woken = tokio::time::timeout(OPEN_BUDGET, waking).await.unwrap_or_else(|_| Err(CallError::deadline()));
        if woken.is_err() {
            // Others may have got theirs.
            self.doors.iter().for_each(Door::rest);
        }
        woken.map(drop)
    }

    /// Seats a socket; the one before it is superseded. `None`: the conversation is ending.
    pub(super) fn join(self: &Arc<Self>) -> Option<Presence> {
        if self.closing.is_cancelled() {
            return None;
        }
        let number = self.sockets.fetch_add(1, Ordering::Relaxed);
        let seat = self.audience.sit(number);
        let _ = self.control.send(Control::Came);
        Some(Presence { seat, silent: false, conversation: self.clone() })
    }

    /// No more audio will come: hears out what is there, commits it, closes. The first call counts.
    pub(super) fn finish(&self, state: ConversationState) {
        let _ = self.control.send(Control::Finish { state, lost: None, ended_at: None });
    }

    /// The same for one that ended earlier. `lost`: what followed is known to be missing, and why.
    pub(super) fn finish_as(&self, state: ConversationState, lost: Option<(Duration, &'static str)>, ended_at: DateTime<Utc>) {
        let _ = self.control.send(Control::Finish { state, lost, ended_at: Some(ended_at) });
    }

    /// The process is leaving.
    pub(super) fn leave(&self) {
        let _ = self.control.send(Control::Leave);
    }

    /// Nothing published waits for its commit.
    pub(super) fn is_committed(&self) -> bool {
        self.doors.iter().map(Door::standing).all(|s| s.heard <= s.attached.safe)
    }

    pub(super) async fn over(&self) {
        self.over.cancelled().await
    }
}

/// The task behind a conversation.
struct Life {
    shared: Arc<Shared>,
    conversation: Arc<Conversation>,
    controls: mpsc::UnboundedReceiver<Control>,
    recording: Recording,
}

/// For ever where there is no such moment.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How the hearing of a conversation ended.
enum Outcome {
    Heard { state: ConversationState, ended_at: Option<DateTime<Utc>> },
    Superseded,
    Failed(CallError),
}

impl Life {
    async fn run(mut self, channels: Vec<Channel>) {
        let conversation = self.conversation.clone();
        let id = conversation.id();
        let source = conversation.opening.source.name();
        gauge!(names::SESSIONS, "source" => source).increment(1);
        let outcome = self.hear(channels).await;
        conversation.closing.cancel();
        match outcome {
            Outcome::Heard { state, ended_at } => self.close(state, ended_at.unwrap_or_else(Utc::now)).await,
            Outcome::Superseded => {
                warn!(conversation = %id, "another process has the conversation now");
                conversation.audience.clear(Unseated::Superseded);
                // Its new owner answers for it; here it is over.
                if let Err(error) = self.recording.close().await {
                    warn!(conversation = %id, %error, "the recording's state cannot be written");
                }
            }
            Outcome::Failed(error) => {
                self.give_up(error).await;
                self.shared.recover_later(id);
            }
        }
        self.shared.forget(&conversation);
        gauge!(names::SESSIONS, "source" => source).decrement(1);
        conversation.audience.clear(Unseated::Over);
        conversation.over.cancel();
    }

    async fn hear(&mut self, channels: Vec<Channel>) -> Outcome {
        let conversation = self.conversation.clone();
        let mut tasks = JoinSet::new();
        for channel in channels {
            tasks.spawn(channel.run().in_current_span());
        }
        let mut finishing = None;
        let mut gone_until: Option<Instant> = None;
        let mut rest_at: Option<Instant> = None;
        let mut connected = true;
        let mut again = tokio::time::interval_at(Instant::now() + SHOWN_AGAIN, SHOWN_AGAIN);
        loop {
            let (patience, rest) = (at(gone_until), at(rest_at));
            tokio::select! {
                control = self.controls.recv() => match control {
                    Some(Control::Finish { state, lost, ended_at }) => {
                        if finishing.is_none() {
                            finishing = Some((state, ended_at));
                            (gone_until, rest_at) = (None, None);
                            self.finish(lost);
                        }
                    }
                    Some(Control::Came) => {
                        (gone_until, rest_at) = (None, None);
                        conversation.doors.iter().for_each(Door::stay);
                        connected = true;
                        self.link(connected).await;
                    }
                    Some(Control::Gone { number, silent }) if conversation.audience.is_seated(number) => {
                        conversation.audience.stand(number);
                        if finishing.is_some() {
                            continue;
                        }
                        connected = false;
                        self.link(connected).await;
                        if conversation.opening.source.is_resumable() {
                            let now = Instant::now();
                            gone_until = Some(now + self.shared.settings.resume_window());
                            rest_at = Some(if silent { now } else { now + self.shared.settings.silence() });
                        } else {
                            finishing = Some((ConversationState::Abandoned, None));
                            self.finish(None);
                        }
                    }
                    Some(Control::Gone { .. }) => {}
                    Some(Control::Leave) => {
                        conversation.audience.tell(Event::Leaving);
                        if !conversation.opening.source.is_resumable() && finishing.is_none() {
                            finishing = Some((ConversationState::Abandoned, None));
                            self.finish(None);
                        }
                    }
                    None => unreachable!("the conversation holds a sender and this task holds the conversation"),
                },
                ended = tasks.join_next() => match ended {
                    Some(Ok(End::Done)) => {}
                    Some(Ok(End::Superseded)) => return Outcome::Superseded,
                    Some(Ok(End::Failed(error))) => return Outcome::Failed(error),
                    Some(Err(panic)) => {
                        error!(conversation = %conversation.id(), %panic, "a channel's task ended");
                        return Outcome::Failed(CallError::internal("hearing ended unexpectedly"));
                    }
                    None => {
                        let (state, ended_at) = finishing.unwrap_or((ConversationState::Abandoned, None));
                        return Outcome::Heard { state, ended_at };
                    }
                },
                _ = again.tick() => self.link(connected).await,
                () = patience => {
                    info!(conversation = %conversation.id(), "the caller did not come back");
                    (gone_until, rest_at) = (None, None);
                    finishing = Some((ConversationState::Abandoned, None));
                    self.finish(None);
                }
                () = rest => {
                    info!(conversation = %conversation.id(), "nobody sends: the channels rest");
                    rest_at = None;
                    conversation.doors.iter().for_each(Door::rest);
                }
            }
        }
    }

    /// After the audio that is under way; a full channel is waited for elsewhere.
    fn finish(&self, lost: Option<(Duration, &'static str)>) {
        self.conversation.closing.cancel();
        for door in &self.conversation.doors {
            let input = door.input.clone();
            // Ends with the channel: a channel that is gone drops its receiver.
            self.shared.runtime.spawn(async move { input.send(Input::Finish { lost }).await });
        }
    }

    async fn link(&self, connected: bool) {
        let opening = &self.conversation.opening;
        opening.show(&self.shared, ChannelIndex(0), opening.trace, LiveBody::Link { connected }).await;
    }

    /// Whoever is told may be back at once, and goes on from what is written.
    async fn give_up(&self, error: CallError) {
        self.shared.recordings.flush().await;
        self.shared.forget(&self.conversation);
        self.conversation.audience.tell(Event::Failed { error });
    }

    /// Whether the record has lost some of what it had committed.
    async fn is_taken_back(&self) -> Result<bool, CallError> {
        let cx = self.conversation.opening.cx(CLOSE_BUDGET);
        let view = self.shared.conversations.conversation(cx, self.conversation.id());
        match tokio::time::timeout(CLOSE_BUDGET, view).await.unwrap_or_else(|_| Err(CallError::deadline())) {
            Ok(view) => Ok(self.conversation.doors.iter().any(|door| {
                let there = view.channels.iter().find(|channel| channel.spec.index == door.spec.index);
                there.is_none_or(|channel| channel.attached.safe < door.standing().heard)
            })),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// `None`: the record has lost some of it. Whether it has is known first: one that is closed is not asked for what it lacks.
    async fn try_close(&self, state: ConversationState, ended_at: DateTime<Utc>) -> Result<Option<ConversationState>, CallError> {
        if self.is_taken_back().await? {
            return Ok(None);
        }
        let heard = self.conversation.doors.iter().map(|door| HeardTo { channel: door.spec.index, to: door.standing().heard }).collect();
        let request = Close { conversation: self.conversation.id(), state, ended_at, heard };
        let close = self.shared.conversations.close(self.conversation.opening.cx(CLOSE_BUDGET), request);
        tokio::time::timeout(CLOSE_BUDGET, close).await.unwrap_or_else(|_| Err(CallError::deadline())).map(|closed| Some(closed.state))
    }

    /// Everything is committed: says so in the record, for as long as that takes.
    async fn close(&self, state: ConversationState, ended_at: DateTime<Utc>) {
        let id = self.conversation.id();
        let mut wait = Duration::from_millis(200);
        let closed = loop {
            match self.try_close(state, ended_at).await {
                Ok(None) => break None,
                Ok(Some(state)) => break Some(Ok(state)),
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::Conflict) => {
                    break Some(Err(error));
                }
                Err(error) => warn!(conversation = %id, %error, "cannot close the conversation; trying again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
        };
        let closing = Closed { opening: self.conversation.opening.clone(), state, ended_at };
        match closed {
            None => {
                self.give_up(CallError::unavailable("the record has lost what it had of this call: it is heard again")).await;
                return self.shared.look_again(closing, Duration::ZERO);
            }
            Some(Ok(state)) => {
                info!(conversation = %id, state = state.name(), "conversation closed");
                self.shared.look_again(closing, self.shared.settings.look_again());
                self.conversation.audience.tell(Event::Ended { state });
            }
            Some(Err(error)) => {
                error!(conversation = %id, %error, "the record refuses to close the conversation");
                self.conversation.audience.tell(Event::Failed { error });
            }
        }
        if let Err(error) = self.recording.close().await {
            error!(conversation = %id, %error, "the recording's state cannot be written");
        }
    }
}
