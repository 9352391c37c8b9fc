//! What this process says of itself, as on the admin port.

use super::{params::Params, problem::Problem};
use crate::admin::{Status, StatusReport};
use actix_web::{HttpRequest, HttpResponse, web};

/// Modules, tiers and load of this process.
#[utoipa::path(get, path = "/v1/admin/status", tag = "admin", operation_id = "get_status", responses((status = 200, body = StatusReport)))]
pub(crate) async fn status(request: HttpRequest, status: web::Data<Status>) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    Ok(HttpResponse::Ok().json(status.report()))
}
