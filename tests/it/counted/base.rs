//! The database under counted calls: killed, and lost for good.

use super::{
    CALLS, Strikes,
    house::{Callers, House},
    open,
};
use crate::support::{
    eventually,
    faults::{Tally, times},
    ground::Ground,
    postgres::Postgres,
};
use rand::Rng;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn f10_a_killed_and_restarted_postgresql_leaves_the_rows_of_a_run_without() {
    let Some(mut struck) = Strikes::on("F10", 5, Ground::lay_alone(), &[]) else { return };
    struck
        .survive(async |house: &mut House, moments| {
            let away = Duration::from_millis(moments.random_range(0..1000));
            let postgres = house.ground.postgres;
            tokio::task::block_in_place(|| postgres.kill());
            tokio::time::sleep(away).await;
            tokio::task::block_in_place(|| postgres.start_again());
        })
        .await;
    struck.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_promoted_standby_that_lacked_rows_has_the_rows_of_a_run_without() {
    // Each time there is a primary to be lost, a standby and a house of their own: a tenth as often as others.
    let mut tally = Tally::of("F11", times(1).div_ceil(10));
    while !tally.is_whole() {
        let Some(ground) = Ground::lay_alone() else { return };
        lose_the_primary(ground).await;
        tally.survived(1);
    }
}

async fn lose_the_primary(ground: Ground) {
    let standby: &'static Postgres = Box::leak(Box::new(ground.postgres.standby()));
    let host = |server: &Postgres| server.socket().display().to_string().replace('/', "%2F");
    let both = format!("postgres://postgres@{},{}/{}", host(ground.postgres), host(standby), ground.database);
    let settings = [("QUICKCOMM_API__RECORD__URL", both.as_str()), ("QUICKCOMM_AUDIO__INGEST__LOOK_AGAIN_MS", "10000")];
    let (house, mut scene) = open(ground, &settings);
    scene.tables.postgres = standby;
    let (primary, database) = (house.ground.postgres, house.ground.database.clone());
    let rows = |server: &Postgres| server.sql(&database, "SELECT count(*) FROM segments").parse::<u64>().unwrap();
    let fault = async |callers: &Callers| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
        standby.sql("postgres", "SELECT pg_reload_conf()");
        let stopped = "SELECT count(*) FROM pg_stat_wal_receiver";
        eventually("the standby follows no more", Duration::from_secs(10), async || {
            (standby.sql("postgres", stopped) == "0").then_some(())
        })
        .await;
        // The standby will never have heard of these: one goes on, and one is over when the primary dies.
        let late = callers.long(CALLS);
        let over = callers.brief(CALLS + 1, Duration::from_secs(3)).await;
        let closed = "SELECT count(*) FROM conversations WHERE finalization = 'done'";
        eventually("a call is over", Duration::from_secs(30), async || (primary.sql(&database, closed) == "1").then_some(())).await;
        let behind = async || (rows(primary) >= rows(standby) + 10).then(|| (rows(primary), rows(standby)));
        let (had, has) = eventually("rows are committed that the standby lacks", Duration::from_secs(30), behind).await;
        tokio::task::block_in_place(|| primary.kill());
        println!("the primary died with {had} segments, the standby had {has}");
        tokio::task::block_in_place(|| standby.promote());
        tokio::time::sleep(Duration::from_secs(3)).await;
        vec![late, over]
    };
    scene.plays(CALLS, fault).await;
    house.stop();
    standby.kill();
}
