//! Conversations: the list, one of them, and what belongs to it.

use super::{
    Caller, HasRecording, cached,
    params::{self, Params},
    problem::{Problem, ProblemDocument},
};
use crate::record::{ConversationFilter, ConversationRow, InsightRow, Page, Record, TalkMetrics, UtteranceRow};
use actix_web::{HttpRequest, HttpResponse, web};
use contracts::{conversation::ConversationState, inference::Task};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What handlers stand on.
pub(crate) struct Reads {
    pub(crate) record: Arc<Record>,
    pub(crate) has_recording: HasRecording,
}

impl Reads {
    pub(crate) fn complete(&self, mut row: ConversationRow) -> ConversationRow {
        row.recording = (self.has_recording)(row.id);
        row
    }
}

/// All of a conversation's insights.
#[derive(Serialize, ToSchema)]
pub struct Insights {
    pub data: Vec<InsightRow>,
}

/// Conversations, newest first.
#[utoipa::path(get, path = "/v1/conversations", tag = "conversations", operation_id = "list_conversations",
    params(
        ("state" = Option<String>, Query, description = "`live`, `complete` or `abandoned`."),
        ("from" = Option<String>, Query, description = "Started at or after this time (RFC 3339)."),
        ("to" = Option<String>, Query, description = "Started before this time (RFC 3339)."),
        ("tag" = Option<String>, Query, description = "Carries this tag."),
        ("intent" = Option<String>, Query, description = "Name of the intent that its customer's turns add up to."),
        ("sentiment" = Option<String>, Query, description = "Name of the customer's latest sentiment."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("limit" = Option<u32>, Query, description = "1 to 200; default 50.", minimum = 1, maximum = 200)),
    responses((status = 200, body = Page<ConversationRow>), (status = 400, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn list(request: HttpRequest, caller: Caller, reads: web::Data<Reads>) -> Result<HttpResponse, Problem> {
    let mut params = Params::read(&request, &["state", "from", "to", "tag", "intent", "sentiment", "cursor", "limit"]);
    let filter = ConversationFilter {
        state: params.one_of("state", &ConversationState::ALL, ConversationState::name),
        from: params.time("from"),
        to: params.time("to"),
        tag: params.text("tag"),
        intent: params.text("intent"),
        sentiment: params.text("sentiment"),
    };
    let cut = params.cut();
    params.done()?;
    reads.list(&caller.tenant, &filter, &cut, cached::at_least(&request)?).await
}

/// One conversation.
#[utoipa::path(get, path = "/v1/conversations/{id}", tag = "conversations", operation_id = "get_conversation",
    params(("id" = String, Path, description = "`conv_…`")),
    responses((status = 200, body = ConversationRow), (status = 404, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn one(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    reads.one(&caller.tenant, params::id(&id)?, cached::at_least(&request)?).await
}

/// What was said, by start; gaps are among it.
#[utoipa::path(get, path = "/v1/conversations/{id}/utterances", tag = "conversations", operation_id = "list_utterances",
    params(
        ("id" = String, Path, description = "`conv_…`"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("limit" = Option<u32>, Query, description = "1 to 200; default 50.", minimum = 1, maximum = 200)),
    responses((status = 200, body = Page<UtteranceRow>), (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn utterances(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
) -> Result<HttpResponse, Problem> {
    let mut params = Params::read(&request, &["cursor", "limit"]);
    let cut = params.cut();
    params.done()?;
    reads.utterances(&caller.tenant, params::id(&id)?, &cut, cached::at_least(&request)?).await
}

/// What was understood, oldest first.
#[utoipa::path(get, path = "/v1/conversations/{id}/insights", tag = "conversations", operation_id = "list_insights",
    params(
        ("id" = String, Path, description = "`conv_…`"),
        ("task" = Option<String>, Query, description = "`intent` or `sentiment`; all when not given."),
        ("superseded" = Option<bool>, Query, description = "Whether insights that newer ones have replaced are included; default false.")),
    responses((status = 200, body = Insights), (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn insights(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
) -> Result<HttpResponse, Problem> {
    let mut params = Params::read(&request, &["task", "superseded"]);
    let task = params.one_of("task", &Task::ALL, Task::name);
    let superseded = params.flag("superseded").unwrap_or(false);
    params.done()?;
    reads.insights(&caller.tenant, params::id(&id)?, superseded, task, cached::at_least(&request)?).await
}

/// Who talked how much.
#[utoipa::path(get, path = "/v1/conversations/{id}/metrics", tag = "conversations", operation_id = "get_talk_metrics",
    params(("id" = String, Path, description = "`conv_…`")),
    responses((status = 200, body = TalkMetrics), (status = 404, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn metrics(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    Ok(HttpResponse::Ok().json(reads.record.metrics(&caller.tenant, params::id(&id)?).await?))
}
