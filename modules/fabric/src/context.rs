//! The context of a call, in a request's metadata.

use crate::wire::{Unreadable, quickcomm::call::v1 as pb};
use contracts::{
    CallCx, CallError, ConversationId, TenantId,
    call_cx::{RouteKey, TraceCx},
};
use prost::Message;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

const CONTEXT: &str = "quickcomm-context-bin";
/// The standard name, so that proxies and collectors can follow.
const TRACE: &str = "traceparent";

/// A request that carries its context.
pub(crate) fn request<T>(cx: &CallCx, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    write(cx, request.metadata_mut());
    request
}

pub(crate) fn write(cx: &CallCx, metadata: &mut MetadataMap) {
    let conversation = match cx.key {
        RouteKey::Conversation(id) => crate::wire::bytes(id.as_u128()),
        RouteKey::None => Default::default(),
    };
    let context = pb::Context {
        // Rounded up: what is left of a millisecond is not nothing.
        budget_ms: u64::try_from(cx.remaining().as_micros().div_ceil(1000)).unwrap_or(u64::MAX),
        tenant: cx.tenant.as_str().to_owned(),
        conversation,
        attempt: cx.attempt.into(),
        depth: cx.depth.into(),
        shadow: cx.shadow,
    };
    metadata.insert_bin(CONTEXT, BinaryMetadataValue::from_bytes(&context.encode_to_vec()));
    metadata.insert(TRACE, cx.trace.to_string().parse().expect("a traceparent is hexadecimal digits and dashes"));
}

/// The callee's context. Its `cancel` is new: whoever handles the call cancels it when the caller has gone.
pub(crate) fn read(metadata: &MetadataMap) -> Result<CallCx, CallError> {
    let bytes = metadata.get_bin(CONTEXT).and_then(|value| value.to_bytes().ok());
    let bytes = bytes.ok_or_else(|| Unreadable::missing(CONTEXT).in_request())?;
    let context = pb::Context::decode(bytes).map_err(|_| Unreadable::missing("readable context").in_request())?;
    let trace = metadata.get(TRACE).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let key = match context.conversation.is_empty() {
        true => RouteKey::None,
        false => {
            let id = crate::wire::number(&context.conversation, "conversation id").map_err(Unreadable::in_request)?;
            RouteKey::Conversation(ConversationId::from_u128(id))
        }
    };
    let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    Ok(CallCx {
        deadline: after(Duration::from_millis(context.budget_ms)),
        trace: trace.unwrap_or_else(TraceCx::root),
        tenant: TenantId::new(&context.tenant),
        key,
        attempt: small(context.attempt),
        depth: small(context.depth),
        shadow: context.shadow,
        cancel: CancellationToken::new(),
    })
}

/// A budget beyond what the clock can count is a day.
fn after(budget: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(budget).unwrap_or(now + Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn a_context_arrives_whole() {
        let sent = CallCx {
            tenant: TenantId::new("Käse & Söhne"),
            key: RouteKey::Conversation(ConversationId::fresh()),
            attempt: 2,
            depth: 3,
            shadow: true,
            ..CallCx::new(Duration::from_millis(1234)).traced(TraceCx::root())
        };
        let mut metadata = MetadataMap::new();
        write(&sent, &mut metadata);
        let got = read(&metadata).expect("what was written");
        assert_eq!((got.deadline, got.trace, &got.tenant, got.key), (sent.deadline, sent.trace, &sent.tenant, sent.key));
        assert_eq!((got.attempt, got.depth, got.shadow), (2, 3, true));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_millisecond_is_not_nothing_and_eternity_is_a_long_time() {
        let mut metadata = MetadataMap::new();
        write(&CallCx::new(Duration::from_micros(500)), &mut metadata);
        assert_eq!(read(&metadata).unwrap().remaining(), Duration::from_millis(1));
        let endless = pb::Context { budget_ms: u64::MAX, ..Default::default() };
        metadata.insert_bin(CONTEXT, BinaryMetadataValue::from_bytes(&endless.encode_to_vec()));
        assert!(read(&metadata).unwrap().remaining() > Duration::from_secs(3600));
    }

    #[test]
    fn a_request_without_context_is_refused() {
        assert_eq!(read(&MetadataMap::new()).unwrap_err().kind, ErrorKind::InvalidInput);
    }
}
