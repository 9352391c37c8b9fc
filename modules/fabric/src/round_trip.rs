//! For every value of every type: what is decoded equals what was encoded, and it is never heavier than its weight says.

use crate::wire::{
    Unreadable, Weight,
    quickcomm::{api::v1 as api, audio::v1 as audio, inference::v1 as inference},
};
use chrono::{DateTime, Utc};
use contracts::{
    ChannelIndex, ConversationId, Encoding, Epoch, InsightId, RunId, SamplePos, SampleRate, TenantId, TraceCx, UtteranceId,
    audio::*,
    conversation::*,
    inference::{Analyze, Evidence, Insight, Label, Provenance, Summarize, SummaryItem, SummaryKind, Task, Tier, TierStatus, Utterance},
};
use prop::{collection::vec, option, sample::select};
use proptest::prelude::*;
use prost::Message;
use std::{fmt::Debug, time::Duration};

#[track_caller]
fn check<T, M>(value: T)
where
    T: Clone + PartialEq + Debug + TryFrom<M, Error: Debug>,
    M: Message + Default + From<T>,
{
    let bytes = M::from(value.clone()).encode_to_vec();
    let read = M::decode(&bytes[..]).expect("what was just encoded");
    assert_eq!(T::try_from(read).expect("what was just encoded"), value);
}

#[track_caller]
fn check_weight<T: Weight + Clone + Debug, M: Message + From<T>>(value: &T) {
    let (bytes, weight) = (M::from(value.clone()).encoded_len(), value.weight());
    assert!(bytes <= weight, "{bytes} bytes weigh {weight}: {value:?}");
    // Not absurdly more either: whoever is far below the limit must not pay for the exact answer.
    assert!(weight <= 600 + 8 * bytes, "{bytes} bytes weigh {weight}: {value:?}");
}

fn text() -> impl Strategy<Value = String> {
    ".{0,24}"
}
fn pos() -> impl Strategy<Value = SamplePos> {
    any::<u64>().prop_map(SamplePos)
}
fn unit() -> impl Strategy<Value = f32> {
    0f32..=1f32
}
fn time() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}
fn moment() -> impl Strategy<Value = DateTime<Utc>> {
    (-1_000_000_000_000i64..1_000_000_000_000, 0u32..1_000_000_000)
        .prop_map(|(s, n)| DateTime::from_timestamp(s, n).expect("a year below 40000"))
}
fn rate() -> impl Strategy<Value = SampleRate> {
    (8_000u32..=48_000).prop_map(|hz| SampleRate::new(hz).expect("in range"))
}
fn encoding() -> impl Strategy<Value = Encoding> {
    select(Encoding::ALL.to_vec())
}
fn role() -> impl Strategy<Value = Role> {
    select(vec![Role::Agent, Role::Customer, Role::Unknown])
}
fn task() -> impl Strategy<Value = Task> {
    select(Task::ALL.to_vec())
}
fn tier() -> impl Strategy<Value = Tier> {
    select(vec![Tier::Llm, Tier::SecondLlm, Tier::Local, Tier::Rules, Tier::Pending])
}
fn state() -> impl Strategy<Value = ConversationState> {
    select(ConversationState::ALL.to_vec())
}
fn channel() -> impl Strategy<Value = ChannelIndex> {
    any::<u8>().prop_map(ChannelIndex)
}
fn conversation_id() -> impl Strategy<Value = ConversationId> {
    any::<u128>().prop_map(ConversationId::from_u128)
}
fn utterance_id() -> impl Strategy<Value = UtteranceId> {
    any::<u128>().prop_map(UtteranceId::from_u128)
}

