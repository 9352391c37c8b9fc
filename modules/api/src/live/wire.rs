//! What goes over the live socket: what clients may say, and the envelope around everything they are told.

use bytestring::ByteString;
use chrono::{DateTime, SecondsFormat, Utc};
use contracts::{ChannelIndex, ConversationId, InsightId, UtteranceId, audio::Role};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

use crate::record::{ConversationRow, InsightRow, TalkMetrics, UtteranceRow, WordRow};

pub(crate) const PROTOCOL: u32 = 1;
pub(crate) const ASKABLE: &str = "hello, subscribe, unsubscribe, ping";

/// What a client says.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Asked {
    Hello {
        protocol: u32,
    },
    Subscribe {
        topic: String,
        /// Whether unfinished text is wanted. On the wall it is not unless asked for, on a conversation it is.
        partials: Option<bool>,
        /// The last `seq` the client has of this topic, and the epoch it is from.
        since_seq: Option<u64>,
        epoch: Option<String>,
    },
    Unsubscribe {
        topic: String,
    },
    Ping,
}

/// What can be subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TopicName {
    Wall,
    Conversation(ConversationId),
}

impl TopicName {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("conversation:") {
            Some(id) => id.parse().ok().map(Self::Conversation),
            None => (text == "wall").then_some(Self::Wall),
        }
    }
    pub(crate) fn conversation(self) -> Option<ConversationId> {
        match self {
            Self::Wall => None,
            Self::Conversation(id) => Some(id),
        }
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wall => f.write_str("wall"),
            Self::Conversation(id) => write!(f, "conversation:{id}"),
        }
    }
}

impl Serialize for TopicName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    topic: Option<TopicName>,
    /// Null on what passes by (unfinished text, activity, lag, talk metrics): it is state, not history, and is never replayed.
    seq: Option<u64>,
    conversation_id: Option<ConversationId>,
    emitted_at: String,
    data: T,
}

/// One frame as it goes out; written once, shared by everyone who gets it.
pub(crate) fn frame(
    kind: &str,
    topic: Option<TopicName>,
    seq: Option<u64>,
    conversation_id: Option<ConversationId>,
    data: impl Serialize,
) -> ByteString {
    let emitted_at = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let envelope = Envelope { v: PROTOCOL, kind, topic, seq, conversation_id, emitted_at, data };
    serde_json::to_string(&envelope).expect("rows of the record have string keys and finite structure").into()
}

pub(crate) fn error(topic: Option<TopicName>, code: &str, message: impl fmt::Display) -> ByteString {
    let data = serde_json::json!({ "code": code, "message": message.to_string() });
    frame("error", topic, None, topic.and_then(TopicName::conversation), data)
}

/// Something that happened to a conversation, as readers are told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Started(ConversationRow),
    Updated(ConversationRow),
    Ended(ConversationRow),
    Final(UtteranceRow),
    Partial(Partial),
    Retracted(UtteranceId),
    Activity { channel: ChannelIndex, talking: bool },
    Link { connected: bool },
    Lag { ms: u32 },
    InsightCreated(InsightRow),
    InsightSuperseded { insight_id: InsightId, by: InsightId },
    Metrics(TalkMetrics),
}

/// What makes two passing events the same news: only the newer one is worth sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NewsKey {
    pub(crate) conversation: ConversationId,
    kind: &'static str,
    subject: u128,
}

