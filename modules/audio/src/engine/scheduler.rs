//! Which recognition comes next.
//!
//! Invariants: live before batch, finals before partials, the first partial of an utterance before refreshed ones, then whoever waited
//! longest; at most one partial of a channel waits, and a newer one takes its place; batch work that has waited too long moves up, so
//! it is slow and not stuck.

use contracts::audio::Pace;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

/// After this long batch work counts as a refreshed partial.
const BATCH_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The utterance is over.
    Final,
    /// It probably is.
    Guess,
    FirstPartial,
    Refresh,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Guess => "guess",
            Self::FirstPartial => "first_partial",
            Self::Refresh => "refresh",
        }
    }
    fn of(byte: u8) -> Self {
        [Self::Final, Self::Guess, Self::FirstPartial, Self::Refresh][byte.min(3) as usize]
    }
}

/// What remains of a recognition with whoever asked for it.
#[derive(Debug)]
pub(super) struct Ticket {
    class: AtomicU8,
    stage: AtomicU8,
    wanted: AtomicU8,
}

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const WANTED: u8 = 0;
const ONLY_IF_BEGUN: u8 = 1;
const UNWANTED: u8 = 2;

impl Ticket {
    pub(super) fn new(class: Class) -> Arc<Self> {
        Arc::new(Self { class: AtomicU8::new(class as u8), stage: AtomicU8::new(WAITING), wanted: AtomicU8::new(WANTED) })
    }
    pub(super) fn class(&self) -> Class {
        Class::of(self.class.load(Ordering::Relaxed))
    }
    /// What was a guess has come true.
    pub(super) fn is_final_now(&self) {
        self.class.store(Class::Final as u8, Ordering::Relaxed);
        self.wanted.store(WANTED, Ordering::Relaxed);
    }
    /// Not worth beginning; if it has begun, its result may still be of use.
    pub(super) fn forget(&self) {
        self.wanted.fetch_max(ONLY_IF_BEGUN, Ordering::Relaxed);
    }
    /// Of no use to anybody.
    pub(super) fn drop_it(&self) {
        self.wanted.store(UNWANTED, Ordering::Relaxed);
    }
    pub(super) fn is_unwanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) == UNWANTED
    }
    pub(super) fn is_waiting(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == WAITING
    }
    pub(super) fn is_over(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == DONE
    }
    pub(super) fn done(&self) {
        self.stage.store(DONE, Ordering::Relaxed);
    }
}

/// A stretch of a channel to be recognized.
pub(super) struct Job {
    pub(super) session: u64,
    /// The worker that owns the channel.
    pub(super) owner: usize,
    pub(super) ticket: Arc<Ticket>,
    pub(super) pace: Pace,
    pub(super) pcm: Vec<f32>,
    pub(super) draft: Vec<i64>,
    pub(super) queued: Instant,
}

impl Job {
    pub(super) fn level(&self) -> Level {
        match (self.pace, self.ticket.class()) {
            (Pace::Live, Class::Final | Class::Guess) => Level::Urgent,
            (Pace::Live, _) => Level::Passing,
            (Pace::Batch, _) => Level::Batch,
        }
    }
    fn rank(&self, now: Instant) -> (u8, Instant) {
        let rank = match (self.pace, self.ticket.class()) {
            (Pace::Live, class) => class as u8,
            (Pace::Batch, _) if now.duration_since(self.queued) > BATCH_PATIENCE => Class::Refresh as u8,
            (Pace::Batch, class) => 4 + class as u8,
        };
        (rank, self.queued)
    }
}

/// A job of a lower level makes way in the middle of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Urgent,
    Passing,
    Batch,
}

/// Where recognitions wait for a worker.
pub(super) struct Board {
    waiting: Mutex<Vec<Job>>,
    steal: bool,
    coalesce: bool,
}

impl Board {
    pub(super) fn new(steal: bool, coalesce: bool) -> Self {
        Self { waiting: Mutex::default(), steal, coalesce }
    }

