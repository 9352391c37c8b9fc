//! Numbers that the record keeps about itself, by name. They belong to the database, not to a tenant.

use super::{
    schema::bookkeeping,
    store::{Conn, StoreError, on_conn},
};
use chrono::Utc;
use diesel::{ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, RunQueryDsl as _};

const EVERYONE: &str = "";

pub(super) fn read(conn: &mut Conn, name: &str) -> Result<Option<i64>, StoreError> {
    on_conn!(conn, |c: B| Ok(bookkeeping::table.find((EVERYONE, name)).select(bookkeeping::value).first(c).optional()?))
}

pub(super) fn note(conn: &mut Conn, name: &str, value: i64) -> Result<(), StoreError> {
    let now = Utc::now().naive_utc();
    on_conn!(conn, |c: B| {
        diesel::insert_into(bookkeeping::table)
            .values((
                bookkeeping::tenant_id.eq(EVERYONE),
                bookkeeping::name.eq(name),
                bookkeeping::value.eq(value),
                bookkeeping::updated_at.eq(now),
            ))
            .on_conflict((bookkeeping::tenant_id, bookkeeping::name))
            .do_update()
            .set((bookkeeping::value.eq(value), bookkeeping::updated_at.eq(now)))
            .execute(c)?
    });
    Ok(())
}
