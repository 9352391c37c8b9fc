//! What released processes put on the wire, as files that stay: `tests/golden/v1.txt` holds one of every message in version 1 of the
//! contracts. Today's code must read each as the value it was, and write that value as it was written.

use crate::wire::quickcomm::{api::v1 as api, audio::v1 as audio, call::v1 as call, hello::v1 as hello, inference::v1 as inference};
use chrono::DateTime;
use contracts::{
    CallError, ChannelIndex, ConversationId, Encoding, Epoch, InsightId, RunId, SamplePos, SampleRate, TenantId, TraceCx, UtteranceId,
    audio::*,
    conversation::*,
    inference::{Analyze, Evidence, Insight, Label, Provenance, Summarize, SummaryItem, SummaryKind, Task, Tier, TierStatus, Utterance},
};
use prost::Message;
use std::{collections::BTreeMap, env, fmt::Debug, fmt::Write, fs, path::PathBuf, time::Duration};

const WRITE: &str = "QUICKCOMM_WRITE_GOLDEN";

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.txt")
}

/// Bytes by message and, after a slash, variant.
#[derive(Default)]
struct Golden {
    kept: BTreeMap<String, Vec<u8>>,
    now: BTreeMap<String, Vec<u8>>,
    wrong: Vec<String>,
}

impl Golden {
    /// A message as it goes over the wire.
    fn message<M: Message + Default + PartialEq + Debug>(&mut self, name: &str, message: M) {
        let bytes = message.encode_to_vec();
        match self.kept.get(name) {
            None => self.wrong.push(format!("{name}: no file holds it yet")),
            Some(kept) => match M::decode(&kept[..]) {
                Ok(read) if read == message && *kept == bytes => {}
                Ok(read) => self.wrong.push(format!("{name}: was {message:?}, is read as {read:?}")),
                Err(error) => self.wrong.push(format!("{name}: cannot be read any more: {error}")),
            },
        }
        self.now.insert(name.into(), bytes);
    }

    /// A value of the contracts, and what it is on the wire.
    fn value<M: Message + Default + PartialEq + Debug + From<T>, T: Clone + PartialEq + Debug + TryFrom<M, Error: Debug>>(
        &mut self,
        name: &str,
        value: T,
    ) {
        self.message(name, M::from(value.clone()));
        let read = self.kept.get(name).map(|kept| M::decode(&kept[..]).map(T::try_from));
        if let Some(Ok(read)) = read
            && !matches!(&read, Ok(read) if *read == value)
        {
            self.wrong.push(format!("{name}: was {value:?}, is read as {read:?}"));
        }
    }
}

fn words() -> Vec<Word> {
    let word = |text: &str, start_ms, confidence| Word { text: text.into(), start_ms, end_ms: start_ms + 220, confidence };
    vec![word("grüß", 1_040, 0.75), word("Gott.", 1_300, 1.0)]
}

fn spoken() -> Spoken {
    let (from, to) = (SamplePos(16_640), SamplePos(24_320));
    let word_times = WordTimes::Model;
    Spoken { words: words(), from, to, confidence: 0.875, speech_final: true, word_times, model: "moonshine 0.0.52".into(), decode_ms: 87 }
}

fn conversation() -> ConversationId {
    ConversationId::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001)
}

fn utterance() -> Utterance {
    let (id, conversation) = (UtteranceId::from_u128(0x0192_0000_0000_5000_8000_0000_0000_0002), conversation());
    Utterance { id, conversation, channel: ChannelIndex(1), role: Role::Customer, start_ms: 1_040, end_ms: 1_520, words: words() }
}

fn insight() -> Insight {
    let (id, run) = (InsightId::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0003), RunId::from_u128(4));
    let evidence = vec![Evidence { utterance: utterance().id, word_from: 1, word_to: 2 }];
    let provenance = Provenance {
        tier: Tier::Local,
        model: "minilm-l6-v2 1".into(),
        degraded_from: Some(Tier::Llm),
        config_hash: "9f86d081".into(),
        latency_ms: 12,
        prompt: None, // version 1 began without
        late: false,
    };
    Insight {
        id,
        run,
        conversation: conversation(),
        utterance: utterance().id,
        task: Task::Sentiment,
        labels: vec![Label { name: "negative".into(), score: 0.625 }],
        abstained: Some("too short".into()),
        evidence,
        provenance,
    }
}

