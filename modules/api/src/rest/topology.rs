//! Where modules run and how they do there; and the dial, turned by the dashboard.

use super::{
    origin,
    params::Params,
    problem::{Problem, ProblemDocument},
};
use crate::admin::{Status, routes, topology::Topology};
use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};

/// Modules, dials, targets, hops against their limits, and what holds the others up.
#[utoipa::path(get, path = "/v1/admin/topology", tag = "admin", operation_id = "get_topology", responses((status = 200, body = Topology)))]
pub(crate) async fn topology(request: HttpRequest, status: web::Data<Status>) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    Ok(HttpResponse::Ok().json(Topology::of(&status)))
}

/// Turns a module's dial: what is given changes, the rest stays.
///
/// `mode` (local, remote, routed), `remote_percent`, `shadow_percent`; or `step` (forward, back); or `undo`. `move_live` asks live streams to
/// move, `dry_run` only checks, `version` refuses the turn unless it is the one that is changed. `by` (80 characters) and `reason` (300) are
/// told with the change, as they are said. Pages of another origin are refused.
#[utoipa::path(put, path = "/v1/admin/routes/{module}", tag = "admin", operation_id = "turn_route",
    params(("module" = String, Path, description = "`audio`, `inference` or `api`.")),
    request_body(content = serde_json::Value, content_type = "application/json"),
    responses((status = 200, description = "What it did, or would do.", body = serde_json::Value),
        (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A target that is not reachable, or another version.", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn turn(
    request: HttpRequest,
    status: web::Data<Status>,
    module: web::Path<String>,
    body: web::Bytes,
) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    if !origin::is_own(&request) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden_origin", "the dial is only turned by pages of this very address"));
    }
    routes::apply(&status, &module, &body).await
}
