//! A house of role processes on one Redis and one PostgreSQL, callers who talk to it, and what stands in its record afterwards.

use super::{
    sound::{self, BLOCK, ENDPOINTING_MS, Voice},
    watch::{Shown, Sink, follow},
};
use crate::support::{Program, Server, ground::Ground, postgres::Postgres};
use contracts::{ConversationId, Encoding, audio::Role};
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_types::Text};
use futures::future::join_all;
use quickcomm::client::{Call, ClientError, Events, Options, ServerMessage};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Audio that is sent at once.
const PIECE: u64 = 4;
/// How much faster than people speak.
const SPEED: u32 = 3;
/// Everything of a call that has ended is heard, stored and understood after this.
const SETTLED: Duration = Duration::from_secs(90);

/// Sockets and hearing, understanding, and the record, each a process; hearing counts.
pub struct House {
    pub ground: Ground,
    pub hears: Server,
    pub understands: Server,
    pub keeps: Server,
}

impl House {
    pub fn build(ground: Ground) -> Self {
        let hears = ground.serve_as(Program::Counting, "hears", "audio", &[("api", &["keeps"])]);
        let understands = ground.serve("understands", "inference", &[("api", &["keeps"])]);
        let keeps = ground.serve("keeps", "api", &[("audio", &["hears"]), ("inference", &["understands"])]);
        Self { ground, hears, understands, keeps }
    }

    /// Whom calls go to, in turn, and what they leave.
    pub fn scene(&self, sink: Sink) -> Scene<Base> {
        let tables = Base { postgres: self.ground.postgres, database: self.ground.database.clone() };
        let doors = vec![self.hears.http.clone(), self.keeps.http.clone()];
        Scene { watched: doors.len(), doors, node: self.keeps.http.clone(), tables, sink }
    }

    pub fn servers(&self) -> [&Server; 3] {
        [&self.hears, &self.understands, &self.keeps]
    }

    pub fn stop(self) {
        for server in [self.hears, self.understands, self.keeps] {
            assert!(server.stop(), "SIGTERM did not end in exit code 0");
        }
    }
}

/// The record as it is asked: statements that say one text column named `line`.
pub trait Tables {
    fn lines(&self, statement: &str) -> Vec<String>;
}

/// A database of the house's PostgreSQL.
pub struct Base {
    pub postgres: &'static Postgres,
    database: String,
}

impl Tables for Base {
    fn lines(&self, statement: &str) -> Vec<String> {
        self.postgres.sql(&self.database, statement).lines().map(str::to_owned).collect()
    }
}

/// The file of a process with a record of its own.
pub struct File(pub PathBuf);

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

impl Tables for File {
    fn lines(&self, statement: &str) -> Vec<String> {
        let mut database = SqliteConnection::establish(&self.0.to_string_lossy()).unwrap();
        diesel::sql_query("PRAGMA busy_timeout = 5000").execute(&mut database).unwrap();
        diesel::sql_query(statement).load::<Line>(&mut database).unwrap().into_iter().map(|row| row.line).collect()
    }
}

impl File {
    pub fn of(data: &Path) -> Self {
        Self(data.join("record.sqlite"))
    }
}

/// A call of two voices that is over.
pub struct Said {
    pub id: ConversationId,
    /// The number of its first voice.
    pub first: u32,
    pub blocks: u64,
    /// What each voice said, in samples.
    said: [Vec<Range<u64>>; 2],
}

/// How long callers speak.
enum Until {
    Told(CancellationToken),
    /// As long as somebody did, and as fast as they are taken.
    Blocks(u64),
}

/// Speaks with two voices into the process at `url` and hears the answers to their end.
async fn call(url: &str, id: ConversationId, first: u32, until: Until, welcomes: watch::Sender<usize>) -> Said {
    let mut options = Options::new(url, Encoding::Linear16, 16_000, &[Role::Agent, Role::Customer]);
    options.endpointing_ms = Some(ENDPOINTING_MS);
    options.conversation = id;
    let asked = Instant::now();
    let (open, events) = loop {
        match Call::open(options.clone()).await {
            Ok(opened) => break opened,
            // Whatever was struck is back, and not yet trusted.
            Err(ClientError::Refused { status: 503, .. }) if asked.elapsed() < SETTLED => {
                tokio::time::sleep(Duration::from_millis(200)).await
            }
            Err(error) => panic!("{url} does not take a call: {error}"),
        }
    };
    let hearing = tokio::spawn(hear(events, welcomes));
    let mut voices = [first, first + 1].map(Voice::new);
    let mut blocks = 0;
    let mut due = Instant::now();
    loop {
        match &until {
            Until::Told(stop) if stop.is_cancelled() && voices.iter().all(Voice::is_whole) => break,
            Until::Told(_) => {
                due += Duration::from_millis(PIECE * BLOCK / 16) / SPEED;
                tokio::time::sleep_until(due).await;
            }
            Until::Blocks(all) if blocks >= *all => break,
            Until::Blocks(_) => {}
        }
        for (channel, voice) in voices.iter_mut().enumerate() {
            open.send(channel as u8, voice.speak(PIECE)).await;
        }
        blocks += PIECE;
    }
    open.close().await;
    let ended = hearing.await.unwrap();
    assert_eq!(ended.as_deref(), Some("complete"), "{id} ended");
    Said { id, first, blocks, said: voices.map(|voice| voice.said) }
}