fn kept() -> Conversation {
    Conversation {
        tenant: TenantId::new("acme"),
        id: conversation(),
        external_id: Some("call-7".into()),
        title: Some("Billing".into()),
        source: "deepgram".into(),
        language: "en".into(),
        tags: vec!["vip".into(), "north".into()],
        state: ConversationState::Complete,
        started_at: DateTime::from_timestamp(1_750_000_000, 123_456_789).expect("a date"),
        ended_at: DateTime::from_timestamp(1_750_000_600, 5),
    }
}

fn channel() -> ChannelSpec {
    ChannelSpec { index: ChannelIndex(1), role: Role::Agent, encoding: Encoding::Alaw, rate: SampleRate::HZ_8000 }
}

fn attached() -> Attached {
    Attached { epoch: Epoch(3), safe: SamplePos(24_320), next_seq: 9 }
}

fn gap() -> Gap {
    Gap { channel: ChannelIndex(1), start_ms: 2_000, end_ms: 2_250, reason: "the line was cut".into() }
}

fn segment(body: SegmentBody) -> Segment {
    Segment {
        conversation: conversation(),
        channel: ChannelIndex(1),
        epoch: Epoch(3),
        seq: 8,
        start: SamplePos(16_000),
        end: SamplePos(24_320),
        body,
        trace: TraceCx { trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span_id: 0x00f0_67aa_0ba9_02b7, sampled: true },
    }
}

fn of_calls(golden: &mut Golden) {
    let context = call::Context {
        budget_ms: 1_500,
        tenant: "acme".into(),
        conversation: conversation().as_u128().to_be_bytes().to_vec().into(),
        attempt: 1,
        depth: 2,
        shadow: true,
    };
    golden.message("call.Context", context);
    golden.message("call.Error/busy", call::Error::from(CallError::busy(Duration::from_millis(1_500), "all 4 slots are taken")));
    golden.message("call.Error/unavailable", call::Error::from(CallError::unavailable("stopping")));
    golden.message("call.Error/invalid", call::Error::from(CallError::invalid("no such rate")));
    golden.message("call.Time", call::Time { seconds: -5, nanos: 7 });
    let own = hello::Introduction {
        build: "0.1.0".into(),
        oldest: 1,
        newest: 1,
        roles: vec!["audio".into(), "inference".into()],
        cluster: "quickcomm".into(),
        models: [("moonshine-tiny-en".to_owned(), "9f86d081".to_owned())].into(),
        run: None, // version 1 began without
    };
    golden.message("hello.Introduction", own.clone());
    let run = hello::Run { id: 0x4bf9_2f35_77b3_4da6, up_ms: 12_345 };
    golden.message("hello.Run", run);
    golden.message("hello.Introduction/run", hello::Introduction { run: Some(run), ..own });
}

fn of_audio(golden: &mut Golden) {
    let spec = StreamSpec {
        encoding: Encoding::Linear16,
        rate: SampleRate::HZ_16000,
        start: SamplePos(24_320),
        first_seq: 9,
        language: "en".into(),
        endpointing: Endpointing::Silence(Duration::from_millis(250)),
        partials: Some(Duration::from_millis(200)),
        pace: Pace::Batch,
    };
    let frame = Frame { pos: SamplePos(24_320), data: vec![0, 1, 254, 255].into() };
    let info = SessionInfo {
        model: ModelInfo { name: "moonshine-tiny-en".into(), version: "0.0.52".into(), family: "moonshine".into() },
        credit: Duration::from_millis(400),
    };
    let up = |message| audio::Up { message: Some(message) };
    golden.message("audio.Up/spec", up(audio::up::Message::Spec(spec.clone().into())));
    golden.message("audio.Up/frame", up(audio::up::Message::Frame(frame.clone().into())));
    golden.message("audio.Up/finalize", up(audio::up::Message::Finalize(7)));
    golden.message("audio.Up/finish", up(audio::up::Message::Finish(audio::Finish {})));
    golden.message("audio.Up/taken", up(audio::up::Message::Taken(2)));
    golden.message("audio.Finish", audio::Finish {});
    let down = |message| audio::Down { message: Some(message) };
    golden.message("audio.Down/opened", down(audio::down::Message::Opened(info.clone().into())));
    golden.message("audio.Down/event", down(audio::down::Message::Event(SpeechEvent::Flushed { token: 7 }.into())));
    golden.message("audio.Down/consumed", down(audio::down::Message::Consumed(640)));
    golden.value::<audio::StreamSpec, _>("audio.StreamSpec", spec);
    golden.value::<audio::Frame, _>("audio.Frame", frame);
    golden.value::<audio::SessionInfo, _>("audio.SessionInfo", info);
    let (start, end) = (SamplePos(16_000), SamplePos(24_320));
    let partial = SpeechEvent::Partial { seq: 8, rev: 3, start, end, words: words(), stable_words: 1 };
    let heard = HeardSegment { seq: 8, start, end, body: SegmentBody::Speech(spoken()) };
    golden.value::<audio::Event, _>("audio.Event/started", SpeechEvent::Started { at: SamplePos(16_640) });
    golden.value::<audio::Event, _>("audio.Event/partial", partial);
    golden.value::<audio::Event, _>("audio.Event/segment", SpeechEvent::Segment(heard));
    golden.value::<audio::Event, _>("audio.Event/retracted", SpeechEvent::Retracted { seq: 8 });
    golden.value::<audio::Event, _>("audio.Event/flushed", SpeechEvent::Flushed { token: 7 });
    golden.value::<audio::Event, _>("audio.Event/handover", SpeechEvent::Handover);
    golden.value::<audio::SegmentBody, _>("audio.SegmentBody/speech", SegmentBody::Speech(spoken()));
    golden.value::<audio::SegmentBody, _>("audio.SegmentBody/silence", SegmentBody::Silence);
    golden.value::<audio::SegmentBody, _>("audio.SegmentBody/gap", SegmentBody::Gap { reason: "the line was cut".into() });
    golden.value::<audio::Spoken, _>("audio.Spoken", spoken());
    golden.value::<audio::Word, _>("audio.Word", words().remove(0));
    golden.value::<audio::ChannelSpec, _>("audio.ChannelSpec", channel());
}

