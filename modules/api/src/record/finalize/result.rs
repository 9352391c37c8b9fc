//! What a conversation came to, for readers and for the webhook.

use crate::record::{
    conversations,
    rows::{ResultRow, SummaryRow},
    schema::results,
    store::{Conn, StoreError, on_conn},
};
use chrono::NaiveDateTime;
use contracts::{ConversationId, TenantId, inference::SummaryItem};
use diesel::{OptionalExtension as _, QueryDsl as _, RunQueryDsl as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What the webhook is told, as it stays for every try. The id follows from the result: told twice, it is one event.
pub(super) fn event(conn: &mut Conn, tenant: &TenantId, id: ConversationId, now: NaiveDateTime) -> Result<Value, StoreError> {
    let conversation = conversations::row(conn, tenant, id)?;
    let result = result(conn, tenant, id)?.ok_or_else(|| StoreError::damaged("result of", id))?;
    let named = Sha256::digest(format!("{tenant}\n{id}\n{}", result.version));
    let event = format!("evt_{}", hex::encode(&named[..16]));
    let body = json!({
        "id": event, "type": "conversation.finalized", "created_at": now.and_utc(),
        "data": { "conversation": conversation, "result": result },
    });
    // As text: its signature is over these very bytes.
    Ok(json!({ "event": event, "body": body.to_string(), "since": now.and_utc() }))
}

pub(super) fn result(conn: &mut Conn, tenant: &TenantId, id: ConversationId) -> Result<Option<ResultRow>, StoreError> {
    let found: Option<(i64, String, Value, NaiveDateTime)> = on_conn!(conn, |c: B| {
        results::table
            .find((tenant.as_str(), id.to_string()))
            .select((results::version, results::quality, results::summary, results::updated_at))
            .first(c)
            .optional()?
    });
    let Some((version, quality, summary, at)) = found else { return Ok(None) };
    let damaged = |e: serde_json::Error| StoreError::damaged("result of a conversation", e);
    let items: Vec<SummaryItem> = serde_json::from_value(summary).map_err(damaged)?;
    Ok(Some(ResultRow {
        version: version as u64,
        quality: serde_json::from_value(Value::String(quality)).map_err(damaged)?,
        summary: items.into_iter().map(SummaryRow::from).collect(),
        published_at: at.and_utc(),
    }))
}
