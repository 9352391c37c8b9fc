//! Reads that ask the cache first: what is kept of each, and what its answer says about it.
//!
//! What is kept is the JSON as it is sent, but for `recording`, which every node knows for itself: a conversation is kept up to that field, its
//! last, and it is added when it is sent.
//!
//! Headers: `X-Cache` (first, shared, miss, or stale: it has ended, or comes from a standby whose primary does not answer), `Age` in whole
//! seconds since it was read from the database, and `X-Consistency`, the place in the database's log that the answer has seen. A request that
//! shows one is given nothing older.

use super::{conversations::Insights, conversations::Reads, problem::Problem};
use crate::record::{ConversationFilter, ConversationRow, Cut, DEFAULT_LIMIT, Page};
use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
};
use bytes::Bytes;
use contracts::{CallError, ConversationId, TenantId, inference::Task};
use platform::cache::{Answer, From, Key, Loaded, Mark, Stamp};
use serde::Serialize;

pub(crate) const CONSISTENCY: &str = "x-consistency";

/// What the request must see: the `X-Consistency` of an answer before.
pub(crate) fn at_least(request: &HttpRequest) -> Result<Option<Mark>, Problem> {
    let Some(value) = request.headers().get(CONSISTENCY) else { return Ok(None) };
    let read = value.to_str().map_err(|_| "timeline:lsn".to_owned()).and_then(str::parse::<Mark>);
    read.map(Some).map_err(|expected| {
        let shown: String = String::from_utf8_lossy(value.as_bytes()).chars().take(64).collect();
        let detail = format!("X-Consistency is {shown:?}: expected {expected}, as an answer of this server said it, or none");
        Problem::new(StatusCode::BAD_REQUEST, "invalid_header", detail).at("/header/X-Consistency", "invalid_value")
    })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(value).map_err(|cause| CallError::internal(cause.to_string()))
}

fn loaded<T>((stamp, found): (Stamp, Option<T>), body: impl FnOnce(T) -> Result<Vec<u8>, CallError>) -> Result<Loaded, CallError> {
    Ok(Loaded { stamp, body: found.map(body).transpose()?.map(Bytes::from) })
}

/// A conversation but for whether there is sound.
const CUT: &[u8] = b"false}";

/// One line: what is sent, without [`CUT`].
fn line(row: ConversationRow) -> Result<Vec<u8>, CallError> {
    let mut line = json(&ConversationRow { recording: false, ..row })?;
    match line.ends_with(CUT) {
        true => line.truncate(line.len() - CUT.len()),
        false => return Err(CallError::internal("a conversation's last field is not `recording`")),
    }
    Ok(line)
}

/// Lines of conversations, each after its id, then the cursor.
fn lines(page: Page<ConversationRow>) -> Result<Vec<u8>, CallError> {
    let mut kept = vec![];
    for row in page.data {
        kept.extend_from_slice(row.id.to_string().as_bytes());
        kept.push(b'\n');
        kept.extend(line(row)?);
        kept.push(b'\n');
    }
    kept.extend(json(&page.next_cursor)?);
    Ok(kept)
}

