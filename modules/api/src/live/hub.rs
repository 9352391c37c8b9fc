//! Who is told what: from what the record stores and what passes by on the bus, to the outbox of every reader.
//!
//! Invariants:
//! - a reader gets a snapshot and every numbered event after it, none missing, none twice; both are made under one lock;
//! - while a state is being loaded, what changes meanwhile waits and is applied on top; changes apply idempotently, so no moment is missed;
//! - memory follows what is live or watched: an ended conversation that nobody reads is forgotten.
//!
//! Every process numbers for itself: a change reaches each of them by the record's order, but what a reader is told of it depends on what its
//! process had loaded and heard by then. So a number is good where it was given out, and a reader from another process gets a snapshot.
//!
//! The lock is held for memory only: never across a read of the record, never for a socket.

use super::{
    Settings,
    call::{Call, Loaded},
    outbox::Outbox,
    topic::{Reader, Topic, Waiting},
    wire::{self, Event, TopicName, WallSnapshot},
};
use crate::{
    admin::Status,
    record::{Change, ChangeRows, Changes, ConversationRow, Missed, Record},
    rest::HasRecording,
};
use chrono::{TimeDelta, Utc};
use contracts::{
    CallCx, CallError, ConversationId, ErrorKind, Inference, Retry, TenantId,
    inference::{Task, TierStatus},
    signal::{LIVE, Live as Signal},
};
use parking_lot::Mutex;
use platform::bus::{Bus, Heard};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// How often talk metrics are told, aged text is forgotten, and the wall is tidied.
const TICK: Duration = Duration::from_secs(1);
const TIERS_EVERY: Duration = Duration::from_secs(5);
const TIERS_BUDGET: Duration = Duration::from_secs(1);
const RETRY_LOAD: Duration = Duration::from_millis(500);
/// A live conversation that nobody reads keeps its events this long for those who come back.
const KEEP_UNREAD: Duration = Duration::from_secs(600);
/// Conversations on a wall.
const WALL_ROWS: usize = 500;

pub(crate) struct Hub {
    /// Names this run's numbers: one from another run means nothing here.
    pub(crate) epoch: String,
    pub(crate) settings: Settings,
    pub(crate) stop: CancellationToken,
    /// Loads and sockets under way.
    pub(crate) tasks: TaskTracker,
    /// One per socket.
    pub(crate) seats: Arc<Semaphore>,
    readers: AtomicU64,
    rooms: Mutex<Rooms>,
    loads: AtomicU64,
    record: Arc<Record>,
    inference: Arc<dyn Inference>,
    bus: Arc<dyn Bus>,
    status: Status,
    has_recording: HasRecording,
}

#[derive(Default)]
struct Rooms {
    tenants: HashMap<TenantId, Room>,
    /// No topic that was forgotten gave out a higher number.
    retired_seq: u64,
}

/// What belongs to one tenant.
struct Room {
    wall: Wall,
    watched: HashMap<ConversationId, Watched>,
}

struct Wall {
    topic: Topic,
    load: Load,
    calls: HashMap<ConversationId, Call>,
}

struct Watched {
    topic: Topic,
    load: Load,
    call: Option<Call>,
}

enum Load {
    Cold,
    Loading { id: u64, changes: Vec<Arc<Change>>, waiting: Vec<Waiting> },
    Ready,
}

impl Load {
    /// Keeps a change for after the load. Says whether the state is ready to take it now.
    fn is_ready_for(&mut self, change: &Arc<Change>) -> bool {
        if let Self::Loading { changes, .. } = self {
            changes.push(change.clone());
        }
        matches!(self, Self::Ready)
    }

    /// Starts over with a new load; those who waited go on waiting.
    fn restart(&mut self, id: u64, mut waiting: Vec<Waiting>) {
        if let Self::Loading { waiting: before, .. } = self {
            waiting.append(before);
        }
        *self = Self::Loading { id, changes: vec![], waiting };
    }

    /// Ends the load `id`, if it is the current one.
    fn finish(&mut self, id: u64, then: Self) -> Option<(Vec<Arc<Change>>, Vec<Waiting>)> {
        match self {
            Self::Loading { id: current, .. } if *current == id => match std::mem::replace(self, then) {
                Self::Loading { changes, waiting, .. } => Some((changes, waiting)),
                _ => None,
            },
            _ => None,
        }
    }