prop_compose! {
    fn spec()(encoding in encoding(), rate in rate(), start in pos(), first_seq: u64, language in text(), silence in option::of(time()),
              partials in option::of(time()), batch: bool) -> StreamSpec {
        let endpointing = silence.map_or(Endpointing::Off, Endpointing::Silence);
        StreamSpec { encoding, rate, start, first_seq, language, endpointing, partials, pace: if batch { Pace::Batch } else { Pace::Live } }
    }
}
prop_compose! {
    fn word()(text in text(), start_ms: u32, end_ms: u32, confidence in unit()) -> Word { Word { text, start_ms, end_ms, confidence } }
}
prop_compose! {
    fn spoken()(words in vec(word(), 0..5), from in pos(), to in pos(), confidence in unit(), speech_final: bool, model_times: bool,
                model in text(), decode_ms: u32) -> Spoken {
        let word_times = if model_times { WordTimes::Model } else { WordTimes::Estimated };
        Spoken { words, from, to, confidence, speech_final, word_times, model, decode_ms }
    }
}
fn body() -> impl Strategy<Value = SegmentBody> {
    prop_oneof![spoken().prop_map(SegmentBody::Speech), Just(SegmentBody::Silence), text().prop_map(|reason| SegmentBody::Gap { reason })]
}
fn event() -> impl Strategy<Value = SpeechEvent> {
    prop_oneof![
        pos().prop_map(|at| SpeechEvent::Started { at }),
        (any::<u64>(), any::<u32>(), pos(), pos(), vec(word(), 0..5), 0usize..5)
            .prop_map(|(seq, rev, start, end, words, stable_words)| SpeechEvent::Partial { seq, rev, start, end, words, stable_words }),
        (any::<u64>(), pos(), pos(), body()).prop_map(|(seq, start, end, body)| SpeechEvent::Segment(HeardSegment {
            seq,
            start,
            end,
            body
        })),
        any::<u64>().prop_map(|seq| SpeechEvent::Retracted { seq }),
        any::<u32>().prop_map(|token| SpeechEvent::Flushed { token }),
        Just(SpeechEvent::Handover),
    ]
}
prop_compose! {
    fn channel_spec()(index in channel(), role in role(), encoding in encoding(), rate in rate()) -> ChannelSpec {
        ChannelSpec { index, role, encoding, rate }
    }
}
prop_compose! {
    fn utterance()(id in utterance_id(), conversation in conversation_id(), channel in channel(), role in role(), start_ms: u64, end_ms: u64,
                   words in vec(word(), 0..5)) -> Utterance {
        Utterance { id, conversation, channel, role, start_ms, end_ms, words }
    }
}
prop_compose! {
    fn evidence()(utterance in utterance_id(), word_from: u32, word_to: u32) -> Evidence { Evidence { utterance, word_from, word_to } }
}
prop_compose! {
    fn provenance()(tier in tier(), model in text(), degraded_from in option::of(tier()), config_hash in text(), latency_ms: u32,
                    prompt in option::of(text()), late: bool) -> Provenance {
        Provenance { tier, model, degraded_from, config_hash, latency_ms, prompt, late }
    }
}
prop_compose! {
    fn insight()(id: u128, run: u128, conversation in conversation_id(), utterance in utterance_id(), task in task(),
                 labels in vec((text(), unit()).prop_map(|(name, score)| Label { name, score }), 0..4), abstained in option::of(text()),
                 evidence in vec(evidence(), 0..4), provenance in provenance()) -> Insight {
        let (id, run) = (InsightId::from_u128(id), RunId::from_u128(run));
        Insight { id, run, conversation, utterance, task, labels, abstained, evidence, provenance }
    }
}
prop_compose! {
    fn summary_item()(kind in select(vec![SummaryKind::Reason, SummaryKind::Action, SummaryKind::Outcome]), text in text(),
                      evidence in vec(evidence(), 0..4), tier in tier()) -> SummaryItem {
        SummaryItem { kind, text, evidence, tier }
    }
}
prop_compose! {
    fn opening()(id in conversation_id(), external_id in option::of(text()), title in option::of(text()), source in text(), language in text(),
                 tags in vec(text(), 0..3), channels in vec(channel_spec(), 0..3), started_at in moment()) -> OpenConversation {
        OpenConversation { id, external_id, title, source, language, tags, channels, started_at }
    }
}
prop_compose! {
    fn conversation()(tenant in text(), id in conversation_id(), external_id in option::of(text()), title in option::of(text()), source in text(),
                      language in text(), tags in vec(text(), 0..3), state in state(), started_at in moment(),
                      ended_at in option::of(moment())) -> Conversation {
        let tenant = TenantId::new(&tenant);
        Conversation { tenant, id, external_id, title, source, language, tags, state, started_at, ended_at }
    }
}
prop_compose! {
    fn segment()(conversation in conversation_id(), channel in channel(), epoch: u32, seq: u64, start in pos(), end in pos(), body in body(),
                 trace_id in 1u128.., span_id in 1u64.., sampled: bool) -> Segment {
        let trace = TraceCx { trace_id, span_id, sampled };
        Segment { conversation, channel, epoch: Epoch(epoch), seq, start, end, body, trace }
    }
}
prop_compose! {
    fn attached()(epoch: u32, safe in pos(), next_seq: u64) -> Attached { Attached { epoch: Epoch(epoch), safe, next_seq } }
}
prop_compose! {
    fn gap()(channel in channel(), start_ms: u64, end_ms: u64, reason in text()) -> Gap { Gap { channel, start_ms, end_ms, reason } }
}
fn outcome() -> impl Strategy<Value = CommitOutcome> {
    prop_oneof![
        Just(CommitOutcome::Committed),
        Just(CommitOutcome::Duplicate),
        Just(CommitOutcome::Stale),
        (any::<u64>(), pos()).prop_map(|(next_seq, safe)| CommitOutcome::Ahead { next_seq, safe }),
        Just(CommitOutcome::Mismatch),
    ]
}
prop_compose! {
    fn view()(conversation in conversation(), channels in vec((channel_spec(), attached()).prop_map(|(spec, attached)| ChannelView { spec, attached }), 0..3),
              utterances in vec(utterance(), 0..3), gaps in vec(gap(), 0..3), insights in vec(insight(), 0..3)) -> ConversationView {
        ConversationView { conversation, channels, utterances, gaps, insights }
    }
}
fn record_event() -> impl Strategy<Value = RecordEvent> {
    prop_oneof![
        conversation().prop_map(RecordEvent::Changed),
        utterance().prop_map(RecordEvent::Utterance),
        gap().prop_map(RecordEvent::Gap),
        insight().prop_map(RecordEvent::Insight),
    ]
}

