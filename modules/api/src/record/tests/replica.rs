//! A primary and a standby that follows it: what the record reads from which.

use super::*;

#[test]
fn a_standby_shows_what_its_primary_has_committed_and_takes_its_place() {
    let Some(bin) = postgres::installed() else { return };
    let primary = postgres::Postgres::start(bin, postgres::Sync::Off);
    let standby = primary.standby();
    primary.sql("postgres", "CREATE TABLE said (word text); INSERT INTO said VALUES ('early')");
    standby.catch_up(&primary);
    assert_eq!(standby.sql("postgres", "SELECT word FROM said"), "early");
    standby.delay_replay(Duration::from_secs(600));
    primary.sql("postgres", "INSERT INTO said VALUES ('late')");
    assert_eq!(standby.sql("postgres", "SELECT count(*) FROM said"), "1");
    standby.delay_replay(Duration::ZERO);
    standby.catch_up(&primary);
    primary.kill();
    standby.promote();
    standby.sql("postgres", "INSERT INTO said VALUES ('after')");
    assert_eq!(standby.sql("postgres", "SELECT count(*) FROM said"), "3");
}

/// A record on a primary, with a standby that takes reads.
struct Pair {
    running: Running,
    primary: postgres::Postgres,
    standby: postgres::Postgres,
}

impl Pair {
    async fn start() -> Option<Self> {
        let bin = postgres::installed()?;
        let (primary, standby, database) = tokio::task::spawn_blocking(move || {
            let primary = postgres::Postgres::start(bin, postgres::Sync::Off);
            let database = primary.database("template0");
            migrate(&primary.url("postgres", &database));
            let standby = primary.standby();
            (primary, standby, database)
        })
        .await
        .expect("they start");
        let url = |server: &postgres::Postgres| DatabaseUrl::new(server.url("postgres", &database));
        let record = RecordSettings { url: url(&primary), replica_url: url(&standby), ..RecordSettings::default() };
        let running = Running::with(Settings { record, ..Settings::default() }).await;
        let pair = Self { running, primary, standby };
        pair.until("the replica takes reads", true).await;
        Some(pair)
    }

    async fn takes_reads(&self) -> bool {
        self.running.record.replica().expect("there is one").readers_for(None).await.is_some()
    }

    async fn until(&self, what: &str, takes_reads: bool) {
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while self.takes_reads().await != takes_reads {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }

    /// As REST does: how many utterances the conversation has, and who said so.
    async fn count(&self, id: ConversationId, at_least: Option<Mark>) -> (u64, platform::cache::From) {
        let record = &self.running.record;
        let (tenant, key) = (TenantId::default(), record.history().conversation(&TenantId::default(), id).part("row"));
        let load = || async {
            let (stamp, row) = record.row_since(&tenant, id, at_least).await?;
            let body = row.map(|row| row.utterance_count.to_string().into());
            Ok(platform::cache::Loaded { stamp, body })
        };
        let answer = record.cache().read(key, at_least, load).await.expect("readable");
        let count = answer.body.map_or(0, |body| std::str::from_utf8(&body).expect("digits").parse().expect("digits"));
        (count, answer.from)
    }

    async fn say(&self, call: &Call, n: u64) {
        let said = self.running.commit(&[call.says(CUSTOMER, n, n * 1000..(n + 1) * 1000, "my bill")]).await;
        assert_eq!(said, [CommitOutcome::Committed]);
    }

    /// Waits until the cache was told of everything stored.
    async fn announced(&self, changes: &mut Changes, id: ConversationId, utterances: u64) {
        let told = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let change = changes.recv().await.expect("not behind");
                if change.conversation == id && change.rows.conversation().utterance_count == utterances {
                    return;
                }
            }
        });
        told.await.expect("the relay tells");
    }
}

/// Of each lag, in ms, its share of the writes, in percent. At 20 and 300 ms a read waits for the replica first, and is slow for that.
const LAGS: [(u64, usize); 4] = [(0, 50), (20, 6), (300, 4), (10_000, 40)];