    fn forget(&mut self, reader: u64) {
        if let Self::Loading { waiting, .. } = self {
            waiting.retain(|w| w.reader.id != reader);
        }
    }

    fn has_waiting(&self) -> bool {
        matches!(self, Self::Loading { waiting, .. } if !waiting.is_empty())
    }
}

impl Hub {
    pub(crate) fn new(deps: &crate::rest::ApiDeps) -> Arc<Self> {
        Arc::new(Self {
            epoch: uuid::Uuid::now_v7().simple().to_string(),
            settings: deps.settings.live.clone(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            seats: Arc::new(Semaphore::new(deps.settings.live.max_connections)),
            readers: AtomicU64::new(0),
            rooms: Mutex::default(),
            loads: AtomicU64::new(0),
            record: deps.record.clone(),
            inference: deps.inference.clone(),
            bus: deps.bus.clone(),
            status: deps.status.clone(),
            has_recording: deps.has_recording.clone(),
        })
    }

    /// Feeds the topics until `stop`, then waits for loads and sockets to end.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let changes = self.record.subscribe(); // before the first load, so that nothing falls between the two
        let signals = self.bus.listen(LIVE).await?;
        self.load_wall(TenantId::default());
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_record(changes) => anyhow::bail!("the record stopped announcing changes"),
            () = self.follow_signals(signals) => anyhow::bail!("the bus has shut down"),
            () = self.tick() => {}
            () = self.follow_tiers() => {}
        }
        self.stop.cancel();
        self.tasks.close();
        if timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            warn!(left = self.tasks.len(), "live feed readers did not leave in time");
        }
        Ok(())
    }

    async fn follow_record(self: &Arc<Self>, mut changes: Changes) {
        loop {
            match changes.recv().await {
                Ok(change) => self.change(change),
                Err(Missed::Closed) => return,
                Err(why) => {
                    warn!(%why, "the live feed misses changes and starts over");
                    self.start_over();
                }
            }
        }
    }

    async fn follow_signals(&self, mut signals: Box<dyn platform::bus::Listener>) {
        while let Some(heard) = signals.next().await {
            match heard {
                Heard::Signal(payload) => match serde_json::from_slice(&payload) {
                    Ok(signal) => self.hear(signal),
                    Err(cause) => warn!(%cause, "a live signal could not be read"),
                },
                // Nothing to repair: unfinished text ages, the rest is overwritten by the next news.
                Heard::Missed(missed) => debug!(missed, "live signals were missed"),
            }
        }
    }

    async fn tick(&self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tidy();
            self.measure().await;
        }
    }

    async fn follow_tiers(&self) {
        let mut told: Vec<TierStatus> = vec![];
        let mut ticks = interval(TIERS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked = timeout(TIERS_BUDGET, self.inference.tiers(CallCx::new(TIERS_BUDGET))).await;
            let tiers = match asked.unwrap_or_else(|_| Err(CallError::deadline())) {
                Ok(tiers) => tiers,
                Err(cause) => {
                    let pending = contracts::inference::Tier::Pending;
                    let why = Some(format!("inference does not answer: {cause}"));
                    Task::ALL.into_iter().map(|task| TierStatus { task, tier: pending, degraded: why.clone(), stale: None }).collect()
                }
            };
            if tiers == told {
                continue;
            }
            self.status.answer_by(tiers.clone());
            if !told.is_empty() {
                let mut rooms = self.rooms.lock();
                for status in tiers.iter().filter(|status| !told.contains(status)) {
                    info!(task = status.task.name(), tier = status.tier.name(), "another tier answers");
                    for room in rooms.tenants.values_mut() {
                        let data = serde_json::json!({ "task": status.task, "tier": status.tier, "degraded": status.degraded, "stale": status.stale });
                        room.wall.topic.announce("tier.changed", data);
                    }
                }
            }
            told = tiers;
        }
    }

    // ---- what happens

    fn change(&self, change: Arc<Change>) {
        let rows = self.rows_of(&change); // looks at a file: before the lock
        let mut rooms = self.rooms.lock();
        let Some(room) = rooms.tenants.get_mut(&change.tenant) else { return };
        if let Some(watched) = room.watched.get_mut(&change.conversation)
            && watched.load.is_ready_for(&change)
        {
            watched.apply(change.conversation, rows.clone());
        }
        if room.wall.load.is_ready_for(&change) {
            room.wall.apply(change.conversation, rows, self.wall_horizon());
        }
    }

    fn rows_of(&self, change: &Change) -> ChangeRows {
        let mut rows = change.rows.clone();
        match &mut rows {
            ChangeRows::Conversation(row) => self.complete(row),
            ChangeRows::Utterance { conversation, .. } | ChangeRows::Insight { conversation, .. } => self.complete(conversation),
        }
        rows
    }

    fn complete(&self, row: &mut ConversationRow) {
        row.recording = (self.has_recording)(row.id);
    }

    fn hear(&self, signal: Signal) {
        let now = Instant::now();
        let id = signal.conversation;
        let mut rooms = self.rooms.lock();
        let Some(room) = rooms.tenants.get_mut(&signal.tenant) else { return };
        if let Some(Watched { topic, call: Some(call), .. }) = room.watched.get_mut(&id)
            && let Some(event) = call.hear(signal.clone(), now)
        {
            topic.emit(id, &event);
        }
        if let Some(call) = room.wall.calls.get_mut(&id)
            && let Some(event) = call.hear(signal, now)
        {
            room.wall.topic.emit(id, &event);
        }
    }

    fn wall_horizon(&self) -> chrono::DateTime<Utc> {
        Utc::now() - TimeDelta::milliseconds(self.settings.ended_ms as i64)
    }

    fn tidy(&self) {
        let (now, horizon) = (Instant::now(), self.wall_horizon());
        let limit = Duration::from_millis(self.settings.partial_ttl_ms);
        let mut guard = self.rooms.lock();
        let rooms = &mut *guard;
        let mut live = 0;
        for room in rooms.tenants.values_mut() {
            room.wall.tidy(now, horizon, limit);
            live += room.wall.calls.values().filter(|call| call.is_live()).count();
            for (id, watched) in &mut room.watched {
                let Watched { topic, call: Some(call), .. } = watched else { continue };
                for event in call.forget_old(now, limit) {
                    topic.emit(*id, &event);
                }
            }
            room.watched.retain(|_, watched| {
                let keep = watched.is_wanted(now);
                if !keep {
                    rooms.retired_seq = rooms.retired_seq.max(watched.topic.seq());
                }
                keep
            });
        }
        drop(guard);
        self.status.live_conversations(live);
    }

    /// Tells talk metrics where something was said since the last time.
    async fn measure(&self) {
        let mut due = vec![];
        for (tenant, room) in &mut self.rooms.lock().tenants {
            for (id, watched) in &mut room.watched {
                if let Some(call) = watched.call.as_mut().filter(|call| call.has_stale_metrics()) {
                    call.needs_measuring(false); // before reading, so that what is said meanwhile is seen by the next tick
                    due.push((tenant.clone(), *id));
                }
            }
        }
        for (tenant, id) in due {
            let read = self.record.metrics(&tenant, id).await;
            let mut rooms = self.rooms.lock();
            let watched = rooms.tenants.get_mut(&tenant).and_then(|room| room.watched.get_mut(&id));
            let Some(Watched { topic, call: Some(call), .. }) = watched else { continue };
            match read {
                Ok(metrics) => {
                    if let Some(event) = call.measured(metrics) {
                        topic.emit(id, &event);
                    }
                }
                Err(cause) => {
                    warn!(conversation.id = %id, %cause, "talk metrics could not be read");
                    call.needs_measuring(true);
                }
            }
        }
    }

    // ---- readers

    /// Lets a reader into a topic; what it gets arrives in its outbox, an error included.
    pub(crate) fn subscribe(self: &Arc<Self>, tenant: &TenantId, name: TopicName, reader: Reader, since: Option<(u64, String)>) {
        let since_seq = since.filter(|(_, epoch)| *epoch == self.epoch).map(|(seq, _)| seq);
        let waiting = Waiting { reader, since_seq };
        let now = Instant::now();
        let mut guard = self.rooms.lock();
        let rooms = &mut *guard;
        let retired_seq = rooms.retired_seq;
        let room = rooms.tenants.entry(tenant.clone()).or_insert_with(|| Room::new(now));
        let load = match name {
            TopicName::Wall => match &mut room.wall.load {
                Load::Ready => {
                    room.wall.admit(waiting);
                    None
                }
                Load::Loading { waiting: others, .. } => {
                    others.push(waiting);
                    None
                }
                cold => {
                    let id = self.loads.fetch_add(1, Ordering::Relaxed);
                    cold.restart(id, vec![waiting]);
                    Some(id)
                }
            },
            TopicName::Conversation(id) => {
                let watched = room.watched.entry(id).or_insert_with(|| Watched::new(id, retired_seq + 1, now));
                match &mut watched.load {
                    Load::Ready => {
                        watched.admit(waiting);
                        None
                    }
                    Load::Loading { waiting: others, .. } => {
                        others.push(waiting);
                        None
                    }
                    cold => {
                        let load = self.loads.fetch_add(1, Ordering::Relaxed);
                        cold.restart(load, vec![waiting]);
                        Some(load)
                    }
                }
            }
        };
        drop(guard);
        if let Some(load) = load {
            self.spawn_load(tenant.clone(), name, load);
        }
    }

    pub(crate) fn unsubscribe(&self, tenant: &TenantId, name: TopicName, reader: u64) {
        let now = Instant::now();
        let mut rooms = self.rooms.lock();
        let Some(room) = rooms.tenants.get_mut(tenant) else { return };
        match name {
            TopicName::Wall => {
                room.wall.load.forget(reader);
                room.wall.topic.dismiss(reader, now);
            }
            TopicName::Conversation(id) => {
                if let Some(watched) = room.watched.get_mut(&id) {
                    watched.load.forget(reader);
                    watched.topic.dismiss(reader, now);
                }
            }
        }
    }

    /// A slow reader has caught up: sends it again what passes by.
    pub(crate) fn refresh(&self, tenant: &TenantId, name: TopicName, reader: u64) {
        let rooms = self.rooms.lock();
        let Some(room) = rooms.tenants.get(tenant) else { return };
        match name {
            TopicName::Wall => room.wall.topic.tell_again(reader, || room.wall.passing()),
            TopicName::Conversation(id) => {
                if let Some(watched) = room.watched.get(&id) {
                    watched.topic.tell_again(reader, || watched.passing());
                }
            }
        }
    }

    pub(crate) fn next_reader(&self) -> u64 {
        self.readers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn outbox(&self) -> Arc<Outbox> {
        Arc::new(Outbox::new(self.settings.queue_events, self.settings.queue_bytes))
    }

    /// How many conversations have a topic.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> usize {
        self.rooms.lock().tenants.values().map(|room| room.watched.len()).sum()
    }

    // ---- loading

    fn load_wall(self: &Arc<Self>, tenant: TenantId) {
        let id = self.loads.fetch_add(1, Ordering::Relaxed);
        let mut rooms = self.rooms.lock();
        let room = rooms.tenants.entry(tenant.clone()).or_insert_with(|| Room::new(Instant::now()));
        room.wall.load.restart(id, vec![]);
        drop(rooms);
        self.spawn_load(tenant, TopicName::Wall, id);
    }

    /// Changes were lost: everything is loaded again, and every reader gets a snapshot.
    fn start_over(self: &Arc<Self>) {
        let mut loads = vec![];
        for (tenant, room) in &mut self.rooms.lock().tenants {
            if !matches!(room.wall.load, Load::Cold) {
                let id = self.loads.fetch_add(1, Ordering::Relaxed);
                let readers = room.wall.topic.interrupt();
                room.wall.load.restart(id, readers);
                loads.push((tenant.clone(), TopicName::Wall, id));
            }
            for (conversation, watched) in &mut room.watched {
                let id = self.loads.fetch_add(1, Ordering::Relaxed);
                let readers = watched.topic.interrupt();
                watched.load.restart(id, readers);
                loads.push((tenant.clone(), TopicName::Conversation(*conversation), id));
            }
        }
        for (tenant, name, id) in loads {
            self.spawn_load(tenant, name, id);
        }
    }

    fn spawn_load(self: &Arc<Self>, tenant: TenantId, name: TopicName, load: u64) {
        let hub = self.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let work = async {
                match name {
                    TopicName::Wall => hub.read_wall(&tenant, load).await,
                    TopicName::Conversation(id) => hub.read_conversation(&tenant, id, load).await,
                }
            };
            tokio::select! { () = work => {} () = stop.cancelled() => {} }
        });
    }

    async fn read_wall(&self, tenant: &TenantId, load: u64) {
        let loaded = loop {
            match self.wall_rows(tenant).await {
                Ok(loaded) => break loaded,
                Err(cause) => {
                    warn!(%cause, "the wall could not be read; trying again");
                    sleep(RETRY_LOAD).await;
                }
            }
        };
        let mut rooms = self.rooms.lock();
        let Some(room) = rooms.tenants.get_mut(tenant) else { return };
        let Some((changes, waiting)) = room.wall.load.finish(load, Load::Ready) else { return };
        let mut before = std::mem::take(&mut room.wall.calls);
        for loaded in loaded {
            let mut call = Call::load(loaded);
            if let Some(before) = before.remove(&call.row().id) {
                call.inherit(&before);
            }
            room.wall.calls.insert(call.row().id, call);
        }
        for change in changes {
            room.wall.apply(change.conversation, self.rows_of(&change), self.wall_horizon());
        }
        for waiting in waiting {
            room.wall.admit(waiting);
        }
    }

    async fn wall_rows(&self, tenant: &TenantId) -> Result<Vec<Loaded>, CallError> {
        let mut loaded = vec![];
        for mut row in self.record.wall(tenant, self.wall_horizon()).await? {
            self.complete(&mut row);
            let utterances = self.record.transcript(tenant, row.id).await?;
            let insights = self.record.insights(tenant, row.id, false, Some(Task::Sentiment)).await?;
            loaded.push(Loaded { row, utterances, insights, metrics: None });
        }
        Ok(loaded)
    }

    async fn read_conversation(&self, tenant: &TenantId, id: ConversationId, load: u64) {
        let loaded = loop {
            match self.conversation_rows(tenant, id).await {
                // Whoever was shown it goes on looking at that.
                Err(cause) if cause.retry != Retry::Never && self.shows(tenant, id) => {
                    warn!(conversation.id = %id, %cause, "a conversation could not be read again for the live feed; trying again");
                    sleep(RETRY_LOAD).await;
                }
                loaded => break loaded,
            }
        };
        let mut guard = self.rooms.lock();
        let rooms = &mut *guard;
        let Some(room) = rooms.tenants.get_mut(tenant) else { return };
        let Some(watched) = room.watched.get_mut(&id) else { return };
        match loaded {
            Ok(loaded) => {
                let Some((changes, waiting)) = watched.load.finish(load, Load::Ready) else { return };
                let mut call = Call::load(loaded);
                if let Some(seen) = watched.call.as_ref().or_else(|| room.wall.calls.get(&id)) {
                    call.inherit(seen);
                }
                watched.call = Some(call);
                for change in changes {
                    watched.apply(id, self.rows_of(&change));
                }
                for waiting in waiting {
                    watched.admit(waiting);
                }
            }
            Err(cause) => {
                let Some((_, waiting)) = watched.load.finish(load, Load::Cold) else { return };
                rooms.retired_seq = rooms.retired_seq.max(watched.topic.seq());
                room.watched.remove(&id);
                let name = TopicName::Conversation(id);
                for Waiting { reader, .. } in waiting {
                    reader.outbox.answer(Some(name), None, wire::error(Some(name), cause.kind.name(), &cause));
                }
                if cause.kind != ErrorKind::NotFound {
                    warn!(conversation.id = %id, %cause, "a conversation could not be read for the live feed");
                }
            }
        }
    }

    fn shows(&self, tenant: &TenantId, id: ConversationId) -> bool {
        let rooms = self.rooms.lock();
        rooms.tenants.get(tenant).and_then(|room| room.watched.get(&id)).is_some_and(|watched| watched.call.is_some())
    }

    async fn conversation_rows(&self, tenant: &TenantId, id: ConversationId) -> Result<Loaded, CallError> {
        let mut row = self.record.row(tenant, id).await?;
        self.complete(&mut row);
        let utterances = self.record.transcript(tenant, id).await?;
        let insights = self.record.insights(tenant, id, false, None).await?;
        let metrics = self.record.metrics(tenant, id).await?;
        Ok(Loaded { row, utterances, insights, metrics: Some(metrics) })
    }
}

