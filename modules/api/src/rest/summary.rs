//! A conversation in a few sentences, each with the words it rests on.

use super::{
    Caller,
    conversations::Reads,
    params::{self, Params},
    problem::{Problem, ProblemDocument},
};
use crate::record::{EvidenceRow, UtteranceKind, UtteranceRow};
use actix_web::{HttpRequest, HttpResponse, web};
use contracts::{
    ConversationId, Inference,
    inference::{Summarize, SummaryItem, SummaryKind},
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
}

/// One sentence of a summary.
#[derive(Serialize, ToSchema)]
#[schema(as = SummaryItem)]
pub struct SummaryRow {
    /// `reason`: why they called; `action`: what was promised; `outcome`: how it ended.
    #[schema(example = "reason")]
    pub kind: &'static str,
    pub text: String,
    /// The words it rests on.
    pub evidence: Vec<EvidenceRow>,
    /// What wrote it.
    #[schema(example = "rules")]
    pub tier: &'static str,
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
    let rows = reads.record.transcript(&caller.tenant, id).await?;
    let utterances = rows.iter().filter(|row| row.kind == UtteranceKind::Speech).map(UtteranceRow::utterance).collect();
    let cx = caller.cx(BUDGET).for_conversation(id);
    let asked =
        async { summaries.0.summarize(cx, Summarize { conversation: id, utterances }).await?.try_collect::<Vec<SummaryItem>>().await };
    let items = tokio::time::timeout(BUDGET, asked).await.unwrap_or_else(|_| Err(contracts::CallError::deadline()))?;
    Ok(HttpResponse::Ok().json(Summary { items: items.into_iter().map(row).collect() }))
}

fn row(item: SummaryItem) -> SummaryRow {
    let evidence = item.evidence.into_iter();
    SummaryRow {
        kind: match item.kind {
            SummaryKind::Reason => "reason",
            SummaryKind::Action => "action",
            SummaryKind::Outcome => "outcome",
        },
        text: item.text,
        evidence: evidence.map(|e| EvidenceRow { utterance_id: e.utterance, word_from: e.word_from, word_to: e.word_to }).collect(),
        tier: item.tier.name(),
    }
}
