//! The connections to Redis, and whether it is still the Redis it was.
//!
//! Invariants:
//! - every call has its own deadline, and a connection on which something failed is not used again;
//! - deadpool owns every connection but those of pub/sub: writers and lookups share one pool, what waits for entries has another, so nobody
//!   who waits keeps a writer from writing;
//! - the epoch rises when Redis has forgotten, or when connections were lost: a restart or a promotion may have lost the last writes;
//! - what Redis refuses to take is trouble, told until it takes things again and for [`HELD`] at least, because of two entries the smaller one may
//!   still find room.

use super::super::{BusError, Settings, metrics as names};
use super::scripts;
use deadpool_redis::{Connection, Hook, Manager, Pool, PoolConfig, Runtime, Timeouts};
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, TlsCertificates,
    aio::MultiplexedConnection,
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

/// Names what Redis holds: another one after it has forgotten.
pub(super) const IDENTITY: &str = "bus:epoch";
const PULSE: Duration = Duration::from_secs(1);
/// The same complaint is logged this often at most.
const QUIET: Duration = Duration::from_secs(1);
const HELD: Duration = Duration::from_secs(3);

/// Why a process cannot stand on this Redis; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{key} {url} cannot be used: {reason}")]
    Url { key: &'static str, url: String, reason: String },
    #[error("no Redis answers at {url}: {reason}; start one there (`redis-server`), or set {key} to where it is")]
    Absent { key: &'static str, url: String, reason: String },
    #[error("Redis at {url} refuses the user or password: {reason}; expected redis://user:password@host:port in {key}")]
    Refused { key: &'static str, url: String, reason: String },
    #[error(
        "TLS with {url} came to nothing: {reason}; is its certificate from an authority in {}, and does it hold the host's name as it stands in \
         {key}?", .key.replace("url", "ca")
    )]
    Untrusted { key: &'static str, url: String, reason: String },
    #[error("Redis at {url} is version {version}; expected 7.0 or later")]
    TooOld { url: String, version: String },
    #[error("Redis at {url} is a replica and takes no writes; set {key} to its primary")]
    Replica { key: &'static str, url: String },
    #[error("the Redis at {url} cannot be used: {reason}")]
    NotSaving { url: String, reason: String },
    #[error("what answers at {url} is no Redis that can be used: {reason}")]
    Other { url: String, reason: String },
}

pub(crate) struct Link {
    pub(crate) settings: Settings,
    pub(super) client: Client,
    write: Pool,
    read: Pool,
    /// The last one seen of `IDENTITY`.
    identity: Mutex<Option<String>>,
    epoch: AtomicU64,
    broken: AtomicBool,
    /// Writers' connections there have been, and those of them that are no more.
    made: Arc<AtomicU64>,
    gone: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
    complained: Mutex<Option<Instant>>,
    pub(crate) stop: CancellationToken,
    /// Readers that have not yet given back what they held.
    pub(super) readers: TaskTracker,
}

/// What a pool's connections are for.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    Calls,
    /// For entries.
    Waiting,
}

struct Trouble {
    why: String,
    /// For want of memory.
    full: bool,
    /// Not over before.
    until: Instant,
}

/// A call that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallFailed {
    #[error("{}", in_words(.0))]
    Redis(#[from] RedisError),
    #[error("no connection: {}", why_none(.0))]
    Pool(#[from] deadpool_redis::PoolError),
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
}

impl CallFailed {
    pub(super) fn is_no_group(&self) -> bool {
        matches!(self, Self::Redis(error) if error.to_string().contains("NOGROUP"))
    }

    fn lost_connection(&self) -> bool {
        match self {
            Self::Redis(error) | Self::Pool(deadpool_redis::PoolError::Backend(error)) => error.is_io_error() && !error.is_timeout(),
            _ => false,
        }
    }

    fn is_oom(&self) -> bool {
        matches!(self, Self::Redis(error) if is_oom(error))
    }

    pub(super) fn for_stream(&self, stream: &'static str) -> BusError {
        match self.is_oom() {
            true => BusError::OutOfMemory { stream },
            false => BusError::Unavailable { reason: self.to_string() },
        }
    }
}

pub(super) fn is_oom(error: &RedisError) -> bool {
    error.code() == Some("OOM") || error.to_string().contains("used memory > 'maxmemory'")
}

/// It cannot write what it would keep, and takes nothing before it can.
fn is_not_saving(error: &RedisError) -> bool {
    error.code() == Some("MISCONF")
}

fn is_denied(error: &RedisError) -> bool {
    let said = error.to_string();
    matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm))
        || ["NOAUTH", "WRONGPASS", "AUTH"].iter().any(|code| said.contains(code))
}

