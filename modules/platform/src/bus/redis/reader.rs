//! What goes on behind a consumer: it holds shards by lease, reads them, takes over what others left, and lets shards go.
//!
//! Invariants:
//! - a shard has one reader at a time: whatever this one does to it shows its lease first, and it hands nothing out after the lease may have
//!   ended by its own clock;
//! - shards are spread over the readers alive; one too many is let go when nothing of it is in work;
//! - before a shard's new entries come those that its last reader, or a lost answer, left pending;
//! - Redis may be away, forget everything, or have lost the group: then it is tried again, more and more slowly, and the group is made anew
//!   at the oldest entry.
//!
//! Waiting is done without the group (XREAD), reading without waiting (XREADGROUP, fenced): a reader that was stopped while it waited cannot
//! wake up to entries of a shard it has lost. Deliberately absent: Redis Cluster; scripts here touch several shards at once.

use super::super::{BusError, EntryId, metrics as names};
use super::{
    consumer::{Body, Lease, RedisConsumer, Shared},
    link::{CallFailed, Link},
    scripts, shard,
};
use bytes::Bytes;
use contracts::TraceCx;
use futures::future::BoxFuture;
use rand::seq::SliceRandom;
use redis::{FromRedisValue, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// Entries taken over at once.
const SWEEP: usize = 256;
/// Entries that may wait here because their keys are in work; then no more are read.
const MOST_WAITING: usize = 4_096;
/// Pending entries nobody has been heard of for this long are taken over, whoever had them.
const ABANDONED: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// While a shard is missing, or one is to be let go.
const SOON: Duration = Duration::from_millis(200);
/// So often; then at the pace of the leases.
const PATIENCE: u32 = 20;

pub(super) async fn join(link: Arc<Link>, stream: &'static str, group: &'static str) -> Result<RedisConsumer, BusError> {
    if link.stop.is_cancelled() {
        return Err(BusError::Closed);
    }
    let desk = Arc::new(Shared {
        owner: format!("{}-{:016x}", std::process::id(), rand::random::<u64>()),
        link: link.clone(),
        stream,
        group,
        state: Default::default(),
        arrived: Default::default(),
        wanted: Default::default(),
    });
    let end = link.stop.child_token();
    let reader = Reader {
        desk: desk.clone(),
        owned: BTreeMap::new(),
        ready: BTreeSet::new(),
        share: shard::SHARDS,
        upkeep_at: Instant::now(),
        swept_at: Instant::now(),
        pause: FIRST_PAUSE,
        group_pause: FIRST_PAUSE,
        fruitless: 0,
        changed: false,
        turn: 0,
    };
    link.readers.spawn(reader.run(end.clone()));
    Ok(RedisConsumer { desk, _end: end.drop_guard() })
}

struct Reader {
    desk: Arc<Shared>,
    owned: BTreeMap<u16, Owned>,
    /// Shards in which something new may be.
    ready: BTreeSet<u16>,
    /// How many shards this reader may have.
    share: u16,
    upkeep_at: Instant,
    swept_at: Instant,
    pause: Duration,
    /// Before a group that has vanished is made again.
    group_pause: Duration,
    /// Times in a row that a missing shard was not to be had.
    fruitless: u32,
    /// There are shards that are not being waited for.
    changed: bool,
    turn: usize,
}

struct Owned {
    /// Newest entry the group has been given.
    last: String,
    /// Whether the group is there, as far as is known.
    grouped: bool,
    /// Whether everything that was pending has been taken over.
    swept: bool,
    /// To be let go.
    leaving: bool,
}

impl Reader {
    async fn run(mut self, end: CancellationToken) {
        let mut waiting: Option<BoxFuture<'static, Result<Vec<u16>, CallFailed>>> = None;
        while !end.is_cancelled() {
            if let Err(failed) = self.work().await {
                self.failed(&failed);
                tokio::select! { () = tokio::time::sleep(self.pause) => {}, () = end.cancelled() => break }
                continue;
            }
            self.pause = FIRST_PAUSE;
            if std::mem::take(&mut self.changed) {
                waiting = None;
            }
            if waiting.is_none() && self.is_wanted() && !self.owned.is_empty() {
                waiting = Some(Box::pin(wait(self.desk.link.clone(), self.places())));
            }
            tokio::select! {
                () = end.cancelled() => break,
                () = tokio::time::sleep_until(self.upkeep_at.into()) => {}
                () = self.desk.wanted.notified() => {}
                // Kept across the others: its connection is in use until Redis has answered.
                news = async { waiting.as_mut().expect("checked before").await }, if waiting.is_some() => {
                    waiting = None;
                    match news {
                        Ok(shards) => self.ready.extend(shards.into_iter().filter(|of| self.owned.contains_key(of))),
                        Err(failed) => {
                            self.failed(&failed);
                            self.ready = self.owned.keys().copied().collect();
                        }
                    }
                }
            }
        }
        self.leave().await;
        self.desk.state.lock().closed = true;
        self.desk.arrived.notify_waiters();
    }

    async fn work(&mut self) -> Result<(), CallFailed> {
        if Instant::now() >= self.upkeep_at {
            self.upkeep().await?;
        }
        // One after the other: what comes back may make room, or another one's turn.
        while self.is_wanted() && !self.ready.is_empty() && Instant::now() < self.upkeep_at {
            self.read().await?;
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        let state = self.desk.state.lock();
        state.wanted > 0 && state.desk.len() < MOST_WAITING
    }

    /// Where to wait for what.
    fn places(&self) -> Vec<(u16, String, String)> {
        let staying = self.owned.iter().filter(|(_, owned)| owned.swept && !owned.leaving);
        staying.map(|(of, owned)| (*of, shard::stream(self.desk.stream, *of), owned.last.clone())).collect()
    }

    fn failed(&mut self, failed: &CallFailed) {
        self.desk.link.complain(&format!("reading {}: {failed}", self.desk.stream));
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        self.upkeep_at = Instant::now();
        // An answer may have been lost with entries in it: they are pending under this reader's name.
        for owned in self.owned.values_mut() {
            owned.swept = false;
        }
    }

    fn lease_ms(&self) -> u64 {
        self.desk.link.settings.lease_ms
    }

    // ---- leases

    async fn upkeep(&mut self) -> Result<(), CallFailed> {
        self.renew().await?;
        self.let_go().await;
        self.acquire().await?;
        self.make_groups().await?;
        self.sweep_anew().await?;
        self.desk.acknowledge().await;
        self.heartbeat().await?;
        if self.swept_at.elapsed() >= ABANDONED {
            self.swept_at = Instant::now();
            for of in self.owned.keys().copied().collect::<Vec<_>>() {
                self.sweep(of, ABANDONED).await?;
            }
        }
        // With shares that do not come out even, some reader always has one less.
        let all_is_settled = self.owned.len() == usize::from(self.share) || self.fruitless > PATIENCE;
        let third = Duration::from_millis(self.lease_ms() / 3);
        self.upkeep_at = Instant::now() + if all_is_settled { third } else { third.min(SOON) };
        metrics::gauge!(names::SHARDS, "stream" => self.desk.stream, "group" => self.desk.group).set(self.owned.len() as f64);
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), CallFailed> {
        let (desk, lease_ms) = (self.desk.clone(), self.lease_ms());
        let held: Vec<(u16, Arc<str>)> = desk.state.lock().leases.iter().map(|(of, lease)| (*of, lease.value.clone())).collect();
        let mut keys = vec![shard::members(desk.stream, desk.group)];
        let mut args = vec![desk.owner.clone().into_bytes(), lease_ms.to_string().into_bytes()];
        for (of, value) in &held {
            keys.push(shard::lease(desk.stream, desk.group, *of));
            args.push(value.as_bytes().to_vec());
        }
        let until = self.valid_until();
        let answer: Vec<u16> = desk.link.run("renew", &scripts::RENEW, &keys, &args).await?;
        let readers = answer.first().copied().unwrap_or(1).max(1);
        let share = shard::SHARDS.div_ceil(readers);
        if std::mem::replace(&mut self.share, share) != share {
            self.fruitless = 0;
        }
        for ((of, _), kept) in held.iter().zip(answer.iter().skip(1)) {
            if *kept == 1 {
                if let Some(lease) = desk.state.lock().leases.get_mut(of) {
                    lease.until = until;
                }
            } else {
                self.lose(*of, "the lease of a shard has gone to another reader, or was forgotten");
            }
        }
        Ok(())
    }

    /// From before the question was asked, and a little earlier than Redis says: clocks do not run at quite the same speed.
    fn valid_until(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.lease_ms() * 9 / 10)
    }

    fn lose(&mut self, of: u16, why: &'static str) {
        debug!(stream = self.desk.stream, group = self.desk.group, shard = of, why, "a shard is lost");
        self.owned.remove(&of);
        self.ready.remove(&of);
        self.desk.state.lock().lose(of);
    }

    /// Shards above this reader's share, once nothing of them is in work.
    async fn let_go(&mut self) {
        let share = usize::from(self.share);
        let surplus = self.owned.len().saturating_sub(share);
        for (n, owned) in self.owned.values_mut().rev().enumerate() {
            owned.leaving = n < surplus;
        }
        let leaving: Vec<u16> = self.owned.iter().filter(|(_, owned)| owned.leaving).map(|(of, _)| *of).collect();
        for of in leaving {
            if !self.release(of).await {
                return;
            }
        }
    }

    /// False when Redis did not take it.
    async fn release(&mut self, of: u16) -> bool {
        let (lease, entries) = {
            let state = self.desk.state.lock();
            let Some(lease) = state.leases.get(&of).cloned() else { return true };
            if !state.is_idle(of) {
                return true;
            }
            (lease, state.desk.waiting().filter(|(id, _)| id.shard() == of).collect::<Vec<_>>())
        };
        // Forgotten first: nothing of it may go out while it changes hands.
        self.owned.remove(&of);
        self.ready.remove(&of);
        self.desk.state.lock().lose(of);
        self.desk.give_back(of, &lease, true, &entries).await
    }

    async fn acquire(&mut self) -> Result<(), CallFailed> {
        let missing = usize::from(self.share).saturating_sub(self.owned.len());
        if missing == 0 {
            return Ok(());
        }
        let desk = self.desk.clone();
        let mut wanted: Vec<u16> = (0..shard::SHARDS).filter(|of| !self.owned.contains_key(of)).collect();
        wanted.shuffle(&mut rand::rng()); // two readers that come at the same time do not always ask for the same
        let keys: Vec<String> = wanted
            .iter()
            .flat_map(|of| {
                [shard::lease(desk.stream, desk.group, *of), shard::epoch(desk.stream, desk.group, *of), shard::stream(desk.stream, *of)]
            })
            .collect();
        let args = [desk.owner.clone(), self.lease_ms().to_string(), desk.group.into(), missing.to_string()].map(String::into_bytes);
        let until = self.valid_until();
        let won: Vec<(usize, String, String, u8)> = desk.link.run("acquire", &scripts::ACQUIRE, &keys, &args).await?;
        if won.is_empty() {
            self.fruitless = self.fruitless.saturating_add(1);
            return Ok(());
        }
        (self.fruitless, self.changed) = (0, true);
        let mut made = 0;
        for (at, value, last, anew) in &won {
            let Some(of) = at.checked_sub(1).and_then(|at| wanted.get(at)).copied() else { continue };
            made += u32::from(*anew);
            desk.state.lock().leases.insert(of, Lease { value: value.as_str().into(), until });
            self.owned.insert(of, Owned { last: last.clone(), grouped: true, swept: false, leaving: false });
        }
        info!(stream = desk.stream, group = desk.group, won = won.len(), has = self.owned.len(), groups_made = made, "shards acquired");
        Ok(())
    }

    /// Gives back everything, for another reader to go on at once.
    async fn leave(&mut self) {
        let desk = self.desk.clone();
        desk.acknowledge().await;
        {
            let mut state = desk.state.lock();
            // Whatever is out stays pending, and counts as delivered.
            state.held.clear();
            state.aside.clear();
        }
        for of in self.owned.keys().copied().collect::<Vec<_>>() {
            if !self.release(of).await {
                return; // the leases end by themselves
            }
        }
        let (members, owner) = (shard::members(desk.stream, desk.group), desk.owner.clone());
        let _ = desk.link.call("leave", async |c| redis::cmd("ZREM").arg(members).arg(owner).query_async::<i64>(c).await).await;
    }

    // ---- entries

    async fn read(&mut self) -> Result<(), CallFailed> {
        let desk = self.desk.clone();
        let (wanted, leases) = {
            let state = desk.state.lock();
            (state.wanted, state.leases.clone())
        };
        self.turn = self.turn.wrapping_add(1);
        let mut shards: Vec<u16> = self.ready.iter().copied().collect();
        let by = self.turn % shards.len().max(1);
        shards.rotate_left(by); // the first one has most room
        shards.retain(|of| self.owned.get(of).is_some_and(|owned| owned.swept && !owned.leaving) && leases.contains_key(of));
        self.ready.retain(|of| shards.contains(of));
        if shards.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> =
            shards.iter().flat_map(|of| [shard::lease(desk.stream, desk.group, *of), shard::stream(desk.stream, *of)]).collect();
        let mut args = vec![desk.owner.clone().into_bytes(), desk.group.as_bytes().to_vec(), wanted.to_string().into_bytes()];
        args.extend(shards.iter().map(|of| leases[of].value.as_bytes().to_vec()));
        let answer: Vec<Value> = desk.link.run("read", &scripts::READ, &keys, &args).await?;
        let mut answer = answer.into_iter();
        let now_us = answer.next().and_then(|v| u64::from_redis_value(v).ok()).unwrap_or_default();
        let (mut left, mut come) = (wanted, false);
        for (of, reply) in shards.into_iter().zip(answer) {
            let Ok((state, entries)) = <(u8, Value)>::from_redis_value(reply) else { continue };
            match state {
                0 => {
                    let entries = entries_of(of, entries);
                    let room = left;
                    left = left.saturating_sub(entries.len());
                    if entries.len() < room {
                        self.ready.remove(&of);
                    }
                    if let (Some((id, _)), Some(owned)) = (entries.last(), self.owned.get_mut(&of)) {
                        owned.last = id.text();
                    }
                    if !entries.is_empty() {
                        come = true;
                        self.put(entries.into_iter().map(|(id, fields)| (id, fields, 0)), now_us).await;
                    }
                }
                1 => {
                    self.lose(of, "the lease had ended");
                    self.upkeep_at = Instant::now();
                }
                2 => self.no_group(of),
                3 => {}
                _ => {
                    let why = String::from_redis_value(entries).unwrap_or_default();
                    desk.link.complain(&format!("reading {}: {why}", shard::stream(desk.stream, of)));
                    self.ready.remove(&of);
                }
            }
        }
        if come {
            // Whoever waits looks at these first, and says so if they are not enough.
            desk.state.lock().wanted = 0;
            desk.arrived.notify_waiters();
        }
        Ok(())
    }

    /// Redis has lost the group: it is made anew when the shard is acquired again.
    fn no_group(&mut self, of: u16) {
        metrics::counter!(names::NO_GROUP).increment(1);
        self.desk.link.lost("a group has vanished from Redis, and is made anew");
        self.ready.remove(&of);
        if let Some(owned) = self.owned.get_mut(&of) {
            (owned.grouped, owned.swept) = (false, false);
        }
        self.upkeep_at = Instant::now() + self.group_pause;
    }

    async fn make_groups(&mut self) -> Result<(), CallFailed> {
        let missing: Vec<u16> = self.owned.iter().filter(|(_, owned)| !owned.grouped).map(|(of, _)| *of).collect();
        if missing.is_empty() {
            self.group_pause = FIRST_PAUSE;
            return Ok(());
        }
        self.group_pause = (self.group_pause * 2).min(LAST_PAUSE);
        let desk = &self.desk;
        for of in missing {
            let stream = shard::stream(desk.stream, of);
            // At the oldest entry, never at the newest: what came meanwhile would be lost.
            let make = async |c: &mut _| {
                redis::cmd("XGROUP").arg("CREATE").arg(&stream).arg(desk.group).arg("0").arg("MKSTREAM").query_async::<()>(c).await
            };
            match desk.link.call("group", make).await {
                Err(CallFailed::Redis(error)) if error.code() == Some("BUSYGROUP") => {}
                made => made?,
            }
            if let Some(owned) = self.owned.get_mut(&of) {
                (owned.grouped, owned.last) = (true, "0-0".into());
            }
        }
        self.changed = true;
        Ok(())
    }

    async fn sweep_anew(&mut self) -> Result<(), CallFailed> {
        let anew: Vec<u16> = self.owned.iter().filter(|(_, owned)| owned.grouped && !owned.swept).map(|(of, _)| *of).collect();
        for of in anew {
            if self.sweep(of, Duration::ZERO).await?
                && let Some(owned) = self.owned.get_mut(&of)
            {
                owned.swept = true;
                self.ready.insert(of);
            }
        }
        Ok(())
    }

    /// Takes over what is pending in a shard and has been idle for so long. False when the shard was lost.
    async fn sweep(&mut self, of: u16, idle: Duration) -> Result<bool, CallFailed> {
        let desk = self.desk.clone();
        let keys = [shard::lease(desk.stream, desk.group, of), shard::stream(desk.stream, of)];
        let mut cursor = "0-0".to_owned();
        loop {
            let Some(value) = desk.state.lock().leases.get(&of).map(|lease| lease.value.clone()) else { return Ok(false) };
            let args = [value.to_string(), desk.group.into(), desk.owner.clone(), idle.as_millis().to_string(), cursor, SWEEP.to_string()]
                .map(String::into_bytes);
            type Swept = (u64, String, Value, Vec<u32>, Vec<String>);
            let swept: Option<Swept> = match desk.link.run("sweep", &scripts::SWEEP, &keys, &args).await {
                Err(failed) if failed.is_no_group() => {
                    self.no_group(of);
                    return Ok(false);
                }
                outcome => outcome?,
            };
            let Some((now_us, next, entries, counts, gone)) = swept else {
                self.lose(of, "the lease had ended");
                return Ok(false);
            };
            self.gone(of, gone);
            let entries: Vec<_> = entries_of(of, entries).into_iter().zip(counts).collect();
            let mut unknown: Vec<(EntryId, Vec<Value>, u32)> = vec![];
            {
                let state = desk.state.lock();
                // Taken over is delivered once more, so that one which takes its reader with it is counted.
                unknown.extend(
                    entries.into_iter().map(|((id, fields), count)| (id, fields, count.saturating_sub(1))).filter(|e| !state.knows(e.0)),
                );
            }
            if !unknown.is_empty() {
                metrics::counter!(names::TAKEN_OVER, "stream" => desk.stream, "group" => desk.group).increment(unknown.len() as u64);
                debug!(stream = desk.stream, group = desk.group, shard = of, entries = unknown.len(), "taken over");
            }
            self.put(unknown.into_iter(), now_us).await;
            if next == "0-0" {
                return Ok(true);
            }
            cursor = next;
        }
    }

    /// Entries that were trimmed while somebody worked on them.
    fn gone(&self, of: u16, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        let (stream, group) = (self.desk.stream, self.desk.group);
        error!(
            stream,
            group,
            shard = of,
            entries = ids.len(),
            "entries were trimmed before they were confirmed; their producer sends them again"
        );
        metrics::counter!(names::LOST, "stream" => stream, "group" => group).increment(ids.len() as u64);
        self.desk.link.lost("entries were trimmed before they were confirmed");
    }

    async fn put(&mut self, entries: impl Iterator<Item = (EntryId, Vec<Value>, u32)>, now_us: u64) {
        let now = Instant::now();
        let mut strays = false;
        {
            let mut state = self.desk.state.lock();
            for (id, fields, attempts) in entries {
                match body(fields, now, now_us) {
                    Some(body) => state.put(id, body, attempts),
                    None => {
                        strays = true;
                        metrics::counter!(names::UNREADABLE).increment(1);
                        warn!(stream = self.desk.stream, entry = id.text(), "an entry that nobody of ours has written is passed over");
                        state.done.entry(id.shard()).or_default().push(id);
                    }
                }
            }
        }
        self.desk.arrived.notify_waiters();
        if strays {
            self.desk.acknowledge().await;
        }
    }

    /// Keeps what is in work from looking abandoned, and trims what all have confirmed.
    async fn heartbeat(&mut self) -> Result<(), CallFailed> {
        let desk = self.desk.clone();
        let (mut keys, mut args) = (vec![], vec![]);
        let keep = if desk.link.is_full() { 0 } else { desk.link.settings.keep };
        args.extend([desk.group.into(), desk.owner.clone(), keep.to_string()].map(String::into_bytes));
        {
            let state = desk.state.lock();
            for (of, lease) in &state.leases {
                let at_work: Vec<EntryId> =
                    state.held.keys().copied().chain(state.desk.waiting().map(|(id, _)| id)).filter(|id| id.shard() == *of).collect();
                keys.extend([shard::lease(desk.stream, desk.group, *of), shard::stream(desk.stream, *of)]);
                args.extend([lease.value.as_bytes().to_vec(), at_work.len().to_string().into_bytes()]);
                args.extend(at_work.iter().map(|id| id.text().into_bytes()));
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        let gone: Vec<String> = desk.link.run("heartbeat", &scripts::HEARTBEAT, &keys, &args).await?;
        if !gone.is_empty() {
            self.gone(shard::SHARDS, gone);
        }
        Ok(())
    }
}

/// Waits until something is there that the group was not given. Answers in which shards.
async fn wait(link: Arc<Link>, places: Vec<(u16, String, String)>) -> Result<Vec<u16>, CallFailed> {
    if places.is_empty() {
        tokio::time::sleep(SOON).await;
        return Ok(vec![]);
    }
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(1).arg("BLOCK").arg(link.settings.block_ms).arg("STREAMS");
    for (_, stream, _) in &places {
        command.arg(stream);
    }
    for (_, _, last) in &places {
        command.arg(last);
    }
    let answer: Option<Vec<(String, Value)>> = link.wait("wait", async |c| command.query_async(c).await).await?;
    let Some(streams) = answer else {
        return Ok(places.into_iter().map(|(of, _, _)| of).collect()); // looked at all the same: ids may have gone back
    };
    Ok(places.into_iter().filter(|(_, stream, _)| streams.iter().any(|(name, _)| name == stream)).map(|(of, _, _)| of).collect())
}

/// An array of `[id, [field, value, …]]`.
fn entries_of(shard: u16, entries: Value) -> Vec<(EntryId, Vec<Value>)> {
    let Value::Array(entries) = entries else { return vec![] };
    entries
        .into_iter()
        .filter_map(|entry| {
            let (id, fields) = <(String, Value)>::from_redis_value(entry).ok()?;
            let fields = if let Value::Array(fields) = fields { fields } else { vec![] };
            Some((EntryId::on(shard, &id)?, fields))
        })
        .collect()
}

fn body(fields: Vec<Value>, now: Instant, now_us: u64) -> Option<Body> {
    let (mut key, mut payload, mut trace, mut at) = (None, None, None, None);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(Value::BulkString(value))) = (fields.next(), fields.next()) {
        let Value::BulkString(name) = name else { return None };
        match name.as_slice() {
            b"key" => key = String::from_utf8(value).ok(),
            b"payload" => payload = Some(Bytes::from(value)),
            b"trace" => trace = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<TraceCx>().ok()),
            b"at" => at = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<u64>().ok()),
            _ => {} // of a newer release
        }
    }
    let waited = Duration::from_micros(now_us.saturating_sub(at?));
    Some(Body { key: key?, payload: payload?, trace: trace.unwrap_or_else(TraceCx::root), came: now, waited })
}