impl Reads {
    fn recording(&self, id: ConversationId) -> &'static [u8] {
        if (self.has_recording)(id) { b"true}" } else { CUT }
    }

    /// [`lines`] as they are sent.
    fn page(&self, kept: &[u8]) -> Result<Vec<u8>, CallError> {
        let broken = || CallError::internal("a list in the cache cannot be read");
        let mut sent = Vec::with_capacity(kept.len() + 64);
        sent.extend_from_slice(b"{\"data\":[");
        let mut parts = kept.split(|b| *b == b'\n');
        let mut part = parts.next().ok_or_else(broken)?;
        let mut first = true;
        while let Some(row) = parts.next() {
            let id = std::str::from_utf8(part).ok().and_then(|id| id.parse().ok()).ok_or_else(broken)?;
            if !std::mem::take(&mut first) {
                sent.push(b',');
            }
            sent.extend_from_slice(row);
            sent.extend_from_slice(self.recording(id));
            part = parts.next().ok_or_else(broken)?;
        }
        sent.extend_from_slice(b"],\"next_cursor\":");
        sent.extend_from_slice(part);
        sent.push(b'}');
        Ok(sent)
    }

    pub(super) async fn one(&self, tenant: &TenantId, id: ConversationId, at_least: Option<Mark>) -> Result<HttpResponse, Problem> {
        let key = self.record.history().conversation(tenant, id).part("row");
        let load = || async move { loaded(self.record.row_since(tenant, id, at_least).await?, line) };
        let mut answer = self.record.cache().read(key, at_least, load).await?;
        answer.body = answer.body.map(|body| [&body[..], self.recording(id)].concat().into());
        self.sent(answer, Some(id))
    }

    pub(super) async fn utterances(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        cut: &Cut,
        at_least: Option<Mark>,
    ) -> Result<HttpResponse, Problem> {
        cut.check_utterances()?; // what is wrong is told before anybody waits for it
        let part = format!("utterances/{}/{}", cut.limit.unwrap_or(DEFAULT_LIMIT), cut.cursor.as_deref().unwrap_or_default());
        let key = self.record.history().conversation(tenant, id).part(part);
        let load = || async move { loaded(self.record.utterances_since(tenant, id, cut, at_least).await?, |page| json(&page)) };
        self.sent(self.record.cache().read(key, at_least, load).await?, Some(id))
    }

    pub(super) async fn insights(
        &self,
        tenant: &TenantId,
        id: ConversationId,
        superseded: bool,
        task: Option<Task>,
        at_least: Option<Mark>,
    ) -> Result<HttpResponse, Problem> {
        let part = format!("insights/{superseded}/{}", task.map_or("", Task::name));
        let key = self.record.history().conversation(tenant, id).part(part);
        let load = || async move {
            let read = self.record.insights_since(tenant, id, superseded, task, at_least).await?;
            loaded(read, |data| json(&Insights { data }))
        };
        self.sent(self.record.cache().read(key, at_least, load).await?, Some(id))
    }

    /// First pages that everybody asks for; others are read from the database.
    pub(super) async fn list(
        &self,
        tenant: &TenantId,
        filter: &ConversationFilter,
        cut: &Cut,
        at_least: Option<Mark>,
    ) -> Result<HttpResponse, Problem> {
        let load = || async move {
            let (stamp, page) = self.record.list_since(tenant, filter, cut, at_least).await?;
            loaded((stamp, Some(page)), lines)
        };
        let common = ConversationFilter { state: filter.state, ..ConversationFilter::default() };
        let mut answer = match *filter == common && cut.cursor.is_none() {
            true => {
                let state = filter.state.map_or("", |state| state.name());
                let key: Key = self.record.history().lists(tenant).part(format!("first/{}/{state}", cut.limit.unwrap_or(DEFAULT_LIMIT)));
                self.record.cache().read(key, at_least, load).await?
            }
            false => Answer::of(load().await?),
        };
        answer.body = answer.body.map(|kept| self.page(&kept)).transpose()?.map(Bytes::from);
        self.sent(answer, None)
    }

    fn sent(&self, answer: Answer, of: Option<ConversationId>) -> Result<HttpResponse, Problem> {
        let Some(body) = answer.body else {
            let unknown = of.map_or_else(|| "there is no such list".into(), |id| format!("no conversation has the id {id}"));
            return Err(Problem::not_found(unknown));
        };
        let from = if self.record.may_lack_the_last() { From::Stale } else { answer.from };
        Ok(HttpResponse::Ok()
            .content_type("application/json")
            .insert_header(("x-cache", from.name()))
            .insert_header((header::AGE, answer.age.as_secs().to_string()))
            .insert_header((CONSISTENCY, answer.stamp.mark.to_string()))
            .body(body))
    }
}

#[cfg(test)]
mod tests {
    use crate::rest::world::World;
    use actix_web::{
        App, Error,
        body::MessageBody,
        dev::{Service, ServiceResponse},
        http::header,
        test::{self, TestRequest},
    };
    use bytes::Bytes;
    use contracts::{ConversationId, inference::Task};
    use serde_json::Value;

    macro_rules! app {
        ($world:expr) => {
            test::init_service(App::new().configure(|app| $world.api.configure(app))).await
        };
    }

    struct Got {
        status: u16,
        body: Bytes,
        cache: Option<String>,
        consistency: Option<String>,
    }

    impl Got {
        fn json(&self) -> Value {
            serde_json::from_slice(&self.body).expect("JSON")
        }
    }

    async fn get<B: MessageBody>(
        app: &impl Service<actix_http::Request, Response = ServiceResponse<B>, Error = Error>,
        path: &str,
        consistency: Option<&str>,
    ) -> Got {
        let mut request = TestRequest::get().uri(path).insert_header((header::HOST, "localhost:8080"));
        if let Some(mark) = consistency {
            request = request.insert_header(("X-Consistency", mark));
        }
        let answer = test::call_service(app, request.to_request()).await;
        let head = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        let (status, cache, consistency) = (answer.status().as_u16(), head("x-cache"), head("x-consistency"));
        if status == 200 {
            head("age").expect("an age").parse::<u64>().expect("in seconds");
        }
        Got { status, cache, consistency, body: test::read_body(answer).await }
    }

    fn paths(id: ConversationId) -> [String; 5] {
        [
            format!("/v1/conversations/{id}"),
            format!("/v1/conversations/{id}/utterances?limit=200"),
            format!("/v1/conversations/{id}/insights"),
            "/v1/conversations?limit=200".into(),
            "/v1/conversations?state=live".into(),
        ]
    }