fn why_none(error: &deadpool_redis::PoolError) -> String {
    match error {
        deadpool_redis::PoolError::Backend(error) => in_words(error),
        other => other.to_string(),
    }
}

/// Redis's own words; where a person has to do something, the first sentence of them, and what to do.
pub(super) fn in_words(error: &RedisError) -> String {
    match () {
        () if is_oom(error) => {
            "Redis takes nothing more (OOM: used memory > 'maxmemory'); free memory there, or raise its `maxmemory`".into()
        }
        () if is_not_saving(error) => {
            let said = error.detail().unwrap_or_default();
            let said = said.split(". ").next().unwrap_or(said);
            format!(
                "Redis cannot write its disk, and takes nothing until it can (MISCONF: {said}); make room on the disk of its `dir`, or look at \
                 its log, and at `stop-writes-on-bgsave-error` if it keeps snapshots"
            )
        }
        () if is_denied(error) => {
            format!("Redis refuses the user or password ({error}); are those in the setting of its address still right?")
        }
        () => error.to_string(),
    }
}

/// How to reach it; over TLS with its certificate and name checked.
fn client(at: &super::super::Url, ca: Option<&Path>) -> Result<Client, String> {
    let Some(path) = ca else { return Client::open(at.expose()).map_err(|e| e.to_string()) };
    let unusable = |why: String| format!("the authorities in {} cannot be used: {why}; expected PEM certificates", path.display());
    let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    if !pem.windows(BEGINS.len()).any(|part| part == BEGINS) {
        return Err(unusable("it holds none".into()));
    }
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(at.expose(), certificates).map_err(|e| unusable(e.to_string()))
}

const BEGINS: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What it says of a certificate, or of an answer that is no TLS. The client passes the error on as words only.
fn is_of_tls(error: &RedisError) -> bool {
    let said = error.to_string();
    ["invalid peer certificate", "received corrupt message", "received fatal alert"].iter().any(|part| said.contains(part))
}

/// One connection for one call. Given back only when the call went well.
struct Lent(Option<Connection>);

impl Lent {
    fn connection(&mut self) -> &mut MultiplexedConnection {
        self.0.as_mut().expect("it is there until it is given back")
    }

    fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Connection::take(connection)); // closed: an answer may still be on its way
        }
    }
}

