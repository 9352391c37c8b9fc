//! `POST /v1/listen`: a whole file in, its transcript out, as fast as there is room; and a conversation in the record like any other.

use super::{
    DeepgramRefusal,
    intake::linear16,
    messages::{Alternative, Paragraph, Paragraphs, ResultMetadata, SaidWord, Sentence, Summary, Warning, thousandths},
    query::ListenQuery,
    request_id,
    windows::mean,
};
use crate::{
    engine::decode::{
        self,
        file::{DecodeError, Limits, Reader, Truncated},
    },
    ingest::{
        Ingest, Shared,
        audience::{Event, Final},
        channel::Input,
        refusal::{same_site, trace_of},
        session::{Begin, Conversation, Opening, Presence, Source},
    },
};
use actix_web::{HttpRequest, HttpResponse, http::StatusCode, http::header, web};
use bytes::{Bytes, BytesMut};
use chrono::Utc;
use contracts::{
    CallError, ChannelIndex, ConversationId, Encoding, SamplePos, SampleRate, TenantId, TraceCx,
    audio::{ChannelSpec, Pace, Role, Word, text_of},
    conversation::ConversationState,
};
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{io::Cursor, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use uuid::Uuid;

/// A body that stops coming for this long is given up.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// The transcript is there; its commit is waited for this long, so that whoever reads the answer finds the conversation in the record.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
const MOST_CHANNELS: usize = 8;
const BAD_AUDIO: &str = "Bad Request";

/// `POST /v1/listen`: a sound file, or headerless audio with `encoding` and `sample_rate`.
pub(in crate::ingest) async fn transcribe(
    request: HttpRequest,
    body: web::Payload,
    ingest: web::Data<Ingest>,
) -> Result<HttpResponse, DeepgramRefusal> {
    let id = ConversationId::fresh();
    let shared = &ingest.shared;
    same_site(&request).map_err(|refusal| DeepgramRefusal::of_refusal(refusal, id))?;
    let query = ListenQuery::parse(request.query_string()).map_err(|reason| DeepgramRefusal::parameter(reason, id))?;
    let Ok(_turn) = shared.uploads.clone().try_acquire_owned() else {
        let busy = CallError::busy(Duration::from_secs(2), format!("{} files are being transcribed already", shared.settings.max_uploads));
        return Err(DeepgramRefusal::of_call(&busy, id));
    };
    let data = collect(&request, body, shared.settings.max_upload_bytes, id).await?;
    if is_json(&request) {
        let message = "fetching a url is not offered yet: expected the audio itself as the body, for example curl --data-binary @call.wav";
        return Err(DeepgramRefusal::new(StatusCode::BAD_REQUEST, "REMOTE_CONTENT_ERROR", message, id));
    }
    let bad_audio = |reason: String| DeepgramRefusal::new(StatusCode::BAD_REQUEST, BAD_AUDIO, reason, id);
    if data.is_empty() {
        return Err(bad_audio("the body is empty: expected audio".into()));
    }
    let (trace, _span) = trace_of(&request);
    let upload = Upload { id, trace, query, sha256: hex::encode(Sha256::digest(&data)), created: Utc::now() };
    let max_seconds = (shared.settings.max_upload_ms / 1000).max(1) as u32;
    let (format, pieces) = upload.decode(data, max_seconds).await.map_err(bad_audio)?;
    let answer = upload.hear(shared, format, pieces).await.map_err(|error| match error {
        Failure::Audio(reason) => bad_audio(reason),
        Failure::Call(error) => DeepgramRefusal::of_call(&error, id),
    })?;
    let mut response = HttpResponse::Ok();
    if let Some(standing) = &shared.standing
        && let Some(mark) = standing().await
    {
        response.insert_header(("x-consistency", mark));
    }
    Ok(response
        .insert_header(("dg-request-id", request_id(id).to_string()))
        .insert_header(("quickcomm-conversation", id.to_string()))
        .json(answer))
}

fn is_json(request: &HttpRequest) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("application/json")
}

