//! Who talked how much: arithmetic on word times.
//!
//! Invariant: pure; the same utterances give the same figures, live and afterwards. Estimated word times are good to a few hundred
//! milliseconds, and the thresholds here are no finer. Knows nothing of what was said.

use super::rows::{ChannelRow, ChannelTalk, TalkMetrics, UtteranceKind, UtteranceRow};
use contracts::{ChannelIndex, ConversationId};

/// Between two words of one speaker this much quiet is a breath, not silence.
const BREATH_MS: u64 = 500;
/// Two who talk at once for less than this are taking turns.
const SHORTEST_INTERRUPTION_MS: u64 = 300;

/// A stretch of talk of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    channel: ChannelIndex,
    from: u64,
    to: u64,
}

impl Stretch {
    fn ms(self) -> u64 {
        self.to - self.from
    }
    fn lies_in(self, other: Self) -> bool {
        other.from <= self.from && self.to <= other.to
    }
}

/// `duration_ms` is how far the conversation has been heard, silence included.
pub fn talk_metrics(
    conversation_id: ConversationId,
    duration_ms: u64,
    channels: &[ChannelRow],
    utterances: &[UtteranceRow],
) -> TalkMetrics {
    let spoken: Vec<&UtteranceRow> = utterances.iter().filter(|u| u.kind == UtteranceKind::Speech).collect();
    let talk: Vec<Vec<Stretch>> = channels.iter().map(|c| stretches(c.channel, &spoken)).collect();
    let all: Vec<Stretch> = in_order(talk.iter().flatten().copied().collect());
    let duration_ms = all.iter().map(|s| s.to).fold(duration_ms, u64::max);
    let (talking_ms, overlap_ms) = covered(&all);
    let turns = turns(&all);
    let sum_ms: u64 = all.iter().map(|s| s.ms()).sum();

    let channels = channels.iter().zip(&talk).map(|(channel, own)| {
        let talk_ms: u64 = own.iter().map(|s| s.ms()).sum();
        let words: u64 = spoken.iter().filter(|u| u.channel == channel.channel).map(|u| u.words.len() as u64).sum();
        let own_turns = turns.iter().filter(|t| t.channel == channel.channel);
        ChannelTalk {
            channel: channel.channel,
            role: channel.role,
            talk_ms,
            talk_ratio: ratio(talk_ms, sum_ms),
            words,
            words_per_minute: ratio(words * 60_000, talk_ms),
            interruptions: own.iter().filter(|s| interrupts(**s, &all)).count() as u64,
            longest_monologue_ms: own_turns.clone().map(|t| t.talk_ms).max().unwrap_or(0),
            turns: own_turns.count() as u64,
        }
    });
    let channels = channels.collect();
    let silence_ms = duration_ms - talking_ms;
    TalkMetrics { conversation_id, duration_ms, silence_ms, silence_ratio: ratio(silence_ms, duration_ms), overlap_ms, channels }
}

fn ratio(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64) as f32 }
}

fn in_order(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_by_key(|s| (s.from, s.to, s.channel));
    stretches
}

/// The channel's words, breaths bridged.
fn stretches(channel: ChannelIndex, spoken: &[&UtteranceRow]) -> Vec<Stretch> {
    let mut words = vec![];
    for utterance in spoken.iter().filter(|u| u.channel == channel) {
        words.extend(utterance.words.iter().map(|w| Stretch { channel, from: w.start_ms.into(), to: w.end_ms.max(w.start_ms).into() }));
        if utterance.words.is_empty() {
            words.push(Stretch { channel, from: utterance.start_ms, to: utterance.end_ms.max(utterance.start_ms) });
        }
    }
    let mut joined: Vec<Stretch> = vec![];
    for word in in_order(words) {
        match joined.last_mut() {
            Some(last) if word.from <= last.to + BREATH_MS => last.to = last.to.max(word.to),
            _ => joined.push(word),
        }
    }
    joined
}

/// Time in which at least one talks, and at least two.
fn covered(all: &[Stretch]) -> (u64, u64) {
    let mut edges: Vec<(u64, i32)> = all.iter().flat_map(|s| [(s.from, 1), (s.to, -1)]).collect();
    edges.sort_unstable();
    let (mut talking, mut overlap, mut speakers, mut since) = (0, 0, 0, 0);
    for (at, change) in edges {
        if speakers >= 1 {
            talking += at - since;
        }
        if speakers >= 2 {
            overlap += at - since;
        }
        speakers += change;
        since = at;
    }
    (talking, overlap)
}

struct Turn {
    channel: ChannelIndex,
    talk_ms: u64,
}

/// A turn lasts until another speaks. Talk that lies within another's ("mhm") is no turn and ends none.
fn turns(all: &[Stretch]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = vec![];
    for (n, stretch) in all.iter().enumerate() {
        let aside = |(m, other): (usize, &Stretch)| {
            // Two that cover each other exactly: the first keeps its turn.
            other.channel != stretch.channel && stretch.lies_in(*other) && (m < n || !other.lies_in(*stretch))
        };
        if all.iter().enumerate().any(aside) {
            continue;
        }
        match turns.last_mut() {
            Some(last) if last.channel == stretch.channel => last.talk_ms += stretch.ms(),
            _ => turns.push(Turn { channel: stretch.channel, talk_ms: stretch.ms() }),
        }
    }
    turns
}

