//! A conversation as a file: json for programs, txt for people, srt and vtt for players.

use super::{
    Caller,
    conversations::Reads,
    params::{self, Params},
    problem::{Problem, ProblemDocument},
};
use crate::record::{ConversationRow, InsightRow, TalkMetrics, UtteranceKind, UtteranceRow, WordRow};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use contracts::{ConversationId, audio::Role};
use serde::Serialize;
use std::fmt::Write as _;
use utoipa::ToSchema;

/// A caption fits two lines of a player and is read in this time.
const CAPTION_CHARS: usize = 84;
const CAPTION_MS: u64 = 7_000;

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Json,
    Text,
    Srt,
    Vtt,
}

impl Format {
    const ALL: [Self; 4] = [Self::Json, Self::Text, Self::Srt, Self::Vtt];
    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "txt",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
        }
    }
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Srt => "application/x-subrip; charset=utf-8",
            Self::Vtt => "text/vtt; charset=utf-8",
        }
    }
}

/// Everything the record has of a conversation.
#[derive(Serialize, ToSchema)]
pub struct Export {
    pub conversation: ConversationRow,
    pub utterances: Vec<UtteranceRow>,
    /// Current ones.
    pub insights: Vec<InsightRow>,
    pub metrics: TalkMetrics,
}

