//! The table of routes, and what answers where there is none.

use super::{conversations, dashboard, edge::edge, export, openapi, problem::Problem, search, status, summary, topology};
use crate::live;
use actix_web::{
    HttpRequest, HttpResponse, Route, guard,
    http::{Method, StatusCode},
    middleware::{Compress, from_fn},
    web,
};
use std::future::ready;

const READ_ONLY: &str = "GET, HEAD";

/// Everything that is registered, by path, with the methods it answers. All of it only reads, but for the dials.
pub(crate) fn table() -> Vec<(&'static str, &'static str, Route)> {
    vec![
        ("/v1/conversations", READ_ONLY, read().to(conversations::list)),
        ("/v1/conversations/{id}", READ_ONLY, read().to(conversations::one)),
        ("/v1/conversations/{id}/utterances", READ_ONLY, read().to(conversations::utterances)),
        ("/v1/conversations/{id}/insights", READ_ONLY, read().to(conversations::insights)),
        ("/v1/conversations/{id}/metrics", READ_ONLY, read().to(conversations::metrics)),
        ("/v1/conversations/{id}/summary", READ_ONLY, read().to(summary::summary)),
        ("/v1/conversations/{id}/export", READ_ONLY, read().to(export::export)),
        ("/v1/search", READ_ONLY, read().to(search::search)),
        ("/v1/admin/status", READ_ONLY, read().to(status::status)),
        ("/v1/admin/topology", READ_ONLY, read().to(topology::topology)),
        ("/v1/admin/routes/{module}", "PUT", web::put().to(topology::turn)),
        ("/v1/live", READ_ONLY, web::get().to(live::live)),
        ("/openapi.json", READ_ONLY, read().to(openapi::document)),
        ("/docs", READ_ONLY, read().to(openapi::to_docs)),
        ("/docs/{file:.*}", READ_ONLY, read().to(openapi::docs)),
    ]
}

pub(crate) fn register(app: &mut web::ServiceConfig) {
    for (path, methods, route) in table() {
        let wrong_method = move |request: HttpRequest| ready(Err::<HttpResponse, _>(not_here(&request, methods)));
        let resource = web::resource(path).route(route).default_service(web::to(wrong_method));
        app.service(resource.wrap(Compress::default()).wrap(from_fn(edge)));
    }
    app.default_service(web::to(elsewhere).wrap(Compress::default()).wrap(from_fn(edge)));
}

fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn not_here(request: &HttpRequest, methods: &'static str) -> Problem {
    let method: String = request.method().as_str().chars().take(16).collect();
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{method} is not answered here: expected {methods}"))
        .allowing(methods)
}

/// A path that nobody registered: a file of the dashboard, one of its pages, or nothing.
async fn elsewhere(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let path = request.path();
    let is_page = !["/v1", "/admin", "/docs", "/openapi"].iter().any(|api| path == *api || path.starts_with(&format!("{api}/")));
    if is_page && let Some(file) = dashboard::answer(&request) {
        return match *request.method() {
            Method::GET | Method::HEAD => Ok(file),
            _ => Err(not_here(&request, READ_ONLY)),
        };
    }
    let path: String = path.chars().take(128).collect();
    Err(Problem::not_found(format!("nothing answers {path:?}: /openapi.json lists what there is")))
}
