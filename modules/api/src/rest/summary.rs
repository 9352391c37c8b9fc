//! A conversation in a few sentences, each with the words it rests on.

use super::{
    Caller,
    conversations::Reads,
    params::{self, Params},
    problem::{Problem, ProblemDocument},
};
use crate::record::{Quality, SummaryRow, UtteranceKind, UtteranceRow};
use actix_web::{HttpRequest, HttpResponse, web};
use contracts::{
    ConversationId, Inference,
    inference::{Summarize, SummaryItem},
};
use futures::TryStreamExt;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use utoipa::ToSchema;

/// A summary that takes longer is of no use to whoever waits for the page.
const BUDGET: Duration = Duration::from_secs(10);

pub(crate) struct Summaries(pub(crate) Arc<dyn Inference>);

#[derive(Serialize, ToSchema)]
pub struct Summary {
    pub items: Vec<SummaryRow>,
    /// Null as long as the result is not published: then this is what the conversation comes to so far.
    #[schema(required)]
    pub quality: Option<Quality>,
}

/// Why they called, what was promised, how it ended.
#[utoipa::path(get, path = "/v1/conversations/{id}/summary", tag = "conversations", operation_id = "summarize_conversation",
    params(("id" = String, Path, description = "`conv_…`")),
    responses((status = 200, body = Summary), (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn summary(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
    summaries: web::Data<Summaries>,
) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    let id: ConversationId = params::id(&id)?;
    if let Some(result) = reads.record.result(&caller.tenant, id).await? {
        return Ok(HttpResponse::Ok().json(Summary { items: result.summary, quality: Some(result.quality) }));
    }
    let rows = reads.record.transcript(&caller.tenant, id).await?;
    let utterances = rows.iter().filter(|row| row.kind == UtteranceKind::Speech).map(UtteranceRow::utterance).collect();
    let cx = caller.cx(BUDGET).for_conversation(id);
    let asked =
        async { summaries.0.summarize(cx, Summarize { conversation: id, utterances }).await?.try_collect::<Vec<SummaryItem>>().await };
    let items = tokio::time::timeout(BUDGET, asked).await.unwrap_or_else(|_| Err(contracts::CallError::deadline()))?;
    Ok(HttpResponse::Ok().json(Summary { items: items.into_iter().map(SummaryRow::from).collect(), quality: None }))
}
