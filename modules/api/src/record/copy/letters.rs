//! Dead letters, which belong to no conversation: they travel by themselves, the changed ones again.

use super::{Fit, ROWS, in_time};
use crate::record::{
    postgres::PgConn,
    schema::dead_letters,
    store::{self, Conn, StoreError, on_conn},
};
use chrono::NaiveDateTime;
use contracts::CallError;
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, Insertable, QueryDsl as _, Queryable, RunQueryDsl as _, Selectable,
    SelectableHelper as _,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::time::Instant;

#[derive(Clone, Debug, Queryable, Selectable, Insertable, Serialize)]
#[diesel(table_name = dead_letters, treat_none_as_default_value = false)]
struct LetterCopy {
    tenant_id: String,
    id: String,
    stream: String,
    entry_key: String,
    payload: Vec<u8>,
    error: String,
    attempts: i64,
    trace: String,
    version: String,
    died_at: NaiveDateTime,
    replayed_at: Option<NaiveDateTime>,
}

type Key = (String, String);

impl LetterCopy {
    fn key(&self) -> Key {
        (self.tenant_id.clone(), self.id.clone())
    }
}

/// The next ones in key order; with `since` only those that died or were put back at or after.
fn next(conn: &mut Conn, after: &Key, since: Option<NaiveDateTime>) -> Result<Vec<LetterCopy>, StoreError> {
    let mut letters: Vec<LetterCopy> = on_conn!(conn, |c: B| {
        let (tenant, id) = after;
        let mut query = dead_letters::table
            .filter(dead_letters::tenant_id.gt(tenant).or(dead_letters::tenant_id.eq(tenant).and(dead_letters::id.gt(id))))
            .order((dead_letters::tenant_id, dead_letters::id))
            .limit(ROWS as i64)
            .select(LetterCopy::as_select())
            .into_boxed::<B>();
        if let Some(since) = since {
            query = query.filter(dead_letters::died_at.ge(since).or(dead_letters::replayed_at.ge(since)));
        }
        query.load(c)?
    });
    for letter in &mut letters {
        letter.died_at.fit();
        letter.replayed_at.fit();
    }
    Ok(letters)
}

/// Copies those that have changed.
pub(super) fn catch_up(
    source: &mut Conn,
    target: &mut Conn,
    since: Option<NaiveDateTime>,
    give_up: Option<Instant>,
) -> Result<(), StoreError> {
    let mut after = Key::default();
    loop {
        in_time(give_up)?;
        let letters = next(source, &after, since)?;
        let Some(last) = letters.last() else { return Ok(()) };
        after = last.key();
        store::begin_write(target)?;
        let Conn::Postgres(c) = &mut *target else { unreachable!("the target is a server") };
        let c: &mut PgConn = c;
        for letter in &letters {
            diesel::delete(dead_letters::table.find((&letter.tenant_id, &letter.id))).execute(c)?;
        }
        diesel::insert_into(dead_letters::table).values(&letters).execute(c)?;
        store::commit(target)?;
    }
}

/// One by one, in key order. Returns how many there are, and adds them to the checksum.
pub(super) fn compare(source: &mut Conn, target: &mut Conn, digest: &mut Sha256, until: Instant) -> Result<u64, StoreError> {
    let (mut after, mut count) = (Key::default(), 0);
    loop {
        in_time(Some(until))?;
        let [ours, theirs] = [next(source, &after, None)?, next(target, &after, None)?];
        let text = |letters: &[LetterCopy]| serde_json::to_vec(letters).expect("rows are text and numbers");
        if text(&ours) != text(&theirs) {
            let of = |letters: &[LetterCopy]| letters.first().map_or_else(|| "there are none".into(), |letter| letter.id.clone());
            let detail = format!("the copy differs from the record in the dead letters from {} ({}) on", of(&ours), of(&theirs));
            return Err(CallError::conflict(detail).into());
        }
        let Some(last) = ours.last() else { return Ok(count) };
        after = last.key();
        count += ours.len() as u64;
        digest.update(text(&ours));
    }
}
