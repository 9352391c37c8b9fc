//! Turns to be understood, each a new one, so that nothing can be answered from a cache.

use contracts::{
    ChannelIndex, ConversationId, Epoch, UtteranceId,
    audio::{Role, Word},
    inference::{Analyze, Task, Utterance},
};

pub fn question(n: u64) -> Analyze {
    let conversation = ConversationId::from_u128(n.into());
    let text = format!("my bill shows a charge of {n} that I never agreed to and I would like somebody to explain it to me please");
    let words = text.split(' ').map(|w| Word { text: w.into(), start_ms: 0, end_ms: 0, confidence: 1.0 }).collect();
    let utterance = Utterance {
        id: UtteranceId::of(conversation, ChannelIndex(1), Epoch(1), n),
        conversation,
        channel: ChannelIndex(1),
        role: Role::Customer,
        start_ms: 0,
        end_ms: 3000,
        words,
    };
    Analyze { conversation, tasks: Task::ALL.to_vec(), utterances: vec![utterance], context: vec![] }
}