async fn collect(request: &HttpRequest, mut body: web::Payload, most: usize, id: ConversationId) -> Result<Bytes, DeepgramRefusal> {
    let too_large = || {
        let message = format!("the body is too large: expected at most {most} bytes");
        DeepgramRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", message, id)
    };
    let promised = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if promised.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut data = BytesMut::with_capacity(promised.unwrap_or(0));
    loop {
        let part = tokio::time::timeout(BODY_PATIENCE, body.next()).await.map_err(|_| {
            let message = format!("the body stopped coming for {} s", BODY_PATIENCE.as_secs());
            DeepgramRefusal::new(StatusCode::REQUEST_TIMEOUT, "SLOW_UPLOAD", message, id)
        })?;
        match part {
            Some(Ok(part)) => data.extend_from_slice(&part),
            Some(Err(error)) => {
                let message = format!("the body cannot be read: {error}");
                return Err(DeepgramRefusal::new(StatusCode::BAD_REQUEST, BAD_AUDIO, message, id));
            }
            None => return Ok(data.freeze()),
        }
        if data.len() > most {
            return Err(too_large());
        }
    }
}

/// What will be heard: channels of 16-bit samples.
#[derive(Clone, Copy)]
struct Format {
    rate: SampleRate,
    channels: usize,
    truncated: Option<Truncated>,
}

/// One stretch of every channel, or the reason there are no more.
type Pieces = mpsc::Receiver<Result<Vec<Bytes>, String>>;

