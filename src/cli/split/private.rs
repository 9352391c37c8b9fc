//! Servers that `split` brings along: Redis, PostgreSQL, HAProxy. Private: on free ports of loopback, with their data below the data folder.
//!
//! Invariants: each has a keeper, which stops it in order when this command is gone, however that ends, and not before the processes that stand
//! on it have ended; what they store outlives them. As root, PostgreSQL runs as the user `postgres`, because it refuses root. No service of the
//! system is touched.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::{
    env,
    fs::{self, File, Permissions},
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// For a server to answer, and to stop.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const USER: &str = "quickcomm";

/// Says which process the server is, and waits for the word to stop it. When whoever would give it is gone, it waits for the lock, which those
/// who stand on the server hold.
const KEEPER: &str = r#"
"$@" >>"$LOG" 2>&1 &
server=$!
echo $server
read -r word
[ "$word" = now ] || flock -w 40 "$LOCK" true
kill -s "$SIGNAL" $server 2>/dev/null
wait $server
"#;

/// A server and its keeper. Dropping it stops the server.
pub struct Server {
    pub name: &'static str,
    pub at: String,
    pub pid: u32,
    pub log: PathBuf,
    /// It has been told that it does not run any more.
    pub ended: bool,
    keeper: Child,
    hold: Option<ChildStdin>,
}

impl Server {
    /// `stop` is the signal that ends it in order.
    fn start(name: &'static str, at: String, folder: &Path, user: Option<&str>, stop: &str, command: &[String]) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut shell = match user {
            Some(user) => {
                let mut shell = Command::new("runuser");
                shell.args(["-u", user, "--", "sh"]);
                shell
            }
            None => Command::new("sh"),
        };
        if user.is_some() {
            give(&log, user)?;
        }
        shell.args(["-c", KEEPER, "sh"]).args(command);
        shell.env("LOG", &log).env("SIGNAL", stop).env("LOCK", folder.join("api.lock")).env("LC_ALL", "C.UTF-8");
        // A group of its own: ctrl-c in the terminal must not end it before those who stand on it.
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut keeper = shell.spawn().with_context(|| format!("starting {name}"))?;
        let hold = keeper.stdin.take();
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().context("its stdout is piped")?).read_line(&mut said)?;
        let pid = said.trim().parse().with_context(|| format!("{name} was not started; see {}", log.display()))?;
        Ok(Self { name, at, pid, log, ended: false, keeper, hold })
    }

    pub fn runs(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid)).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits until `answers` does.
    fn await_answer(self, mut answers: impl FnMut() -> bool) -> anyhow::Result<Self> {
        let begun = Instant::now();
        while !answers() {
            if !self.runs() || begun.elapsed() > START_LIMIT {
                bail!("{} does not answer at {}: {}", self.name, self.at, last_line(&self.log));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(self)
    }

    /// As a line of the view.
    pub fn as_json(&self) -> Value {
        let state = if self.runs() { "ready" } else { "ended" };
        serde_json::json!({ "role": self.name, "pid": self.pid, "at": self.at, "state": state, "log": self.log })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut hold) = self.hold.take() {
            let _ = hold.write_all(b"now\n"); // a keeper that is gone has stopped it
        }
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if !matches!(self.keeper.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }
}

/// Redis and PostgreSQL of one's own.
pub struct Ground {
    /// Of the processes that stand on it.
    pub env: Vec<(&'static str, String)>,
    pub servers: Vec<Server>,
}

/// Starts both in `folder`, or again on what they have stored there, and brings the record's schema up to date.
pub fn lay(folder: &Path) -> anyhow::Result<Ground> {
    let (redis, redis_url) = redis(folder)?;
    let (postgres, record_url) = postgres(folder)?;
    let migrate = Command::new(env::current_exe().context("finding this program")?)
        .args(["db", "migrate"])
        .env("QUICKCOMM_API__RECORD__URL", &record_url)
        .output()
        .context("starting `quickcomm db migrate`")?;
    ensure!(migrate.status.success(), "the private PostgreSQL has no schema: {}", String::from_utf8_lossy(&migrate.stderr).trim());
    let env =
        vec![("QUICKCOMM_BUS__KIND", "redis".to_owned()), ("QUICKCOMM_BUS__URL", redis_url), ("QUICKCOMM_API__RECORD__URL", record_url)];
    Ok(Ground { env, servers: vec![redis, postgres] })
}

fn redis(folder: &Path) -> anyhow::Result<(Server, String)> {
    let program =
        program("redis-server", &[]).context("no redis-server is installed: `.ci/need redis-server`, or apt-get install redis-server")?;
    let data = folder.join("redis");
    fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
    let port = free_port()?.port().to_string();
    let data = data.display().to_string();
    let command = [program.display().to_string()]
        .into_iter()
        .chain(["--bind", "127.0.0.1", "--port", &port, "--dir", &data, "--appendonly", "yes", "--save", ""].map(str::to_owned));
    let url = format!("redis://127.0.0.1:{port}");
    let server = Server::start("redis", url.clone(), folder, None, "TERM", &command.collect::<Vec<_>>())?;
    // It listens before it has read what it had stored.
    let pong = || -> io::Result<bool> {
        let mut redis = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        redis.set_read_timeout(Some(Duration::from_secs(1)))?;
        redis.write_all(b"PING\r\n")?;
        let mut said = [0; 5];
        redis.read_exact(&mut said)?;
        Ok(&said == b"+PONG")
    };
    Ok((server.await_answer(|| pong().unwrap_or(false))?, url))
}

fn postgres(folder: &Path) -> anyhow::Result<(Server, String)> {
    let bin = newest_postgres().context("no PostgreSQL is installed: `.ci/need postgresql`, or apt-get install postgresql")?;
    let user = (run(Command::new("id").arg("-u"))?.trim() == "0").then_some("postgres");
    let home = folder.join("postgres");
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    give(&home, user)?;
    let as_user = |program: &Path| match user {
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--"]).arg(program).current_dir("/");
            command
        }
        None => Command::new(program),
    };
    if let Some(user) = user {
        let reachable = as_user(Path::new("test")).arg("-w").arg(&home).status()?;
        ensure!(
            reachable.success(),
            "the user {user} cannot reach {}: give a --data folder that it can, such as /var/tmp/quickcomm",
            home.display()
        );
    }
    let data = home.join("data");
    let secret = home.join("password");
    if !data.join("PG_VERSION").is_file() {
        fs::write(&secret, format!("{:032x}\n", rand::random::<u128>())).with_context(|| format!("writing {}", secret.display()))?;
        fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
        give(&secret, user)?;
        let mut initdb = as_user(&bin.join("initdb"));
        initdb.args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "-D"]).arg(&data);
        run(initdb.arg(format!("--pwfile={}", secret.display())))?;
    }
    let password = fs::read_to_string(&secret).with_context(|| format!("reading {}", secret.display()))?.trim().to_owned();
    let port = free_port()?.port().to_string();
    let command = [bin.join("postgres").display().to_string(), "-D".into(), data.display().to_string(), "-p".into(), port.clone()];
    let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories="].into_iter().flat_map(|set| ["-c".to_owned(), set.to_owned()]);
    let at = format!("postgres://{USER}@127.0.0.1:{port}/{USER}");
    let server = Server::start("postgres", at, folder, user, "INT", &command.into_iter().chain(settings).collect::<Vec<_>>())?;
    let mut ready = Command::new(bin.join("pg_isready"));
    ready.args(["-q", "-h", "127.0.0.1", "-p", &port]);
    let server = server.await_answer(|| ready.status().is_ok_and(|status| status.success()))?;
    let mut create = Command::new(bin.join("createdb"));
    let made = run(create.args(["-h", "127.0.0.1", "-p", &port, "-U", USER, USER]).env("PGPASSWORD", &password));
    if let Err(error) = made
        && !error.to_string().contains("already exists")
    {
        return Err(error);
    }
    Ok((server, format!("postgres://{USER}:{password}@127.0.0.1:{port}/{USER}")))
}