    #[actix_web::test]
    async fn every_write_is_read_at_once_and_what_did_not_change_is_not_read_again() {
        let world = World::new().await;
        let app = app!(world);
        let id = world.open("one").await;
        let [row, said, meant, all, live] = paths(id);
        for n in 1..=100 {
            let utterance = world.say(id, (n % 2) as u8, "my bill is wrong").await;
            let shown = get(&app, &row, None).await.json();
            assert_eq!(shown["utterance_count"], n, "{shown}");
            assert_eq!(get(&app, &said, None).await.json()["data"].as_array().map(Vec::len), Some(n));
            world.mean(id, utterance, Task::Intent, &format!("intent_{n}"), 1).await;
            assert_eq!(get(&app, &meant, None).await.json()["data"].as_array().map(Vec::len), Some(n));
            assert_eq!(get(&app, &all, None).await.json()["data"][0]["utterance_count"], n);
            for path in [&row, &said, &meant, &all] {
                let first = get(&app, path, None).await;
                let again = get(&app, path, None).await;
                assert_eq!((again.cache.as_deref(), &again.body), (Some("shared"), &first.body), "{path}");
            }
        }
        let before = get(&app, &row, None).await.json()["duration_ms"].as_u64().expect("a number");
        world.silence(id, 0, 60_000).await;
        let after = get(&app, &row, None).await.json()["duration_ms"].as_u64().expect("a number");
        assert_eq!(after, before + 60_000, "silence moves a conversation's length, and nobody announces it");
        assert_eq!(get(&app, &live, None).await.json()["data"].as_array().map(Vec::len), Some(1));
        world.close(id).await;
        assert_eq!(get(&app, &row, None).await.json()["state"], "complete");
        assert_eq!(get(&app, &live, None).await.json()["data"].as_array().map(Vec::len), Some(0));
    }

    #[actix_web::test]
    async fn what_is_sent_from_the_cache_is_what_the_record_says() {
        let world = World::new().await;
        let app = app!(world);
        for n in 0..7 {
            let id = world.open(&format!("call {n}, \"quoted\" and\nbroken: \u{1f600} \"recording\":false}}")).await;
            world.say(id, 0, "hello there").await;
        }
        let page = world.record.list(&world.tenant, &Default::default(), &Default::default()).await.expect("readable");
        for _ in 0..2 {
            let shown = get(&app, "/v1/conversations", None).await.json();
            for (shown, row) in shown["data"].as_array().expect("rows").iter().zip(&page.data) {
                let has_sound = row.id.as_u128() % 2 == 1; // as the world says
                let mut expected = serde_json::to_value(row).expect("JSON");
                expected["recording"] = has_sound.into();
                assert_eq!(*shown, expected);
                assert_eq!(get(&app, &format!("/v1/conversations/{}", row.id), None).await.json(), expected);
            }
            assert_eq!((shown["data"].as_array().map(Vec::len), &shown["next_cursor"]), (Some(7), &Value::Null));
            let first = get(&app, "/v1/conversations?limit=3", None).await.json();
            let cursor = first["next_cursor"].as_str().expect("there are more");
            let second = get(&app, &format!("/v1/conversations?limit=3&cursor={cursor}"), None).await;
            assert_eq!(second.cache.as_deref(), Some("miss"), "only first pages are kept");
            assert_eq!(second.json()["data"][0], shown["data"][3]);
        }
        let none = get(&app, "/v1/conversations?state=abandoned", None).await.json();
        assert_eq!(none, serde_json::json!({ "data": [], "next_cursor": null }));
    }

    #[actix_web::test]
    async fn what_was_not_there_is_found_as_soon_as_it_is() {
        let world = World::new().await;
        let app = app!(world);
        let unknown = ConversationId::fresh();
        for path in paths(unknown).iter().take(3) {
            for _ in 0..2 {
                let got = get(&app, path, None).await;
                assert_eq!((got.status, &got.json()["code"]), (404, &Value::from("not_found")), "{path}");
            }
        }
        world.open_as(unknown, "now it is").await;
        for path in paths(unknown) {
            assert_eq!(get(&app, &path, None).await.status, 200, "{path}");
        }
    }

    #[actix_web::test]
    async fn who_shows_what_he_has_seen_is_given_nothing_older_and_rubbish_is_refused() {
        let world = World::new().await;
        let app = app!(world);
        let id = world.open("one").await;
        let [row, said, ..] = paths(id);
        let seen = get(&app, &row, None).await.consistency.expect("it is said");
        assert_eq!(get(&app, &row, Some(&seen)).await.cache.as_deref(), Some("shared"));
        world.say(world.open("another").await, 0, "hello").await;
        let token = world.record.token().await.expect("readable").to_string();
        let newer = get(&app, &row, Some(&token)).await;
        assert_eq!(newer.cache.as_deref(), Some("miss"), "what is kept was read before the token");
        assert_eq!(get(&app, &row, Some(&token)).await.cache.as_deref(), Some("shared"));
        for rubbish in ["1", "0:zz/1", "-1:0/0", "0:0/1x"] {
            let refused = get(&app, &said, Some(rubbish)).await;
            let shown = refused.json();
            assert_eq!((refused.status, &shown["code"]), (400, &Value::from("invalid_header")), "{rubbish}: {shown}");
            assert!(shown["detail"].as_str().is_some_and(|detail| detail.contains("timeline:lsn")), "{shown}");
        }
    }
}