impl Room {
    fn new(now: Instant) -> Self {
        let wall = Wall { topic: Topic::new(TopicName::Wall, 0, now), load: Load::Cold, calls: HashMap::new() };
        Self { wall, watched: HashMap::new() }
    }
}

impl Wall {
    fn apply(&mut self, id: ConversationId, rows: ChangeRows, horizon: chrono::DateTime<Utc>) {
        if !self.calls.contains_key(&id) {
            let row = match &rows {
                ChangeRows::Conversation(row) => row,
                ChangeRows::Utterance { conversation, .. } | ChangeRows::Insight { conversation, .. } => conversation,
            };
            if row.ended_at.is_some_and(|ended| ended < horizon) {
                return;
            }
            let call = Call::new(row.clone());
            let event = if call.is_live() { Event::Started(row.clone()) } else { Event::Updated(row.clone()) };
            self.topic.emit(id, &event);
            self.calls.insert(id, call);
        }
        if let Some(call) = self.calls.get_mut(&id) {
            for event in call.apply(rows).iter().filter(|event| event.on_wall()) {
                self.topic.emit(id, event);
            }
        }
    }

    fn tidy(&mut self, now: Instant, horizon: chrono::DateTime<Utc>, limit: Duration) {
        self.calls.retain(|_, call| call.row().ended_at.is_none_or(|ended| ended >= horizon));
        for (id, call) in &mut self.calls {
            for event in call.forget_old(now, limit) {
                self.topic.emit(*id, &event);
            }
        }
        if self.calls.len() > WALL_ROWS {
            let mut ended: Vec<_> = self.calls.values().filter_map(|call| Some((call.row().ended_at?, call.row().id))).collect();
            ended.sort_unstable();
            for (_, id) in ended.into_iter().take(self.calls.len() - WALL_ROWS) {
                self.calls.remove(&id);
            }
        }
    }

