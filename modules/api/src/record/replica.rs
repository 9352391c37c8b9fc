//! A standby that takes reads: which of them, and when it is left alone.
//!
//! Invariants:
//! - a read that shows a token is answered by the replica only when that has replayed the token's place on the token's timeline; it waits
//!   for that a moment, then goes to the primary, as does everything while the replica is away or too far behind;
//! - without a token a read may be behind by at most [`MOST_BEHIND`] while the primary answers; while it does not, answers say so.
//!
//! One task asks both servers where they are, for all readers. Snapshots of the live feed and all that is written never come here.

use super::{
    Record,
    database::{Database, Use},
    fresh,
    postgres::Server,
    readers::Readers,
};
use crate::metrics as names;
use contracts::{CallError, ErrorKind};
use parking_lot::RwLock;
use platform::cache::Mark;
use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const SAMPLE: Duration = Duration::from_millis(10);
/// How often the primary is asked; the replica's lag is known that exactly.
const SAMPLE_PRIMARY: Duration = Duration::from_millis(100);
/// For the replica to come to where a token is.
const PATIENCE: Duration = Duration::from_millis(50);
pub(super) const MOST_BEHIND: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
/// A primary that has said nothing for so long is not there: nobody knows what the replica lacks.
const SILENT: Duration = Duration::from_secs(1);
/// For one question of where a server is.
const ANSWER: Duration = Duration::from_millis(500);

pub(super) struct Replica {
    server: Server,
    /// `None` until it was reached for the first time.
    readers: RwLock<Option<Arc<Readers>>>,
    /// Where it is; `None`: it takes no reads.
    seen: watch::Sender<Option<Mark>>,
    /// It takes reads, and its primary does not answer.
    alone: AtomicBool,
}

impl Replica {
    pub(super) fn new(server: Server) -> Arc<Self> {
        Arc::new(Self { server, readers: RwLock::default(), seen: watch::Sender::new(None), alone: AtomicBool::new(false) })
    }

    /// The replica's readers, for a read that must have seen this; `None`: ask the primary.
    pub(super) async fn readers_for(&self, at_least: Option<Mark>) -> Option<Arc<Readers>> {
        let why = match (*self.seen.borrow(), at_least) {
            (None, _) => Err("away"),
            (Some(_), None) => Ok(()),
            (Some(here), Some(asked)) if here.timeline != asked.timeline => Err("timeline"),
            (Some(here), Some(asked)) if here.covers(asked) => Ok(()),
            _ => Err("behind"),
        };
        let why = match (why, at_least) {
            (Err("behind"), Some(asked)) => {
                let mut seen = self.seen.subscribe();
                let there = seen.wait_for(|here| here.is_none_or(|here| here.covers(asked) || here.timeline != asked.timeline));
                let there = tokio::time::timeout(PATIENCE, there).await;
                let covers = matches!(there, Ok(Ok(here)) if here.is_some_and(|here| here.covers(asked)));
                if covers { Ok(()) } else { Err("behind") }
            }
            (why, _) => why,
        };
        let (to, why) = why.map_or_else(|why| ("primary", why), |()| ("replica", "fresh"));
        metrics::counter!(names::ROUTED_READS, "to" => to, "why" => why).increment(1);
        if to == "replica" { self.readers.read().clone() } else { None }
    }

    /// What is read may lack what was stored last, and nobody can say.
    pub(super) fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    /// A read there failed for the server's sake: no more until it has been heard of.
    pub(super) fn failed(&self, error: &CallError) -> bool {
        let is_its_own = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Internal);
        if is_its_own {
            self.seen.send_replace(None);
        }
        is_its_own
    }
}

/// Asks both servers where they are until `stop`, whichever replica the settings name by then.
pub(super) async fn watch(record: &Record, stop: &CancellationToken) {
    let mut named = record.replica.subscribe();
    loop {
        let replica = named.borrow_and_update().clone();
        let work = async {
            let Some(replica) = &replica else { return std::future::pending().await };
            let (tell, told) = watch::channel(None);
            tokio::join!(sample_primary(&record.database, tell), sample_replica(record, replica, told));
        };
        let over = tokio::select! { () = work => true, told = named.changed() => told.is_err(), () = stop.cancelled() => true };
        if let Some(replica) = replica {
            replica.seen.send_replace(None);
            replica.alone.store(false, Ordering::Relaxed);
            // Its threads are waited for.
            let _ = tokio::task::spawn_blocking(move || drop(replica)).await;
        }
        if over {
            return;
        }
    }
}

/// Where the primary was when it was asked.
type Seen = Option<(Instant, Mark)>;

