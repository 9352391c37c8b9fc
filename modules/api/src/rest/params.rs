//! Query parameters, read strictly: what is not known is an error that names what is.

use super::problem::Problem;
use crate::record::Cut;
use actix_web::{HttpRequest, http::StatusCode, web};
use chrono::{DateTime, Utc};
use std::fmt::Display;

/// The largest page.
pub(crate) const MAX_LIMIT: u32 = 200;

/// The parameters of one request. Faults are gathered, so that one answer names them all.
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
    faults: Vec<(String, &'static str, String)>,
}

impl Params {
    /// Reads the query. A parameter not in `known`, or given twice, is a fault.
    pub(crate) fn read(request: &HttpRequest, known: &[&str]) -> Self {
        let mut params = Self { pairs: vec![], faults: vec![] };
        let pairs = match web::Query::<Vec<(String, String)>>::from_query(request.query_string()) {
            Ok(pairs) => pairs.into_inner(),
            Err(cause) => {
                params.fault("", "malformed", format!("the query cannot be read: {cause}"));
                return params;
            }
        };
        for (name, value) in pairs {
            let short: String = name.chars().take(64).collect();
            if !known.contains(&name.as_str()) {
                let expected = if known.is_empty() { "none here".into() } else { known.join(", ") };
                params.fault(&short, "unknown_parameter", format!("unknown parameter {short:?}: known are {expected}"));
            } else if params.pairs.iter().any(|(n, _)| *n == name) {
                params.fault(&short, "repeated", format!("parameter {short} is given more than once"));
            } else {
                params.pairs.push((name, value));
            }
        }
        params
    }

    /// As it was said; empty counts as not given.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(n, _)| n == name)?;
        Some(self.pairs.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    pub(crate) fn parsed<T, E: Display>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(expected) => {
                let shown: String = text.chars().take(64).collect();
                self.fault(name, "invalid_value", format!("{name} is {shown:?}: expected {expected}"));
                None
            }
        }
    }

    /// One of a closed set, by its name.
    pub(crate) fn one_of<T: Copy>(&mut self, name: &str, all: &[T], name_of: impl Fn(T) -> &'static str) -> Option<T> {
        self.parsed(name, |text| {
            let found = all.iter().copied().find(|value| name_of(*value) == text);
            found.ok_or_else(|| all.iter().map(|value| name_of(*value)).collect::<Vec<_>>().join(", "))
        })
    }

    pub(crate) fn time(&mut self, name: &str) -> Option<DateTime<Utc>> {
        self.parsed(name, |text| {
            let text = text.replace(' ', "+"); // an offset's plus that was not escaped arrives as a blank
            DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).map_err(|_| "a date and time as in 2026-01-31T12:00:00Z")
        })
    }

    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, |text| text.parse().map_err(|_| "true or false"))
    }

    pub(crate) fn cut(&mut self) -> Cut {
        let cursor = self.text("cursor");
        let limit = self.parsed("limit", |text| {
            text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or_else(|| format!("1 to {MAX_LIMIT}"))
        });
        Cut { cursor, limit }
    }

    pub(crate) fn fault(&mut self, name: &str, code: &'static str, detail: String) {
        let pointer = if name.is_empty() { "/query".into() } else { format!("/query/{name}") };
        self.faults.push((pointer, code, detail));
    }

    /// # Errors
    /// Everything that was at fault, as one problem.
    pub(crate) fn done(self) -> Result<(), Problem> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let detail = self.faults.iter().map(|(_, _, detail)| detail.as_str()).collect::<Vec<_>>().join("; ");
        let code =
            if self.faults.iter().any(|(_, code, _)| *code == "unknown_parameter") { "unknown_parameter" } else { "invalid_parameter" };
        let problem = Problem::new(StatusCode::BAD_REQUEST, code, detail);
        Err(self.faults.into_iter().fold(problem, |problem, (pointer, code, _)| problem.at(pointer, code)))
    }
}

/// An id in the path. One that is malformed names nothing, so it is not found; the answer says why.
pub(crate) fn id<T: std::str::FromStr<Err: Display>>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|cause: T::Err| Problem::not_found(cause.to_string()).at("/path/id", "malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn read(query: &str) -> Params {
        Params::read(&TestRequest::with_uri(&format!("/x?{query}")).to_http_request(), &["q", "limit", "cursor", "from"])
    }

    #[test]
    fn every_fault_is_named_in_one_answer() {
        let mut params = read("limit=900&from=yesterday&stat=live&q=a&q=b");
        assert_eq!(params.text("q").as_deref(), Some("a"));
        params.cut();
        params.time("from");
        let problem = params.done().unwrap_err();
        let codes: Vec<_> = problem.errors.iter().map(|fault| (fault.pointer.as_str(), fault.code.as_str())).collect();
        assert_eq!(
            codes,
            [
                ("/query/stat", "unknown_parameter"),
                ("/query/q", "repeated"),
                ("/query/limit", "invalid_value"),
                ("/query/from", "invalid_value")
            ]
        );
        assert!(problem.detail.contains("known are q, limit, cursor, from"), "{}", problem.detail);
        assert!(problem.detail.contains("expected 1 to 200"), "{}", problem.detail);
    }

    #[test]
    fn an_empty_value_is_no_value_and_escapes_are_read() {
        let mut params = read("q=&cursor=a%2Bb+c");
        assert_eq!(params.text("q"), None);
        assert_eq!(params.cut().cursor.as_deref(), Some("a+b c"));
        params.done().unwrap();
    }
}
