//! A server that dies, hangs, or takes its answer along: what was acknowledged is there, once, and the answer is right.

use super::{
    postgres::{Postgres, Sync, installed},
    *,
};
use contracts::{CallError, ErrorKind};
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::Mutex,
};
use tokio_postgres::NoTls;

/// What happens to the next COMMIT of a connection that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The line is cut before the server has heard it.
    CutBefore,
    /// The line is cut when the server has done it and before we are told.
    CutAfter,
    /// The server has done it, and the answer never comes.
    Swallow,
}

/// A way to the server on which one thing goes wrong.
struct Wire {
    port: u16,
    next: Arc<Mutex<Fault>>,
}

impl Wire {
    fn to(server: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let next = Arc::new(Mutex::new(Fault::None));
        let (fault, socket) = (next.clone(), server.join(".s.PGSQL.5432"));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (server, fault) = (UnixStream::connect(&socket).expect("the server is there"), fault.clone());
                std::thread::spawn(move || carry(client, server, &fault));
            }
        });
        Self { port, next }
    }

    fn arm(&self, fault: Fault) {
        *self.next.lock().expect("nobody panics with it") = fault;
    }

    fn is_spent(&self) -> bool {
        *self.next.lock().expect("nobody panics with it") == Fault::None
    }
}

fn carry(mut client: TcpStream, mut server: UnixStream, next: &Mutex<Fault>) {
    let silent = Arc::new(Mutex::new(Fault::None));
    let (answers, mut back, quiet) = (server.try_clone(), client.try_clone().expect("a socket"), silent.clone());
    std::thread::spawn(move || {
        let mut answers = answers.expect("a socket");
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = answers.read(&mut buffer) {
            match *quiet.lock().expect("nobody panics with it") {
                Fault::CutAfter => break,
                Fault::Swallow => {}
                Fault::None | Fault::CutBefore => drop(back.write_all(&buffer[..n])),
            }
        }
        let _ = (back.shutdown(Shutdown::Both), answers.shutdown(Shutdown::Both));
    });
    let mut reads_only = false;
    let mut buffer = [0; 65536];
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        let said = &buffer[..n];
        let says = |what: &[u8]| said.windows(what.len()).any(|w| w == what);
        reads_only |= says(b"default_transaction_read_only");
        if says(b"COMMIT") && !reads_only {
            let fault = std::mem::replace(&mut *next.lock().expect("nobody panics with it"), Fault::None);
            if fault == Fault::CutBefore {
                break;
            }
            *silent.lock().expect("nobody panics with it") = fault;
        }
        if server.write_all(said).is_err() {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_answered_as_if_it_was_not() {
    let Some(server) = postgres::shared() else { return };
    let wire = Wire::to(server.socket());
    let mut settings = On::Postgres.settings();
    let database = settings.record.url.expose().rsplit('/').next().expect("a name").to_owned();
    settings.record.url = DatabaseUrl::new(format!("postgres://postgres@127.0.0.1:{}/{database}", wire.port));
    settings.record.deadline_ms = 500;
    let running = Running::with(settings).await;
    let call = running.call().await;
    let mut seq = 0;
    for fault in [Fault::CutBefore, Fault::CutAfter, Fault::Swallow] {
        let [a, b] = [seq, seq + 1].map(|n| call.says(CUSTOMER, n, n * 1000..n * 1000 + 1000, "cancel it"));
        wire.arm(fault);
        assert_eq!(running.commit(&[a.clone(), b.clone()]).await, [const { CommitOutcome::Committed }; 2], "{fault:?}");
        assert!(wire.is_spent(), "{fault:?} did not happen");
        assert_eq!(
            running.commit(&[a.clone(), b]).await,
            [const { CommitOutcome::Duplicate }; 2],
            "{fault:?}: sent again, it is a duplicate"
        );
        wire.arm(fault);
        let insight = call.insight(a.utterance_id(), Task::Intent, "config", Some(("cancellation", 0.9)));
        assert_eq!(running.record.record(cx(), vec![insight.clone()]).await, Ok(1), "{fault:?}");
        assert_eq!(running.record.record(cx(), vec![insight]).await, Ok(0), "{fault:?}");
        wire.arm(fault);
        let id = ConversationId::fresh();
        assert_eq!(running.record.open(cx(), opening(id, Some("again"), &[])).await.expect("opens").id, id, "{fault:?}");
        assert!(wire.is_spent(), "{fault:?} did not happen");
        seq += 2;
    }
    let rows = running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), (0..seq).collect::<Vec<_>>());
    assert_eq!(running.record.row(&TenantId::default(), call.id).await.expect("readable").utterance_count, seq);
    running.end().await;
}

