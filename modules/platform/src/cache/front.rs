//! Cache first: what a reader asks.
//!
//! First level, then another reader of this process that is at it, then the shared cache, then the database. A shared cache that does not
//! answer is left alone for a moment; meanwhile there are the first level and the database, as many reads at once as `loads` says.
//!
//! A change that this process announces is seen by its readers at once, also while the shared cache has not been told (`pending`).

mod recall;
mod upkeep;

use super::{
    Cache, Key, Look, Mark, Memory, NEGATIVE_TTL, NewValue, Put, Redis, Scope, Settings, Stamp, Value, first_level::FirstLevel, jittered,
    metrics as names, settings::Kind,
};
use crate::bus;
use bytes::Bytes;
use contracts::CallError;
use parking_lot::Mutex;
pub use recall::{Place, Recalled};
use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout},
};
use tracing::{info, warn};
use upkeep::Pending;

/// For somebody else's fill.
const LEASE_WAIT: Duration = Duration::from_millis(50);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// For a place among those who read the database.
const ADMISSION: Duration = Duration::from_secs(2);
/// The shared cache is left alone this long after a call has failed.
const AWAY: Duration = Duration::from_millis(500);

/// What a load has read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub stamp: Stamp,
    /// `None`: there is no such thing.
    pub body: Option<Bytes>,
}

/// What a reader gets.
#[derive(Clone, Debug)]
pub struct Answer {
    pub body: Option<Bytes>,
    pub stamp: Stamp,
    /// Since it was read from the database.
    pub age: Duration,
    pub from: From,
}

impl Answer {
    /// Of a load that was nobody else's.
    pub fn of(loaded: Loaded) -> Self {
        Self { body: loaded.body, stamp: loaded.stamp, age: Duration::ZERO, from: From::Database }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// This process had it.
    First,
    /// The shared cache had it.
    Shared,
    /// After its end, while somebody fills it or the database does not answer.
    Stale,
    Database,
}

impl From {
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Shared => "shared",
            Self::Stale => "stale",
            Self::Database => "miss",
        }
    }
}

/// The cache of a process. Long work is done by [`Front::run`].
pub struct Front {
    /// `None`: every read asks the database.
    cache: Option<Arc<dyn Cache>>,
    /// `None`: the cache is as near.
    first: Option<FirstLevel>,
    flights: Mutex<HashMap<Scope, HashMap<String, Others>>>,
    next_flight: AtomicU64,
    loads: Semaphore,
    away_until: Mutex<Option<Instant>>,
    /// What is worked out is not looked for until then: a look was late.
    late_until: Mutex<Option<Instant>>,
    trouble: Mutex<Option<String>>,
    was_away: AtomicBool,
    /// Voids that the shared cache has not confirmed.
    pending: Mutex<HashMap<Scope, Pending>>,
    to_void: Notify,
}

/// To hear what the one who is at a key comes back with.
#[derive(Clone)]
struct Others {
    flight: u64,
    told: watch::Receiver<Told>,
}

/// How far a flight has come.
#[derive(Clone)]
enum Told {
    /// It looks for a value.
    Off,
    /// It reads the database; until it is back there is this, from then.
    Loading(Value, Instant),
    Landed(Answer),
}

impl Front {
    /// As the settings say.
    ///
    /// # Errors
    /// When the Redis they name cannot be used; the text says what was tried and what to do.
    pub async fn start(settings: &Settings, bus: Option<&bus::Redis>) -> Result<Arc<Self>, bus::ConnectError> {
        let first = || FirstLevel::new(settings.first_level_mb << 20, Duration::from_millis(settings.first_level_ms));
        Ok(Arc::new(match settings.kind {
            Kind::Off => Self::on(None, None, settings.loads),
            Kind::Memory => Self::on(Some(Arc::new(Memory::with_capacity(settings.memory_mb << 20))), None, settings.loads),
            Kind::Redis => Self::on(Some(Arc::new(Redis::connect(settings, bus).await?)), Some(first()), settings.loads),
        }))
    }

    /// In memory, as large as the settings' default.
    pub fn memory() -> Arc<Self> {
        let settings = Settings::default();
        Arc::new(Self::on(Some(Arc::new(Memory::with_capacity(settings.memory_mb << 20))), None, settings.loads))
    }

