//! The sockets callers use, and everything between their bytes and the bus: recording, resuming, journal, watermark.
//!
//! - A caller is refused before its audio flows, or heard until everything it sent is committed.
//! - The sender keeps what is not `safe`: ingest until the record has committed, a native caller until told.
//! - Works against `Audio`, `Conversations` and the bus, wherever they are.
//!
//! Deliberately absent: hearing (`engine`), storage (`api`), authentication.

mod audience;
mod channel;
mod deepgram;
mod journal;
mod metrics;
mod native;
mod playback;
mod recording;
mod recovery;
mod refusal;
mod resume;
mod session;
mod settings;
mod socket;
#[cfg(test)]
mod tests;
mod watermarks;

pub use settings::IngestSettings;

use actix_web::web;
use contracts::{Audio, ConversationId, Conversations};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use platform::bus::Bus;
use recording::Recordings;
use recovery::{Closed, Later};
use session::Conversation;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use watermarks::Watermarks;

/// For recordings that have become too old.
const LOOK_FOR_OLD: Duration = Duration::from_secs(3_600);

/// What ingest stands on.
pub struct IngestDeps {
    pub audio: Arc<dyn Audio>,
    pub conversations: Arc<dyn Conversations>,
    pub bus: Arc<dyn Bus>,
    pub settings: IngestSettings,
    /// Recordings go to the folder `recordings` in here.
    pub data: PathBuf,
    /// Where the record stands, if it is in this process.
    pub standing: Option<Standing>,
}

/// Asked after a write: whoever shows the answer to the record's readers as `X-Consistency` is shown that write. `None`: it cannot be said.
pub type Standing = Arc<dyn Fn() -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// Every conversation whose audio this process receives.
pub struct Ingest {
    shared: Arc<Shared>,
}

/// What every room of ingest needs.
struct Shared {
    audio: Arc<dyn Audio>,
    conversations: Arc<dyn Conversations>,
    standing: Option<Standing>,
    bus: Arc<dyn Bus>,
    settings: IngestSettings,
    recordings: Arc<Recordings>,
    watermarks: Arc<Watermarks>,
    live: Mutex<HashMap<ConversationId, Arc<Conversation>>>,
    /// Conversations between their request and `live`.
    opening: Mutex<HashSet<ConversationId>>,
    uploads: Arc<Semaphore>,
    /// Audio that all channels keep until it is committed.
    kept_bytes: Arc<AtomicUsize>,
    /// Conversations outlive the socket's worker thread: they run where ingest was started.
    runtime: tokio::runtime::Handle,
    /// No new callers; those who can come back are told to.
    leaving: CancellationToken,
    /// Finishes later what failed now, and looks once more at what is closed.
    later: tokio::sync::mpsc::UnboundedSender<Later>,
}

/// Holds a conversation's id while it is being opened.
struct BeingOpened<'a> {
    shared: &'a Shared,
    id: ConversationId,
}

impl Drop for BeingOpened<'_> {
    fn drop(&mut self) {
        self.shared.opening.lock().remove(&self.id);
    }
}

impl Shared {
    /// `None`: it is open or being opened.
    fn begin_opening(&self, id: ConversationId) -> Option<BeingOpened<'_>> {
        let free = !self.live.lock().contains_key(&id) && self.opening.lock().insert(id);
        free.then_some(BeingOpened { shared: self, id })
    }

    fn find(&self, id: ConversationId) -> Option<Arc<Conversation>> {
        self.live.lock().get(&id).cloned()
    }

    fn forget(&self, conversation: &Arc<Conversation>) {
        let mut live = self.live.lock();
        if live.get(&conversation.id()).is_some_and(|known| Arc::ptr_eq(known, conversation)) {
            live.remove(&conversation.id());
        }
    }

    fn recover_later(&self, id: ConversationId) {
        let _ = self.later.send(Later::Finish(id));
    }

    fn look_again(&self, closed: Closed, after: Duration) {
        let _ = self.later.send(Later::LookAgain(closed, after));
    }
}