impl Link {
    /// Opens the pools and looks who answers. `key` is the setting with its address.
    pub(crate) async fn open(settings: &Settings, key: &'static str) -> Result<Self, ConnectError> {
        let at = settings.url.as_ref().ok_or_else(|| ConnectError::Url { key, url: "(none)".into(), reason: "none given".into() })?;
        let url = at.to_string();
        let bad = |reason: String| ConnectError::Url { key, url: at.to_string(), reason };
        let client = client(at, settings.ca.as_deref()).map_err(bad)?;
        let call = Duration::from_millis(settings.call_ms);
        let block = Duration::from_millis(settings.block_ms);
        let made = Arc::new(AtomicU64::new(0));
        let pool = |size: usize, answer: Duration, made: Arc<AtomicU64>| {
            let count = Hook::sync_fn(move |_, _| {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            let config = AsyncConnectionConfig::new().set_connection_timeout(Some(call)).set_response_timeout(Some(answer));
            let manager = Manager::new_with_config(client.get_connection_info().clone(), config).map_err(|e| bad(e.to_string()))?;
            let timeouts = Timeouts { wait: Some(call), create: Some(call), recycle: Some(call) };
            Pool::builder(manager)
                .config(PoolConfig { timeouts, ..PoolConfig::new(size) })
                .post_create(count)
                .runtime(Runtime::Tokio1)
                .build()
                .map_err(|e| bad(e.to_string()))
        };
        let link = Self {
            write: pool(settings.write_connections, call, made.clone())?,
            read: pool(settings.read_connections, block + Duration::from_secs(1), Arc::default())?,
            settings: settings.clone(),
            client,
            identity: Mutex::default(),
            epoch: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            made,
            gone: AtomicU64::new(0),
            trouble: Mutex::default(),
            complained: Mutex::default(),
            stop: CancellationToken::new(),
            readers: TaskTracker::new(),
        };
        link.introduce(key, url).await?;
        Ok(link)
    }

    async fn introduce(&self, key: &'static str, url: String) -> Result<(), ConnectError> {
        let hello: Vec<redis::Value> = match self.call("hello", async |c| redis::cmd("HELLO").query_async(c).await).await {
            Ok(hello) => hello,
            Err(CallFailed::Redis(error)) | Err(CallFailed::Pool(deadpool_redis::PoolError::Backend(error))) => {
                let reason = error.to_string();
                return Err(match () {
                    () if is_of_tls(&error) => ConnectError::Untrusted { key, url, reason },
                    () if is_denied(&error) => ConnectError::Refused { key, url, reason },
                    () if error.is_io_error() => ConnectError::Absent { key, url, reason },
                    // HELLO came with 6.0.
                    () if reason.contains("unknown command") => ConnectError::TooOld { url, version: "before 6".into() },
                    () => ConnectError::Other { url, reason },
                });
            }
            Err(late) => return Err(ConnectError::Absent { key, url, reason: late.to_string() }),
        };
        let said = |name: &str| {
            let at = hello.chunks(2).find(|pair| String::from_redis_value_ref(&pair[0]).is_ok_and(|key| key == name))?;
            String::from_redis_value_ref(at.get(1)?).ok()
        };
        let version = said("version").unwrap_or_default();
        if version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < 7) {
            return Err(ConnectError::TooOld { url, version });
        }
        if said("role").is_some_and(|role| role != "master") {
            return Err(ConnectError::Replica { key, url });
        }
        self.beat().await.map_err(|e| match e {
            CallFailed::Redis(error) if is_not_saving(&error) => ConnectError::NotSaving { url: url.clone(), reason: in_words(&error) },
            other => ConnectError::Other { url: url.clone(), reason: other.to_string() },
        })?;
        info!(url, version, setting = key, "Redis answers");
        Ok(())
    }

    /// One call on a connection of the writers.
    pub(crate) async fn call<T>(
        &self,
        name: &'static str,
        ask: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, CallFailed> {
        self.on(&self.write, Duration::from_millis(self.settings.call_ms), name, ask).await
    }

    /// One call that may wait `block_ms` for something to happen.
    pub(super) async fn wait<T>(
        &self,
        name: &'static str,
        ask: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, CallFailed> {
        self.on(&self.read, Duration::from_millis(self.settings.block_ms) + Duration::from_secs(1), name, ask).await
    }

    async fn on<T>(
        &self,
        pool: &Pool,
        limit: Duration,
        name: &'static str,
        ask: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, CallFailed> {
        let begun = Instant::now();
        let work = async {
            let mut lent = Lent(Some(pool.get().await?));
            let answer = ask(lent.connection()).await?;
            lent.give_back();
            Ok(answer)
        };
        let outcome = tokio::time::timeout(limit, work).await.unwrap_or(Err(CallFailed::Late(limit)));
        match &outcome {
            Ok(_) => metrics::histogram!(names::CALL_SECONDS, "call" => name).record(begun.elapsed()),
            Err(failed) => {
                metrics::counter!(names::FAILURES, "call" => name).increment(1);
                if failed.lost_connection() {
                    self.broken.store(true, Ordering::Relaxed);
                }
            }
        }
        outcome
    }

    /// A script, on a connection of the writers.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        name: &'static str,
        script: &Script,
        keys: &[String],
        args: &[Vec<u8>],
    ) -> Result<T, CallFailed> {
        self.call(name, async |connection| {
            let mut call = script.prepare_invoke();
            for key in keys {
                call.key(key);
            }
            for arg in args {
                call.arg(arg.as_slice());
            }
            call.invoke_async(connection).await
        })
        .await
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().as_ref().map(|trouble| trouble.why.clone())
    }

    /// Its memory is used up: what is kept for convenience is in the way.
    pub(super) fn is_full(&self) -> bool {
        self.trouble.lock().as_ref().is_some_and(|trouble| trouble.full)
    }

    /// Something that Redis was to keep was refused.
    pub(super) fn refused(&self, error: &RedisError) {
        *self.trouble.lock() = Some(Trouble { why: in_words(error), full: is_oom(error), until: Instant::now() + HELD });
    }

    /// Something was found missing: producers publish again what is not confirmed.
    pub(super) fn lost(&self, why: &str) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(names::EPOCHS).increment(1);
        self.complain(why);
    }

    pub(super) fn complain(&self, why: &str) {
        let mut complained = self.complained.lock();
        if complained.is_none_or(|at| at.elapsed() >= QUIET) {
            *complained = Some(Instant::now());
            warn!(why, "the bus has trouble");
        }
    }

    /// Looks every second whether Redis answers, whether it is the same, and whether it takes anything.
    pub(super) async fn watch(&self) {
        loop {
            match self.look().await {
                Ok(()) => {
                    let over = |trouble: &mut Trouble| trouble.until <= Instant::now();
                    self.trouble.lock().take_if(over);
                }
                Err(failed) => {
                    self.complain(&failed.to_string());
                    let mut trouble = self.trouble.lock();
                    let until = trouble.as_ref().map_or_else(Instant::now, |before| before.until);
                    *trouble = Some(Trouble { why: failed.to_string(), full: failed.is_oom(), until });
                }
            }
            self.count_connections([("write", Use::Calls), ("read", Use::Waiting)]);
            tokio::select! { () = tokio::time::sleep(PULSE) => {}, () = self.stop.cancelled() => return }
        }
    }

    /// Says how many connections there are, by what the pools are called in metrics.
    pub(crate) fn count_connections<const N: usize>(&self, pools: [(&'static str, Use); N]) {
        for (name, pool) in pools {
            let status = match pool {
                Use::Calls => self.write.status(),
                Use::Waiting => self.read.status(),
            };
            for (state, count) in [("open", status.size), ("idle", status.available), ("awaited", status.waiting)] {
                metrics::gauge!(names::CONNECTIONS, "pool" => name, "state" => state).set(count as f64);
            }
        }
    }

    async fn look(&self) -> Result<(), CallFailed> {
        self.beat().await?;
        self.run("room", &scripts::ROOM, &[], &[]).await
    }

    async fn beat(&self) -> Result<(), CallFailed> {
        let fresh = format!("{:032x}", rand::random::<u128>());
        let now: String = self.run("pulse", &scripts::PULSE, &[IDENTITY.into()], &[fresh.into_bytes()]).await?;
        let before = self.identity.lock().replace(now.clone());
        // A pool replaces what was cut without a word, so whoever is there now need not be who was there before.
        let gone = self.made.load(Ordering::Relaxed).saturating_sub(self.write.status().size as u64);
        let replaced = gone > self.gone.fetch_max(gone, Ordering::Relaxed);
        let broken = self.broken.swap(false, Ordering::Relaxed) || replaced;
        match before {
            Some(before) if before != now => self.lost("Redis has forgotten what it held"),
            Some(_) if broken => self.lost("connections to Redis were lost, and are back"),
            _ => {}
        }
        Ok(())
    }
}
