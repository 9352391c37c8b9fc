//! A private PostgreSQL: its own folder, its own socket, nothing shared with the machine's.
//!
//! A keeper process starts it and waits on a pipe of ours. The pipe closes with this process, however that ends; the keeper then stops the server
//! and removes the folder. As root it all runs as the user `postgres`, because PostgreSQL refuses root.

#![allow(dead_code)] // each user needs its part

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    keeper: Mutex<(Child, Option<ChildStdin>)>,
    databases: AtomicUsize,
}

/// Whether a crash of the machine would be survived; a crash of the server is in any case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    On,
    Off,
}

/// The newest release installed, or `None` after saying loudly what is skipped.
pub fn installed() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").is_file())
        .collect();
    found.sort();
    let found = found.pop();
    if found.is_none() {
        eprintln!("SKIPPED: no PostgreSQL; `make test` installs Debian's package postgresql");
    }
    found
}

/// One for the whole test binary; each test makes a database of its own in it.
pub fn shared() -> Option<&'static Postgres> {
    static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
    SHARED.get_or_init(|| installed().map(|bin| Postgres::start(bin, Sync::Off))).as_ref()
}

/// Where nobody listens on it, it only names the socket.
const PORT: u16 = 5432;

/// A cluster of its own.
const FRESH: &str = r#"
    "$BIN/initdb" -D data -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >initdb.log 2>&1 || exit 1
    printf '%s\n' 'local all locked scram-sha-256' 'local all all trust' 'local replication all trust' \
        'host all all 127.0.0.1/32 scram-sha-256' >data/pg_hba.conf
"#;

/// A server that speaks German to whoever does not ask for another language. Its locale is made in its own folder.
const GERMAN: &str = r#"
    mkdir locale && localedef --inputfile de_DE --charmap UTF-8 locale/de_DE.UTF-8 2>initdb.log || exit 1
    export LOCPATH="$DIR/locale"
    echo "lc_messages = 'de_DE.UTF-8'" >language.conf
"#;

/// A copy that follows the server on the socket in `$PRIMARY`.
const FOLLOWING: &str = r#"
    "$BIN/pg_basebackup" -h "$PRIMARY" -U postgres -D data -X stream -R -c fast --no-sync >initdb.log 2>&1 || exit 1
"#;

impl Postgres {
    /// Makes a cluster and waits until it answers.
    pub fn start(bin: PathBuf, sync: Sync) -> Self {
        Self::make(bin, sync, FRESH, Path::new(""), PORT)
    }

    /// The same, listening on a port of loopback as well, with TLS by this certificate and key (PEM files), which anybody may read.
    pub fn start_encrypted(bin: PathBuf, cert: &Path, key: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port is free").port();
        let (cert, key) = (cert.display(), key.display());
        let tls = format!(
            "cp '{cert}' data/server.crt && install -m 600 '{key}' data/server.key || exit 1
             echo 'ssl = on' >>data/postgresql.conf
             OPTIONS=\"$OPTIONS -c listen_addresses=127.0.0.1\"\n"
        );
        Self::make(bin, Sync::Off, &format!("{FRESH}{tls}"), Path::new(""), port)
    }

    /// The same, speaking German; `None` after saying loudly what is skipped.
    pub fn start_german() -> Option<Self> {
        let bin = installed()?;
        let sources = ["/usr/share/i18n/locales/de_DE", "/usr/share/locale/de/LC_MESSAGES", "/usr/bin/localedef"];
        if let Some(missing) = sources.iter().find(|source| !Path::new(source).exists()) {
            eprintln!("SKIPPED: no {missing}; Debian's package locales has what makes a server speak German");
            return None;
        }
        let how = format!("{GERMAN}{FRESH}cat language.conf >>data/postgresql.conf\n");
        Some(Self::make(bin, Sync::Off, &how, Path::new(""), PORT))
    }

    /// A streaming standby of this server, with a folder and a socket of its own; waits until it answers reads.
    pub fn standby(&self) -> Self {
        Self::make(self.bin.clone(), Sync::Off, FOLLOWING, &self.dir, PORT)
    }

