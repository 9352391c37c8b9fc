//! The local classifier: sentence embeddings and a small head per task, on threads of their own.
//!
//! Invariants:
//! - the queue is bounded and full means [`ClassifyError::Busy`], at once;
//! - work whose asker has gone or whose time has passed is not begun;
//! - a panic costs one turn, never the thread; the reader is made anew after it, because nobody knows what the panic left behind.

mod embedder;
mod engine;
mod head;

pub use embedder::Embedder;
pub use engine::{Engine, Reading, Trained};
pub use head::Head;

use crate::{Settings, definitions::Definitions, metrics as names, turn::Turn};
use arc_swap::ArcSwapOption;
use contracts::{audio::Role, inference::Task};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use platform::{onnx::Runtime, priority::give_way};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

/// Reads one turn at a time; owned by one thread.
pub trait ReadTurn {
    /// Name and version of the model.
    fn model(&self) -> &str;
    /// One reading per task. Evidence only where it is asked for and the scores are worth a label.
    ///
    /// # Errors
    /// What the model says.
    fn read(&mut self, question: &Question) -> Result<Vec<Reading>, String>;
    /// What the last reading goes by, where that can change.
    fn definitions(&self) -> Option<Arc<Definitions>> {
        None
    }
}

/// Makes a thread's reader, on that thread.
pub type Load = dyn Fn() -> Result<Box<dyn ReadTurn>, String> + Send + Sync;

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Loading,
    /// Name and version of the model.
    Ready(String),
    /// Why it is not there, for people.
    Failed(String),
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ClassifyError {
    #[error("{0} turns wait for the classifier and it takes no more")]
    Busy(usize),
    #[error("{0}")]
    NotThere(String),
    #[error("the classifier panicked")]
    Panicked,
    #[error("the model failed: {0}")]
    Model(String),
    /// Begun and not finished in time.
    #[error("the classifier took longer than {} ms", .0.as_millis())]
    Slow(Duration),
    /// Not even begun in time: the queue is long, the classifier is not at fault.
    #[error("no thread was free within {} ms", .0.as_millis())]
    Waited(Duration),
}

pub struct Classifier {
    jobs: Mutex<Option<Sender<Job>>>,
    state: watch::Receiver<State>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    train: Option<Arc<Train>>,
    /// What is being learnt is given up.
    closing: Arc<AtomicBool>,
}

/// Learns other definitions; takes as long as it takes.
type Train = dyn Fn(&Arc<Definitions>) -> Result<(), String> + Send + Sync;

/// What the classifier found in a turn.
pub struct Read {
    /// One per task.
    pub readings: Vec<Reading>,
    /// What they go by: not always the newest, which take a moment to learn. `None`: those it was started with.
    pub definitions: Option<Arc<Definitions>>,
}

/// What is asked of the classifier.
#[derive(Clone, Debug)]
pub struct Question {
    pub turn: Turn,
    pub role: Role,
    /// The same speaker's turns before it, oldest first.
    pub before: Vec<Turn>,
    pub tasks: Vec<Task>,
    /// Whether to look for the words that carried the decision.
    pub evidence: bool,
}

struct Job {
    question: Question,
    queued: Instant,
    until: Instant,
    begun: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<Read, ClassifyError>>,
}

/// A turn on its way through the classifier. Dropping it abandons the work if it has not begun.
pub struct Pending {
    reply: oneshot::Receiver<Result<Read, ClassifyError>>,
    begun: Arc<AtomicBool>,
    queued: Instant,
    until: Instant,
}