/// It began while another talked, and went on when the other had stopped.
fn interrupts(own: Stretch, all: &[Stretch]) -> bool {
    all.iter().any(|other| {
        other.channel != own.channel && other.from < own.from && own.from + SHORTEST_INTERRUPTION_MS <= other.to && own.to > other.to
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::WordRow;
    use super::*;
    use contracts::{
        Encoding, UtteranceId,
        audio::{Role, WordTimes},
    };

    /// One line per channel, agent first. A character is 100 ms: each `#` a word, `.` quiet.
    fn draw(lines: &[&str]) -> TalkMetrics {
        let id = ConversationId::from_u128(1);
        let role = |n: usize| if n == 0 { Role::Agent } else { Role::Customer };
        let mut channels = vec![];
        let mut utterances = vec![];
        for (n, line) in lines.iter().enumerate() {
            let channel = ChannelIndex(n as u8);
            channels.push(ChannelRow { channel, role: role(n), encoding: Encoding::Linear16, sample_rate: 16_000 });
            let said = line.char_indices().filter(|(_, c)| *c == '#').map(|(i, _)| i as u32 * 100);
            let words: Vec<WordRow> =
                said.map(|at| WordRow { text: "word".into(), start_ms: at, end_ms: at + 100, confidence: 1.0 }).collect();
            utterances.push(UtteranceRow {
                id: UtteranceId::from_u128(n as u128),
                conversation_id: id,
                channel,
                role: role(n),
                seq: 0,
                kind: UtteranceKind::Speech,
                start_ms: words.first().map_or(0, |w| w.start_ms.into()),
                end_ms: words.last().map_or(0, |w| w.end_ms.into()),
                text: String::new(),
                confidence: 1.0,
                speech_final: true,
                word_times: WordTimes::Estimated,
                words,
                model: String::new(),
                reason: None,
                trace_id: String::new(),
            });
        }
        utterances.retain(|u| !u.words.is_empty());
        talk_metrics(id, lines[0].len() as u64 * 100, &channels, &utterances)
    }

    #[test]
    fn silence_is_what_nobody_fills_and_a_breath_is_no_silence() {
        let m = draw(&["####...####..........", "....................."]);
        assert_eq!((m.duration_ms, m.silence_ms, m.overlap_ms), (2100, 1000, 0));
        assert_eq!(m.channels[0].talk_ms, 1100);
        assert_eq!(m.channels[1].talk_ms, 0);
        assert!((m.silence_ratio - 10.0 / 21.0).abs() < 1e-6);
    }

    #[test]
    fn shares_of_talk_add_up_and_words_are_counted_while_talking() {
        let m = draw(&["######..............", "..........##........"]);
        assert_eq!((m.channels[0].talk_ratio, m.channels[1].talk_ratio), (0.75, 0.25));
        assert_eq!((m.channels[0].words, m.channels[0].words_per_minute), (6, 600.0));
    }

    #[test]
    fn an_interruption_takes_the_floor() {
        let m = draw(&["#########...........", ".....#########......"]);
        assert_eq!((m.overlap_ms, m.channels[0].interruptions, m.channels[1].interruptions), (400, 0, 1));
        assert_eq!((m.channels[0].turns, m.channels[1].turns), (1, 1));
    }

    #[test]
    fn a_hum_of_agreement_is_neither_interruption_nor_turn() {
        let m = draw(&["####################", ".......##..........."]);
        assert_eq!((m.overlap_ms, m.channels[1].interruptions, m.channels[1].turns), (200, 0, 0));
        assert_eq!((m.channels[0].turns, m.channels[0].longest_monologue_ms), (1, 2000));
    }

    #[test]
    fn a_quick_answer_is_no_interruption() {
        let m = draw(&["#######.............", ".....#########......"]);
        assert_eq!((m.overlap_ms, m.channels[1].interruptions), (200, 0));
    }

    #[test]
    fn a_turn_goes_on_over_silence_until_the_other_speaks() {
        let m = draw(&["###.........####.................##.", "......................####.........."]);
        assert_eq!((m.channels[0].turns, m.channels[1].turns), (2, 1));
        assert_eq!((m.channels[0].longest_monologue_ms, m.channels[1].longest_monologue_ms), (700, 400));
    }

    #[test]
    fn both_at_once_is_one_turn_of_the_first() {
        let m = draw(&["####", "####"]);
        assert_eq!((m.channels[0].turns, m.channels[1].turns, m.overlap_ms, m.silence_ms), (1, 0, 400, 0));
    }

    #[test]
    fn nothing_said_divides_by_nothing() {
        let m = draw(&["....", "...."]);
        assert_eq!((m.silence_ms, m.silence_ratio, m.channels[0].talk_ratio, m.channels[0].words_per_minute), (400, 1.0, 0.0, 0.0));
        let m = talk_metrics(ConversationId::from_u128(1), 0, &[], &[]);
        assert_eq!((m.duration_ms, m.silence_ratio), (0, 0.0));
    }
}
