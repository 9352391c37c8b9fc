//! The OpenAPI document, made from the handlers, and Swagger UI to read it with.

use super::{
    conversations, dashboard, export,
    params::Params,
    problem::{Problem, ProblemDocument},
    search, status, summary, topology,
};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use sha2::{Digest, Sha256};
use std::sync::{Arc, LazyLock};
use utoipa::OpenApi;
use utoipa_swagger_ui::Config;

/// Swagger UI styles itself inline; its scripts come from here.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "QuickComm",
        description = "Live conversations as text, meaning and a live picture. Times in ms count from a conversation's first sample; dates are \
            RFC 3339. Errors are problem documents (RFC 9457); an unknown query parameter is an error.",
        license(name = "MIT", identifier = "MIT")
    ),
    paths(
        conversations::list,
        conversations::one,
        conversations::utterances,
        conversations::insights,
        conversations::metrics,
        summary::summary,
        export::export,
        search::search,
        status::status,
        topology::topology,
        topology::turn,
        live,
        stream,
        listen,
        transcribe,
        recording
    ),
    components(schemas(ProblemDocument)),
    tags(
        (name = "conversations", description = "What was said and what it meant."),
        (name = "search", description = "Find what was said."),
        (name = "audio", description = "Sound in, sound out."),
        (name = "live", description = "What happens, as it happens."),
        (name = "admin", description = "How the process is doing.")
    )
)]
struct Document;

/// The live feed (WebSocket).
///
/// Say `{"type":"hello","protocol":1}`, then `{"type":"subscribe","topic":"wall"}` or `{"type":"subscribe","topic":"conversation:conv_…"}`;
/// a snapshot comes first, numbered events continue it. Resume with `since_seq` and `epoch`.
#[utoipa::path(get, path = "/v1/live", tag = "live", operation_id = "live_feed",
    responses((status = 101, description = "WebSocket."), (status = 403, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json")))]
#[allow(dead_code)]
fn live() {}

/// Audio in, transcript out (WebSocket, native protocol). Resumable: what is not `safe` is sent again.
#[utoipa::path(get, path = "/v1/stream", tag = "audio", operation_id = "stream_audio",
    params(
        ("encoding" = String, Query, description = "`linear16`, `float32`, `mulaw` or `alaw`."),
        ("sample_rate" = u32, Query, description = "8000 to 48000."),
        ("channels" = Option<u8>, Query, description = "1 (default) or 2."),
        ("roles" = Option<String>, Query, description = "Per channel: `agent`, `customer` or `unknown`, comma separated."),
        ("language" = Option<String>, Query, description = "BCP-47; default `en`."),
        ("endpointing" = Option<String>, Query, description = "Silence that ends an utterance, in ms, or `false`; default 400."),
        ("partials" = Option<bool>, Query, description = "Unfinished text too; default true."),
        ("partial_ms" = Option<u32>, Query, description = "Shortest time between two partials; default 250."),
        ("title" = Option<String>, Query, description = "For people."),
        ("external_id" = Option<String>, Query, description = "Your own name for the conversation."),
        ("tag" = Option<String>, Query, description = "Repeatable."),
        ("conversation" = Option<String>, Query, description = "An id of your own, or the one to resume.")),
    responses((status = 101, description = "WebSocket."), (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json")))]
#[allow(dead_code)]
fn stream() {}

/// Audio in, transcript out, as Deepgram's live API (WebSocket).
#[utoipa::path(get, path = "/v1/listen", tag = "audio", operation_id = "listen_live", responses((status = 101, description = "WebSocket.")))]
#[allow(dead_code)]
fn listen() {}

/// A file in, its transcript out, as Deepgram's prerecorded API.
#[utoipa::path(post, path = "/v1/listen", tag = "audio", operation_id = "listen_file",
    request_body(content = Vec<u8>, content_type = "audio/*"), responses((status = 200, description = "The transcript.")))]
#[allow(dead_code)]
fn transcribe() {}

/// What was heard, as a WAV file; ranges are answered.
#[utoipa::path(get, path = "/v1/conversations/{id}/recording", tag = "audio", operation_id = "get_recording",
    params(
        ("id" = String, Path, description = "`conv_…`"),
        ("channel" = Option<u8>, Query, description = "One channel alone; all of them interleaved when not given.")),
    responses((status = 200, content_type = "audio/wav"), (status = 206, content_type = "audio/wav"),
        (status = 404, description = "Unknown, or recordings are off.", body = ProblemDocument, content_type = "application/problem+json")))]
#[allow(dead_code)]
fn recording() {}

/// Documented here, answered by `audio` in the same listener.
#[cfg(test)]
pub(crate) const ELSEWHERE: [&str; 3] = ["/v1/stream", "/v1/listen", "/v1/conversations/{id}/recording"];

/// The document as text with its tag; it is the same for the life of the process.
static DOCUMENT: LazyLock<(String, String)> = LazyLock::new(|| {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    let text = document.to_pretty_json().expect("the document is made of strings and maps");
    let tag = format!("W/\"{}\"", hex::encode(&Sha256::digest(&text)[..16]));
    (text, tag)
});

static UI: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json")));

/// `GET /openapi.json`
pub(crate) async fn document(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Params::read(&request, &[]).done()?;
    let (text, tag) = &*DOCUMENT;
    let known = dashboard::is_known(&request, tag);
    let mut answer = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((header::ETAG, tag.as_str())).insert_header((header::CACHE_CONTROL, "no-cache"));
    Ok(if known { answer.finish() } else { answer.content_type("application/json").body(text.as_str()) })
}

/// `GET /docs`: relative links of the pages need the slash.
pub(crate) async fn to_docs() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "/docs/")).finish()
}

/// `GET /docs/…`
pub(crate) async fn docs(file: web::Path<String>) -> Result<HttpResponse, Problem> {
    let found = utoipa_swagger_ui::serve(&file, UI.clone()).map_err(|cause| contracts::CallError::internal(cause.to_string()))?;
    let Some(found) = found else { return Err(Problem::not_found("Swagger UI has no such file")) };
    let mut answer = HttpResponse::Ok();
    answer.content_type(found.content_type).insert_header((header::CACHE_CONTROL, "no-cache"));
    answer.insert_header((header::CONTENT_SECURITY_POLICY, DOCS_POLICY));
    if found.gzpipped {
        answer.insert_header((header::CONTENT_ENCODING, "gzip"));
    }
    Ok(answer.body(found.bytes.into_owned()))
}
