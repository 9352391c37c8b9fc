//! REST as a client sees it, on a real record.

use super::{openapi, problem::ProblemDocument, routes, world::World};
use actix_web::{
    App, Error,
    body::MessageBody,
    dev::{Service, ServiceResponse},
    http::{StatusCode, header},
    test::{self, TestRequest},
    web,
};

use contracts::{CallError, ConversationId, TenantId, inference::Task, testing::Behavior};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};

/// A route of another module in the same app, registered after ours.
async fn theirs() -> &'static str {
    "theirs"
}

macro_rules! app {
    ($world:expr) => {
        test::init_service(
            App::new().configure(|app| $world.api.configure(app)).route("/v1/conversations/{id}/recording", web::get().to(theirs)),
        )
        .await
    };
}

fn get(path: &str) -> TestRequest {
    TestRequest::get().uri(path).insert_header((header::HOST, "localhost:8080"))
}

fn head<B>(answer: &ServiceResponse<B>, name: impl header::AsHeaderName) -> String {
    answer.headers().get(name).expect("this header").to_str().unwrap().to_owned()
}

async fn json<B: MessageBody>(
    app: &impl Service<actix_http::Request, Response = ServiceResponse<B>, Error = Error>,
    path: &str,
) -> (u16, Value) {
    let answer = test::call_service(app, get(path).to_request()).await;
    let (status, kind) = (answer.status().as_u16(), head(&answer, header::CONTENT_TYPE));
    assert_eq!(kind, if status < 400 { "application/json" } else { "application/problem+json" }, "{path}");
    let trace = head(&answer, "x-trace-id");
    let body: Value = serde_json::from_slice(&test::read_body(answer).await).unwrap();
    if status >= 400 {
        let problem: ProblemDocument = serde_json::from_value(body.clone()).unwrap();
        assert_eq!((problem.status, problem.trace_id.as_str()), (status, trace.as_str()), "{path}");
        assert_eq!(problem.instance, path.split('?').next().unwrap());
        assert!(problem.kind.ends_with(&problem.code) && !problem.title.is_empty() && !problem.detail.is_empty(), "{body}");
    }
    (status, body)
}