    /// Of a standby: what is committed becomes visible here so much later, from the next transaction on. Commits that wait already are
    /// shown as the new delay says.
    pub fn delay_replay(&self, by: Duration) {
        self.sql("postgres", &format!("ALTER SYSTEM SET recovery_min_apply_delay = '{}ms'", by.as_millis()));
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Of a standby: what comes from now on is kept and not shown. Returns when that is so; needs a primary that writes meanwhile.
    pub fn hold_replay(&self) {
        self.sql("postgres", "SELECT pg_wal_replay_pause()");
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql("postgres", "SELECT pg_get_wal_replay_pause_state()") != "paused" {
            assert!(Instant::now() < deadline, "the standby does not pause: {}", self.log());
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    pub fn go_on_replaying(&self) {
        self.sql("postgres", "SELECT pg_wal_replay_resume()");
    }

    /// Of a standby: what replays there, and would take over, stands still. Reads are answered.
    pub fn freeze(&self) {
        self.signal_startup("-STOP");
    }

    pub fn thaw(&self) {
        self.signal_startup("-CONT");
    }

    fn signal_startup(&self, signal: &str) {
        let pid = self.sql("postgres", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'");
        run(Command::new("kill").args([signal, &pid]));
    }

    /// A session that nobody can end as long as this lives.
    pub fn stuck(&self, database: &str) -> Stuck {
        let name = format!("stuck_{}", self.databases.fetch_add(1, Ordering::SeqCst));
        let psql = self.psql(database).env("PGAPPNAME", &name).stdin(Stdio::piped()).spawn().expect("psql is there");
        let mut stuck = Stuck { psql, backend: String::new() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while stuck.backend.is_empty() {
            assert!(Instant::now() < deadline, "no session begins: {}", self.log());
            let pid = format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{name}' AND state = 'idle'");
            stuck.backend = self.sql("postgres", &pid);
        }
        run(Command::new("kill").args(["-STOP", &stuck.backend]));
        stuck
    }

    /// Of a standby: waits until it shows everything that `primary` has committed.
    pub fn catch_up(&self, primary: &Self) {
        let wanted = primary.sql("postgres", "SELECT pg_current_wal_insert_lsn()");
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{wanted}'")) != "t" {
            assert!(Instant::now() < deadline, "the standby does not follow: {}", self.log());
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Of a standby: makes it a primary, on a new timeline; waits until it takes writes.
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote()"), "t", "{}", self.log());
    }

    fn make(bin: PathBuf, sync: Sync, how: &str, primary: &Path, port: u16) -> Self {
        let root = run(Command::new("id").arg("-u")).trim() == "0";
        let dir = tempfile::Builder::new().prefix("qc-pg-").tempdir().expect("a temporary folder").keep();
        if root {
            run(Command::new("chown").arg("postgres").arg(&dir));
        }
        let mut shell = if root {
            let mut shell = Command::new("runuser");
            shell.args(["-u", "postgres", "--", "sh"]);
            shell
        } else {
            Command::new("sh")
        };
        let serve = r#"
            while read -r order; do
                wait # one that was killed holds its lock file until it has been waited for
                "$BIN/postgres" -D data -k "$DIR" -p "$PORT" $OPTIONS >>server.log 2>&1 &
            done
            [ -f data/postmaster.pid ] && kill -QUIT "$(head -n 1 data/postmaster.pid)"
            wait
            rm -rf "$DIR"
        "#;
        let script = format!("cd \"$DIR\" || exit 1\n{how}{serve}");
        let fsync = if sync == Sync::On { "on" } else { "off" };
        let options =
            format!("-c listen_addresses= -c fsync={fsync} -c max_connections=300 -c autovacuum_naptime=5 -c shared_buffers=64MB");
        let mut keeper = shell
            .args(["-c", &script])
            .env("DIR", &dir)
            .env("PRIMARY", primary)
            .env("BIN", &bin)
            .env("OPTIONS", options)
            .env("PORT", port.to_string())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh is there");
        let orders = keeper.stdin.take().expect("stdin is piped");
        let server = Self { bin, dir, port, keeper: Mutex::new((keeper, Some(orders))), databases: AtomicUsize::default() };
        server.start_again();
        server
    }

    /// Waits until it answers; also after a crash.
    pub fn start_again(&self) {
        let mut keeper = self.keeper.lock().expect("nobody panics with it");
        let mut orders = keeper.1.as_ref().expect("it is taken only by drop");
        writeln!(orders, "start").expect("the keeper reads");
        let deadline = Instant::now() + Duration::from_secs(60);
        let ready = || {
            Command::new(self.bin.join("pg_isready"))
                .args(["-q", "-p", &self.port.to_string(), "-h"])
                .arg(&self.dir)
                .status()
                .is_ok_and(|s| s.success())
        };
        while !ready() {
            let ended = keeper.0.try_wait().expect("the keeper is ours");
            assert!(ended.is_none() && Instant::now() < deadline, "PostgreSQL does not start: {}", self.log());
            thread::park_timeout(Duration::from_millis(30));
        }
    }

    /// kill -9 of the server and all that serves a connection.
    pub fn kill(&self) {
        let pid = fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("it runs");
        let pid = pid.lines().next().expect("the number stands first");
        run(Command::new("kill").args(["-STOP", pid])); // one that is forked meanwhile would outlive it, and keep its memory
        let children = run(Command::new("ps").args(["-o", "pid=", "--ppid", pid]));
        let mut kill = Command::new("kill");
        kill.arg("-9").arg(pid).args(children.split_whitespace());
        let _ = kill.output(); // one that ended meanwhile is as dead as it should be
        // As long as one of them is dying the next server finds the memory in use, and does not start.
        let lives = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while children.split_whitespace().any(|child| lives(&child)) && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        ["initdb.log", "server.log"].map(|name| fs::read_to_string(self.dir.join(name)).unwrap_or_default()).join("\n")
    }

    /// Of one that listens on loopback, too.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> &Path {
        &self.dir
    }

    /// An address on the socket.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@{}/{database}", self.dir.display().to_string().replace('/', "%2F"))
    }

    /// Runs statements as the superuser; returns what they print, unaligned.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        run(self.psql(database).args(["-c", statements])).trim().to_owned()
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-p", &self.port.to_string(), "-h"])
            .arg(&self.dir)
            .args(["-d", database]);
        psql
    }

    /// A new, empty database, or a copy of another; returns its name.
    pub fn database(&self, template: &str) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        name
    }
}

/// A session whose process at the server stands still.
pub struct Stuck {
    psql: Child,
    backend: String,
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.backend]).output(); // it may have gone with its server
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.1.take()); // the keeper stops the server when the pipe is closed
        let _ = keeper.0.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