    pub(super) fn on(cache: Option<Arc<dyn Cache>>, first: Option<FirstLevel>, loads: usize) -> Self {
        Self {
            cache,
            first,
            flights: Mutex::default(),
            next_flight: AtomicU64::new(0),
            loads: Semaphore::new(loads),
            away_until: Mutex::default(),
            late_until: Mutex::default(),
            trouble: Mutex::default(),
            was_away: AtomicBool::new(false),
            pending: Mutex::default(),
            to_void: Notify::new(),
        }
    }

    /// What the shared cache complains of right now, for people.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Reads `key`, by `load` if need be. Whatever is given has seen everything up to `at_least`: `load` must have, too.
    ///
    /// # Errors
    /// `load`'s, and `Busy` when too many wait for the database. Another reader's failure is nobody else's.
    pub async fn read<F>(&self, key: Key, at_least: Option<Mark>, load: impl Fn() -> F) -> Result<Answer, CallError>
    where
        F: Future<Output = Result<Loaded, CallError>>,
    {
        let Some(cache) = &self.cache else {
            return self.straight(&load).await;
        };
        let ticket = self.first.as_ref().map(|first| first.ticket(&key.scope));
        let asked = Asked { key: &key, at_least, owed: self.owed(&key) };
        loop {
            if let Some(value) = self.first.as_ref().and_then(|first| first.get(&key, at_least)) {
                return Ok(hit(value, From::First));
            }
            if let Some(value) = cache.peek(&key, at_least) {
                return Ok(hit(value, From::Shared));
            }
            let flight = match self.join(&key) {
                Ok(flight) => flight,
                Err(others) => {
                    metrics::counter!(names::WAITS, "for" => "flight").increment(1);
                    match self.wait(others, &asked).await {
                        Some(Told::Loading(value, _)) if value.left.is_zero() => return Ok(stale_answer(value)),
                        Some(Told::Loading(value, _)) => return Ok(hit(value, From::Shared)),
                        Some(Told::Landed(answer)) if self.may_give(&asked, &answer.stamp) => {
                            metrics::counter!(names::HITS, "level" => "flight").increment(1);
                            return Ok(answer);
                        }
                        // It had set out before what this reader must see.
                        Some(_) => return self.straight(&load).await,
                        None => continue, // the one who was at it has failed, or was called off
                    }
                }
            };
            let (answer, keep) = self.through(&**cache, &asked, &flight, &load).await?;
            if let (Some(first), Some(ticket), true) = (&self.first, ticket, keep) {
                let ttl = if answer.body.is_some() { super::TTL } else { NEGATIVE_TTL };
                let left = ttl.saturating_sub(answer.age);
                let value = Value { stamp: answer.stamp, age: answer.age, left, over: Duration::ZERO, body: answer.body.clone() };
                first.put(&key, ticket, &value);
            }
            flight.land(answer.clone());
            return Ok(answer);
        }
    }

    /// The first of this process to be at a key, or who already is.
    fn join<'a>(&'a self, key: &'a Key) -> Result<Flight<'a>, Others> {
        let mut flights = self.flights.lock();
        if let Some(others) = flights.get(&key.scope).and_then(|parts| parts.get(&key.part)) {
            return Err(others.clone());
        }
        let (tell, told) = watch::channel(Told::Off);
        let flight = self.next_flight.fetch_add(1, Ordering::Relaxed);
        flights.entry(key.scope.clone()).or_default().insert(key.part.clone(), Others { flight, told });
        Ok(Flight { front: self, key, flight, tell })
    }

    /// For somebody else's flight: what it lands with, or what there is while it reads the database: at once if that is fresh, else after a
    /// moment. `None`: it has come to nothing.
    async fn wait(&self, mut others: Others, asked: &Asked<'_>) -> Option<Told> {
        let patience = Instant::now() + LEASE_WAIT;
        loop {
            let mut wake = None;
            match &*others.told.borrow_and_update() {
                Told::Off => {}
                Told::Landed(answer) => return Some(Told::Landed(answer.clone())),
                Told::Loading(value, since) if self.may_give(asked, &value.stamp) => {
                    let value = value.after(since.elapsed());
                    let may_be_late = value.body.is_some() && value.over < super::STALE_WINDOW;
                    if !value.left.is_zero() || may_be_late && Instant::now() >= patience {
                        return Some(Told::Loading(value, Instant::now()));
                    }
                    wake = may_be_late.then_some(patience);
                }
                Told::Loading(..) => {}
            }
            let changed = others.told.changed();
            let Some(wake) = wake else {
                changed.await.ok()?;
                continue;
            };
            if let Ok(changed) = tokio::time::timeout_at(wake, changed).await {
                changed.ok()?;
            } // else it may be given now
        }
    }

