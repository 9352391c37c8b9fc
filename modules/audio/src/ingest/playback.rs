//! `GET /v1/conversations/{id}/recording`: a conversation's sound as WAV, whole or any range of it; of a live one, what there is so far.

use super::{
    Ingest,
    recording::View,
    refusal::{Refusal, pairs, trace_of},
};
use actix_web::{HttpRequest, HttpResponse, body::SizedStream, http::StatusCode, http::header, web};
use bytes::Bytes;
use contracts::{CallError, ChannelIndex, ConversationId};
use futures::stream;
use std::{io, ops::Range, sync::Arc};

/// Read and sent at a time.
const CHUNK_BYTES: u64 = 64 << 10;

pub(super) async fn recording(request: HttpRequest, id: web::Path<String>, ingest: web::Data<Ingest>) -> Result<HttpResponse, Refusal> {
    let (trace, _span) = trace_of(&request);
    answer(&request, &id, &ingest).await.map_err(|refusal| refusal.at(&request, trace))
}

async fn answer(request: &HttpRequest, id: &str, ingest: &Ingest) -> Result<HttpResponse, Refusal> {
    let id: ConversationId =
        id.parse().map_err(|_| Refusal::parameter("id", id, "a conversation's id: conv_ and 32 hexadecimal digits"))?;
    let only = channel(request.query_string())?;
    let recordings = ingest.shared.recordings.clone();
    let found = tokio::task::spawn_blocking(move || recordings.view(id, only)).await;
    let found = found.map_err(|e| CallError::panicked(&*e.into_panic()))?;
    let view = found.map_err(|e| CallError::internal(format!("the recording of {id} cannot be read: {e}")))?;
    let Some(view) = view else {
        let why = if ingest.records() { "" } else { ": recordings are switched off" };
        return Err(CallError::not_found(format!("no recording of {id}{why}")).into());
    };
    let whole = view.len();
    let asked = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let (mut response, part) = match asked.map(|text| range(text, whole)) {
        None | Some(Asked::Whole) => (HttpResponse::Ok(), 0..whole),
        Some(Asked::Part(part)) => {
            let mut response = HttpResponse::PartialContent();
            response.insert_header((header::CONTENT_RANGE, format!("bytes {}-{}/{whole}", part.start, part.end - 1)));
            (response, part)
        }
        Some(Asked::Beyond) => {
            let detail = format!("the range {:?} is beyond the recording: expected less than {whole} bytes", asked.unwrap_or_default());
            let mut refused = actix_web::ResponseError::error_response(&Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", detail));
            let range = header::HeaderValue::try_from(format!("bytes */{whole}")).expect("digits are a header value");
            refused.headers_mut().insert(header::CONTENT_RANGE, range);
            return Ok(refused);
        }
    };
    response.content_type("audio/wav").insert_header((header::ACCEPT_RANGES, "bytes")).insert_header((header::CACHE_CONTROL, "no-cache"));
    Ok(response.body(SizedStream::new(part.end - part.start, chunks(Arc::new(view), part))))
}

fn channel(query: &str) -> Result<Option<ChannelIndex>, Refusal> {
    let mut only = None;
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "channel" => {
                let index = value.parse().map_err(|_| Refusal::parameter("channel", &value, "the number of a channel, from 0"))?;
                only = Some(ChannelIndex(index));
            }
            _ => return Err(Refusal::parameter(&name.chars().take(64).collect::<String>(), &value, "only channel")),
        }
    }
    Ok(only)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Beyond,
}

/// RFC 9110: what is no single byte range is ignored and answered with the whole.
fn range(text: &str, whole: u64) -> Asked {
    let Some((from, to)) = text.trim().strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else { return Asked::Whole };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let part = match (from.trim(), to.trim()) {
        ("", last) => match number(last) {
            Some(last) => whole.saturating_sub(last)..whole,
            None => return Asked::Whole,
        },
        (from, "") => match number(from) {
            Some(from) => from..whole,
            None => return Asked::Whole,
        },
        (from, to) => match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => from..to.saturating_add(1).min(whole),
            _ => return Asked::Whole,
        },
    };
    if part.start >= part.end { Asked::Beyond } else { Asked::Part(part) }
}

fn chunks(view: Arc<View>, part: Range<u64>) -> impl futures::Stream<Item = Result<Bytes, io::Error>> {
    stream::try_unfold(part.start, move |from| {
        let view = view.clone();
        let to = part.end.min(from + CHUNK_BYTES);
        async move {
            if from >= to {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || view.read(from, to)).await.map_err(io::Error::other)??;
            Ok(Some((Bytes::from(read), to)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_what_rfc_9110_says() {
        assert_eq!(range("bytes=0-9", 100), Asked::Part(0..10));
        assert_eq!(range("bytes=90-", 100), Asked::Part(90..100));
        assert_eq!(range("bytes=-5", 100), Asked::Part(95..100));
        assert_eq!(range("bytes=95-1000", 100), Asked::Part(95..100));
        assert_eq!(range("bytes=100-", 100), Asked::Beyond);
        for ignored in ["bytes=9-3", "items=0-9", "bytes=a-b", "bytes=0-1,4-5", ""] {
            assert_eq!(range(ignored, 100), Asked::Whole, "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn no_range_reaches_outside(text in ".{0,30}", from in any::<u64>(), to in any::<u64>(), whole in 0u64..1000) {
            for text in [text, format!("bytes={from}-{to}"), format!("bytes=-{to}"), format!("bytes={from}-")] {
                if let Asked::Part(part) = range(&text, whole) {
                    prop_assert!(part.start < part.end && part.end <= whole);
                }
            }
        }
    }
}
