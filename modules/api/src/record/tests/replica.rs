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
