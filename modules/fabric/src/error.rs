//! A [`CallError`] and the gRPC status that carries it.
//!
//! Invariants:
//! - an error of the module that was asked arrives as it was said: kind, retry, origin, detail;
//! - what only the transport knows is [`ErrorKind::Unavailable`] when nobody could be reached and [`ErrorKind::Unknown`] when the call
//!   broke in the middle; the transport's `CANCELLED` stands for panics, resets and timeouts alike, so it is never read as one of them.
//!
//! The error travels in our own trailer: tonic panics on a standard `grpc-status-details-bin` that is not base64.

use crate::{link::NoLink, wire::quickcomm::call::v1 as pb};
use contracts::{CallError, ErrorKind, Origin, Retry};
use prost::Message;
use std::{error::Error, time::Duration};
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
};

const TRAILER: &str = "quickcomm-error-bin";
/// Of an error's detail, in bytes, in every locality: trailers have a limit of 16 KiB, and details are for people.
const DETAIL_BYTES: usize = 4096;
/// When a peer is full and does not say for how long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Cuts an endless detail.
pub(crate) fn concise(mut error: CallError) -> CallError {
    if error.detail.len() > DETAIL_BYTES {
        error.detail.truncate(error.detail.floor_char_boundary(DETAIL_BYTES - '…'.len_utf8()));
        error.detail.push('…');
    }
    error
}

pub(crate) fn to_status(error: CallError) -> Status {
    to_status_as(code_of(error.kind), error)
}

/// With a code that tells others more than our kind does.
pub(crate) fn to_status_as(code: Code, error: CallError) -> Status {
    let error = concise(error);
    let mut trailers = MetadataMap::new();
    let name = error.kind.name();
    trailers.insert_bin(TRAILER, BinaryMetadataValue::from_bytes(&pb::Error::from(error).encode_to_vec()));
    Status::with_metadata(code, name, trailers)
}

pub(crate) fn from_status(status: Status) -> CallError {
    if let Some(no) = causes(&status).find_map(|cause| cause.downcast_ref::<NoLink>()) {
        return concise(no.clone().into());
    }
    let carried =
        status.metadata().get_bin(TRAILER).and_then(|value| value.to_bytes().ok()).and_then(|bytes| pb::Error::decode(bytes).ok());
    match carried {
        Some(error) => read(error, status.code()),
        None => of_transport(&status),
    }
}

fn read(error: pb::Error, code: Code) -> CallError {
    let retry = match error.retry {
        Some(pb::error::Retry::Safe(_)) => Retry::Safe,
        Some(pb::error::Retry::AfterNs(ns)) => Retry::After(Duration::from_nanos(ns)),
        Some(pb::error::Retry::Never(_)) | None => Retry::Never,
    };
    let origin = match error.origin() {
        pb::error::Origin::Transport => Origin::Transport,
        pb::error::Origin::Policy => Origin::Policy,
        pb::error::Origin::Callee | pb::error::Origin::Unspecified => Origin::Callee,
    };
    let kind = kind_from(error.kind()).unwrap_or_else(|| kind_of(code));
    CallError { kind, retry, origin, detail: error.detail }
}

/// No module said this: the way to it did.
fn of_transport(status: &Status) -> CallError {
    let said = |kind, retry, detail: String| concise(CallError::new(kind, retry, detail).from(Origin::Transport));
    let text = with_causes(status);
    match status.code() {
        Code::Unavailable if status.source().is_none() => said(ErrorKind::Unavailable, Retry::Safe, text),
        Code::Unimplemented => said(ErrorKind::Unavailable, Retry::Never, "the process at the other end does not host this module".into()),
        Code::OutOfRange => said(ErrorKind::TooLarge, Retry::Never, text),
        Code::ResourceExhausted => said(ErrorKind::Busy, Retry::After(BUSY_FOR), text),
        Code::InvalidArgument => said(ErrorKind::InvalidInput, Retry::Never, text),
        _ => said(ErrorKind::Unknown, Retry::Safe, format!("the call broke on its way: {text}")),
    }
}

/// What lies behind an error, outermost first.
pub(crate) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source())
}

/// The innermost cause is the one that helps: "transport error" does not, "connection refused" does.
fn with_causes(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) => format!("{} ({cause})", status.message()),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::TooLarge => Code::OutOfRange,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Busy => Code::ResourceExhausted,
        ErrorKind::Unavailable | ErrorKind::SpoolFull => Code::Unavailable, // a release that does not know it reads the former
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Panicked | ErrorKind::Internal => Code::Internal,
        ErrorKind::Unknown => Code::Unknown,
    }
}

/// For a kind that only newer releases know.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::InvalidArgument => ErrorKind::InvalidInput,
        Code::OutOfRange => ErrorKind::TooLarge,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => ErrorKind::Conflict,
        Code::ResourceExhausted => ErrorKind::Busy,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::Internal => ErrorKind::Internal,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::DataLoss => ErrorKind::Unknown,
    }
}

