//! Who a process is to others, and what it may ask of them.
//!
//! Invariants:
//! - a role stands in a certificate as a URI, `quickcomm://role/audio`; a process with several roles has several;
//! - what is not listed here is refused; a connection that cannot leave the machine may call everything.

use crate::error::to_status_as;
use contracts::{CallError, ErrorKind, Origin, Retry};
use http::{Request, Response};
use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Code, body::Body};
use tower::{Layer, Service};

/// What a process hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Api,
    Audio,
    Inference,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Api, Self::Audio, Self::Inference];

    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Audio => "audio",
            Self::Inference => "inference",
        }
    }

    /// As it stands in a certificate.
    pub fn uri(self) -> String {
        format!("{SCHEME}{}", self.name())
    }

    pub(crate) fn from_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix(SCHEME)?.parse().ok()
    }
}

const SCHEME: &str = "quickcomm://role/";

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no role: expected api, audio or inference")]
pub struct NoRole(String);

impl FromStr for Role {
    type Err = NoRole;
    fn from_str(name: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| NoRole(name.into()))
    }
}

pub(crate) fn names(roles: &[Role]) -> String {
    roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" and ")
}

/// Paths of methods, or of whole services (ending in `/`), and the roles that may call them.
const ALLOWED: [(&str, &[Role]); 11] = [
    ("/quickcomm.hello.v1.Peers/", &Role::ALL),
    ("/grpc.health.v1.Health/", &Role::ALL),
    // Ingest hears, wherever it is hosted.
    ("/quickcomm.audio.v1.Audio/", &[Role::Api, Role::Audio]),
    // The transcript worker understands; the record asks for summaries.
    ("/quickcomm.inference.v1.Inference/", &[Role::Api, Role::Inference]),
    // Ingest keeps a conversation from its opening to its close; the worker reads it and adds what was understood.
    ("/quickcomm.api.v1.Conversations/Open", &[Role::Api, Role::Audio]),
    ("/quickcomm.api.v1.Conversations/Attach", &[Role::Api, Role::Audio]),
    ("/quickcomm.api.v1.Conversations/Commit", &[Role::Api, Role::Audio]),
    ("/quickcomm.api.v1.Conversations/Close", &[Role::Api, Role::Audio]),
    ("/quickcomm.api.v1.Conversations/Record", &[Role::Api, Role::Inference]),
    ("/quickcomm.api.v1.Conversations/View", &Role::ALL),
    ("/quickcomm.api.v1.Conversations/Watch", &Role::ALL),
];

fn may(roles: &[Role], path: &str) -> bool {
    let listed = ALLOWED.iter().find(|(place, _)| *place == path || place.ends_with('/') && path.starts_with(place));
    listed.is_some_and(|(_, callers)| roles.iter().any(|role| callers.contains(role)))
}

/// Who is at the other end of a connection we accepted.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Over loopback or a Unix socket: a process of this machine.
    Neighbor,
    /// By its certificate.
    Certified(Arc<[Role]>),
}

/// Refuses what the caller's roles do not allow, before any service sees it.
#[derive(Clone)]
pub(crate) struct AllowListed;

impl<S> Layer<S> for AllowListed {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate(inner)
    }
}

#[derive(Clone)]
pub(crate) struct Gate<S>(S);

impl<S: Service<Request<Body>, Response = Response<Body>>> Service<Request<Body>> for Gate<S> {
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = futures::future::Either<std::future::Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let detail = match request.extensions().get::<Caller>() {
            Some(Caller::Neighbor) => return futures::future::Either::Right(self.0.call(request)),
            Some(Caller::Certified(roles)) if may(roles, path) => return futures::future::Either::Right(self.0.call(request)),
            Some(Caller::Certified(roles)) => format!("a process with the role {} may not call {path}", names(roles)),
            None => format!("nobody is known to call {path}"),
        };
        let refused = CallError::new(ErrorKind::Unavailable, Retry::Never, detail).from(Origin::Policy);
        futures::future::Either::Left(std::future::ready(Ok(to_status_as(Code::PermissionDenied, refused).into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_refused() {
        let audio = "/quickcomm.audio.v1.Audio/Open";
        assert!(may(&[Role::Api], audio) && may(&[Role::Inference, Role::Api], audio));
        assert!(!may(&[Role::Inference], audio) && !may(&[], audio));
        let kept = |method: &str| format!("/quickcomm.api.v1.Conversations/{method}");
        assert!(may(&[Role::Audio], &kept("Commit")) && !may(&[Role::Inference], &kept("Commit")));
        assert!(may(&[Role::Inference], &kept("Record")) && !may(&[Role::Audio], &kept("Record")));
        assert!(may(&[Role::Inference], &kept("View")));
        assert!(
            !may(&Role::ALL, &kept("Purge"))
                && !may(&Role::ALL, "/quickcomm.audio.v2.Audio/Open")
                && !may(&Role::ALL, "/")
                && !may(&Role::ALL, "")
        );
        for role in Role::ALL {
            assert!(may(&[role], "/quickcomm.hello.v1.Peers/Hello") && may(&[role], "/grpc.health.v1.Health/Check"));
            assert_eq!(Role::from_uri(&role.uri()), Some(role));
        }
        assert_eq!(Role::from_uri("quickcomm://role/root"), None);
    }
}