fn of_inference(golden: &mut Golden) {
    let tasks = vec![Task::Intent, Task::Sentiment];
    let analyze = Analyze { conversation: conversation(), tasks, utterances: vec![utterance()], context: vec![utterance()] };
    let status = TierStatus { task: Task::Intent, tier: Tier::Rules, degraded: Some("no classifier".into()), stale: None };
    let evidence = insight().evidence;
    let item = SummaryItem { kind: SummaryKind::Action, text: "Refund sent.".into(), evidence: evidence.clone(), tier: Tier::Rules };
    golden.value::<inference::AnalyzeRequest, _>("inference.AnalyzeRequest", analyze);
    golden.message("inference.AnalyzeReply", inference::AnalyzeReply::from(vec![insight()]));
    let summarize = Summarize { conversation: conversation(), utterances: vec![utterance()] };
    golden.value::<inference::SummarizeRequest, _>("inference.SummarizeRequest", summarize);
    golden.message("inference.TiersRequest", inference::TiersRequest {});
    golden.message("inference.TiersReply", inference::TiersReply::from(vec![status.clone()]));
    golden.value::<inference::Utterance, _>("inference.Utterance", utterance());
    golden.value::<inference::Insight, _>("inference.Insight", insight());
    golden.value::<inference::Label, _>("inference.Label", insight().labels.remove(0));
    golden.value::<inference::Evidence, _>("inference.Evidence", evidence[0].clone());
    golden.value::<inference::Provenance, _>("inference.Provenance", insight().provenance);
    let prompted = Provenance { prompt: Some("turn@3 9f86d081".into()), late: true, ..insight().provenance };
    golden.value::<inference::Provenance, _>("inference.Provenance/prompt", prompted);
    golden.value::<inference::TierStatus, _>("inference.TierStatus", status.clone());
    let stale = TierStatus { stale: Some("intent.toml: a label is defined twice".into()), ..status };
    golden.value::<inference::TierStatus, _>("inference.TierStatus/stale", stale);
    golden.value::<inference::SummaryItem, _>("inference.SummaryItem", item);
}