impl Classifier {
    /// Loads in the background; [`Classifier::state`] tells when it is there, or why not.
    pub fn start(runtime: Runtime, model: &Path, definitions: Arc<Definitions>, settings: &Settings) -> Self {
        let model = model.to_owned();
        let trained: Arc<ArcSwapOption<Trained>> = Arc::default();
        let training: Arc<Mutex<()>> = Arc::default();
        let closing: Arc<AtomicBool> = Arc::default();
        let train = {
            let (runtime, model, trained, training) = (runtime.clone(), model.clone(), trained.clone(), training.clone());
            let closing = closing.clone();
            move |definitions: &Arc<Definitions>| {
                // Beside the readers, which go on by what they know.
                let mut embedder = Embedder::load(&runtime, &model)?;
                let _alone = training.lock();
                let anew = Engine::train(&mut embedder, definitions, trained.load_full().as_deref(), &closing)?;
                trained.store(Some(Arc::new(anew)));
                Ok(())
            }
        };
        let given_up = closing.clone();
        let load = move || {
            let mut embedder = Embedder::load(&runtime, &model)?;
            let _alone = training.lock(); // the first thread trains, the others wait for it and share
            if trained.load().is_none() {
                trained.store(Some(Arc::new(Engine::train(&mut embedder, &definitions, None, &given_up)?)));
            }
            Ok(Box::new(Engine::new(embedder, trained.clone())) as Box<dyn ReadTurn>)
        };
        Self { train: Some(Arc::new(train)), ..Self::spawn_until(closing, Arc::new(load), settings) }
    }

    /// Learns these on a thread of its own; turns are read by what is known until that is done.
    ///
    /// # Errors
    /// What the model says; then nothing has changed.
    pub async fn learn(&self, definitions: Arc<Definitions>, nice: i32) -> Result<(), String> {
        let Some(train) = self.train.clone() else { return Ok(()) };
        let (told, learnt) = oneshot::channel();
        let body = move || {
            give_way(nice); // where it is refused, the readers have said so
            let result = catch_unwind(AssertUnwindSafe(|| train(&definitions)));
            let _ = told.send(result.unwrap_or_else(|_| Err("learning them panicked".into()))); // an error only says that the asker has gone
        };
        thread::Builder::new().name("inference-learn".into()).spawn(body).map_err(|e| format!("no thread to learn them on: {e}"))?;
        learnt.await.unwrap_or_else(|_| Err("the thread that learnt them has ended".into()))
    }

    pub fn spawn(load: Arc<Load>, settings: &Settings) -> Self {
        Self::spawn_until(Arc::default(), load, settings)
    }

    fn spawn_until(closing: Arc<AtomicBool>, load: Arc<Load>, settings: &Settings) -> Self {
        let (jobs, queue) = bounded(settings.queue);
        let (state, watched) = watch::channel(State::Loading);
        let state = Arc::new(state);
        let threads = (0..settings.threads)
            .filter_map(|index| {
                let (load, queue, state, nice) = (load.clone(), queue.clone(), state.clone(), settings.nice);
                let closing = closing.clone();
                let body = move || {
                    if !give_way(nice) {
                        warn!("the classifier's thread keeps the priority of the process");
                    }
                    work(&*load, &queue, &state, &closing);
                };
                thread::Builder::new()
                    .name(format!("inference-{index}"))
                    .spawn(body)
                    .inspect_err(|e| warn!(error = %e, "no thread for the classifier"))
                    .ok()
            })
            .collect::<Vec<_>>();
        if threads.is_empty() {
            state.send_replace(State::Failed("no thread could be started for the classifier".into()));
        }
        Self { jobs: Mutex::new(Some(jobs)), state: watched, threads: Mutex::new(threads), train: None, closing }
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until loading is over. Cancel-safe.
    pub async fn loaded(&self) -> State {
        let mut state = self.state.clone();
        let loaded = state.wait_for(|s| *s != State::Loading).await.map(|s| s.clone());
        loaded.unwrap_or_else(|_| State::Failed("the classifier's thread ended while loading".into()))
    }

    /// Puts a turn into the queue.
    ///
    /// # Errors
    /// [`ClassifyError::Busy`] at once when the queue is full.
    pub fn ask(&self, question: Question, time: Duration) -> Result<Pending, ClassifyError> {
        let (reply, answered) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let queued = Instant::now();
        let until = queued + time;
        let job = Job { question, queued, until, begun: begun.clone(), reply };
        let jobs = self.jobs.lock();
        let Some(jobs) = &*jobs else { return Err(ClassifyError::NotThere("the classifier has stopped".into())) };
        match jobs.try_send(job) {
            Ok(()) => {
                metrics::gauge!(names::QUEUED).set(jobs.len() as f64);
                Ok(Pending { reply: answered, begun, queued, until })
            }
            Err(TrySendError::Full(_)) => {
                metrics::counter!(names::REFUSED).increment(1);
                Err(ClassifyError::Busy(jobs.len()))
            }
            Err(TrySendError::Disconnected(_)) => Err(ClassifyError::NotThere("the classifier's threads have ended".into())),
        }
    }

    /// Takes nothing more; the threads end after what is queued. Nothing more is learnt: beside busy threads, to which these give way, that could
    /// take minutes.
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        self.closing.store(true, Ordering::Release);
        self.jobs.lock().take();
        std::mem::take(&mut self.threads.lock())
    }
}