/// HAProxy at `front`, before api processes: where each takes calls, and its admin port.
pub fn balance(folder: &Path, front: SocketAddr, nodes: &[(String, String)]) -> anyhow::Result<Server> {
    let program = program("haproxy", &["/usr/sbin"])
        .context("no haproxy is installed: `.ci/need haproxy:/usr/sbin/haproxy`, or apt-get install haproxy")?;
    let mut servers = String::new();
    for (n, (http, admin)) in nodes.iter().enumerate() {
        let port = admin.rsplit(':').next().unwrap_or_default();
        servers += &format!(
            "  server api-{} {http} check addr 127.0.0.1 port {port} inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n",
            n + 1
        );
    }
    // A node that is slow to say that it is ready is busy; one that is gone refuses at once.
    // A call or a live feed is a tunnel, and pings more often than that. Only a GET that got no answer is sent again to another node.
    let config = format!(
        "global\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 1s\n  timeout check 5s\n  timeout client 75s\n  timeout server 75s\n  timeout tunnel 60s\n  \
         retries 3\n  option redispatch 1\n  retry-on conn-failure empty-response\nfrontend callers\n  bind {front}\n  default_backend api\nbackend api\n  \
         balance roundrobin\n  http-request disable-l7-retry if !METH_GET\n  option httpchk GET /readyz\n  http-check expect status 200\n{servers}"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
    let command = [program.display().to_string(), "-db".into(), "-f".into(), file.display().to_string()];
    let server = Server::start("haproxy", front.to_string(), folder, None, "TERM", &command)?;
    server.await_answer(|| TcpStream::connect(front).is_ok())
}

/// A port of loopback that nobody has now.
pub fn free_port() -> anyhow::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("looking for a free port")
}

fn program(name: &str, besides: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(besides.iter().map(PathBuf::from)).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn newest_postgres() -> Option<PathBuf> {
    let releases = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let release = |entry: fs::DirEntry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")));
    releases.filter_map(release).filter(|(_, bin)| bin.join("postgres").is_file()).max().map(|(_, bin)| bin)
}

/// Makes it that user's; a file that is not there is made.
fn give(path: &Path, user: Option<&str>) -> anyhow::Result<()> {
    let Some(user) = user else { return Ok(()) };
    if !path.exists() {
        File::create(path).with_context(|| format!("writing {}", path.display()))?;
    }
    let id = |option: &str| -> anyhow::Result<u32> {
        run(Command::new("id").args([option, user]))?.trim().parse().with_context(|| format!("reading the number of the user {user}"))
    };
    chown(path, Some(id("-u")?), Some(id("-g")?)).with_context(|| format!("giving {} to {user}", path.display()))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn last_line(log: &Path) -> String {
    let mut text = String::new();
    let _ = File::open(log).and_then(|mut file| file.read_to_string(&mut text)); // without it the message is still true
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}