#[actix_web::test]
async fn every_error_is_a_problem_that_says_what_was_expected() {
    let world = World::new().await;
    let app = app!(world);
    let id = world.open("a").await;
    let nobody = ConversationId::from_u128(7);
    for (path, status, code, says) in [
        ("/v1/nothing".to_owned(), 404, "not_found", "/openapi.json"),
        ("/v1".to_owned(), 404, "not_found", "/v1"),
        (format!("/v1/conversations/{nobody}"), 404, "not_found", "conv_"),
        (format!("/v1/conversations/{nobody}/utterances"), 404, "not_found", "conv_"),
        (format!("/v1/conversations/{nobody}/insights"), 404, "not_found", "conv_"),
        (format!("/v1/conversations/{nobody}/metrics"), 404, "not_found", "conv_"),
        (format!("/v1/conversations/{nobody}/summary"), 404, "not_found", "conv_"),
        (format!("/v1/conversations/{nobody}/export"), 404, "not_found", "conv_"),
        ("/v1/conversations/conv_12".to_owned(), 404, "not_found", "expected conv_"),
        (
            "/v1/conversations?stat=live".to_owned(),
            400,
            "unknown_parameter",
            "known are state, from, to, tag, intent, sentiment, cursor, limit",
        ),
        ("/v1/conversations?state=dead".to_owned(), 400, "invalid_parameter", "expected live, complete, abandoned"),
        ("/v1/conversations?from=yesterday".to_owned(), 400, "invalid_parameter", "2026-01-31T12:00:00Z"),
        ("/v1/conversations?limit=0".to_owned(), 400, "invalid_parameter", "expected 1 to 200"),
        ("/v1/conversations?limit=201".to_owned(), 400, "invalid_parameter", "expected 1 to 200"),
        ("/v1/conversations?limit=ten".to_owned(), 400, "invalid_parameter", "expected 1 to 200"),
        ("/v1/conversations?cursor=rubbish".to_owned(), 400, "invalid_input", "cursor"),
        (format!("/v1/conversations/{id}?pretty=1"), 400, "unknown_parameter", "known are none here"),
        (format!("/v1/conversations/{id}/utterances?limit=1000"), 400, "invalid_parameter", "expected 1 to 200"),
        (format!("/v1/conversations/{id}/utterances?cursor=%00"), 400, "invalid_input", "cursor"),
        (format!("/v1/conversations/{id}/insights?task=topic"), 400, "invalid_parameter", "expected intent, sentiment"),
        (format!("/v1/conversations/{id}/insights?superseded=maybe"), 400, "invalid_parameter", "expected true or false"),
        (format!("/v1/conversations/{id}/export?format=pdf"), 400, "invalid_parameter", "expected json, txt, srt, vtt"),
        ("/v1/search".to_owned(), 400, "invalid_parameter", "q is missing"),
        ("/v1/search?q=%20".to_owned(), 400, "invalid_parameter", "q is missing"),
        (format!("/v1/search?q={}", "a".repeat(600)), 400, "invalid_parameter", "longer than 512"),
        ("/v1/search?q=a&state=open".to_owned(), 400, "invalid_parameter", "expected live, complete, abandoned"),
        ("/v1/search?q=a&role=boss".to_owned(), 400, "invalid_parameter", "expected agent, customer, unknown"),
        ("/docs/no.js".to_owned(), 404, "not_found", "Swagger UI"),
    ] {
        let (got, body) = json(&app, &path).await;
        assert_eq!((got, body["code"].as_str().unwrap()), (status, code), "{path}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(says), "{path}: {body}");
    }
}

#[actix_web::test]
async fn what_changes_something_is_not_answered_here() {
    let world = World::new().await;
    let app = app!(world);
    for (method, path) in [("POST", "/v1/conversations"), ("DELETE", "/v1/conversations/x"), ("PUT", "/openapi.json"), ("POST", "/")] {
        let request = TestRequest::with_uri(path).method(method.parse().unwrap()).insert_header((header::HOST, "localhost"));
        let answer = test::call_service(&app, request.set_payload("{\"a\":").to_request()).await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(head(&answer, header::ALLOW), "GET, HEAD");
        let problem: ProblemDocument = serde_json::from_slice(&test::read_body(answer).await).unwrap();
        assert!(problem.detail.contains(method), "{problem:?}");
    }
}

#[actix_web::test]
async fn a_page_elsewhere_cannot_use_its_own_name_for_this_server() {
    let world = World::new().await;
    let app = app!(world);
    let rebound = TestRequest::get().uri("/v1/conversations").insert_header((header::HOST, "evil.example:8080"));
    let answer = test::call_service(&app, rebound.to_request()).await;
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    let problem: ProblemDocument = serde_json::from_slice(&test::read_body(answer).await).unwrap();
    assert_eq!(problem.code, "unknown_host");
    assert_eq!(problem.trace_id.len(), 32);
}

#[actix_web::test]
async fn a_trace_given_is_gone_on_with() {
    let world = World::new().await;
    let app = app!(world);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = get("/v1/none").insert_header(("traceparent", format!("00-{trace}-00f067aa0ba902b7-01")));
    let answer = test::call_service(&app, request.to_request()).await;
    assert_eq!(head(&answer, "x-trace-id"), trace);
    let told = head(&answer, "traceparent");
    assert!(told.starts_with(&format!("00-{trace}-")) && !told.contains("00f067aa0ba902b7"), "{told}");
    let answer = test::call_service(&app, get("/v1/none").insert_header(("traceparent", "rubbish")).to_request()).await;
    assert_eq!(head(&answer, "x-trace-id").len(), 32);
}

#[actix_web::test]
async fn pages_walk_through_everything_once() {
    let world = World::new().await;
    let app = app!(world);
    let mut opened = vec![];
    for n in 0..7 {
        opened.push(world.open(&format!("call {n}")).await.to_string());
    }
    let id = world.open("long").await;
    opened.push(id.to_string());
    for n in 0..9 {
        world.say(id, n % 2, &format!("sentence number {n}")).await;
    }
    async fn walk(
        app: &impl Service<actix_http::Request, Response = ServiceResponse<impl MessageBody>, Error = Error>,
        path: &str,
    ) -> Vec<String> {
        let (mut seen, mut cursor) = (vec![], None::<String>);
        loop {
            let next = cursor.map(|c| format!("&cursor={c}")).unwrap_or_default();
            let (status, page) = json(app, &format!("{path}?limit=2{next}")).await;
            assert_eq!(status, 200, "{page}");
            let rows = page["data"].as_array().unwrap();
            assert!(rows.len() <= 2);
            seen.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(given) => cursor = Some(given.to_owned()),
                None => return seen,
            }
        }
    }
    let listed = walk(&app, "/v1/conversations").await;
    opened.reverse();
    assert_eq!(listed, opened, "newest first, each once");
    let said = walk(&app, &format!("/v1/conversations/{id}/utterances")).await;
    assert_eq!(said.len(), 9);
    assert_eq!(said.iter().collect::<BTreeSet<_>>().len(), 9);
}