    /// By the database alone.
    async fn straight<F>(&self, load: &impl Fn() -> F) -> Result<Answer, CallError>
    where
        F: Future<Output = Result<Loaded, CallError>>,
    {
        metrics::counter!(names::MISSES).increment(1);
        let (loaded, _) = self.load(load).await?;
        Ok(Answer::of(loaded))
    }

    /// By the shared cache, or else the database; and whether the first level may keep it. What nobody has compared with the floor it may not,
    /// unless there is nobody to compare.
    async fn through<F>(
        &self,
        cache: &dyn Cache,
        asked: &Asked<'_>,
        flight: &Flight<'_>,
        load: &impl Fn() -> F,
    ) -> Result<(Answer, bool), CallError>
    where
        F: Future<Output = Result<Loaded, CallError>>,
    {
        let give_up = Instant::now() + LEASE_WAIT;
        let mut waited = false;
        loop {
            if !self.may_ask() {
                return Ok((self.straight(load).await?, true));
            }
            match cache.look(asked.key, asked.at_least).await {
                Err(error) => {
                    self.failed("look", error.0);
                    return Ok((self.straight(load).await?, true));
                }
                Ok(look) => {
                    self.answered();
                    match look {
                        Look::Fresh(value) if self.may_give(asked, &value.stamp) => {
                            return Ok((hit(value, From::Shared), true));
                        }
                        // A change of this process has not reached the shared cache.
                        Look::Fresh(_) => break,
                        Look::Fill { lease, stale } => {
                            flight.loads(stale.as_ref());
                            return self.fill(cache, asked, lease, stale, load).await;
                        }
                        Look::Wait { stale } if Instant::now() >= give_up => {
                            if let Some(value) = stale.filter(|value| self.may_give(asked, &value.stamp)) {
                                return Ok((stale_answer(value), false));
                            }
                            break;
                        }
                        Look::Wait { .. } => {
                            if !std::mem::replace(&mut waited, true) {
                                metrics::counter!(names::WAITS, "for" => "lease").increment(1);
                            }
                            tokio::time::sleep(LOOK_AGAIN).await;
                        }
                    }
                }
            }
        }
        Ok((self.straight(load).await?, false))
    }

    async fn fill<F>(
        &self,
        cache: &dyn Cache,
        asked: &Asked<'_>,
        lease: super::Lease,
        stale: Option<Value>,
        load: &impl Fn() -> F,
    ) -> Result<(Answer, bool), CallError>
    where
        F: Future<Output = Result<Loaded, CallError>>,
    {
        metrics::counter!(names::MISSES).increment(1);
        let (loaded, took) = match self.load(load).await {
            Ok(loaded) => loaded,
            Err(error) => {
                let _ = cache.release(asked.key, lease).await; // it ends by itself
                let may_wait = error.retry != contracts::Retry::Never;
                return match stale.filter(|value| may_wait && self.may_give(asked, &value.stamp)) {
                    Some(value) => Ok((stale_answer(value), false)),
                    None => Err(error),
                };
            }
        };
        let ttl = if loaded.body.is_some() { jittered() } else { NEGATIVE_TTL };
        let new = NewValue { stamp: loaded.stamp, body: loaded.body.clone(), took, ttl };
        let refused = match cache.put(asked.key, lease, new).await {
            Ok(Put::Kept) => None,
            Ok(Put::LeaseVoid) => Some("lease"),
            Ok(Put::TooOld) => Some("version"),
            Ok(Put::Full) => Some("full"),
            Err(error) => {
                self.failed("put", error.0);
                Some("unavailable")
            }
        };
        match refused {
            None => metrics::counter!(names::FILLS).increment(1),
            Some(reason) => metrics::counter!(names::REFUSED, "reason" => reason).increment(1),
        }
        let keep = !matches!(refused, Some("lease" | "version"));
        Ok((Answer::of(loaded), keep))
    }