    fn admit(&mut self, waiting: Waiting) {
        let calls = &self.calls;
        let snapshot = || {
            let mut shown: Vec<&Call> = calls.values().collect();
            shown.sort_unstable_by_key(|call| (!call.is_live(), std::cmp::Reverse((call.row().started_at, call.row().id))));
            WallSnapshot { conversations: shown.into_iter().take(WALL_ROWS).map(Call::tile).collect() }
        };
        self.topic.admit(waiting, snapshot, || passing(calls));
    }

    fn passing(&self) -> Vec<(ConversationId, Event)> {
        passing(&self.calls)
    }
}

fn passing(calls: &HashMap<ConversationId, Call>) -> Vec<(ConversationId, Event)> {
    let live = calls.iter().filter(|(_, call)| call.is_live());
    live.flat_map(|(id, call)| call.passing_state().into_iter().map(|event| (*id, event))).collect()
}

impl Watched {
    fn new(id: ConversationId, seq: u64, now: Instant) -> Self {
        Self { topic: Topic::new(TopicName::Conversation(id), seq, now), load: Load::Cold, call: None }
    }

    fn apply(&mut self, id: ConversationId, rows: ChangeRows) {
        if let Some(call) = &mut self.call {
            for event in call.apply(rows) {
                self.topic.emit(id, &event);
            }
        }
    }

    fn admit(&mut self, waiting: Waiting) {
        let (Some(call), topic) = (&self.call, &mut self.topic) else { return };
        topic.admit(waiting, || call.snapshot(), || call.passing_state().into_iter().map(|event| (call.row().id, event)).collect());
    }

    fn passing(&self) -> Vec<(ConversationId, Event)> {
        let Some(call) = &self.call else { return vec![] };
        call.passing_state().into_iter().map(|event| (call.row().id, event)).collect()
    }

    fn is_wanted(&self, now: Instant) -> bool {
        let live = self.call.as_ref().is_none_or(Call::is_live); // one that is still loading is wanted by whoever waits for it
        self.topic.readers() > 0 || self.load.has_waiting() || (live && now.duration_since(self.topic.unread_since) < KEEP_UNREAD)
    }
}