enum Failure {
    Audio(String),
    Call(CallError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

struct Upload {
    id: ConversationId,
    trace: TraceCx,
    query: ListenQuery,
    sha256: String,
    created: chrono::DateTime<Utc>,
}

impl Upload {
    /// Decodes on a thread of its own, no faster than the pieces are taken.
    async fn decode(&self, data: Bytes, max_seconds: u32) -> Result<(Format, Pieces), String> {
        let (tx, pieces) = mpsc::channel(4);
        let multichannel = self.query.multichannel;
        let container = data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WAVE".as_slice());
        if let (Some(encoding), false) = (self.query.encoding, container) {
            let rate = self.query.rate.ok_or("sample_rate is missing: expected it together with encoding")?;
            let channels = self.query.channels;
            let seconds = data.len() / encoding.bytes_per_sample() / channels / rate.hz() as usize;
            if seconds > max_seconds as usize {
                return Err(DecodeError::TooLong(max_seconds).to_string());
            }
            tokio::task::spawn_blocking(move || headerless(&data, encoding, rate, channels, multichannel, &tx));
            let channels = if multichannel { channels } else { 1 };
            return Ok((Format { rate, channels, truncated: None }, pieces));
        }
        let limits = Limits { max_seconds, max_channels: MOST_CHANNELS };
        let opened = tokio::task::spawn_blocking(move || Reader::open(Box::new(Cursor::new(data)), limits)).await;
        let reader = opened.map_err(|_| "the decoder gave up on it".to_owned())?.map_err(|error| error.to_string())?;
        let channels = if multichannel { reader.channels } else { 1 };
        let format = Format { rate: reader.rate, channels, truncated: reader.truncated };
        tokio::task::spawn_blocking(move || contained(reader, multichannel, &tx));
        Ok((format, pieces))
    }

    async fn hear(&self, shared: &Arc<Shared>, format: Format, mut pieces: Pieces) -> Result<Answer, Failure> {
        // The first stretch decides whether it is sound at all: rubbish leaves no conversation behind.
        let first = match pieces.recv().await {
            Some(first) => first.map_err(Failure::Audio)?,
            None => return Err(Failure::Audio("the file has no sound in it".into())),
        };
        let spec = |n| ChannelSpec { index: ChannelIndex(n as u8), role: Role::Unknown, encoding: Encoding::Linear16, rate: format.rate };
        let opening = Opening {
            id: self.id,
            source: Source::File,
            external_id: None,
            title: None,
            tags: self.query.tags.clone(),
            language: self.query.language.clone(),
            endpointing: self.query.endpointing,
            partials: None,
            pace: Pace::Batch,
            trace: self.trace,
            tenant: TenantId::default(),
            started_at: Utc::now(),
            channels: (0..format.channels).map(spec).collect(),
        };
        let conversation = Conversation::open(shared, opening, Begin::New).await?;
        let mut presence = conversation.join().ok_or_else(|| CallError::unavailable("the server is restarting"))?;
        let send = async {
            let mut next = Some(Ok(first));
            while let Some(piece) = next {
                let piece = piece.map_err(Failure::Audio)?;
                for (door, data) in conversation.doors.iter().zip(piece) {
                    let sent = door.input.send(Input::Audio { pos: None, data }).await;
                    sent.map_err(|_| CallError::unavailable("hearing ended early"))?;
                }
                next = pieces.recv().await;
            }
            conversation.finish(ConversationState::Complete);
            Ok(())
        };
        let listen = gather(&mut presence, format.channels);
        let ((), heard) = tokio::try_join!(send, listen)?;
        let _ = tokio::time::timeout(COMMIT_PATIENCE, conversation.over()).await; // later is no reason to withhold the text
        Ok(self.answer(&conversation, format, heard))
    }

    fn answer(&self, conversation: &Conversation, format: Format, heard: Vec<Vec<Final>>) -> Answer {
        let metadata = ResultMetadata::new(request_id(self.id), &self.query.model, &conversation.info.model);
        let end = conversation.doors.iter().map(|door| door.standing().received).max().unwrap_or(SamplePos::ZERO);
        let mut summary = Summary::new(&metadata, self.sha256.clone(), self.created, thousandths(format.rate.ms_at(end)), format.channels);
        summary.tags = self.query.tags.clone();
        let not_offered = self.query.not_given.iter().map(|name| Warning::not_offered(name));
        summary.warnings = format.truncated.map(Warning::truncated).into_iter().chain(not_offered).collect();
        let mut utterances: Vec<Utterance> = vec![];
        let channels = heard.iter().enumerate().map(|(n, finals)| {
            let turns = turns(finals);
            if self.query.utterances {
                utterances.extend(turns.iter().map(|turn| Utterance::new(n, turn)));
            }
            Channel { alternatives: [alternative(finals, &turns, self.query.paragraphs)] }
        });
        let channels = channels.collect();
        utterances.sort_by(|a, b| a.start.total_cmp(&b.start).then(a.channel.cmp(&b.channel)));
        let utterances = self.query.utterances.then_some(utterances);
        Answer { metadata: summary, results: Heard { channels, utterances } }
    }
}

/// Channels of a file that says itself what it holds.
fn contained(mut reader: Reader, multichannel: bool, tx: &mpsc::Sender<Result<Vec<Bytes>, String>>) {
    loop {
        let piece = match reader.next() {
            Ok(Some(piece)) => Ok(encode(piece, multichannel)),
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        let last = piece.is_err();
        if tx.blocking_send(piece).is_err() || last {
            return; // nobody listens any more, or nothing more can be read
        }
    }
}

fn headerless(
    data: &[u8],
    encoding: Encoding,
    rate: SampleRate,
    channels: usize,
    multichannel: bool,
    tx: &mpsc::Sender<Result<Vec<Bytes>, String>>,
) {
    let frame = encoding.bytes_per_sample() * channels;
    let whole = &data[..data.len() - data.len() % frame];
    let mut samples = vec![];
    for stretch in whole.chunks(frame * rate.hz() as usize / 2) {
        samples.clear();
        decode::samples(encoding, stretch, &mut samples);
        let apart: Vec<Vec<f32>> = (0..channels).map(|n| samples.iter().skip(n).step_by(channels).copied().collect()).collect();
        if tx.blocking_send(Ok(encode(&apart, multichannel))).is_err() {
            return;
        }
    }
}

fn encode(piece: &[Vec<f32>], multichannel: bool) -> Vec<Bytes> {
    if multichannel || piece.len() == 1 {
        return piece.iter().map(|channel| linear16(channel.iter().copied())).collect();
    }
    let samples = piece.first().map_or(0, Vec::len);
    let mixed = (0..samples).map(|n| piece.iter().map(|channel| channel[n]).sum::<f32>() / piece.len() as f32);
    vec![linear16(mixed)]
}

/// Reads until every channel has been heard out.
async fn gather(presence: &mut Presence, channels: usize) -> Result<Vec<Vec<Final>>, Failure> {
    let mut heard: Vec<Vec<Final>> = vec![vec![]; channels];
    let mut open = channels;
    while open > 0 {
        match presence.next().await {
            Ok(Event::Final(last)) => heard[usize::from(last.channel.0)].push(last),
            Ok(Event::Heard { .. }) => open -= 1,
            Ok(Event::Failed { error }) => return Err(error.into()),
            Ok(Event::Leaving) => return Err(CallError::unavailable("the server is restarting").into()),
            Ok(_) => {}
            Err(why) => return Err(CallError::unavailable(format!("hearing ended early: {why:?}")).into()),
        }
    }
    Ok(heard)
}

/// Finals that belong together: up to the one after which the speaker paused.
fn turns(finals: &[Final]) -> Vec<&[Final]> {
    finals.split_inclusive(|last| last.spoken.speech_final).filter(|turn| turn.iter().any(|last| !last.spoken.words.is_empty())).collect()
}

fn words_of(finals: &[Final]) -> Vec<Word> {
    finals.iter().flat_map(|last| last.spoken.words.iter().cloned()).collect()
}

fn alternative(finals: &[Final], turns: &[&[Final]], paragraphs: bool) -> Alternative {
    let words = words_of(finals);
    let confidence = mean(words.iter().map(|word| word.confidence));
    let paragraphs = paragraphs.then(|| Paragraphs {
        transcript: turns.iter().map(|turn| format!("\n{}", text_of(&words_of(turn)))).collect::<Vec<_>>().join("\n"),
        paragraphs: turns.iter().map(|turn| paragraph(&words_of(turn))).collect(),
    });
    Alternative { paragraphs, ..Alternative::new(&words, confidence) }
}

fn paragraph(words: &[Word]) -> Paragraph {
    let sentences = words.split_inclusive(|word| word.text.ends_with(['.', '?', '!']));
    Paragraph {
        sentences: sentences.map(|said| Sentence { text: text_of(said), start: start(said), end: end(said) }).collect(),
        num_words: words.len(),
        start: start(words),
        end: end(words),
    }
}

fn start(words: &[Word]) -> f64 {
    words.first().map_or(0.0, |word| thousandths(word.start_ms))
}

fn end(words: &[Word]) -> f64 {
    words.last().map_or(0.0, |word| thousandths(word.end_ms))
}

#[derive(Serialize)]
struct Answer {
    metadata: Summary,
    results: Heard,
}

#[derive(Serialize)]
struct Heard {
    channels: Vec<Channel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utterances: Option<Vec<Utterance>>,
}

#[derive(Serialize)]
struct Channel {
    alternatives: [Alternative; 1],
}

#[derive(Serialize)]
struct Utterance {
    start: f64,
    end: f64,
    confidence: f32,
    channel: usize,
    transcript: String,
    words: Vec<SaidWord>,
    id: Uuid,
}

impl Utterance {
    fn new(channel: usize, turn: &[Final]) -> Self {
        let words = words_of(turn);
        let confidence = mean(words.iter().map(|word| word.confidence));
        let Alternative { transcript, words: said, .. } = Alternative::new(&words, confidence);
        let id = turn.first().map_or(Uuid::nil(), |first| Uuid::from_u128(first.utterance.as_u128()));
        Self { start: start(&words), end: end(&words), confidence, channel, transcript, words: said, id }
    }
}
