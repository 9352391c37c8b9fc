//! The dials, read and turned over the admin port; and the turning itself, which the API's port does by the same checks.

use super::{Status, no_store};
use crate::rest::Problem;
use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use contracts::{
    TraceCx,
    route::{By, RouteChange, RouteView, Turn, TurnRefused},
};
use serde::Serialize;

/// A wish fits into this many times over.
const MOST_BYTES: usize = 4096;

#[derive(Serialize)]
struct Report {
    routes: Vec<RouteView>,
    /// Newest first.
    changes: Vec<RouteChange>,
}

/// `GET /admin/routes`: where each module's calls go, how its targets do, and who changed that last.
pub(super) async fn read(status: web::Data<Status>) -> HttpResponse {
    let report = status.routes().map(|routes| Report { routes: routes.views(), changes: routes.changes() });
    HttpResponse::Ok().insert_header(no_store()).json(report.unwrap_or(Report { routes: vec![], changes: vec![] }))
}

/// `PUT /admin/routes/{module}`: what is given changes, the rest stays.
pub(super) async fn turn(request: HttpRequest, status: web::Data<Status>, module: web::Path<String>, body: web::Bytes) -> HttpResponse {
    match turned(&request, &status, &module, &body).await {
        Ok(answer) => answer,
        Err(problem) => problem.answer(request.path(), TraceCx::root().trace_id_hex()),
    }
}

async fn turned(request: &HttpRequest, status: &Status, module: &str, body: &[u8]) -> Result<HttpResponse, Problem> {
    // Operators' tools name no origin; a page somebody has open beside it does.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden_origin", "the dial is not turned from web pages on this port"));
    }
    apply(status, module, body).await
}

/// Turns a dial as an operator wishes. Who may ask is decided before.
pub(crate) async fn apply(status: &Status, module: &str, body: &[u8]) -> Result<HttpResponse, Problem> {
    if body.len() > MOST_BYTES {
        let detail = format!("a wish of {} bytes: expected at most {MOST_BYTES}", body.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
    }
    let turn: Turn = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the body is no wish: {error}")))?;
    let Some(routes) = status.routes() else {
        return Err(Problem::not_found("this process calls no modules, so it has no dials"));
    };
    let turned = routes.turn(module, turn, By::Operator).await.map_err(|refused| refusal(&refused))?;
    Ok(HttpResponse::Ok().insert_header(no_store()).json(turned))
}

fn refusal(refused: &TurnRefused) -> Problem {
    let (status, code) = match refused {
        TurnRefused::UnknownModule { .. } => (StatusCode::NOT_FOUND, "not_found"),
        TurnRefused::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_route"),
        TurnRefused::Unreachable { .. } => (StatusCode::CONFLICT, "unreachable_target"),
        TurnRefused::Stale { .. } => (StatusCode::CONFLICT, "stale_version"),
        TurnRefused::NothingToUndo(_) => (StatusCode::CONFLICT, "nothing_to_undo"),
    };
    Problem::new(status, code, refused.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::admin::meters::Meters;
    use actix_web::{App, test};
    use async_trait::async_trait;
    use contracts::route::{Dial, Mode, Routes, Turned};
    use std::sync::Arc;

    /// One module, which takes any wish but `remote`.
    pub(crate) struct OneDial;

    #[async_trait]
    impl Routes for OneDial {
        fn views(&self) -> Vec<RouteView> {
            vec![RouteView { module: "audio".into(), version: 1, dial: Dial::default(), targets: vec![], lost: vec![] }]
        }
        fn changes(&self) -> Vec<RouteChange> {
            vec![]
        }
        async fn turn(&self, module: &str, turn: Turn, _by: By) -> Result<Turned, TurnRefused> {
            match (module, turn.mode) {
                ("audio", Some(Mode::Remote)) => {
                    Err(TurnRefused::Unreachable { module: module.into(), target: "unix:/x".into(), why: "nobody answers there".into() })
                }
                ("audio", _) => {
                    Ok(Turned { from: Dial::default(), to: Dial::default(), version: 2, dry_run: turn.dry_run, asked_to_move: 0 })
                }
                _ => Err(TurnRefused::UnknownModule { module: module.into(), known: "audio".into() }),
            }
        }
    }

    async fn put(path: &str, body: &'static str, origin: bool) -> (u16, String) {
        let status = Status::new("0.1.0", false);
        status.dial_by(Arc::new(OneDial));
        let app =
            test::init_service(App::new().configure(|app| super::super::routes(app, status, Arc::new(Meters::new(Arc::new(String::new))))))
                .await;
        let mut request = test::TestRequest::put().uri(path).set_payload(body);
        if origin {
            request = request.insert_header((header::ORIGIN, "http://127.0.0.1:9090"));
        }
        let answer = test::call_service(&app, request.to_request()).await;
        let code = answer.status().as_u16();
        (code, String::from_utf8(test::read_body(answer).await.to_vec()).unwrap())
    }

    #[actix_web::test]
    async fn a_turn_is_answered_and_a_refusal_says_who_was_tried() {
        let (code, body) = put("/admin/routes/audio", r#"{"remote_percent":25}"#, false).await;
        assert!(code == 200 && body.contains(r#""version":2"#), "{code} {body}");
        let (code, body) = put("/admin/routes/audio", r#"{"mode":"remote"}"#, false).await;
        assert!(code == 409 && body.contains("unix:/x") && body.contains("unreachable_target"), "{code} {body}");
        for (path, body, expected) in
            [("/admin/routes/video", "{}", 404), ("/admin/routes/audio", r#"{"remote":25}"#, 400), ("/admin/routes/audio", "25", 400)]
        {
            let (code, said) = put(path, body, false).await;
            assert_eq!(code, expected, "{said}");
        }
        assert_eq!(put("/admin/routes/audio", "{}", true).await.0, 403, "no page turns it");
    }
}