proptest! {
    #[test]
    fn audio_reads_back(spec in spec(), event in event(), channel in channel_spec(), frame in (pos(), vec(any::<u8>(), 0..64)), credit in time(), model in text()) {
        check_weight::<_, audio::StreamSpec>(&spec);
        check::<_, audio::StreamSpec>(spec);
        check::<_, audio::Event>(event);
        check_weight::<_, audio::ChannelSpec>(&channel);
        check::<_, audio::ChannelSpec>(channel);
        check::<_, audio::Frame>(Frame { pos: frame.0, data: frame.1.into() });
        let model = ModelInfo { name: model, version: "1".into(), family: "f".into() };
        check::<_, audio::SessionInfo>(SessionInfo { model, credit });
    }

    #[test]
    fn inference_reads_back(conversation in conversation_id(), tasks in vec(task(), 0..3), utterances in vec(utterance(), 0..3),
                            context in vec(utterance(), 0..3), insights in vec(insight(), 0..3), item in summary_item(),
                            tier in (task(), tier(), option::of(text()), option::of(text()))) {
        let summarize = Summarize { conversation, utterances: utterances.clone() };
        check_weight::<_, inference::SummarizeRequest>(&summarize);
        check::<_, inference::SummarizeRequest>(summarize);
        let analyze = Analyze { conversation, tasks, utterances, context };
        check_weight::<_, inference::AnalyzeRequest>(&analyze);
        check::<_, inference::AnalyzeRequest>(analyze);
        check_weight::<_, inference::AnalyzeReply>(&insights);
        insights.into_iter().for_each(check::<_, inference::Insight>);
        check_weight::<_, inference::SummaryItem>(&item);
        check::<_, inference::SummaryItem>(item);
        let status = TierStatus { task: tier.0, tier: tier.1, degraded: tier.2, stale: tier.3 };
        check_weight::<_, inference::TierStatus>(&status);
        check::<_, inference::TierStatus>(status);
    }

    #[test]
    fn conversations_read_back(opening in opening(), conversation in conversation(), attached in attached(), segments in vec(segment(), 0..4),
                               outcomes in vec(outcome(), 0..4), view in view(), event in record_event(),
                               close in (conversation_id(), state(), moment(), vec((channel(), any::<u64>()), 0..3)), place in (conversation_id(), channel())) {
        check_weight::<_, api::OpenRequest>(&opening);
        check::<_, api::OpenRequest>(opening);
        check_weight::<_, api::Conversation>(&conversation);
        check::<_, api::Conversation>(conversation);
        check_weight::<_, api::Attached>(&attached);
        check_infallible::<_, api::Attached>(attached);
        check_weight::<_, api::CommitRequest>(&segments);
        segments.into_iter().for_each(check::<_, api::Segment>);
        check_weight::<_, api::CommitReply>(&outcomes);
        outcomes.into_iter().for_each(check::<_, api::CommitOutcome>);
        check_weight::<_, api::ConversationView>(&view);
        check::<_, api::ConversationView>(view);
        check_weight::<_, api::RecordEvent>(&event);
        check::<_, api::RecordEvent>(event);
        let heard = close.3.into_iter().map(|(channel, to)| HeardTo { channel, to: SamplePos(to) }).collect();
        let close = Close { conversation: close.0, state: close.1, ended_at: close.2, heard };
        check_weight::<_, api::CloseRequest>(&close);
        check::<_, api::CloseRequest>(close);
        let attach = Attach { conversation: place.0, channel: place.1 };
        check_weight::<_, api::AttachRequest>(&attach);
        check::<_, api::AttachRequest>(attach);
    }

    /// Whatever a peer sends, the worst is a refusal.
    #[test]
    fn rubbish_is_refused_and_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        fn read<M: Message + Default, T: TryFrom<M>>(bytes: &[u8]) {
            if let Ok(message) = M::decode(bytes) {
                let _ = T::try_from(message);
            }
        }
        read::<audio::StreamSpec, StreamSpec>(&bytes);
        read::<audio::Event, SpeechEvent>(&bytes);
        read::<inference::AnalyzeRequest, Analyze>(&bytes);
        read::<inference::Insight, Insight>(&bytes);
        read::<api::Segment, Segment>(&bytes);
        read::<api::ConversationView, ConversationView>(&bytes);
        read::<api::RecordEvent, RecordEvent>(&bytes);
    }
}

