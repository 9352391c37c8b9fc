//! Dead letters over the admin port: what was given up, and putting it back.
//!
//! Payloads hold what was said: one is shown only by its id, and none is logged.

use super::{Status, no_store};
use crate::{record::Record, rest::Problem};
use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use contracts::{TenantId, TraceCx};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Deserialize)]
pub(super) struct Which {
    /// Also what has been replayed.
    #[serde(default)]
    all: bool,
}

/// One of the list, without its payload.
#[derive(Serialize)]
struct Listed {
    id: String,
    stream: String,
    key: String,
    bytes: usize,
    error: String,
    attempts: u32,
    trace_id: String,
    died_at: chrono::DateTime<chrono::Utc>,
    replayed_at: Option<chrono::DateTime<chrono::Utc>>,
}

/// `GET /admin/dead-letters?all=true`: newest first.
pub(super) async fn list(request: HttpRequest, status: web::Data<Status>, which: web::Query<Which>) -> HttpResponse {
    let listed = async {
        let rows = record(&status)?.dead_letters(&TenantId::default(), which.all).await?;
        let listed = rows.into_iter().map(|row| Listed {
            id: row.id,
            bytes: row.letter.payload.len(),
            trace_id: row.letter.trace.trace_id_hex(),
            stream: row.letter.stream,
            key: row.letter.key,
            error: row.letter.error,
            attempts: row.letter.attempts,
            died_at: row.died_at,
            replayed_at: row.replayed_at,
        });
        Ok::<_, Problem>(serde_json::json!({ "data": listed.collect::<Vec<_>>() }))
    };
    answer(&request, listed.await)
}

/// `GET /admin/dead-letters/{id}`: whole, its payload in hexadecimal.
pub(super) async fn show(request: HttpRequest, status: web::Data<Status>, id: web::Path<String>) -> HttpResponse {
    let shown = async { Ok::<_, Problem>(record(&status)?.dead_letter(&TenantId::default(), &id).await?) };
    answer(&request, shown.await)
}

/// `POST /admin/dead-letters/{id}/replay`: back on its stream, once.
pub(super) async fn replay(request: HttpRequest, status: web::Data<Status>, id: web::Path<String>) -> HttpResponse {
    let replayed = async {
        // Operators' tools name no origin; a page somebody has open beside it does.
        if request.headers().contains_key(header::ORIGIN) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden_origin", "nothing is replayed from web pages on this port"));
        }
        Ok::<_, Problem>(record(&status)?.replay(&TenantId::default(), &id).await?)
    };
    answer(&request, replayed.await)
}

fn record(status: &Status) -> Result<Arc<Record>, Problem> {
    status.record().ok_or_else(|| Problem::not_found("this process keeps no record; ask the one with the api role"))
}

fn answer<T: Serialize>(request: &HttpRequest, outcome: Result<T, Problem>) -> HttpResponse {
    match outcome {
        Ok(body) => HttpResponse::Ok().insert_header(no_store()).json(body),
        Err(problem) => problem.answer(request.path(), TraceCx::root().trace_id_hex()),
    }
}