    async fn load<F>(&self, load: &impl Fn() -> F) -> Result<(Loaded, Duration), CallError>
    where
        F: Future<Output = Result<Loaded, CallError>>,
    {
        let place = match self.loads.try_acquire() {
            Ok(place) => place,
            Err(_) => {
                metrics::counter!(names::WAITS, "for" => "admission").increment(1);
                let waited = timeout(ADMISSION, self.loads.acquire()).await;
                waited
                    .map_err(|_| CallError::busy(Duration::from_secs(1), "too many reads wait for the database"))?
                    .map_err(|_| CallError::unavailable("the cache is closing"))?
            }
        };
        let begun = Instant::now();
        let loaded = load().await?;
        let took = begun.elapsed();
        drop(place);
        metrics::histogram!(names::LOAD_SECONDS).record(took);
        Ok((loaded, took))
    }

    fn owed(&self, key: &Key) -> Option<u64> {
        self.pending.lock().get(&key.scope).map(Pending::least)
    }

    /// Whether what has this stamp has seen what it must.
    fn may_give(&self, asked: &Asked<'_>, stamp: &Stamp) -> bool {
        let is_paid = |owed: Option<u64>| owed.is_none_or(|least| stamp.ver >= least);
        asked.at_least.is_none_or(|least| stamp.mark.covers(least)) && is_paid(asked.owed) && is_paid(self.owed(asked.key))
    }

    /// While the shared cache is away, one reader now and then finds out whether it is back.
    fn may_ask(&self) -> bool {
        let now = Instant::now();
        let mut away_until = self.away_until.lock();
        match *away_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                *away_until = Some(now + AWAY);
                true
            }
        }
    }

    fn failed(&self, call: &'static str, why: String) {
        metrics::counter!(names::FAILURES, "call" => call).increment(1);
        *self.away_until.lock() = Some(Instant::now() + AWAY);
        if !self.was_away.swap(true, Ordering::Relaxed) {
            warn!(why, "the shared cache does not answer: reads go to the database");
        }
        *self.trouble.lock() = Some(why);
    }

    fn answered(&self) {
        if self.was_away.swap(false, Ordering::Relaxed) {
            *self.away_until.lock() = None;
            *self.trouble.lock() = None;
            info!("the shared cache is back");
        }
    }
}

/// What a reader wants.
struct Asked<'a> {
    key: &'a Key,
    at_least: Option<Mark>,
    /// Of a void that the shared cache had not confirmed when the reader came: what it said may have been looked up before.
    owed: Option<u64>,
}

/// Of the one reader that is at a key; the others get what it lands with.
struct Flight<'a> {
    front: &'a Front,
    key: &'a Key,
    flight: u64,
    tell: watch::Sender<Told>,
}

impl Flight<'_> {
    /// What there is meanwhile.
    fn loads(&self, stale: Option<&Value>) {
        if let Some(value) = stale {
            self.tell.send_replace(Told::Loading(value.clone(), Instant::now()));
        }
    }

    fn land(self, answer: Answer) {
        self.tell.send_replace(Told::Landed(answer));
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = self.front.flights.lock();
        let Some(parts) = flights.get_mut(&self.key.scope) else { return };
        if parts.get(&self.key.part).is_some_and(|others| others.flight == self.flight) {
            parts.remove(&self.key.part);
        }
        if parts.is_empty() {
            flights.remove(&self.key.scope);
        }
        // The sender goes next, and whoever waits knows.
    }
}

fn given(value: Value, from: From) -> Answer {
    Answer { body: value.body, stamp: value.stamp, age: value.age, from }
}

fn hit(value: Value, from: From) -> Answer {
    metrics::counter!(names::HITS, "level" => from.name()).increment(1);
    metrics::histogram!(names::AGE).record(value.age);
    given(value, from)
}

fn stale_answer(value: Value) -> Answer {
    metrics::counter!(names::STALE).increment(1);
    metrics::histogram!(names::STALENESS).record(value.over);
    given(value, From::Stale)
}
