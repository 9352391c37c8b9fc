//! The engine behind the contract `Audio`: one OS thread per core, each with its own copy of the models; nothing of it on the async runtime.
//!
//! Invariants: a channel belongs to one worker from `open` to its end; recognitions are independent of it and may run on any worker.
//! Deliberately absent: conversations, sockets, what is done with the text.

pub mod decode;
pub mod endpointing;
mod faults;
mod load;
pub mod recognizer;
pub mod resample;
mod scheduler;
mod session;
mod settings;
pub mod vad;
mod worker;

pub use settings::EngineSettings;

use crate::metrics as names;
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError,
    audio::{CREDIT, ModelInfo, Pace, Session as Opened, SessionInfo, StreamSpec},
};
use endpointing::Rules;
use faults::Faults;
use load::Load;
use metrics::counter;
use parking_lot::Mutex;
use platform::onnx::{Kind, ModelDir, ModelError, Runtime};
use recognizer::{Moonshine, Recognizer};
use scheduler::Board;
use session::Session;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use vad::{Detector, Vad};
use worker::{Door, Floor, Lost, Message, Models, Slot, Worker};

/// What the bundled recognizer understands.
const LANGUAGES: [&str; 1] = ["en"];
/// When to knock again at a full engine.
const COME_BACK: Duration = Duration::from_secs(2);

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{0}")]
    Settings(String),
    #[error("cannot start the thread {name}: {cause}")]
    Thread { name: String, cause: std::io::Error },
    #[error("the thread {0} ended while it loaded its models")]
    Died(String),
}

/// Hears channels on threads of its own. Dropping it stops them.
pub struct Engine {
    model: ModelInfo,
    label: Arc<str>,
    settings: EngineSettings,
    floor: Arc<Floor>,
    next_id: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Loads recognizer and speech detector from their folders under `models` and starts the workers.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, or the setting that cannot work.
    pub fn start(runtime: &Runtime, models: &Path, settings: &EngineSettings) -> Result<Self, EngineError> {
        settings.check().map_err(EngineError::Settings)?;
        let recognizer = ModelDir::open(&models.join(&settings.recognizer), Kind::Recognizer)?;
        let vad = ModelDir::open(&models.join(&settings.vad), Kind::Vad)?;
        let model = ModelInfo { name: recognizer.name().into(), version: recognizer.version().into(), family: "moonshine".into() };
        let runtime = runtime.clone();
        Self::hearing_with(model, settings, move || Ok((Vad::open(&runtime, &vad)?, Moonshine::open(&runtime, &recognizer)?)))
    }