impl Pending {
    /// # Errors
    /// How it failed; [`ClassifyError::Slow`] and [`ClassifyError::Waited`] when time is up.
    pub async fn answer(self) -> Result<Read, ClassifyError> {
        let time = self.until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(time, self.reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ClassifyError::NotThere("the classifier's thread has ended".into())),
            Err(_) if self.begun.load(Ordering::Acquire) => Err(ClassifyError::Slow(self.queued.elapsed())),
            Err(_) => Err(ClassifyError::Waited(self.queued.elapsed())),
        }
    }
}

fn work(load: &Load, queue: &Receiver<Job>, state: &watch::Sender<State>, closing: &AtomicBool) {
    let begun = Instant::now();
    let mut reader = match reader_of(load) {
        Ok(reader) => reader,
        Err(_) if closing.load(Ordering::Acquire) => return,
        Err(reason) => {
            warn!(%reason, "the classifier is not there; rules answer in its place");
            // Another thread may already be at work: then this one is only missing.
            state.send_if_modified(|s| {
                if *s == State::Loading {
                    *s = State::Failed(reason);
                    true
                } else {
                    false
                }
            });
            return;
        }
    };
    let ready = State::Ready(reader.model().to_owned());
    info!(model = reader.model(), took_ms = begun.elapsed().as_millis() as u64, "the classifier is ready");
    state.send_if_modified(|s| {
        if *s == ready {
            false
        } else {
            *s = ready;
            true
        }
    });
    for job in queue {
        metrics::gauge!(names::QUEUED).set(queue.len() as f64);
        metrics::histogram!(names::QUEUE_WAIT).record(job.queued.elapsed().as_secs_f64());
        let waited = job.queued.elapsed();
        if job.reply.is_closed() {
            continue;
        }
        if Instant::now() >= job.until {
            let _ = job.reply.send(Err(ClassifyError::Waited(waited))); // an error only says that the asker has gone
            continue;
        }
        job.begun.store(true, Ordering::Release);
        match catch_unwind(AssertUnwindSafe(|| reader.read(&job.question))) {
            Ok(result) => {
                let read = result.map(|readings| Read { readings, definitions: reader.definitions() });
                let _ = job.reply.send(read.map_err(ClassifyError::Model)); // as above
            }
            Err(_) => {
                let _ = job.reply.send(Err(ClassifyError::Panicked));
                // Not more often than the breaker above lets turns through while they fail.
                match reader_of(load) {
                    Ok(anew) => {
                        metrics::counter!(names::RENEWED).increment(1);
                        warn!("the classifier panicked and was loaded anew");
                        reader = anew;
                    }
                    Err(reason) => {
                        warn!(%reason, "the classifier panicked and cannot be loaded again; rules answer in its place");
                        state.send_replace(State::Failed(format!("it panicked and could not be loaded again: {reason}")));
                        return;
                    }
                }
            }
        }
    }
}

fn reader_of(load: &Load) -> Result<Box<dyn ReadTurn>, String> {
    catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| Err("loading it panicked".into()))
}