/// Reads a call's events; says in which state it ended.
async fn hear(mut events: Events, welcomes: watch::Sender<usize>) -> Option<String> {
    let mut state = None;
    while let Some(event) = events.recv().await {
        match event.expect("the call goes on").message {
            ServerMessage::Welcome { .. } => welcomes.send_modify(|times| *times += 1),
            ServerMessage::Gap { channel, start_ms, end_ms, reason } => panic!("a gap in {channel}: {start_ms} to {end_ms} ms, {reason}"),
            ServerMessage::Ended { state: ended, .. } => state = Some(ended),
            _ => {}
        }
    }
    state
}

/// A call's rows, without its ids, epochs and times of day: what another run of the same call must leave too.
fn rows(tables: &impl Tables, id: &ConversationId) -> Vec<String> {
    let of = |what: &str, table: &str, order: &str| {
        let fields: Vec<String> = what.split(' ').map(|field| format!("coalesce(cast({field} AS text), '-')")).collect();
        tables.lines(&format!("SELECT {} AS line FROM {table} ORDER BY {order}", fields.join(" || ' ' || ")))
    };
    let own = format!("WHERE conversation_id = '{id}'");
    let mut rows = of("state finalization", &format!("conversations WHERE id = '{id}'"), "id");
    rows.extend(of("channel role next_seq safe_pos closed_pos utterances", &format!("channels {own}"), "channel"));
    let segment = "channel seq kind start_pos end_pos start_ms end_ms speech_final text";
    rows.extend(of(segment, &format!("segments {own}"), "channel, seq"));
    rows.extend(of("quality", &format!("results {own}"), "conversation_id"));
    let joined = format!("insights AS i JOIN segments AS s ON s.utterance_id = i.utterance_id WHERE i.conversation_id = '{id}'");
    let insight = "s.channel s.seq i.task i.label i.tier i.degraded_from";
    rows.extend(of(insight, &format!("{joined} AND superseded_by IS NULL"), "s.channel, s.seq, i.task"));
    rows
}

