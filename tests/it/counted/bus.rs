//! The bus under counted calls: killed, emptied, evicted, trimmed, repeated, shuffled and poisoned.

use super::{Strikes, house::House};
use crate::support::Server;
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const SHARDS: u32 = 64;

fn streams() -> impl Iterator<Item = String> {
    (0..SHARDS).map(|shard| format!("utterances:{{{shard}}}"))
}

async fn pause(moments: &mut StdRng, most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(moments.random_range(0..most_ms))).await;
}

/// What a process says of a vanished group or stream, at most in one second.
fn most_complaints_in_a_second(server: &Server) -> usize {
    let mut by_second: BTreeMap<String, usize> = BTreeMap::new();
    for line in server.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let text = line.to_string();
        if text.contains("NOGROUP") || text.contains("vanished") {
            let at = line["timestamp"].as_str().expect("a line has its time");
            *by_second.entry(at.split('.').next().unwrap_or(at).to_owned()).or_default() += 1;
        }
    }
    by_second.into_values().max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_a_killed_and_restarted_redis_leaves_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on_house("F05", 5, &[]) else { return };
    struck
        .survive(async |house: &mut House, moments| {
            house.ground.redis.kill();
            pause(moments, 1000).await;
            house.ground.redis.start_again();
        })
        .await;
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_redis_that_forgets_leaves_the_rows_of_a_run_without_and_nobody_storms() {
    let Some(mut struck) = Strikes::on_house("F06", 6, &[]) else { return };
    let mut kinds = 0;
    struck
        .survive(async |house: &mut House, moments| {
            let redis = &mut house.ground.redis;
            kinds += 1;
            match kinds % 3 {
                0 => assert_eq!(redis.ask::<String>(&["FLUSHALL"]), "OK"),
                1 => {
                    redis.kill();
                    pause(moments, 500).await;
                    redis.start_empty();
                }
                // As a Redis that evicts does it.
                _ => streams().for_each(|stream| assert!(redis.ask::<i64>(&["DEL", &stream]) <= 1)),
            }
        })
        .await;
    for server in struck.house.servers() {
        let most = most_complaints_in_a_second(server);
        assert!(most <= 1, "{most} complaints in a second");
    }
    struck.end();
}

/// What has come onto a stream since then: ids and fields.
fn entries(house: &House, stream: &str, since_ms: &str) -> Vec<(String, Vec<String>)> {
    house.ground.redis.ask(&["XRANGE", stream, since_ms, "+"])
}

/// Redis's time, which its ids begin with.
fn now_ms(house: &House) -> String {
    let (seconds, micros): (u64, u64) = house.ground.redis.ask(&["TIME"]);
    (seconds * 1000 + micros / 1000).to_string()
}

fn put(house: &House, stream: &str, fields: &[String]) {
    let command: Vec<&str> = ["XADD", stream, "*"].into_iter().chain(fields.iter().map(String::as_str)).collect();
    house.ground.redis.ask::<String>(&command);
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_entries_that_come_twice_and_in_another_order_leave_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on_house("F21", 3, &[]) else { return };
    let mut moved = 0;
    struck
        .survive(async |house: &mut House, moments| {
            // Whatever gathers while nobody stores it is dealt out again.
            house.keeps.signal("-STOP");
            let since = now_ms(house);
            tokio::time::sleep(Duration::from_millis(800)).await;
            for stream in streams() {
                let mut found = entries(house, &stream, &since);
                let again: Vec<_> = found.iter().filter(|_| moments.random_bool(0.3)).cloned().collect();
                found.extend(again);
                found.shuffle(moments);
                moved += found.len();
                for (id, fields) in &found {
                    house.ground.redis.ask::<i64>(&["XDEL", &stream, id]);
                    put(house, &stream, fields);
                }
            }
            house.keeps.signal("-CONT");
        })
        .await;
    println!("{moved} entries came in another order, some twice");
    assert!(moved > 0, "nothing gathered");
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_poison_on_the_bus_is_kept_with_its_error_and_trace_and_the_rest_goes_on() {
    let Some(mut struck) = Strikes::on_house("F22", 3, &[]) else { return };
    let mut poisons = 0u64;
    struck
        .survive(async |house: &mut House, moments| {
            for _ in 0..5 {
                let stream = format!("utterances:{{{}}}", moments.random_range(0..SHARDS));
                let trace = format!("00-{:032x}-{:016x}-01", 0xbad_0000 + poisons, 0xbad + poisons);
                let fields = ["key", "conv_poison", "payload", &format!("poison {poisons}"), "trace", &trace, "at", "1"].map(str::to_owned);
                put(house, &stream, &fields);
                poisons += 1;
            }
        })
        .await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let letters = "SELECT convert_from(payload, 'UTF8') || '|' || trace || '|' || error FROM dead_letters ORDER BY 1";
    let kept = loop {
        let kept = struck.house.ground.sql(letters);
        if kept.lines().count() as u64 >= poisons {
            break kept;
        }
        assert!(Instant::now() < deadline, "{poisons} poisons, and dead letters are {kept}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for n in 0..poisons {
        let of: Vec<&str> = kept.lines().filter(|line| line.starts_with(&format!("poison {n}|"))).collect();
        let [letter] = of[..] else { panic!("poison {n} has the letters {of:?}") };
        let mut parts = letter.splitn(3, '|').skip(1);
        let (trace, error) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        assert!(trace.contains(&format!("{:032x}", 0xbad_0000 + n)) && error.len() > 10, "{letter}");
    }
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_entries_trimmed_while_they_are_worked_on_are_missed_and_sent_again() {
    let Some(mut struck) = Strikes::on_house("F23", 2, &[]) else { return };
    let mut trimmed = 0;
    struck
        .survive(async |house: &mut House, _| {
            // They have read, and cannot store it for longer than they look after what they hold.
            let (postgres, database) = (house.ground.postgres, house.ground.database.clone());
            let held = "BEGIN; LOCK TABLE channels IN EXCLUSIVE MODE; SELECT pg_sleep(6); COMMIT";
            let holding = tokio::task::spawn_blocking(move || postgres.sql(&database, held));
            tokio::time::sleep(Duration::from_millis(900)).await;
            for stream in streams() {
                trimmed += house.ground.redis.ask::<i64>(&["XTRIM", &stream, "MAXLEN", "0"]);
            }
            holding.await.unwrap();
        })
        .await;
    let lost = "quickcomm_bus_lost_total";
    let told = struck.house.keeps.metric(lost).await + struck.house.understands.metric(lost).await;
    println!("{trimmed} entries were trimmed, {told} of them while they were worked on, and that was told");
    assert!(trimmed > 0 && told > 0.0, "nothing was there to be trimmed, or nobody missed it");
    struck.end();
}