impl Event {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Started(_) => "conversation.started",
            Self::Updated(_) => "conversation.updated",
            Self::Ended(_) => "conversation.ended",
            Self::Final(_) => "utterance.final",
            Self::Partial(_) => "utterance.partial",
            Self::Retracted(_) => "utterance.retracted",
            Self::Activity { .. } => "speech.activity",
            Self::Link { .. } => "link",
            Self::Lag { .. } => "lag",
            Self::InsightCreated(_) => "insight.created",
            Self::InsightSuperseded { .. } => "insight.superseded",
            Self::Metrics(_) => "metrics.tick",
        }
    }

    pub(crate) fn on_wall(&self) -> bool {
        !matches!(self, Self::InsightSuperseded { .. } | Self::Metrics(_))
    }

    /// Only for those who asked for unfinished text. Retractions are numbered and go to everyone: a lost one would leave text on the screen.
    pub(crate) fn needs_partials(&self) -> bool {
        matches!(self, Self::Partial(_))
    }

    /// Events with a key pass by: they carry no `seq`, are not replayed, and a newer one takes an unsent older one's place.
    pub(crate) fn passing(&self, conversation: ConversationId) -> Option<NewsKey> {
        let (kind, subject) = match self {
            Self::Partial(partial) => ("partial", partial.utterance_id.as_u128()),
            Self::Activity { channel, .. } => ("activity", u128::from(channel.0)),
            Self::Lag { .. } => ("lag", 0),
            Self::Metrics(_) => ("metrics", 0),
            _ => return None,
        };
        Some(NewsKey { conversation, kind, subject })
    }

    pub(crate) fn frame(&self, topic: TopicName, seq: Option<u64>, conversation: ConversationId) -> ByteString {
        let data = match self {
            // The wall shows the last line only; words stay with the conversation's own topic.
            Self::Final(utterance) if topic == TopicName::Wall => {
                Data::Utterance { utterance: UtteranceRow { words: vec![], ..utterance.clone() } }
            }
            Self::Final(utterance) => Data::Utterance { utterance: utterance.clone() },
            Self::Started(row) | Self::Updated(row) | Self::Ended(row) => Data::Conversation { conversation: row },
            Self::Partial(partial) => Data::Partial(partial),
            Self::Retracted(utterance_id) => Data::Retracted { utterance_id: *utterance_id },
            Self::Activity { channel, talking } => Data::Activity { channel: *channel, talking: *talking },
            Self::Link { connected } => Data::Link { connected: *connected },
            Self::Lag { ms } => Data::Lag { ms: *ms },
            Self::InsightCreated(insight) => Data::Insight { insight },
            Self::InsightSuperseded { insight_id, by } => Data::Superseded { insight_id: *insight_id, by: *by },
            Self::Metrics(metrics) => Data::Metrics(metrics),
        };
        frame(self.kind(), Some(topic), seq, Some(conversation), data)
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Conversation { conversation: &'a ConversationRow },
    Utterance { utterance: UtteranceRow },
    Partial(&'a Partial),
    Retracted { utterance_id: UtteranceId },
    Activity { channel: ChannelIndex, talking: bool },
    Link { connected: bool },
    Lag { ms: u32 },
    Insight { insight: &'a InsightRow },
    Superseded { insight_id: InsightId, by: InsightId },
    Metrics(&'a TalkMetrics),
}

/// Text of an utterance that is still being said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Partial {
    pub(crate) utterance_id: UtteranceId,
    pub(crate) channel: ChannelIndex,
    pub(crate) role: Role,
    pub(crate) rev: u32,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
    pub(crate) text: String,
    pub(crate) stable_words: u32,
    pub(crate) words: Vec<WordRow>,
}

/// A conversation as the wall shows it.
#[derive(Serialize)]
pub(crate) struct WallTile<'a> {
    #[serde(flatten)]
    pub(crate) row: &'a ConversationRow,
    pub(crate) last_text: Option<&'a str>,
    pub(crate) last_role: Option<Role>,
    pub(crate) last_at: Option<DateTime<Utc>>,
    /// Per channel, in order of `channels`.
    pub(crate) talking: &'a [bool],
    pub(crate) lag_ms: u32,
    pub(crate) connected: bool,
    pub(crate) sentiments: Vec<SentimentPoint<'a>>,
}

#[derive(Serialize)]
pub(crate) struct SentimentPoint<'a> {
    pub(crate) at_ms: u64,
    pub(crate) name: &'a str,
    pub(crate) score: f32,
}

#[derive(Serialize)]
pub(crate) struct WallSnapshot<'a> {
    pub(crate) conversations: Vec<WallTile<'a>>,
}

#[derive(Serialize)]
pub(crate) struct ConversationSnapshot<'a> {
    pub(crate) conversation: &'a ConversationRow,
    pub(crate) utterances: &'a [UtteranceRow],
    pub(crate) insights: &'a [InsightRow],
    pub(crate) partials: Vec<&'a Partial>,
    pub(crate) metrics: &'a TalkMetrics,
    pub(crate) connected: bool,
    pub(crate) lag_ms: u32,
    pub(crate) talking: &'a [bool],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_reads_back_and_others_are_refused() {
        let call = TopicName::Conversation(ConversationId::from_u128(7));
        for topic in [TopicName::Wall, call] {
            assert_eq!(TopicName::parse(&topic.to_string()), Some(topic));
        }
        for bad in ["", "walls", "conversation:", "conversation:utt_00000000000000000000000000000007", "conv_1"] {
            assert_eq!(TopicName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_frame_has_the_whole_envelope() {
        let id = ConversationId::from_u128(7);
        let topic = TopicName::Conversation(id);
        let frame: serde_json::Value = serde_json::from_str(&Event::Lag { ms: 90 }.frame(topic, None, id)).unwrap();
        assert_eq!(frame["v"], 1);
        assert_eq!(frame["type"], "lag");
        assert_eq!(frame["topic"], topic.to_string());
        assert!(frame["seq"].is_null() && frame["emitted_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(frame["conversation_id"], id.to_string());
        assert_eq!(frame["data"], serde_json::json!({ "ms": 90 }));
    }

    #[test]
    fn a_message_of_no_known_type_is_an_error() {
        assert_eq!(serde_json::from_str::<Asked>(r#"{"type":"ping"}"#).unwrap(), Asked::Ping);
        assert!(serde_json::from_str::<Asked>(r#"{"type":"shout"}"#).unwrap_err().to_string().contains("shout"));
        assert!(serde_json::from_str::<Asked>(r#"{"type":"subscribe"}"#).unwrap_err().to_string().contains("topic"));
    }
}