impl From<CallError> for pb::Error {
    fn from(error: CallError) -> Self {
        let kind = match error.kind {
            ErrorKind::InvalidInput => pb::error::Kind::InvalidInput,
            ErrorKind::TooLarge => pb::error::Kind::TooLarge,
            ErrorKind::NotFound => pb::error::Kind::NotFound,
            ErrorKind::Conflict => pb::error::Kind::Conflict,
            ErrorKind::Busy => pb::error::Kind::Busy,
            ErrorKind::Unavailable => pb::error::Kind::Unavailable,
            ErrorKind::SpoolFull => pb::error::Kind::SpoolFull,
            ErrorKind::DeadlineExceeded => pb::error::Kind::DeadlineExceeded,
            ErrorKind::Cancelled => pb::error::Kind::Cancelled,
            ErrorKind::Panicked => pb::error::Kind::Panicked,
            ErrorKind::Internal => pb::error::Kind::Internal,
            ErrorKind::Unknown => pb::error::Kind::Unknown,
        };
        let retry = match error.retry {
            Retry::Never => pb::error::Retry::Never(pb::error::Never {}),
            Retry::Safe => pb::error::Retry::Safe(pb::error::Safe {}),
            Retry::After(time) => pb::error::Retry::AfterNs(crate::wire::nanos(time)),
        };
        let origin = match error.origin {
            Origin::Callee => pb::error::Origin::Callee,
            Origin::Transport => pb::error::Origin::Transport,
            Origin::Policy => pb::error::Origin::Policy,
        };
        Self { kind: kind.into(), retry: Some(retry), origin: origin.into(), detail: error.detail }
    }
}

fn kind_from(kind: pb::error::Kind) -> Option<ErrorKind> {
    Some(match kind {
        pb::error::Kind::Unspecified => return None,
        pb::error::Kind::InvalidInput => ErrorKind::InvalidInput,
        pb::error::Kind::TooLarge => ErrorKind::TooLarge,
        pb::error::Kind::NotFound => ErrorKind::NotFound,
        pb::error::Kind::Conflict => ErrorKind::Conflict,
        pb::error::Kind::Busy => ErrorKind::Busy,
        pb::error::Kind::Unavailable => ErrorKind::Unavailable,
        pb::error::Kind::SpoolFull => ErrorKind::SpoolFull,
        pb::error::Kind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        pb::error::Kind::Cancelled => ErrorKind::Cancelled,
        pb::error::Kind::Panicked => ErrorKind::Panicked,
        pb::error::Kind::Internal => ErrorKind::Internal,
        pb::error::Kind::Unknown => ErrorKind::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_retry_and_origin_arrives_as_it_was_said() {
        for kind in ErrorKind::ALL {
            for retry in [Retry::Never, Retry::Safe, Retry::After(Duration::from_millis(1500))] {
                for origin in [Origin::Callee, Origin::Transport, Origin::Policy] {
                    let said = CallError::new(kind, retry, "no model for “sv”").from(origin);
                    assert_eq!(from_status(to_status(said.clone())), said);
                }
            }
        }
    }

    #[test]
    fn a_kind_of_a_later_release_is_read_by_its_status() {
        let mut later = pb::Error::from(CallError::busy(Duration::from_secs(3), "all slots of a new sort are taken"));
        later.kind = 99;
        let mut trailers = MetadataMap::new();
        trailers.insert_bin(TRAILER, BinaryMetadataValue::from_bytes(&later.encode_to_vec()));
        let read = from_status(Status::with_metadata(Code::ResourceExhausted, "", trailers));
        assert_eq!(read, CallError::busy(Duration::from_secs(3), "all slots of a new sort are taken"));
    }

    #[test]
    fn what_the_transport_says_is_never_taken_for_a_timeout_or_an_answer() {
        for code in [Code::Cancelled, Code::Internal, Code::Unknown, Code::DeadlineExceeded, Code::DataLoss] {
            let read = from_status(Status::new(code, "h2 protocol error"));
            assert_eq!((read.kind, read.origin), (ErrorKind::Unknown, Origin::Transport), "{code:?}");
        }
        let absent = from_status(Status::unimplemented(""));
        assert_eq!((absent.kind, absent.retry), (ErrorKind::Unavailable, Retry::Never));
    }

    #[test]
    fn a_damaged_trailer_is_a_broken_call() {
        let mut trailers = MetadataMap::new();
        trailers.insert_bin(TRAILER, BinaryMetadataValue::from_bytes(&[0xff, 0xff, 0xff]));
        assert_eq!(from_status(Status::with_metadata(Code::Internal, "", trailers)).kind, ErrorKind::Unknown);
    }

    #[test]
    fn an_endless_detail_is_cut_at_a_letter() {
        let cut = concise(CallError::internal("é".repeat(10_000)));
        assert!(cut.detail.len() <= DETAIL_BYTES && cut.detail.ends_with("é…"), "{} bytes", cut.detail.len());
        assert_eq!(concise(CallError::internal("short")).detail, "short");
    }
}
