//! A recognition thread: owns one copy of the models and the channels pinned to it.
//!
//! Invariants:
//! - it listens between any two steps of a recognition, so a channel waits for the detector at most as long as one step;
//! - a panic fails the sessions whose sound was being worked on and nothing else; after one in a model the models are loaded anew, because
//!   nobody knows what it left behind. [`RESTARTS`] in a row without a recognition between them mean that this does not help.

use super::{
    faults::{Faults, Place},
    load::{Load, Work},
    recognizer::{Recognizer, Transcript},
    scheduler::{Board, Job, Level, Ticket},
    session::{Session, Tools, unscored},
    settings::EngineSettings,
    vad::{self, Detector},
};
use crate::metrics as names;
use contracts::{
    CallError,
    audio::{Input, Pace},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use metrics::{counter, gauge, histogram};
use platform::{onnx::ModelError, supervision::RESTARTS};
use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How often a worker without work looks whether a caller has given up.
const SWEEP: Duration = Duration::from_millis(200);
/// From this many sessions on, an idle worker lets input gather before it looks at it.
const CROWD: usize = 12;
/// Sound consumed of one channel before the next has its turn, in samples.
const TURN: u64 = 48_000;

pub(super) enum Message {
    Open(Box<Session>, u64, Slot),
    Input(u64, Input, Instant),
    Heard(u64, Arc<Ticket>, Heard),
    /// There is work on the board.
    Wake,
    Stop,
}

/// What came of a recognition: text, a reason why there is none, or a panic.
pub(super) type Heard = Result<Result<Transcript, String>, CallError>;

/// Where a worker is reached.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) sender: Sender<Message>,
    pub(super) idle: Arc<AtomicBool>,
    pub(super) sessions: Arc<AtomicUsize>,
    /// Its worker has ended.
    pub(super) closed: Arc<AtomicBool>,
}

/// A session's place; given back when dropped.
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    pub(super) fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        gauge!(names::SESSIONS).increment(1.0);
        Self(count.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        gauge!(names::SESSIONS).decrement(1.0);
    }
}

/// What all workers share.
pub(super) struct Floor {
    pub(super) board: Board,
    pub(super) load: Load,
    pub(super) doors: Vec<Door>,
    pub(super) lost: Lost,
    pub(super) faults: Faults,
}

/// Why a worker has given up, once one has.
#[derive(Default)]
pub(super) struct Lost {
    cause: OnceLock<String>,
    told: CancellationToken,
}

impl Lost {
    fn tell(&self, cause: String) {
        let _ = self.cause.set(cause); // the first one counts
        self.told.cancel();
    }

    /// Cancel-safe.
    pub(super) async fn cause(&self) -> String {
        self.told.cancelled().await;
        self.cause.get().cloned().unwrap_or_default()
    }
}

/// What a worker hears with.
pub(super) struct Models<D, R> {
    pub(super) vad: D,
    pub(super) recognizer: R,
}

pub(super) type LoadModels<D, R> = Box<dyn Fn() -> Result<Models<D, R>, ModelError> + Send>;

impl Floor {
    /// Wakes a worker that has nothing to do.
    fn ring(&self, except: usize) {
        if !self.board.may_steal() {
            return;
        }
        for (index, door) in self.doors.iter().enumerate() {
            if index != except && door.idle.swap(false, Ordering::AcqRel) {
                let _ = door.sender.send(Message::Wake); // a worker that is gone needs no waking
                return;
            }
        }
    }
}

pub(super) struct Worker<D, R: Recognizer> {
    index: usize,
    floor: Arc<Floor>,
    inbox: Receiver<Message>,
    models: Models<D, R>,
    load: LoadModels<D, R>,
    /// Panics since the last recognition.
    in_a_row: usize,
    sessions: HashMap<u64, (Box<Session>, Slot)>,
    /// Sessions with something to consume.
    live: VecDeque<u64>,
    batch: VecDeque<u64>,
    /// How many recognitions may be written in step.
    together: usize,
    /// How long an idle worker lets sound gather once it has many sessions.
    gather: Duration,
    /// What is being recognized; the last interrupted those before it.
    running: Vec<Running<R::Hearing>>,
    swept: Instant,
    stopping: bool,
}