    /// Starts the workers with a detector and a recognizer of any kind. `ears` makes them on each worker's thread, and anew after a panic in
    /// one of them.
    ///
    /// # Errors
    /// As `ears` says, or names the setting that cannot work.
    pub fn hearing_with<D: Detector, R: Recognizer>(
        model: ModelInfo,
        settings: &EngineSettings,
        ears: impl Fn() -> Result<(D, R), ModelError> + Clone + Send + 'static,
    ) -> Result<Self, EngineError> {
        settings.check().map_err(EngineError::Settings)?;
        names::describe();
        let count = settings.worker_count();
        let (doors, inboxes): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (sender, inbox) = crossbeam_channel::unbounded(); // bounded by the credit of the sessions
                (Door { sender, idle: Arc::default(), sessions: Arc::default(), closed: Arc::default() }, inbox)
            })
            .unzip();
        let board = Board::new(settings.steal, settings.coalesce);
        let load = Load::new(count, Duration::from_millis(settings.slowest_partial_ms.into()));
        let floor = Arc::new(Floor { board, load, doors, lost: Lost::default(), faults: Faults::default() });

        let engine = Self {
            label: format!("{} {}", model.name, model.version).into(),
            model,
            settings: settings.clone(),
            floor,
            next_id: AtomicU64::new(1),
            threads: Mutex::default(),
        };
        let mut loading = vec![];
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let name = format!("audio-{index}");
            let (loaded, ready) = crossbeam_channel::bounded(1);
            let (ears, floor, settings) = (ears.clone(), engine.floor.clone(), settings.clone());
            let work = move || {
                let load = move || ears().map(|(vad, recognizer)| Models { vad, recognizer });
                match Worker::open(index, floor, inbox, Box::new(load), &settings) {
                    Ok(worker) => {
                        let _ = loaded.send(Ok(())); // nobody waits when another worker failed
                        worker.run();
                    }
                    Err(error) => drop(loaded.send(Err(error))),
                }
            };
            let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
            engine.threads.lock().push(thread.map_err(|cause| EngineError::Thread { name: name.clone(), cause })?);
            loading.push((name, ready));
        }
        for (name, ready) in loading {
            ready.recv().map_err(|_| EngineError::Died(name))??;
        }
        tracing::info!(workers = count, model = %engine.label, "the audio engine is ready");
        Ok(engine)
    }

    pub fn model(&self) -> ModelInfo {
        self.model.clone()
    }

    /// Channels being heard.
    pub fn sessions(&self) -> usize {
        self.floor.doors.iter().map(|door| door.sessions.load(Ordering::Relaxed)).sum()
    }

    /// Share of the workers' time that the open channels need, 0 to 1.
    pub fn load(&self) -> f32 {
        self.floor.load.needed()
    }

    /// Waits until a worker has given up: starting it again did not help. Says why. Cancel-safe.
    pub async fn lost(&self) -> String {
        self.floor.lost.cause().await
    }

    /// Ends every session and waits for the threads. Drain the sessions first: what they have not finished fails as unavailable.
    pub fn shutdown(&self) {
        for door in &self.floor.doors {
            let _ = door.sender.send(Message::Stop); // a worker that is gone has stopped
        }
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("an audio thread had panicked");
            }
        }
    }

    fn rules(&self, spec: &StreamSpec) -> Rules {
        let samples = |ms: u32| u64::from(ms) * 16;
        let s = &self.settings;
        Rules {
            enter: s.enter,
            exit: s.exit,
            min_speech: samples(s.min_speech_ms),
            silence: Rules::silence_of(spec.endpointing),
            speculate: (s.speculate_after_ms > 0).then(|| samples(s.speculate_after_ms)),
            pre_roll: samples(s.pre_roll_ms),
            soft_cut: samples(s.soft_cut_ms),
            hard_cut: samples(s.hard_cut_ms),
            // Long speech is cut in a pause rather than in a word; cutting short speech at breaths costs words.
            pauses: vec![(16 * 8000, 16 * 96), (16 * 6000, 16 * 160)],
        }
    }

    fn admit(&self, spec: &StreamSpec) -> Result<(), CallError> {
        let open = self.sessions();
        if open >= self.settings.max_sessions {
            counter!(names::REFUSED, "reason" => "sessions").increment(1);
            return Err(CallError::busy(COME_BACK, format!("all {open} channels are taken")));
        }
        if spec.pace == Pace::Live
            && let Err(load) = self.floor.load.admit(open, self.settings.max_load, Instant::now())
        {
            counter!(names::REFUSED, "reason" => "load").increment(1);
            let limit = self.settings.max_load;
            return Err(CallError::busy(COME_BACK, format!("one more channel would make a load of {load:.2}, the limit is {limit:.2}")));
        }
        Ok(())
    }
}

#[async_trait]
impl Audio for Engine {
    async fn open(&self, cx: CallCx, spec: StreamSpec) -> Result<Opened, CallError> {
        if cx.cancel.is_cancelled() {
            return Err(CallError::cancelled());
        }
        if cx.remaining().is_zero() {
            return Err(CallError::deadline());
        }
        let language = spec.language.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
        if !LANGUAGES.contains(&language.as_str()) {
            let said: String = spec.language.chars().take(32).collect();
            return Err(CallError::invalid(format!("no model for the language {said:?}: expected {}", LANGUAGES.join(", "))));
        }
        self.admit(&spec)?;

        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let there = self.floor.doors.iter().filter(|door| !door.closed.load(Ordering::Acquire));
        let door = there.min_by_key(|door| door.sessions.load(Ordering::Relaxed));
        let door = door.ok_or_else(|| CallError::unavailable("the audio engine has stopped"))?;
        let slot = Slot::take(&door.sessions);
        let to_worker = door.sender.clone();
        let sink = move |input| drop(to_worker.send(Message::Input(id, input, Instant::now()))); // a stopped engine has ended the session
        let info = SessionInfo { model: self.model.clone(), credit: CREDIT };
        let (opened, events) = Opened::pair(&spec, info, Arc::new(sink));
        tracing::debug!(session.id = id, trace_id = %cx.trace.trace_id_hex(), rate = spec.rate.hz(), "a channel is opened");
        let rules = self.rules(&spec);
        let session = Session::new(id, spec, rules, self.label.clone(), self.settings.draft, events, cx.cancel)?;
        let opening = Message::Open(Box::new(session), id, slot);
        door.sender.send(opening).map_err(|_| CallError::unavailable("the audio engine has stopped"))?;
        Ok(opened)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests;