#[track_caller]
fn check_infallible<T: Clone + PartialEq + Debug + From<M>, M: Message + Default + From<T>>(value: T) {
    let bytes = M::from(value.clone()).encode_to_vec();
    assert_eq!(T::from(M::decode(&bytes[..]).expect("what was just encoded")), value);
}

#[test]
fn what_a_later_release_says_is_refused_by_name() {
    let mut spec = audio::StreamSpec::from(StreamSpec::live(Encoding::Alaw, SampleRate::HZ_8000));
    spec.encoding = 17;
    assert_eq!(StreamSpec::try_from(spec.clone()).unwrap_err().to_string(), "encoding 17 is not known to this release");
    spec.encoding = 1;
    spec.rate_hz = 96_000;
    assert_eq!(StreamSpec::try_from(spec).unwrap_err().to_string(), "a sample rate of 96000 is not known to this release");
    let unset = SpeechEvent::try_from(audio::Event { event: None }).unwrap_err();
    assert_eq!(unset.to_string(), "the message has no event known to this release");
    let short = inference::Evidence { utterance: vec![1, 2, 3].into(), word_from: 0, word_to: 1 };
    assert_eq!(Evidence::try_from(short).unwrap_err().to_string(), "utterance id of 3 bytes: expected 16");
    let far = api::AttachRequest { conversation: vec![0; 16].into(), channel: 256 };
    assert_eq!(Attach::try_from(far).unwrap_err().to_string(), "channel 256: expected 0 to 255");
    let _: Unreadable = Conversation::try_from(api::Conversation::default()).unwrap_err();
}