fn of_the_record(golden: &mut Golden) {
    let Conversation { id, external_id, title, source, language, tags, started_at, .. } = kept();
    let opening = OpenConversation { id, external_id, title, source, language, tags, channels: vec![channel()], started_at };
    golden.value::<api::OpenRequest, _>("api.OpenRequest", opening);
    golden.value::<api::Conversation, _>("api.Conversation", kept());
    golden.value::<api::AttachRequest, _>("api.AttachRequest", Attach { conversation: id, channel: ChannelIndex(1) });
    golden.value::<api::Attached, _>("api.Attached", attached());
    let segments = vec![segment(SegmentBody::Silence), segment(SegmentBody::Speech(spoken()))];
    golden.message("api.CommitRequest", api::CommitRequest::from(segments));
    golden.value::<api::Segment, _>("api.Segment", segment(SegmentBody::Speech(spoken())));
    let ahead = CommitOutcome::Ahead { next_seq: 9, safe: SamplePos(24_320) };
    golden.value::<api::CommitOutcome, _>("api.CommitOutcome/committed", CommitOutcome::Committed);
    golden.value::<api::CommitOutcome, _>("api.CommitOutcome/duplicate", CommitOutcome::Duplicate);
    golden.value::<api::CommitOutcome, _>("api.CommitOutcome/stale", CommitOutcome::Stale);
    golden.value::<api::CommitOutcome, _>("api.CommitOutcome/ahead", ahead.clone());
    golden.value::<api::CommitOutcome, _>("api.CommitOutcome/mismatch", CommitOutcome::Mismatch);
    golden.message("api.CommitReply", api::CommitReply::from(vec![CommitOutcome::Committed, ahead]));
    golden.message("api.RecordRequest", api::RecordRequest::from(vec![insight()]));
    golden.message("api.RecordReply", api::RecordReply { new: 2 });
    let close = Close { conversation: id, state: ConversationState::Abandoned, ended_at: started_at, heard: vec![] };
    golden.value::<api::CloseRequest, _>("api.CloseRequest", close.clone());
    let heard = HeardTo { channel: ChannelIndex(1), to: SamplePos(24_320) };
    golden.value::<api::CloseRequest, _>("api.CloseRequest/heard", Close { heard: vec![heard], ..close });
    golden.value::<api::HeardTo, _>("api.HeardTo", heard);
    golden.message("api.ViewRequest", api::ViewRequest::from(id));
    let view = ConversationView {
        conversation: kept(),
        channels: vec![ChannelView { spec: channel(), attached: attached() }],
        utterances: vec![utterance()],
        gaps: vec![gap()],
        insights: vec![insight()],
    };
    golden.value::<api::ChannelView, _>("api.ChannelView", view.channels[0].clone());
    golden.value::<api::ConversationView, _>("api.ConversationView", view);
    golden.value::<api::Gap, _>("api.Gap", gap());
    golden.message("api.WatchRequest", api::WatchRequest::from(id));
    golden.value::<api::RecordEvent, _>("api.RecordEvent/changed", RecordEvent::Changed(kept()));
    golden.value::<api::RecordEvent, _>("api.RecordEvent/utterance", RecordEvent::Utterance(utterance()));
    golden.value::<api::RecordEvent, _>("api.RecordEvent/gap", RecordEvent::Gap(gap()));
    golden.value::<api::RecordEvent, _>("api.RecordEvent/insight", RecordEvent::Insight(insight()));
}

#[test]
fn what_a_released_process_says_is_still_understood() {
    let text = fs::read_to_string(file()).unwrap_or_default();
    let mut golden = Golden::default();
    for line in text.lines() {
        let (name, digits) = line.split_once(' ').unwrap_or((line, ""));
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
        golden.kept.insert(name.into(), (0..digits.len()).step_by(2).map(byte).collect());
    }
    of_calls(&mut golden);
    of_audio(&mut golden);
    of_inference(&mut golden);
    of_the_record(&mut golden);
    if env::var_os(WRITE).is_some() {
        let mut text = String::new();
        for (name, bytes) in golden.kept.into_iter().chain(golden.now).collect::<BTreeMap<_, _>>() {
            let digits = bytes.iter().fold(String::new(), |mut digits, byte| {
                write!(digits, "{byte:02x}").expect("a string takes everything");
                digits
            });
            text += &format!("{name} {digits}\n");
        }
        return fs::write(file(), text).expect("the file can be written");
    }
    assert!(
        golden.wrong.is_empty(),
        "{}\n\nProcesses of other releases speak as this file says. A field is added under a new number and is absent in these values; \
         numbers and types of fields never change. For a new message, or while nothing is released, run this test once with {WRITE}=1 and \
         commit {}. For a change of meaning, raise hello::CONTRACTS and keep what reads the old one.",
        golden.wrong.join("\n"),
        file().display(),
    );
}

/// Nobody forgets a message: each that is declared has a line.
#[test]
fn every_message_has_its_line() {
    let text = fs::read_to_string(file()).expect("the file is there");
    let protos = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contracts/proto/quickcomm");
    for proto in fs::read_dir(protos).expect("the declarations are there").flatten() {
        let declared = fs::read_to_string(proto.path()).expect("text");
        let package = declared.lines().find_map(|line| line.strip_prefix("package quickcomm.")?.strip_suffix(".v1;"));
        let package = package.expect("each file has its package");
        for name in declared.lines().filter_map(|line| line.strip_prefix("message ")) {
            let name = format!("{package}.{}", name.trim_end_matches([' ', '{', '}']));
            assert!(text.lines().any(|line| line.split([' ', '/']).next() == Some(&name)), "{name} is not in {}", file().display());
        }
    }
}