#[tokio::test(flavor = "multi_thread")]
async fn f13_who_has_written_reads_what_he_wrote_however_far_the_replica_is_behind() {
    let Some(pair) = Pair::start().await else { return };
    let call = pair.running.call().await;
    // `make faults` does 200 times what takes fifty writes here.
    let all = 50 * often::times(40);
    let mut tally = often::Tally::of("F13", all);
    let mut said = 0;
    println!("{:>10} {:>8} {:>8} {:>12} {:>12}", "lag ms", "writes", "stale", "of the cache", "replica now");
    for (lag_ms, share) in LAGS {
        let writes = all * share / 100;
        pair.standby.delay_replay(Duration::from_millis(lag_ms));
        let (mut stale, mut cached) = (0, 0);
        // Beside it somebody reads without a token all the time, so that the lagging replica is asked and tries to fill the cache.
        let stop = CancellationToken::new();
        let hammering = async {
            let mut reads = 0;
            while !stop.is_cancelled() {
                pair.count(call.id, None).await;
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        };
        let writing = async {
            for _ in 0..writes {
                pair.say(&call, said).await;
                said += 1;
                let token = pair.running.record.token().await.expect("readable");
                let (count, from) = pair.count(call.id, Some(token)).await;
                stale += usize::from(count < said);
                cached += usize::from(from != platform::cache::From::Database);
            }
            stop.cancel();
        };
        let (reads, ()): (usize, ()) = tokio::join!(hammering, writing);
        println!("{lag_ms:>10} {writes:>8} {stale:>8} {cached:>12} {:>12} ({reads} reads beside)", pair.takes_reads().await);
        tally.survived(writes - stale);
        assert_eq!(stale, 0, "with {lag_ms} ms of lag");
    }
    assert!(tally.is_whole());
    pair.until("10 s behind it takes no reads", false).await;
    assert_eq!(pair.count(call.id, None).await.0, said, "so nobody reads there");
    pair.standby.delay_replay(Duration::ZERO);
    pair.until("it is asked again", true).await;
    pair.running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_a_replica_that_lags_fills_the_cache_with_nothing_that_was_announced_as_old() {
    let Some(pair) = Pair::start().await else { return };
    let call = pair.running.call().await;
    pair.standby.catch_up(&pair.primary);
    pair.standby.delay_replay(Duration::from_secs(2));
    let mut changes = pair.running.record.subscribe();
    let (mut behind, mut kept) = (0, 0);
    for said in 1..=5 {
        pair.say(&call, said - 1).await;
        pair.announced(&mut changes, call.id, said).await;
        for _ in 0..200 {
            let (count, from) = pair.count(call.id, None).await;
            behind += u64::from(count < said);
            if from != platform::cache::From::Database {
                kept += 1;
                assert_eq!(count, said, "the cache gave what was announced as old");
            }
        }
    }
    assert!(behind > 0, "the replica was asked, and was behind");
    // When it has caught up its reads are kept again.
    pair.standby.delay_replay(Duration::ZERO);
    pair.standby.catch_up(&pair.primary);
    let caught_up = tokio::time::timeout(Duration::from_secs(20), async {
        while pair.count(call.id, None).await != (5, platform::cache::From::Shared) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    caught_up.await.expect("it is kept again");
    println!("{behind} reads were behind, as they may be without a token; {kept} came from the cache, none of them");
    pair.running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_timeline_and_a_replica_that_was_promoted_or_is_gone_lead_to_the_primary() {
    let Some(pair) = Pair::start().await else { return };
    let call = pair.running.call().await;
    pair.say(&call, 0).await;
    let token = pair.running.record.token().await.expect("readable");
    let replica = pair.running.record.replica().expect("there is one");
    assert!(replica.readers_for(Some(Mark { timeline: token.timeline + 1, at: 0 })).await.is_none(), "another timeline");
    assert!(replica.readers_for(Some(Mark { at: token.at + 1_000_000, ..token })).await.is_none(), "nobody is there yet");
    pair.standby.catch_up(&pair.primary);
    let there = tokio::time::timeout(Duration::from_secs(10), async {
        while replica.readers_for(Some(token)).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    there.await.expect("it comes to where the token is");
    let elsewhere = Mark { timeline: token.timeline + 1, at: 1 };
    assert_eq!(pair.count(call.id, Some(elsewhere)).await.0, 1, "the primary answers");

    pair.standby.kill();
    for said in 1..50 {
        pair.say(&call, said).await;
        let token = pair.running.record.token().await.expect("readable");
        assert_eq!(pair.count(call.id, Some(token)).await.0, said + 1, "nobody notices");
    }
    pair.until("it is left alone", false).await;
    pair.standby.start_again();
    pair.until("it is back", true).await;
    pair.standby.promote();
    pair.until("a primary of its own takes no reads of ours", false).await;
    assert_eq!(pair.count(call.id, None).await.0, 50);
    pair.running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_while_the_primary_is_away_its_replica_answers_and_that_is_told() {
    let Some(pair) = Pair::start().await else { return };
    let record = pair.running.record.clone();
    let call = pair.running.call().await;
    pair.say(&call, 0).await;
    pair.standby.catch_up(&pair.primary);
    assert!(!record.may_lack_the_last());
    let until = async |what: &str, alone: bool| {
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while record.may_lack_the_last() != alone {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}: not in time"));
    };
    pair.primary.kill();
    until("answers say that they may be behind", true).await;
    assert_eq!(pair.count(call.id, None).await.0, 1, "and there are some");
    pair.primary.start_again();
    until("they do not any more", false).await;
    pair.say(&call, 1).await;
    let token = record.token().await.expect("readable");
    assert_eq!(pair.count(call.id, Some(token)).await.0, 2);
    pair.standby.kill();
    pair.until("nobody reads there", false).await;
    assert!(!record.may_lack_the_last(), "who is not asked makes nothing stale");
    pair.running.end().await;
}
