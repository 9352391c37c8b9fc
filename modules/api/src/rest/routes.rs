//! The table of routes, and what answers where there is none.

use super::{conversations, dashboard, edge::edge, export, openapi, problem::Problem, search, status, summary};
use crate::live;
use actix_web::{
    HttpRequest, HttpResponse, Route, guard,
    http::{Method, StatusCode},
    middleware::{Compress, from_fn},
    web,
};

const READ_ONLY: &str = "GET, HEAD";

/// Everything that is registered, by path. All of it only reads.
pub(crate) fn table() -> Vec<(&'static str, Route)> {
    vec![
        ("/v1/conversations", read().to(conversations::list)),
        ("/v1/conversations/{id}", read().to(conversations::one)),
        ("/v1/conversations/{id}/utterances", read().to(conversations::utterances)),
        ("/v1/conversations/{id}/insights", read().to(conversations::insights)),
        ("/v1/conversations/{id}/metrics", read().to(conversations::metrics)),
        ("/v1/conversations/{id}/summary", read().to(summary::summary)),
        ("/v1/conversations/{id}/export", read().to(export::export)),
        ("/v1/search", read().to(search::search)),
        ("/v1/admin/status", read().to(status::status)),
        ("/v1/live", web::get().to(live::live)),
        ("/openapi.json", read().to(openapi::document)),
        ("/docs", read().to(openapi::to_docs)),
        ("/docs/{file:.*}", read().to(openapi::docs)),
    ]
}

pub(crate) fn register(app: &mut web::ServiceConfig) {
    for (path, route) in table() {
        let resource = web::resource(path).route(route).default_service(web::to(wrong_method));
        app.service(resource.wrap(Compress::default()).wrap(from_fn(edge)));
    }
    app.default_service(web::to(elsewhere).wrap(Compress::default()).wrap(from_fn(edge)));
}

fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

async fn wrong_method(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(not_here(&request))
}

fn not_here(request: &HttpRequest) -> Problem {
    let method: String = request.method().as_str().chars().take(16).collect();
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{method} is not answered here: expected {READ_ONLY}"))
        .allowing(READ_ONLY)
}

/// A path that nobody registered: a file of the dashboard, one of its pages, or nothing.
async fn elsewhere(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let path = request.path();
    let is_page = !["/v1", "/admin", "/docs", "/openapi"].iter().any(|api| path == *api || path.starts_with(&format!("{api}/")));
    if is_page && let Some(file) = dashboard::answer(&request) {
        return match *request.method() {
            Method::GET | Method::HEAD => Ok(file),
            _ => Err(not_here(&request)),
        };
    }
    let path: String = path.chars().take(128).collect();
    Err(Problem::not_found(format!("nothing answers {path:?}: /openapi.json lists what there is")))
}
