//! Search in what was said.

use super::{
    Caller,
    conversations::Reads,
    params::Params,
    problem::{Problem, ProblemDocument},
};
use crate::record::{Page, SearchFilter, SearchHit};
use actix_web::{HttpRequest, HttpResponse, web};
use contracts::{audio::Role, conversation::ConversationState};

/// Longer questions are no questions.
const MAX_QUERY_CHARS: usize = 512;

/// Utterances with these words, newest first. Every word must occur; the last one may be a beginning.
#[utoipa::path(get, path = "/v1/search", tag = "search", operation_id = "search",
    params(
        ("q" = String, Query, description = "The words; at most 512 characters."),
        ("role" = Option<String>, Query, description = "Who said it: `agent`, `customer` or `unknown`."),
        ("state" = Option<String>, Query, description = "The conversation is `live`, `complete` or `abandoned`."),
        ("from" = Option<String>, Query, description = "The conversation started at or after this time (RFC 3339)."),
        ("to" = Option<String>, Query, description = "The conversation started before this time (RFC 3339)."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("limit" = Option<u32>, Query, description = "1 to 200; default 50.", minimum = 1, maximum = 200)),
    responses((status = 200, body = Page<SearchHit>), (status = 400, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn search(request: HttpRequest, caller: Caller, reads: web::Data<Reads>) -> Result<HttpResponse, Problem> {
    let mut params = Params::read(&request, &["q", "role", "state", "from", "to", "cursor", "limit"]);
    let q = params.text("q").filter(|q| !q.trim().is_empty());
    match &q {
        None => params.fault("q", "required", "q is missing: expected the words to look for".into()),
        Some(q) if q.chars().count() > MAX_QUERY_CHARS => {
            params.fault("q", "too_long", format!("q is longer than {MAX_QUERY_CHARS} characters"));
        }
        Some(_) => {}
    }
    let role = params.one_of("role", &[Role::Agent, Role::Customer, Role::Unknown], Role::name);
    let state = params.one_of("state", &ConversationState::ALL, ConversationState::name);
    let filter = SearchFilter { role, state, from: params.time("from"), to: params.time("to") };
    let cut = params.cut();
    params.done()?;
    let page = reads.record.search(&caller.tenant, &q.unwrap_or_default(), &filter, &cut).await?;
    Ok(HttpResponse::Ok().json(page))
}