#[tokio::test]
async fn a_statement_that_waits_too_long_is_given_up_and_nothing_of_it_stays() {
    if !On::Postgres.is_here() {
        return;
    }
    let mut settings = On::Postgres.settings();
    settings.record.deadline_ms = 300;
    let running = Running::with(settings.clone()).await;
    let (call, other) = (running.call().await, running.call().await);
    let (mut client, connection) = tokio_postgres::connect(settings.record.url.expose(), NoTls).await.expect("connects");
    tokio::spawn(connection);
    let holder = client.transaction().await.expect("begins");
    holder.execute("SELECT 1 FROM channels WHERE conversation_id = $1 FOR UPDATE", &[&call.id.to_string()]).await.expect("locked");
    let said = call.says(AGENT, 0, 0..1000, "hello");
    let refused = running.record.commit(cx(), vec![said.clone()]).await.expect_err("the row is held");
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    assert_eq!(running.commit(&[other.says(AGENT, 0, 0..1000, "hello")]).await, [CommitOutcome::Committed], "others go on");
    holder.rollback().await.expect("lets go");
    assert_eq!(running.commit(&[said]).await, [CommitOutcome::Committed]);
    running.end().await;
}

/// F10: what was acknowledged before kill -9 of the server is there after it, and rows are those of a run without the fault.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let Some(bin) = installed() else { return };
    let server = Arc::new(Postgres::start(bin, Sync::On));
    let database = server.database("template0");
    let url = server.url("postgres", &database);
    migrate(&url);
    let settings = Settings { record: RecordSettings { url: DatabaseUrl::new(&url), ..RecordSettings::default() }, ..Settings::default() };
    let running = Arc::new(Running::with(settings).await);
    const SPEAKERS: usize = 10;
    const SEGMENTS: u64 = 400;
    let mut speakers = vec![];
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..SPEAKERS {
        let (running, said) = (running.clone(), said.clone());
        let call = running.call().await;
        speakers.push(tokio::spawn(async move {
            let mut failures = 0;
            for n in 0..SEGMENTS {
                let segment = call.says(AGENT, n, n * 100..n * 100 + 100, &format!("word {n}"));
                loop {
                    match running.record.commit(cx(), vec![segment.clone()]).await {
                        Ok(outcomes) if outcomes == [CommitOutcome::Committed] => break,
                        // Only where the answer before it was that nobody knows.
                        Ok(outcomes) if outcomes == [CommitOutcome::Duplicate] && failures > 0 => break,
                        Ok(outcomes) => panic!("{outcomes:?}"),
                        Err(CallError { kind: ErrorKind::Unavailable, .. }) => {
                            failures += 1;
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                let _ = said.send(());
            }
            call.id
        }));
    }
    drop(said);
    let mut acknowledged = 0;
    while heard.recv().await.is_some() {
        acknowledged += 1;
        // Twice in mid-load.
        if acknowledged == 1_000 || acknowledged == 2_500 {
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                server.kill();
                server.start_again();
            })
            .await
            .expect("it comes back");
        }
    }
    assert_eq!(acknowledged, SPEAKERS as u64 * SEGMENTS);
    for speaker in speakers {
        let id = speaker.await.expect("no panic");
        let rows = running.record.transcript(&TenantId::default(), id).await.expect("readable");
        let told: Vec<(u64, u64, String)> = rows.into_iter().map(|r| (r.seq, r.start_ms, r.text)).collect();
        let expected: Vec<(u64, u64, String)> = (0..SEGMENTS).map(|n| (n, n * 100, format!("word {n}"))).collect();
        assert_eq!(told, expected, "as without the fault");
    }
    Arc::into_inner(running).expect("all speakers have ended").end().await;
}
