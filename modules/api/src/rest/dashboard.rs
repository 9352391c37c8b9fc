//! The dashboard's files, built from `static/` and carried in the binary.
//!
//! A build without Node has no files; a page then says how to get them. In a debug build files are read from the disk at every request.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
};
use rust_embed::{EmbeddedFile, RustEmbed};

/// Everything from this server, nothing inline: text that a caller made us show cannot run. Microphone and worklets are for Try it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; \
    media-src 'self' blob:; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const PERMISSIONS: &str = "microphone=(self), camera=(), geolocation=(), payment=(), usb=()";
const PAGE: &str = "index.html";

const NOT_BUILT: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>QuickComm</title></head>\n<body>\n\
    <h1>QuickComm is running</h1>\n<p>This binary was built without its dashboard. Stop it and run <code>make run</code>, which builds both.</p>\n\
    <p>The API works: <a href=\"/docs/\">/docs</a>.</p>\n</body></html>\n";

#[derive(RustEmbed)]
#[folder = "../../static/dist"]
#[allow_missing = true]
struct Files;

/// A file, or the page for any other address a browser wants to see. `None`: there is nothing.
pub(crate) fn answer(request: &HttpRequest) -> Option<HttpResponse> {
    let path = request.path().trim_start_matches('/');
    let name = if path.is_empty() { PAGE } else { path };
    if let Some(file) = Files::get(name) {
        return Some(send(request, name, &file));
    }
    let accepts = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if !path.is_empty() && !accepts.contains("text/html") {
        return None;
    }
    Some(match Files::get(PAGE) {
        Some(file) => send(request, PAGE, &file),
        None => {
            HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).content_type("text/html; charset=utf-8").body(NOT_BUILT)
        }
    })
}

fn send(request: &HttpRequest, name: &str, file: &EmbeddedFile) -> HttpResponse {
    // Weak, because the same file may travel compressed.
    let tag = format!("W/\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    // A name under assets/ carries the hash of its content: it never means anything else.
    let cache = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let mut answer = if is_known(request, &tag) { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((header::CACHE_CONTROL, cache)).insert_header((header::ETAG, tag.as_str()));
    if name.ends_with(".html") {
        answer.insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)));
        answer.insert_header(("permissions-policy", PERMISSIONS));
    }
    if is_known(request, &tag) {
        return answer.finish();
    }
    answer.content_type(media_type(name, file)).body(file.data.clone().into_owned())
}

pub(crate) fn is_known(request: &HttpRequest, tag: &str) -> bool {
    let asked = request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    asked.split(',').any(|one| one.trim() == tag || one.trim() == "*")
}

fn media_type(name: &str, file: &EmbeddedFile) -> String {
    let guessed = file.metadata.mimetype();
    match name.rsplit('.').next() {
        Some("js" | "mjs") => "text/javascript; charset=utf-8".into(),
        Some("map") => "application/json".into(),
        _ if guessed.starts_with("text/") => format!("{guessed}; charset=utf-8"),
        _ => guessed.into(),
    }
}