/// A conversation as a file.
#[utoipa::path(get, path = "/v1/conversations/{id}/export", tag = "conversations", operation_id = "export_conversation",
    params(
        ("id" = String, Path, description = "`conv_…`"),
        ("format" = Option<String>, Query, description = "`json` (default), `txt`, `srt` or `vtt`.")),
    responses(
        (status = 200, description = "The file.", content((Export = "application/json"), (String = "text/plain"), (String = "application/x-subrip"), (String = "text/vtt"))),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json")))]
pub(crate) async fn export(
    request: HttpRequest,
    id: web::Path<String>,
    caller: Caller,
    reads: web::Data<Reads>,
) -> Result<HttpResponse, Problem> {
    let mut params = Params::read(&request, &["format"]);
    let format = params.one_of("format", &Format::ALL, Format::name).unwrap_or(Format::Json);
    params.done()?;
    let id: ConversationId = params::id(&id)?;
    let conversation = reads.complete(reads.record.row(&caller.tenant, id).await?);
    let utterances = reads.record.transcript(&caller.tenant, id).await?;
    let body = match format {
        Format::Json => {
            let insights = reads.record.insights(&caller.tenant, id, false, None).await?;
            let metrics = reads.record.metrics(&caller.tenant, id).await?;
            let export = Export { conversation, utterances, insights, metrics };
            serde_json::to_string_pretty(&export).map_err(|cause| contracts::CallError::internal(cause.to_string()))?
        }
        Format::Text => text(&conversation, &utterances),
        Format::Srt => srt(&utterances),
        Format::Vtt => vtt(&utterances),
    };
    let name = format!("attachment; filename=\"{id}.{}\"", format.name()); // an id is letters and digits
    Ok(HttpResponse::Ok().content_type(format.media_type()).insert_header((header::CONTENT_DISPOSITION, name)).body(body))
}

fn text(conversation: &ConversationRow, utterances: &[UtteranceRow]) -> String {
    let title = conversation.title.as_deref().unwrap_or("Conversation");
    let mut out = format!("{}\n{} · {}\n\n", plain(title), conversation.id, conversation.started_at.format("%Y-%m-%d %H:%M:%S UTC"));
    for utterance in utterances {
        let (at, who) = (clock(utterance.start_ms, '.'), speaker(utterance));
        let _ = match utterance.kind {
            UtteranceKind::Speech => writeln!(out, "[{at}] {who}: {}", plain(&utterance.text)),
            UtteranceKind::Gap => writeln!(out, "[{at}] {who}: (audio missing until {})", clock(utterance.end_ms, '.')),
        };
    }
    out
}

fn srt(utterances: &[UtteranceRow]) -> String {
    let mut out = String::new();
    for (n, caption) in captions(utterances).enumerate() {
        let (from, to) = (clock(caption.start_ms, ','), clock(caption.end_ms, ','));
        let _ = writeln!(out, "{}\n{from} --> {to}\n{}: {}\n", n + 1, caption.speaker, caption.text);
    }
    out
}

fn vtt(utterances: &[UtteranceRow]) -> String {
    let mut out = "WEBVTT\n".to_owned();
    for caption in captions(utterances) {
        let (from, to) = (clock(caption.start_ms, '.'), clock(caption.end_ms, '.'));
        let text = caption.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = write!(out, "\n{from} --> {to}\n<v {}>{text}\n", caption.speaker);
    }
    out
}

struct Caption {
    start_ms: u64,
    end_ms: u64,
    speaker: String,
    text: String,
}

/// Utterances cut between words where a caption would be too long to read.
fn captions(utterances: &[UtteranceRow]) -> impl Iterator<Item = Caption> {
    utterances.iter().filter(|u| u.kind == UtteranceKind::Speech).flat_map(|utterance| {
        let mut captions: Vec<Caption> = vec![];
        for WordRow { text, start_ms, end_ms, .. } in &utterance.words {
            let (start_ms, end_ms) = (u64::from(*start_ms), u64::from(*end_ms).max(u64::from(*start_ms) + 1));
            match captions
                .last_mut()
                .filter(|c| c.text.len() + text.len() < CAPTION_CHARS && end_ms.saturating_sub(c.start_ms) <= CAPTION_MS)
            {
                Some(caption) => {
                    caption.text.push(' ');
                    caption.text.push_str(&plain(text));
                    caption.end_ms = end_ms.max(caption.end_ms);
                }
                None => captions.push(Caption { start_ms, end_ms, speaker: speaker(utterance), text: plain(text) }),
            }
        }
        captions
    })
}

fn speaker(utterance: &UtteranceRow) -> String {
    match utterance.role {
        Role::Agent => "Agent".into(),
        Role::Customer => "Customer".into(),
        Role::Unknown => format!("Speaker {}", u32::from(utterance.channel.0) + 1),
    }
}

fn clock(ms: u64, point: char) -> String {
    format!("{:02}:{:02}:{:02}{point}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// On one line, without control characters: a terminal or a player shall not obey what a caller said.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ChannelIndex, Epoch, UtteranceId, audio::WordTimes};

    fn said(role: Role, start_ms: u32, words: &[&str]) -> UtteranceRow {
        let conversation_id = ConversationId::from_u128(1);
        let word = |(n, text): (usize, &&str)| {
            let start_ms = start_ms + 500 * n as u32;
            WordRow { text: (*text).into(), start_ms, end_ms: start_ms + 400, confidence: 1.0 }
        };
        UtteranceRow {
            id: UtteranceId::of(conversation_id, ChannelIndex(0), Epoch(1), u64::from(start_ms)),
            conversation_id,
            channel: ChannelIndex(0),
            role,
            seq: 0,
            kind: UtteranceKind::Speech,
            start_ms: start_ms.into(),
            end_ms: u64::from(start_ms) + 500 * words.len() as u64,
            text: words.join(" "),
            confidence: 1.0,
            speech_final: true,
            word_times: WordTimes::Estimated,
            words: words.iter().enumerate().map(word).collect(),
            model: "m".into(),
            reason: None,
            trace_id: String::new(),
        }
    }

    #[test]
    fn captions_have_the_clock_of_their_format() {
        let said = [said(Role::Agent, 3_661_005, &["hello", "there"])];
        assert_eq!(srt(&said), "1\n01:01:01,005 --> 01:01:01,905\nAgent: hello there\n\n");
        assert_eq!(vtt(&said), "WEBVTT\n\n01:01:01.005 --> 01:01:01.905\n<v Agent>hello there\n");
    }

    #[test]
    fn a_long_utterance_becomes_several_captions_and_keeps_every_word() {
        let words: Vec<String> = (0..60).map(|n| format!("word{n}")).collect();
        let said = [said(Role::Unknown, 0, &words.iter().map(String::as_str).collect::<Vec<_>>())];
        let captions: Vec<_> = captions(&said).collect();
        assert!(captions.iter().all(|c| c.text.len() <= CAPTION_CHARS && c.end_ms - c.start_ms <= CAPTION_MS));
        assert!(captions.is_sorted_by(|a, b| a.end_ms <= b.start_ms));
        assert_eq!(captions.iter().map(|c| c.text.as_str()).collect::<Vec<_>>().join(" "), words.join(" "));
    }

    #[test]
    fn what_was_said_cannot_steer_a_player_or_a_terminal() {
        let said = [said(Role::Customer, 0, &["<b>\u{1b}[31m", "a&b\n\n00:00"])];
        assert!(vtt(&said).ends_with("<v Customer>&lt;b&gt; [31m a&amp;b  00:00\n"), "{}", vtt(&said));
        assert!(!srt(&said).contains('\u{1b}'));
    }
}
