//! Which names this server may be addressed by, and which pages may talk to it.
//!
//! A page elsewhere can point its own name at this machine (DNS rebinding) and would then be "same origin"; therefore the name itself is checked
//! first: loopback, or one that was configured. Pure, except for reading headers.

use actix_web::{
    HttpRequest,
    http::header::{HOST, ORIGIN},
};
use std::net::IpAddr;

/// A request without `Origin` comes from no page; one with it has to come from a page of this very address.
pub(crate) fn is_own(request: &HttpRequest) -> bool {
    let Some(origin) = request.headers().get(ORIGIN) else { return true };
    match (origin.to_str(), host_of(request)) {
        (Ok(origin), Some(host)) => same_origin(origin, &host),
        _ => false,
    }
}

/// The address as the client wrote it: the `Host` header, or HTTP/2's authority.
pub(crate) fn host_of(request: &HttpRequest) -> Option<String> {
    match request.headers().get(HOST) {
        Some(host) => host.to_str().ok().map(str::to_owned),
        None => request.uri().authority().map(ToString::to_string),
    }
}

pub(crate) fn is_known_host(host: &str, allowed: &[String]) -> bool {
    let Some((name, _)) = split(host) else { return false };
    is_loopback(name) || allowed.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(name))
}

fn is_loopback(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost"),
    }
}

fn same_origin(origin: &str, host: &str) -> bool {
    let (rest, default) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80),
        (_, Some(rest)) => (rest, 443),
        _ => return false,
    };
    match (split(rest), split(host)) {
        (Some((a, a_port)), Some((b, b_port))) => a.eq_ignore_ascii_case(b) && a_port.unwrap_or(default) == b_port.unwrap_or(default),
        _ => false,
    }
}

/// Name and port. An IPv6 address keeps its brackets.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    if authority.is_empty() || authority.contains(['/', '@', ' ', ',']) {
        return None;
    }
    let name_ends = if authority.starts_with('[') { authority.find(']')? + 1 } else { authority.find(':').unwrap_or(authority.len()) };
    let (name, port) = authority.split_at(name_ends);
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((name, None)),
        Some(port) => Some((name, Some(port.parse().ok()?))),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_configured_names_are_known() {
        let allowed = ["calls.example.com".to_owned()];
        for known in
            ["localhost", "localhost:8080", "127.0.0.1:8080", "127.8.9.1", "[::1]:8080", "app.localhost:1", "Calls.Example.com:443"]
        {
            assert!(is_known_host(known, &allowed), "{known}");
        }
        for stranger in [
            "",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.7",
            "localhost:x",
            "[::1",
            "a@localhost",
            "localhost/x",
        ] {
            assert!(!is_known_host(stranger, &allowed), "{stranger}");
        }
        assert!(is_known_host("10.0.0.7:8080", &["*".to_owned()]));
    }

    #[test]
    fn a_page_is_own_when_name_and_port_agree() {
        for (origin, host) in
            [("http://localhost:8080", "localhost:8080"), ("https://calls.example", "calls.example"), ("http://[::1]:8080", "[::1]:8080")]
        {
            assert!(same_origin(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "localhost:8080"),
            ("http://localhost:3000", "localhost:8080"),
            ("http://evil.example", "localhost"),
            ("http://localhost:8080.evil.example", "localhost:8080"),
            ("file://", "localhost:8080"),
        ] {
            assert!(!same_origin(origin, host), "{origin} {host}");
        }
    }
}