impl Ingest {
    /// Call inside the runtime on which conversations shall live; it must outlive the sockets.
    ///
    /// # Panics
    /// When the system has no thread left for writing recordings.
    pub fn start(deps: IngestDeps) -> Arc<Self> {
        let IngestDeps { audio, conversations, bus, settings, data, standing } = deps;
        self::metrics::describe();
        let flush = Duration::from_millis(settings.flush_ms);
        let recordings = Recordings::start(&data, settings.recordings, flush).expect("the system starts one more thread");
        let (later, waiting) = tokio::sync::mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            audio,
            conversations,
            standing,
            bus: bus.clone(),
            uploads: Arc::new(Semaphore::new(settings.max_uploads)),
            kept_bytes: Arc::default(),
            settings,
            recordings,
            watermarks: Arc::default(),
            live: Mutex::default(),
            opening: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
            leaving: CancellationToken::new(),
            later,
        });
        tokio::spawn(shared.watermarks.clone().listen(bus));
        tokio::spawn(recovery::do_later(Arc::downgrade(&shared), waiting));
        Arc::new(Self { shared })
    }

    /// Routes: `/v1/stream`, `/v1/listen`, `/v1/conversations/{id}/recording`. Before any scope that also covers `/v1`.
    pub fn configure(self: &Arc<Self>, routes: &mut web::ServiceConfig) {
        routes
            .app_data(web::Data::from(self.clone()))
            .service(web::resource("/v1/stream").get(native::stream))
            .service(
                web::resource("/v1/listen")
                    .get(deepgram::live::listen)
                    .post(deepgram::prerecorded::transcribe)
                    .app_data(web::PayloadConfig::new(self.shared.settings.max_upload_bytes)),
            )
            .service(web::resource("/v1/conversations/{id}/recording").get(playback::recording).head(playback::recording));
    }

    /// Finishes what an earlier run of this process left open. Returns when nothing is left to do.
    pub async fn recover(&self) {
        recovery::recover(&self.shared).await
    }

    /// Tells callers to come back later, and waits until what was heard is committed.
    pub async fn drain(&self, limit: Duration) {
        self.shared.leaving.cancel();
        let until = tokio::time::Instant::now() + limit;
        let all = || self.shared.live.lock().values().cloned().collect::<Vec<_>>();
        all().iter().for_each(|conversation| conversation.leave());
        let waits = |conversation: &Arc<Conversation>| !conversation.opening.source.is_resumable() || !conversation.is_committed();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while all().iter().any(waits) && tokio::time::Instant::now() < until {
            tick.tick().await;
        }
        self.shared.recordings.flush().await;
        let left = all();
        for conversation in left.iter().filter(|c| c.opening.source.is_resumable()) {
            if let Err(error) = self.shared.recordings.mark_complete(conversation.id()) {
                warn!(conversation = %conversation.id(), %error, "the recording's state cannot be written");
            }
        }
        info!(left_open = left.len(), uncommitted = left.iter().filter(|c| !c.is_committed()).count(), "ingest drained");
    }

    /// Conversations open now.
    pub fn live(&self) -> usize {
        self.shared.live.lock().len()
    }

    /// Counts the audio that is kept until it is committed, in bytes.
    pub fn kept_bytes(&self) -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let kept = self.shared.kept_bytes.clone();
        Arc::new(move || kept.load(Ordering::Relaxed) as u64)
    }

    /// Tells whether there is sound of a conversation to play, by looking at one file.
    pub fn has_recording(&self) -> Arc<dyn Fn(ConversationId) -> bool + Send + Sync> {
        let recordings = self.shared.recordings.clone();
        Arc::new(move |id| recordings.has(id))
    }

    /// Where recordings are, and why none can be written at the moment; `None`: this process keeps none.
    pub fn recordings_at(&self) -> Option<(String, Option<String>)> {
        let recordings = &self.shared.recordings;
        recordings.are_on().then(|| (recordings.folder().display().to_string(), recordings.trouble()))
    }

    /// Deletes the recording of a conversation, if there is one here. Blocks on the disk.
    pub fn forget_recording(&self) -> Arc<dyn Fn(ConversationId) -> std::io::Result<()> + Send + Sync> {
        let recordings = self.shared.recordings.clone();
        Arc::new(move |id| match recordings.forget(id) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done,
        })
    }

    /// Deletes recordings so long after they were closed here, whichever process keeps the record of their conversations. Looks at once, and
    /// then every hour.
    pub async fn forget_after(&self, keep: Duration) {
        let mut looks = tokio::time::interval(LOOK_FOR_OLD);
        loop {
            looks.tick().await;
            let shared = self.shared.clone();
            let look = move || match SystemTime::now().checked_sub(keep) {
                Some(moment) => shared.recordings.forget_closed_before(moment, |id| shared.find(id).is_some()),
                None => 0,
            };
            let forgotten = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            if forgotten > 0 {
                info!(recordings = forgotten, "recordings were deleted, as old as they may become");
            }
        }
    }

    /// Whether new conversations are recorded.
    pub fn records(&self) -> bool {
        self.shared.recordings.are_on()
    }
}