    /// Queues a job. True when it took the place of an older partial of its channel.
    pub(super) fn push(&self, mut job: Job) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|j| j.ticket.wanted.load(Ordering::Relaxed) == WANTED);
        let partial = job.ticket.class() >= Class::FirstPartial;
        let older = waiting.iter_mut().find(|j| j.session == job.session && j.ticket.class() >= Class::FirstPartial);
        match older {
            Some(older) if partial && self.coalesce => {
                job.queued = older.queued;
                *older = job;
                true
            }
            _ => {
                waiting.push(job);
                false
            }
        }
    }

    /// What was taken and not done: it waits as it did before.
    pub(super) fn put_back(&self, job: Job) {
        job.ticket.stage.store(WAITING, Ordering::Relaxed);
        self.waiting.lock().push(job);
    }

    /// The most urgent job for `worker`, if it is more urgent than `than`.
    pub(super) fn take(&self, worker: usize, than: Option<Level>) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return None;
        }
        waiting.retain(|j| j.ticket.wanted.load(Ordering::Relaxed) == WANTED);
        let now = Instant::now();
        let fits = |job: &Job| (self.steal || job.owner == worker) && than.is_none_or(|level| job.level() < level);
        let best = waiting.iter().enumerate().filter(|(_, job)| fits(job)).min_by_key(|(_, job)| job.rank(now))?.0;
        let job = waiting.swap_remove(best);
        job.ticket.stage.store(RUNNING, Ordering::Relaxed);
        Some(job)
    }

    /// Jobs that may be written in step with `job`: of its level, without a draft, of a like length; at most `most`.
    pub(super) fn take_like(&self, worker: usize, job: &Job, most: usize) -> Vec<Job> {
        if most == 0 || !job.draft.is_empty() {
            return vec![];
        }
        let mut waiting = self.waiting.lock();
        let length = job.pcm.len();
        let mut taken = vec![];
        while taken.len() < most {
            let like = |j: &Job| {
                j.level() == job.level()
                    && j.draft.is_empty()
                    && (self.steal || j.owner == worker)
                    && j.pcm.len() * 2 > length
                    && length * 2 > j.pcm.len()
                    && j.ticket.wanted.load(Ordering::Relaxed) == WANTED
            };
            let oldest = waiting.iter().enumerate().filter(|(_, j)| like(j)).min_by_key(|(_, j)| j.queued).map(|(i, _)| i);
            let Some(at) = oldest else { break };
            let job = waiting.swap_remove(at);
            job.ticket.stage.store(RUNNING, Ordering::Relaxed);
            taken.push(job);
        }
        taken
    }

    /// True when `worker` would find something.
    pub(super) fn has_work(&self, worker: usize) -> bool {
        self.waiting.lock().iter().any(|j| self.steal || j.owner == worker)
    }

    pub(super) fn may_steal(&self) -> bool {
        self.steal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(session: u64, class: Class, pace: Pace, age_ms: u64) -> Job {
        let queued = Instant::now() - Duration::from_millis(age_ms);
        Job { session, owner: 0, ticket: Ticket::new(class), pace, pcm: vec![], draft: vec![], queued }
    }

    fn order(board: &Board) -> Vec<u64> {
        std::iter::from_fn(|| board.take(0, None)).map(|j| j.session).collect()
    }

    #[test]
    fn finals_first_then_guesses_then_first_partials_then_whoever_waited_longest() {
        let board = Board::new(true, true);
        board.push(job(1, Class::Refresh, Pace::Live, 10));
        board.push(job(2, Class::Refresh, Pace::Live, 20));
        board.push(job(3, Class::FirstPartial, Pace::Live, 0));
        board.push(job(4, Class::Guess, Pace::Live, 0));
        board.push(job(5, Class::Final, Pace::Live, 0));
        board.push(job(6, Class::Final, Pace::Batch, 500));
        assert_eq!(order(&board), [5, 4, 3, 2, 1, 6]);
    }

    #[test]
    fn batch_work_that_waits_too_long_moves_up() {
        let board = Board::new(true, true);
        board.push(job(1, Class::Refresh, Pace::Live, 10));
        board.push(job(2, Class::Final, Pace::Batch, 3500));
        assert_eq!(order(&board), [2, 1]);
    }

    #[test]
    fn a_newer_partial_takes_the_place_of_an_older_one() {
        let board = Board::new(true, true);
        board.push(job(1, Class::FirstPartial, Pace::Live, 50));
        board.push(job(2, Class::FirstPartial, Pace::Live, 20));
        assert!(board.push(job(1, Class::FirstPartial, Pace::Live, 0)));
        assert!(!board.push(job(1, Class::Final, Pace::Live, 0)));
        assert_eq!(order(&board), [1, 1, 2]);
    }

    #[test]
    fn a_guess_that_came_true_is_a_final_and_one_that_did_not_is_gone() {
        let board = Board::new(true, true);
        let (right, wrong) = (job(1, Class::Guess, Pace::Live, 0), job(2, Class::Guess, Pace::Live, 50));
        let (a, b) = (right.ticket.clone(), wrong.ticket.clone());
        board.push(right);
        board.push(wrong);
        board.push(job(3, Class::Guess, Pace::Live, 100));
        a.is_final_now();
        b.forget();
        assert_eq!(order(&board), [1, 3]);
    }

    #[test]
    fn stretches_of_a_like_length_are_written_in_step() {
        let board = Board::new(true, true);
        let sound = |session, class, samples| Job { pcm: vec![0.0; samples], ..job(session, class, Pace::Live, 0) };
        board.push(sound(1, Class::Final, 90));
        board.push(sound(2, Class::Guess, 150));
        board.push(sound(3, Class::Final, 250));
        board.push(sound(4, Class::Refresh, 100));
        board.push(Job { draft: vec![5], ..sound(5, Class::Final, 100) });
        let taken = board.take_like(0, &sound(9, Class::Final, 100), 3);
        assert_eq!(taken.iter().map(|j| j.session).collect::<Vec<_>>(), [1, 2]);
        assert!(board.take_like(0, &sound(9, Class::Final, 100), 0).is_empty());
    }

    #[test]
    fn only_something_more_urgent_interrupts_and_nobody_steals_where_it_is_off() {
        let board = Board::new(false, true);
        board.push(job(1, Class::FirstPartial, Pace::Live, 0));
        assert!(board.take(0, Some(Level::Passing)).is_none());
        assert!(board.take(1, None).is_none() && !board.has_work(1));
        board.push(job(1, Class::Final, Pace::Live, 0));
        assert_eq!(board.take(0, Some(Level::Passing)).unwrap().ticket.class(), Class::Final);
    }
}