async fn sample_primary(database: &Database, tell: watch::Sender<Seen>) {
    loop {
        let turns = database.turns();
        if let Some(primary) = database.server()
            && let Ok(line) = primary.line().await
        {
            let mut tick = tokio::time::interval(SAMPLE_PRIMARY);
            // Until whatever writes was connected anew: the database may be elsewhere by then.
            while database.turns() == turns {
                tick.tick().await;
                let asked = Instant::now();
                match ask(&line).await {
                    Ok((mark, _)) => drop(tell.send_replace(Some((asked, mark)))),
                    Err(_) => break, // whoever reads there finds out as well; the replica is as new as it was
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn sample_replica(record: &Record, replica: &Replica, mut primary: watch::Receiver<Seen>) {
    let mut complained = false;
    loop {
        let Err(why) = follow(record, replica, &mut primary, &mut complained).await;
        replica.seen.send_replace(None);
        replica.alone.store(false, Ordering::Relaxed);
        if !std::mem::replace(&mut complained, true) {
            warn!(replica = %replica.server, why, "the replica takes no reads; trying again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// As long as the replica answers.
async fn follow(
    record: &Record,
    replica: &Replica,
    primary: &mut watch::Receiver<Seen>,
    complained: &mut bool,
) -> Result<Infallible, String> {
    let line = replica.server.line().await?;
    if replica.readers.read().is_none() {
        let (database, commits, count) = (record.database.clone(), record.commits.clone(), record.settings.readers);
        let started = tokio::task::spawn_blocking(move || Readers::start(&database, Use::Following, count, &commits)).await;
        *replica.readers.write() = Some(Arc::new(started.map_err(|e| e.to_string())??));
    }
    *complained = false;
    let mut tick = tokio::time::interval(SAMPLE);
    let mut lag = Lag::default();
    let mut in_rotation = None;
    let mut heard = Instant::now();
    loop {
        tick.tick().await;
        let (mark, standby) = ask(&line).await?;
        if primary.has_changed().unwrap_or_default()
            && let Some((at, theirs)) = *primary.borrow_and_update()
        {
            lag.primary_was_at(at, theirs);
            heard = at;
        }
        let behind = lag.of(mark, Instant::now());
        metrics::gauge!(names::REPLICA_LAG).set(behind.as_secs_f64());
        // One that was promoted goes its own way.
        let takes_reads = standby && behind <= MOST_BEHIND;
        replica.seen.send_replace(takes_reads.then_some(mark));
        replica.alone.store(takes_reads && heard.elapsed() > SILENT, Ordering::Relaxed);
        if in_rotation.replace(takes_reads) != Some(takes_reads) {
            info!(replica = %replica.server, takes_reads, standby, behind_ms = behind.as_millis() as u64, "the replica's place among readers");
        }
    }
}

/// Its place in the log, and whether it is a standby.
async fn ask(line: &tokio_postgres::Client) -> Result<(Mark, bool), String> {
    let asked = tokio::time::timeout(ANSWER, line.query_one(fresh::PLACE, &[])).await;
    let row = asked.map_err(|_| format!("no answer within {ANSWER:?}"))?.map_err(|e| e.to_string())?;
    let (timeline, at): (i32, i64) = (row.get("timeline"), row.get("at"));
    Ok((Mark { timeline: timeline as u32, at: at as u64 }, row.get("standby")))
}

/// How far a replica is behind: since when the primary has been where the replica is not yet.
#[derive(Default)]
struct Lag {
    ahead: VecDeque<(Instant, Mark)>,
}

impl Lag {
    fn primary_was_at(&mut self, when: Instant, mark: Mark) {
        if self.ahead.back().is_none_or(|(_, last)| *last != mark) {
            self.ahead.push_back((when, mark));
        }
    }

    fn of(&mut self, replica: Mark, now: Instant) -> Duration {
        while self.ahead.front().is_some_and(|(_, mark)| replica.covers(*mark)) {
            self.ahead.pop_front();
        }
        // More would say nothing new: it is far behind.
        self.ahead.truncate(10_000);
        self.ahead.front().map_or(Duration::ZERO, |(when, _)| now.duration_since(*when))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_behind_since_the_primary_went_on() {
        let at = |at| Mark { timeline: 1, at };
        let mut lag = Lag::default();
        let mut primary = 10;
        lag.primary_was_at(Instant::now(), at(primary));
        assert_eq!(lag.of(at(10), Instant::now()), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(60)).await; // nothing is written
        assert_eq!(lag.of(at(10), Instant::now()), Duration::ZERO);
        for _ in 0..10 {
            primary += 1;
            lag.primary_was_at(Instant::now(), at(primary));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(lag.of(at(10), Instant::now()), Duration::from_secs(10));
        assert_eq!(lag.of(at(18), Instant::now()), Duration::from_secs(2));
        assert_eq!(lag.of(at(20), Instant::now()), Duration::ZERO);
        lag.primary_was_at(Instant::now(), Mark { timeline: 2, at: 15 });
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lag.of(at(30), Instant::now()), Duration::from_secs(1), "it has not followed to the new timeline");
    }
}