#[actix_web::test]
async fn what_was_said_and_meant_is_read_back() {
    let world = World::new().await;
    let app = app!(world);
    let id = world.open("Billing <b>").await;
    world.say(id, 0, "thank you for calling").await;
    let utterance = world.say(id, 1, "you charged me twice").await;
    world.gap(id, 1, 700).await;
    let old = world.mean(id, utterance, Task::Intent, "praise", 1).await;
    let new = world.mean(id, utterance, Task::Intent, "billing_dispute", 2).await;
    world.mean(id, utterance, Task::Sentiment, "negative", 1).await;

    let (_, row) = json(&app, &format!("/v1/conversations/{id}")).await;
    assert_eq!((row["state"].as_str(), row["utterance_count"].as_u64()), (Some("live"), Some(2)), "{row}");
    assert_eq!(row["intent"]["name"], "billing_dispute");
    assert_eq!(row["recording"], id.as_u128() % 2 == 1, "the owner of recordings is asked");
    let (_, page) = json(&app, "/v1/conversations?state=live&intent=billing_dispute&sentiment=negative&tag=test").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    let (_, page) = json(&app, "/v1/conversations?state=complete").await;
    assert_eq!(page, serde_json::json!({ "data": [], "next_cursor": null }));

    let (_, said) = json(&app, &format!("/v1/conversations/{id}/utterances")).await;
    let kinds: Vec<_> = said["data"].as_array().unwrap().iter().map(|u| u["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "gap").count(), 1, "{said}");

    let (_, current) = json(&app, &format!("/v1/conversations/{id}/insights?task=intent")).await;
    assert_eq!(current["data"].as_array().unwrap().len(), 1);
    assert_eq!(current["data"][0]["id"], new.to_string());
    let (_, all) = json(&app, &format!("/v1/conversations/{id}/insights?task=intent&superseded=true")).await;
    let replaced = all["data"].as_array().unwrap().iter().find(|i| i["id"] == old.to_string()).unwrap();
    assert_eq!(replaced["superseded_by"], new.to_string());

    let (_, talk) = json(&app, &format!("/v1/conversations/{id}/metrics")).await;
    assert_eq!(talk["channels"][1]["words"], 4);
    let (_, none) = json(&app, "/v1/search?q=charged&state=complete").await;
    assert_eq!(none["data"], serde_json::json!([]), "the call is live");
    let (_, found) = json(&app, "/v1/search?q=charged%20twi&role=customer&state=live").await;
    assert_eq!(found["data"][0]["utterance"]["id"], utterance.to_string(), "{found}");
    assert!(found["data"][0]["snippet"].as_array().unwrap().iter().any(|part| part["hit"] == true));
}

#[actix_web::test]
async fn a_conversation_is_exported_in_every_format() {
    let world = World::new().await;
    let app = app!(world);
    let id = world.open("Billing").await;
    world.say(id, 1, "you charged me twice").await;
    for (format, kind, has) in [
        ("json", "application/json", "\"text\": \"you charged me twice\""),
        ("txt", "text/plain; charset=utf-8", "[00:00:00.000] Customer: you charged me twice"),
        ("srt", "application/x-subrip; charset=utf-8", "00:00:00,000 --> 00:00:01,900\nCustomer: you charged me twice"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:01.900\n<v Customer>you charged me twice"),
    ] {
        let answer = test::call_service(&app, get(&format!("/v1/conversations/{id}/export?format={format}")).to_request()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(head(&answer, header::CONTENT_TYPE), kind);
        assert_eq!(head(&answer, header::CONTENT_DISPOSITION), format!("attachment; filename=\"{id}.{format}\""));
        let body = test::read_body(answer).await;
        assert!(std::str::from_utf8(&body).unwrap().contains(has), "{format}: {body:?}");
    }
}

#[actix_web::test]
async fn a_summary_comes_from_inference_and_its_failure_is_told() {
    let world = World::new().await;
    let app = app!(world);
    let id = world.open("Billing").await;
    let utterance = world.say(id, 1, "you charged me twice").await;
    let path = format!("/v1/conversations/{id}/summary");
    let (_, summary) = json(&app, &path).await;
    assert_eq!(
        summary,
        serde_json::json!({ "items": [{ "kind": "reason", "text": "you charged me twice", "tier": "rules",
            "evidence": [{ "utterance_id": utterance.to_string(), "word_from": 0, "word_to": 4 }] }], "quality": null })
    );
    world.inference.behave(Behavior::Fail(CallError::busy(Duration::from_secs(3), "no slot")));
    let answer = test::call_service(&app, get(&path).to_request()).await;
    assert_eq!((answer.status().as_u16(), head(&answer, header::RETRY_AFTER).as_str()), (503, "3"));
    world.inference.behave(Behavior::Fail(CallError::internal("/secret is broken")));
    let (status, problem) = json(&app, &path).await;
    assert_eq!(status, 500);
    assert!(!problem.to_string().contains("secret"), "{problem}");
}

#[actix_web::test]
async fn another_tenants_conversation_is_not_found() {
    let world = World::new().await;
    let stranger = TenantId::new("stranger");
    let app = test::init_service(
        App::new()
            .wrap_fn(move |request, service| {
                use actix_web::HttpMessage;
                request.extensions_mut().insert(stranger.clone());
                service.call(request)
            })
            .configure(|app| world.api.configure(app)),
    )
    .await;
    let id = world.open("ours").await;
    world.say(id, 1, "you charged me twice").await;
    for rest in ["", "/utterances", "/insights", "/metrics", "/summary", "/export"] {
        assert_eq!(json(&app, &format!("/v1/conversations/{id}{rest}")).await.0, 404, "{rest}");
    }
    for path in ["/v1/conversations", "/v1/search?q=charged"] {
        assert_eq!(json(&app, path).await.1["data"], serde_json::json!([]), "{path}");
    }
}

#[actix_web::test]
async fn every_route_is_in_the_document_and_nothing_else_is() {
    let world = World::new().await;
    let app = app!(world);
    let (_, document) = json(&app, "/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let documented: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let documents = ["/openapi.json", "/docs", "/docs/{file:.*}"];
    let mut answered: BTreeSet<&str> =
        routes::table().into_iter().map(|(path, ..)| path).filter(|path| !documents.contains(path)).collect();
    answered.extend(openapi::ELSEWHERE);
    assert_eq!(documented, answered);
    // What a document names must be in it.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document["components"]["schemas"][reference].is_object(), "{reference}");
    }
}

#[actix_web::test]
async fn documents_and_pages_say_how_long_they_keep_and_what_they_may_load() {
    let world = World::new().await;
    let app = app!(world);
    let answer = test::call_service(&app, get("/openapi.json").to_request()).await;
    let tag = head(&answer, header::ETAG);
    let again = get("/openapi.json").insert_header((header::IF_NONE_MATCH, tag));
    assert_eq!(test::call_service(&app, again.to_request()).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(head(&test::call_service(&app, get("/docs").to_request()).await, header::LOCATION), "/docs/");
    for (path, script) in [("/docs/", "script-src 'self'"), ("/v1/conversations", "default-src 'none'")] {
        let answer = test::call_service(&app, get(path).to_request()).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert!(head(&answer, header::CONTENT_SECURITY_POLICY).contains(script), "{path}");
        assert_eq!(head(&answer, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    }
    let page = test::call_service(&app, get("/").to_request()).await;
    assert_eq!(page.status(), 200, "a page even without a build of the dashboard");
    assert!(head(&page, header::CONTENT_TYPE).starts_with("text/html"));
    let deep = get("/conversations/conv_1").insert_header((header::ACCEPT, "text/html,*/*;q=0.8"));
    assert_eq!(test::call_service(&app, deep.to_request()).await.status(), 200);
    let (status, _) = json(&app, "/assets/none.js").await;
    assert_eq!(status, 404, "a missing file is not answered by a page");
    let small = get("/openapi.json").insert_header((header::ACCEPT_ENCODING, "gzip"));
    assert_eq!(head(&test::call_service(&app, small.to_request()).await, header::CONTENT_ENCODING), "gzip");
}

#[actix_web::test]
async fn routes_of_other_modules_in_the_same_app_stay_theirs() {
    let world = World::new().await;
    let app = app!(world);
    let answer = test::call_service(&app, get("/v1/conversations/x/recording").to_request()).await;
    assert_eq!(test::read_body(answer).await, "theirs");
}

#[actix_web::test]
async fn the_status_is_the_admin_ports() {
    let world = World::new().await;
    let app = app!(world);
    let (_, status) = json(&app, "/v1/admin/status").await;
    let uptime = status["uptime_s"].clone();
    let mut same = serde_json::to_value(world.status.report()).unwrap();
    same["uptime_s"] = uptime;
    assert_eq!(status, same);
    assert_eq!(status["recordings"], true);
}

#[actix_web::test]
async fn the_topology_is_told_and_a_page_of_this_address_turns_the_dial() {
    use crate::admin::routes::tests::OneDial;
    let world = World::new().await;
    world.status.dial_by(std::sync::Arc::new(OneDial));
    let app = app!(world);
    let (status, topology) = json(&app, "/v1/admin/topology").await;
    assert_eq!((status, &topology["routes"][0]["module"]), (200, &"audio".into()), "{topology}");
    assert!(topology["bottleneck"]["sentence"].as_str().is_some_and(|sentence| sentence.contains("yet")), "{topology}");
    assert_eq!(topology["process"]["cpu"], Value::Null, "what is not measured is not told: {topology}");

    for (module, body, origin, expected, says) in [
        ("audio", r#"{"remote_percent":25,"dry_run":true}"#, Some("http://localhost"), 200, "\"dry_run\":true"),
        ("audio", r#"{"remote_percent":25}"#, None, 200, "\"version\":2"),
        ("audio", r#"{"mode":"remote"}"#, Some("http://localhost"), 409, "nobody answers there"),
        ("audio", r#"{"remote_percent":25}"#, Some("http://localhost:3000"), 403, "forbidden_origin"),
        ("audio", r#"{"remote_percent":25}"#, Some("http://evil.example"), 403, "forbidden_origin"),
        ("audio", "{", Some("http://localhost"), 400, "invalid_body"),
        ("video", "{}", Some("http://localhost"), 404, "no dial"),
    ] {
        let mut request = TestRequest::put().uri(&format!("/v1/admin/routes/{module}")).insert_header((header::HOST, "localhost"));
        if let Some(origin) = origin {
            request = request.insert_header((header::ORIGIN, origin));
        }
        let answer = test::call_service(&app, request.set_payload(body).to_request()).await;
        let status = answer.status().as_u16();
        let said = String::from_utf8(test::read_body(answer).await.to_vec()).unwrap();
        assert!(status == expected && said.contains(says), "{module} {body} {origin:?}: {status} {said}");
    }
    let answer = test::call_service(&app, get("/v1/admin/routes/audio").to_request()).await;
    assert_eq!((answer.status().as_u16(), head(&answer, header::ALLOW).as_str()), (405, "PUT"));
}