/// Recognitions in step; `None` where one is complete.
struct Running<H> {
    jobs: Vec<Option<Job>>,
    level: Level,
    hearing: H,
    /// Working time so far, of all of them.
    spent: Duration,
}

impl<D: Detector, R: Recognizer> Worker<D, R> {
    /// Loads its models, which takes some tenths of a second.
    pub(super) fn open(
        index: usize,
        floor: Arc<Floor>,
        inbox: Receiver<Message>,
        load: LoadModels<D, R>,
        settings: &EngineSettings,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            index,
            floor,
            inbox,
            models: load()?,
            load,
            in_a_row: 0,
            sessions: HashMap::new(),
            live: VecDeque::new(),
            batch: VecDeque::new(),
            together: settings.together,
            gather: Duration::from_millis(settings.gather_ms.into()),
            running: vec![],
            swept: Instant::now(),
            stopping: false,
        })
    }

    /// Works until told to stop.
    pub(super) fn run(mut self) {
        while !self.stopping {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.turn())) {
                tracing::error!(worker = self.index, "an audio thread panicked");
                self.fail_all(&CallError::panicked(&*panic));
                self.renew("its thread panicked");
            }
        }
        self.floor.doors[self.index].closed.store(true, Ordering::Release);
        for (_, (mut session, _slot)) in self.sessions.drain() {
            session.end(Some(CallError::unavailable("the audio engine is stopping")));
        }
    }

    fn turn(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.receive(message);
        }
        self.sweep();
        self.floor.faults.strike(Place::Thread);
        if self.consume(Pace::Live) || self.recognize() || self.consume(Pace::Batch) {
            return;
        }
        self.wait();
    }

    /// Of whatever this thread was doing, nobody knows how far it came.
    fn fail_all(&mut self, error: &CallError) {
        for job in self.running.drain(..).flat_map(|running| running.jobs).flatten().collect::<Vec<_>>() {
            self.finish(job, Duration::ZERO, Err(error.clone()));
        }
        self.live.clear();
        self.batch.clear();
        for (_, (mut session, _slot)) in self.sessions.drain() {
            // A session that cannot even be ended is dropped, and so its caller told.
            let _ = catch_unwind(AssertUnwindSafe(|| session.end(Some(error.clone()))));
        }
    }

    /// Loads the models anew, or gives up.
    fn renew(&mut self, why: &str) {
        self.in_a_row += 1;
        let given_up = if self.in_a_row > RESTARTS {
            Some(format!("{why}, {} times in a row", self.in_a_row))
        } else {
            match catch_unwind(AssertUnwindSafe(&self.load)) {
                Ok(Ok(models)) => {
                    self.models = models;
                    None
                }
                Ok(Err(error)) => Some(format!("{why}, and its models cannot be loaded again: {error}")),
                Err(_) => Some(format!("{why}, and loading its models panicked")),
            }
        };
        match given_up {
            None => {
                counter!(names::RENEWED).increment(1);
                tracing::warn!(worker = self.index, why, in_a_row = self.in_a_row, "an audio thread has loaded its models anew");
                // Begun with the old ones: begun again. The channels only wait a little longer.
                for job in self.running.drain(..).flat_map(|running| running.jobs).flatten() {
                    self.floor.board.put_back(job);
                }
            }
            Some(cause) => {
                self.stopping = true;
                self.floor.lost.tell(format!("worker {}: {cause}", self.index));
            }
        }
    }

    fn wait(&mut self) {
        let idle = self.floor.doors[self.index].idle.clone();
        idle.store(true, Ordering::Release);
        // Whoever queued work before the flag was up has not rung.
        if self.floor.board.has_work(self.index) {
            idle.store(false, Ordering::Release);
            return;
        }
        match self.inbox.recv_timeout(SWEEP) {
            Ok(message) => {
                idle.store(false, Ordering::Release);
                let is_sound = matches!(message, Message::Input(..));
                self.receive(message);
                if is_sound && self.sessions.len() >= CROWD && !self.gather.is_zero() {
                    // Detecting in company costs half, and nobody has to wake a thread that is not waiting. Not awaited for that reason.
                    std::thread::park_timeout(self.gather);
                }
            }
            Err(RecvTimeoutError::Timeout) => idle.store(false, Ordering::Release),
            Err(RecvTimeoutError::Disconnected) => self.stopping = true,
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Open(session, id, slot) => {
                self.sessions.insert(id, (session, slot));
            }
            Message::Input(id, input, at) => {
                self.with(id, |session, _| session.arrive(input, at));
            }
            Message::Heard(id, ticket, heard) => {
                self.with(id, |session, _| match heard {
                    Ok(transcript) => session.heard(&ticket, transcript),
                    Err(panic) => session.end(Some(panic)),
                });
            }
            Message::Wake => {}
            Message::Stop => self.stopping = true,
        }
    }

    /// Lets sessions of a pace consume what has arrived: live all of them, batch one. True when one did.
    fn consume(&mut self, pace: Pace) -> bool {
        let began = Instant::now();
        let mut ready: Vec<u64> = match pace {
            Pace::Live => self.live.drain(..).collect(),
            Pace::Batch => self.batch.pop_front().into_iter().collect(),
        };
        if ready.is_empty() {
            return false;
        }
        // In rounds: each goes on as far as it can without a score, then all scores are made together.
        while !ready.is_empty() {
            ready.retain(|id| self.with(*id, |session, tools| session.consume(tools, TURN)).unwrap_or(false));
            for some in ready.chunks(vad::MOST) {
                self.score(some);
            }
            if self.floor.board.has_work(self.index) {
                self.floor.ring(self.index);
            }
        }
        self.floor.load.add(if pace == Pace::Live { Work::Fixed } else { Work::Batch }, began.elapsed());
        true
    }

    /// Scores the frames that some sessions wait for.
    fn score(&mut self, ids: &[u64]) {
        let began = Instant::now();
        let scored = catch_unwind(AssertUnwindSafe(|| {
            self.floor.faults.strike(Place::Detector);
            for id in ids {
                if let Some((session, _)) = self.sessions.get_mut(id) {
                    session.put(&mut self.models.vad);
                }
            }
            self.models.vad.run()
        }));
        let scored = match scored {
            Ok(scored) => scored,
            Err(panic) => {
                tracing::error!(worker = self.index, "the speech detector panicked");
                let error = CallError::panicked(&*panic);
                for id in ids {
                    self.with(*id, |session, _| session.end(Some(error.clone())));
                }
                return self.renew("its speech detector panicked");
            }
        };
        let each = began.elapsed().as_secs_f64() / ids.len() as f64;
        histogram!(names::VAD).record_many(each, ids.len());
        for (place, id) in ids.iter().enumerate() {
            self.with(*id, |session, tools| match &scored {
                Ok(()) => session.take(place, tools),
                Err(error) => session.end(Some(unscored(error))),
            });
        }
    }

    /// Runs `work` on a session. A panic ends that session, and so does its own wish; a session that has more to consume is queued.
    /// `None` when it is over.
    fn with<T>(&mut self, id: u64, work: impl FnOnce(&mut Session, &mut Tools<'_>) -> T) -> Option<T> {
        let (session, _) = self.sessions.get_mut(&id)?;
        let mut tools = Tools {
            worker: self.index,
            vad: &mut self.models.vad,
            board: &self.floor.board,
            load: &self.floor.load,
            faults: &self.floor.faults,
        };
        let done = catch_unwind(AssertUnwindSafe(|| work(session, &mut tools)));
        if let Err(panic) = &done {
            tracing::error!(session.id = id, "a session panicked");
            session.end(Some(CallError::panicked(&**panic)));
        }
        if session.is_over() {
            self.sessions.remove(&id);
            return None;
        }
        if session.is_ready() {
            let queue = if session.pace() == Pace::Live { &mut self.live } else { &mut self.batch };
            if !queue.contains(&id) {
                queue.push_back(id);
            }
        }
        done.ok()
    }

    /// One step of the most urgent recognition. False when there is none.
    fn recognize(&mut self) -> bool {
        let level = self.running.last().map(|running| running.level);
        if level.is_none_or(|level| level > Level::Urgent)
            && let Some(job) = self.floor.board.take(self.index, level)
        {
            self.begin(job);
        }
        let Some(mut running) = self.running.pop() else { return false };
        for job in &mut running.jobs {
            if let Some(unwanted) = job.take_if(|job| job.ticket.is_unwanted()) {
                unwanted.ticket.done();
            }
        }
        if running.jobs.iter().all(Option::is_none) {
            return true;
        }
        let began = Instant::now();
        let step = catch_unwind(AssertUnwindSafe(|| {
            self.floor.faults.strike(Place::Recognizer);
            self.models.recognizer.step(&mut running.hearing)
        }));
        let took = began.elapsed();
        running.spent += took;
        let work = match running.level {
            Level::Urgent => Work::Fixed,
            Level::Passing => Work::Partials,
            Level::Batch => Work::Batch,
        };
        self.floor.load.add(work, took);
        let share = running.spent / running.jobs.len().max(1) as u32;
        match step {
            Ok(Ok(complete)) => {
                if !complete.is_empty() {
                    self.in_a_row = 0;
                }
                for (place, transcript) in complete {
                    if let Some(job) = running.jobs[place].take() {
                        self.finish(job, share, Ok(Ok(transcript)));
                    }
                }
                if !R::is_over(&running.hearing) {
                    self.running.push(running);
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a recognition failed");
                for job in running.jobs.into_iter().flatten() {
                    self.finish(job, share, Ok(Err(format!("could not be recognized: {error}"))));
                }
            }
            Err(panic) => {
                tracing::error!("a recognition panicked");
                for job in running.jobs.into_iter().flatten() {
                    self.finish(job, share, Err(CallError::panicked(&*panic)));
                }
                self.renew("its recognizer panicked");
            }
        }
        true
    }

    /// Takes up a job, and with it what can be written in step.
    fn begin(&mut self, mut job: Job) {
        let level = job.level();
        let others = self.floor.board.take_like(self.index, &job, self.together.saturating_sub(1));
        let draft = std::mem::take(&mut job.draft);
        let jobs: Vec<Job> = std::iter::once(job).chain(others).collect();
        for job in &jobs {
            histogram!(names::QUEUE_AGE, "class" => job.ticket.class().name()).record(job.queued.elapsed().as_secs_f64());
            if job.owner != self.index {
                counter!(names::STOLEN).increment(1);
            }
        }
        histogram!(names::TOGETHER).record(jobs.len() as f64);
        let stretches: Vec<&[f32]> = jobs.iter().map(|job| job.pcm.as_slice()).collect();
        match catch_unwind(AssertUnwindSafe(|| self.models.recognizer.begin(&stretches, draft))) {
            Ok(hearing) => {
                self.running.push(Running { jobs: jobs.into_iter().map(Some).collect(), level, hearing, spent: Duration::ZERO });
            }
            Err(panic) => {
                tracing::error!("a recognition panicked before it began");
                for job in jobs {
                    self.finish(job, Duration::ZERO, Err(CallError::panicked(&*panic)));
                }
                self.renew("its recognizer panicked");
            }
        }
    }

    fn finish(&mut self, job: Job, spent: Duration, heard: Heard) {
        let class = job.ticket.class().name();
        histogram!(names::DECODE, "class" => class).record(spent.as_secs_f64());
        counter!(names::DECODED, "class" => class).increment((job.pcm.len() / 16_000) as u64);
        if matches!(&heard, Ok(Ok(transcript)) if transcript.looped) {
            counter!(names::LOOPS).increment(1);
        }
        job.ticket.done();
        let message = Message::Heard(job.session, job.ticket, heard);
        if job.owner == self.index {
            self.receive(message);
        } else {
            let _ = self.floor.doors[job.owner].sender.send(message); // a worker that is gone has ended its sessions
        }
    }

    /// Now and then: measures the load, ends sessions whose caller has given up.
    fn sweep(&mut self) {
        let now = Instant::now();
        if self.floor.load.tick(now) {
            gauge!(names::LOAD).set(f64::from(self.floor.load.needed()));
            gauge!(names::PARTIAL_PERIOD).set(self.floor.load.period().as_secs_f64());
        }
        if now.duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.sessions.retain(|_, (session, _)| {
            if session.is_cancelled() {
                session.end(Some(CallError::cancelled()));
            }
            !session.is_over()
        });
    }
}