/// Waits until a call is finished, its result not by a lower rung, and each of its utterances is understood, once.
async fn settle(tables: &impl Tables, said: &Said) {
    let id = &said.id;
    let of = |what: &str| tables.lines(&format!("SELECT cast(count(*) AS text) AS line FROM {what}")).concat();
    let done = format!("conversations WHERE id = '{id}' AND finalization = 'done'");
    let spoken = format!("segments WHERE conversation_id = '{id}' AND kind = 'speech'");
    let understood =
        format!("insights WHERE conversation_id = '{id}' AND superseded_by IS NULL AND degraded_from IS NULL AND tier <> 'pending'");
    let look = async || {
        let seen = (of(&done), of(&spoken), of(&understood));
        let whole = seen.0 == "1" && seen.1.parse::<u64>().ok().map(|n| (2 * n).to_string()).as_ref() == Some(&seen.2);
        (whole, seen)
    };
    let deadline = Instant::now() + SETTLED;
    let mut told = Instant::now();
    loop {
        let (whole, seen) = look().await;
        if whole {
            return;
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!("{id} is not settled yet: finished, spoken and understood are {seen:?}");
        }
        assert!(Instant::now() < deadline, "{id} is not settled: finished, spoken and understood are {seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// That what was said of a call was heard to the sample, in order and once, stands in the record up to its last sample without a gap or an
/// overlap, and that each utterance's insights stand there once.
fn check(tables: &impl Tables, said: &Said) {
    let id = &said.id;
    let own = format!("conversation_id = '{id}'");
    for (channel, voiced) in said.said.iter().enumerate() {
        let voice = said.first + channel as u32;
        let place = format!("{id} channel {channel}");
        let of = format!("FROM segments WHERE {own} AND channel = {channel} ORDER BY seq");
        let lines = tables
            .lines(&format!("SELECT kind || ' ' || cast(start_pos AS text) || ' ' || cast(end_pos AS text) || ' ' || text AS line {of}"));
        let (mut heard, mut last): (Vec<Range<u64>>, u64) = (vec![], 0);
        for line in &lines {
            let mut parts = line.splitn(4, ' ');
            let (kind, start, end, text) = (parts.next(), parts.next(), parts.next(), parts.next().unwrap_or_default());
            let [start, end] = [start, end].map(|pos| pos.and_then(|pos| pos.parse::<u64>().ok()).expect("a position"));
            assert!(kind == Some("speech") && start >= last && end > start, "{place}: a gap or an overlap: {line} after {last}");
            last = end;
            for (whose, range) in sound::told(text) {
                assert!(whose == voice && range.start >= start && range.end <= end, "{place}: {line} tells what was not said there");
                match heard.last_mut() {
                    Some(before) if before.end == range.start => before.end = range.end, // cut in mid-word
                    _ => heard.push(range),
                }
            }
        }
        let missing: Vec<_> = voiced.iter().filter(|range| !heard.contains(range)).collect();
        let invented: Vec<_> = heard.iter().filter(|range| !voiced.contains(range)).collect();
        assert!(missing.is_empty() && invented.is_empty() && heard == *voiced, "{place}: missing {missing:?}, instead {invented:?}");
        let safe = tables.lines(&format!("SELECT cast(safe_pos AS text) AS line FROM channels WHERE {own} AND channel = {channel}"));
        assert_eq!(safe, [(said.blocks * BLOCK).to_string()], "{place}: committed up to there");
    }
    let strays = format!("{own} AND utterance_id NOT IN (SELECT utterance_id FROM segments WHERE {own})");
    assert_eq!(tables.lines(&format!("SELECT id AS line FROM insights WHERE {strays}")), [""; 0], "insights of nothing");
}

/// Makes calls, to one process after the other.
pub struct Callers {
    doors: Vec<String>,
    welcomed: watch::Sender<usize>,
    /// When those end who speak until then.
    stop: CancellationToken,
}

impl Callers {
    /// The call of the nth caller, in a task of its own.
    fn call(&self, n: usize, id: ConversationId, until: Until) -> JoinHandle<Said> {
        let (door, first) = (self.doors[n % self.doors.len()].clone(), 2 * n as u32 % sound::VOICES);
        let welcomed = self.welcomed.clone();
        tokio::spawn(async move { call(&door, id, first, until, welcomed).await })
    }

    /// One who speaks until the fault is over.
    pub fn long(&self, n: usize) -> JoinHandle<Said> {
        self.call(n, ConversationId::fresh(), Until::Told(self.stop.clone()))
    }

    /// One who speaks for so long.
    pub async fn brief(&self, n: usize, time: Duration) -> JoinHandle<Said> {
        let stop = CancellationToken::new();
        let call = self.call(n, ConversationId::fresh(), Until::Told(stop.clone()));
        tokio::time::sleep(time).await;
        stop.cancel();
        call
    }

    /// All of them say their last words; then their calls are finished.
    pub fn hang_up(&self) {
        self.stop.cancel();
    }

    /// So many have been welcomed.
    pub async fn welcomed(&self, calls: usize) {
        self.welcomed.subscribe().wait_for(|times| *times >= calls).await.unwrap();
    }
}

/// Where calls are made, and where it is seen what became of them.
pub struct Scene<T> {
    /// The processes that callers talk to, in turn.
    pub doors: Vec<String>,
    /// The one whose live feed is read.
    pub node: String,
    /// So many of the calls are watched there.
    pub watched: usize,
    pub tables: T,
    pub sink: Sink,
}

impl<T: Tables> Scene<T> {
    /// Several calls at once while `fault` strikes, and those, numbered on, that it makes; then the same calls without it. Both leave the same rows.
    pub async fn plays(&mut self, calls: usize, fault: impl AsyncFnOnce(&Callers) -> Vec<JoinHandle<Said>>) {
        let callers = Callers { doors: self.doors.clone(), welcomed: watch::channel(0).0, stop: CancellationToken::new() };
        let ids: Vec<ConversationId> = (0..calls).map(|_| ConversationId::fresh()).collect();
        let mut speaking: Vec<_> = ids.iter().enumerate().map(|(n, id)| callers.call(n, *id, Until::Told(callers.stop.clone()))).collect();
        callers.welcomed(calls).await;
        let watched: Vec<_> = ids
            .iter()
            .take(self.watched)
            .map(|id| {
                let (tell, wanted) = oneshot::channel();
                (tell, tokio::spawn(follow(self.node.clone(), id.to_string(), wanted)))
            })
            .collect();
        speaking.extend(fault(&callers).await);
        callers.hang_up();
        let calls = speaking.len();
        let struck: Vec<Said> = join_all(speaking).await.into_iter().map(|said| said.unwrap()).collect();
        for said in &struck {
            settle(&self.tables, said).await;
            check(&self.tables, said);
            self.sink.check(&said.id.to_string()).await;
        }
        for (said, (tell, watching)) in struck.iter().zip(watched) {
            assert!(tell.send(self.shown(&said.id)).is_ok(), "the reader of {} has ended", said.id);
            watching.await.unwrap();
        }

        let again: Vec<_> =
            struck.iter().enumerate().map(|(n, said)| callers.call(n, ConversationId::fresh(), Until::Blocks(said.blocks))).collect();
        let calm: Vec<Said> = join_all(again).await.into_iter().map(|said| said.unwrap()).collect();
        let (mut utterances, mut seconds) = (0, 0);
        for (struck, calm) in struck.iter().zip(&calm) {
            settle(&self.tables, calm).await;
            check(&self.tables, calm);
            let (ours, theirs) = (rows(&self.tables, &struck.id), rows(&self.tables, &calm.id));
            let differ: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).take(10).collect();
            assert!(
                differ.is_empty() && ours.len() == theirs.len(),
                "{}: {} rows beside {}: {differ:#?}",
                struck.id,
                ours.len(),
                theirs.len()
            );
            utterances += ours.iter().filter(|row| row.contains(" speech ")).count();
            seconds += struck.blocks * BLOCK * 2 / 16_000;
        }
        println!("{calls} calls, {seconds} s of sound, {utterances} utterances: to the sample, and the rows of a run without");
    }

    /// What a screen is to show of a call.
    fn shown(&self, id: &ConversationId) -> Shown {
        let of = |what: &str| self.tables.lines(&format!("SELECT {what} conversation_id = '{id}'"));
        let split = |line: String| line.split_once(' ').map(|(id, text)| (id.to_owned(), text.to_owned())).expect("an id and a text");
        Shown {
            utterances: of("utterance_id || ' ' || text AS line FROM segments WHERE").into_iter().map(split).collect(),
            insights: of("id AS line FROM insights WHERE superseded_by IS NULL AND").into_iter().collect(),
        }
    }
}

/// A record of one call, as a test has it.
struct Fixed {
    segments: [Vec<String>; 2],
    safe: u64,
}

impl Tables for Fixed {
    fn lines(&self, statement: &str) -> Vec<String> {
        let channel = usize::from(statement.contains("channel = 1"));
        match statement {
            s if s.contains("safe_pos") => vec![self.safe.to_string()],
            s if s.contains("FROM segments WHERE") && !s.contains("insights") => self.segments[channel].clone(),
            _ => vec![],
        }
    }
}

#[test]
fn a_record_that_lacks_doubles_moves_or_mixes_anything_up_is_found() {
    let words_of = |voice: u32, heard: Range<u64>| format!(" voice{voice}from{}to{} thank you", heard.start, heard.end);
    let segment = |voice: u32, start: u64, end: u64, heard: Range<u64>| format!("speech {start} {end}{}", words_of(voice, heard));
    let said = Said {
        id: ConversationId::fresh(),
        first: 4,
        blocks: 100,
        said: [vec![1024..9216, 20_480..30_720], vec![512..20_480, 25_600..40_960]],
    };
    let whole = || Fixed {
        segments: [
            vec![segment(4, 0, 13_312, 1024..9216), segment(4, 13_312, 34_816, 20_480..30_720)],
            vec![segment(5, 0, 30_720, 512..20_480) + &words_of(5, 25_600..30_720), segment(5, 30_720, 45_056, 30_720..40_960)], // cut in mid-word
        ],
        safe: 51_200,
    };
    check(&whole(), &said);
    type Fault = fn(&mut Fixed);
    let faults: [(&str, Fault); 8] = [
        ("one is missing", |record| drop(record.segments[0].remove(1))),
        ("one is there twice", |record| record.segments[0].push("speech 34816 36000 voice4from20480to30720".into())),
        ("they overlap", |record| record.segments[1][1] = "speech 30208 45056 voice5from30208to40960".into()),
        ("a sample is missing", |record| record.segments[0][0] = "speech 0 13312 voice4from1024to9215".into()),
        ("it is another voice's", |record| record.segments[0][0] = "speech 0 13312 voice5from1024to9216".into()),
        ("it stands where it was not said", |record| record.segments[0][1] = "speech 20992 34816 voice4from20480to30720".into()),
        ("a gap", |record| record.segments[0][0] = "gap 0 13312 ".into()),
        ("not committed to its end", |record| record.safe = 45_056),
    ];
    for (what, fault) in faults {
        let mut record = whole();
        fault(&mut record);
        assert!(std::panic::catch_unwind(|| check(&record, &said)).is_err(), "{what}, and nobody noticed");
    }
}
