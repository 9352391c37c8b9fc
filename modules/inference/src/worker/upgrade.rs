//! Turns that a lower rung answered, asked about again when the better one is back.
//!
//! Invariants:
//! - at most so many wait; the newest are asked about first, the oldest make room;
//! - one is asked about alone until it has a better answer: a rung that is just back is not met by a crowd;
//! - what is published is another run's insight, so it supersedes and overwrites nothing.
//!
//! Only this process's memory holds them. The record knows which rung answered: what is lost here it finds, and puts on the bus again
//! (`api/src/record/reconcile.rs`).

use super::{Worker, mark_late};
use crate::metrics as names;
use contracts::{
    CallCx, ConversationId, TraceCx, UtteranceId,
    inference::{Analyze, Insight, Task, Tier},
};
use futures::{FutureExt, future::join_all};
use platform::trace::{Side, Span};
use std::{collections::VecDeque, convert::Infallible, panic::AssertUnwindSafe, time::Duration};
use tracing::debug;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_LIMIT: Duration = Duration::from_millis(500);
/// Asked about at the same time, once one has succeeded.
const AT_ONCE: usize = 4;
/// Answers that are no better although the better rung was there: it does not like this turn.
const MOST_TRIES: u32 = 3;

pub(super) struct Upgrades {
    limit: usize,
    /// The newest last.
    waiting: VecDeque<Lowered>,
}

pub(super) struct Lowered {
    key: String,
    trace: TraceCx,
    request: Analyze,
    /// The rung that was to answer.
    wanted: Tier,
    tries: u32,
}

impl Lowered {
    /// `None` where nothing was answered by a lower rung than configured.
    pub(super) fn of(key: &str, trace: TraceCx, request: &Analyze, insights: &[Insight]) -> Option<Self> {
        let wanted = insights.iter().filter_map(|i| i.provenance.degraded_from).min()?;
        Some(Self { key: key.to_owned(), trace, request: request.clone(), wanted, tries: 0 })
    }

    fn utterance(&self) -> Option<UtteranceId> {
        self.request.utterances.first().map(|u| u.id)
    }
}

impl Upgrades {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, waiting: VecDeque::new() }
    }

    pub(super) fn add(&mut self, lowered: Lowered) {
        if !self.waiting.iter().any(|w| w.utterance() == lowered.utterance()) {
            self.waiting.push_back(lowered);
        }
        self.fit();
    }

    /// As they were taken.
    fn put_back(&mut self, newest: Vec<Lowered>) {
        self.waiting.extend(newest.into_iter().rev());
        self.fit();
    }

    /// Behind all others, and the first to make room.
    fn put_last(&mut self, lowered: Lowered) {
        self.waiting.push_front(lowered);
        self.fit();
    }

    fn settle(&mut self, waiting: Vec<Lowered>, same: Vec<Lowered>, it_is_the_turn: bool) {
        self.put_back(waiting);
        if it_is_the_turn {
            same.into_iter().for_each(|turn| self.try_last(turn));
        } else {
            self.put_back(same);
        }
    }

    fn try_last(&mut self, mut lowered: Lowered) {
        lowered.tries += 1;
        if lowered.tries < MOST_TRIES {
            self.put_last(lowered);
        } else {
            metrics::counter!(names::UPGRADES, "outcome" => "unchanged").increment(1);
        }
    }

    fn fit(&mut self) {
        let over = self.waiting.len().saturating_sub(self.limit);
        if over > 0 {
            self.waiting.drain(..over);
            metrics::counter!(names::UPGRADES, "outcome" => "crowded_out").increment(over as u64);
        }
        metrics::gauge!(names::UPGRADES_WAITING).set(self.waiting.len() as f64);
    }

    fn newest(&mut self, most: usize) -> Vec<Lowered> {
        let from = self.waiting.len().saturating_sub(most);
        let newest: Vec<Lowered> = self.waiting.drain(from..).rev().collect();
        metrics::gauge!(names::UPGRADES_WAITING).set(self.waiting.len() as f64);
        newest
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Worker {
    pub(super) async fn upgrade(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut at_once = 1;
            while !self.upgrades.lock().is_empty() {
                let Some(back) = self.best_now().await else { break };
                let turns = self.upgrades.lock().newest(at_once);
                // Those of a rung that is still away wait on.
                let (turns, waiting): (Vec<_>, Vec<_>) = turns.into_iter().partition(|turn| back <= turn.wanted);
                let asked = turns.len();
                let same: Vec<Lowered> = join_all(turns.into_iter().map(|turn| self.ask_again(turn))).await.into_iter().flatten().collect();
                let all_better = asked > 0 && same.is_empty();
                // Why an answer is no better may lie with the turn, or with the rung: then it says by now that it is away.
                let it_is_the_turn = !same.is_empty() && self.best_now().await == Some(back);
                self.upgrades.lock().settle(waiting, same, it_is_the_turn);
                if !all_better {
                    break;
                }
                at_once = AT_ONCE;
            }
        }
    }

    /// The worst of what answers the tasks now; `None` while nobody says.
    async fn best_now(&self) -> Option<Tier> {
        let tiers = tokio::time::timeout(LOOK_LIMIT, self.inference.tiers(CallCx::new(LOOK_LIMIT))).await;
        tiers.ok()?.ok()?.iter().filter(|status| Task::ALL.contains(&status.task)).map(|status| status.tier).max()
    }

    /// Gives the turn back when its answer is no better.
    async fn ask_again(&self, turn: Lowered) -> Option<Lowered> {
        let budget = Duration::from_millis(self.settings.budget_ms);
        let conversation: ConversationId = turn.request.conversation;
        let cx = CallCx::new(budget).for_conversation(conversation).traced(turn.trace.child());
        let mut span = Span::begin("upgrade", Side::Inside, cx.trace, turn.trace);
        let asked = AssertUnwindSafe(self.inference.analyze(cx.clone(), turn.request.clone())).catch_unwind();
        let Ok(Ok(Ok(insights))) = tokio::time::timeout(budget, asked).await else { return Some(turn) };
        let mut better: Vec<Insight> = insights.into_iter().filter(|i| i.provenance.tier <= turn.wanted).collect();
        // All of its tasks, or the ones that are left wait on.
        let all = better.len() == turn.request.tasks.len() * turn.request.utterances.len();
        mark_late(&mut better, true);
        if !better.is_empty() && self.tell(&turn.key, cx.trace, better).await.is_err() {
            return Some(turn);
        }
        if !all {
            span.failed("unchanged");
            return Some(turn);
        }
        debug!(%conversation, "a turn has its better answer");
        metrics::counter!(names::UPGRADES, "outcome" => "upgraded").increment(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lowered(n: u128) -> Lowered {
        let (conversation, id) = (ConversationId::from_u128(1), UtteranceId::from_u128(n));
        let utterance = contracts::inference::Utterance {
            id,
            conversation,
            channel: contracts::ChannelIndex(0),
            role: contracts::audio::Role::Customer,
            start_ms: 0,
            end_ms: 1,
            words: vec![],
        };
        let request = Analyze { conversation, tasks: vec![], utterances: vec![utterance], context: vec![] };
        Lowered { key: String::new(), trace: TraceCx::root(), request, wanted: Tier::Llm, tries: 0 }
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_make_room() {
        let mut upgrades = Upgrades::new(3);
        (1..=5).chain([5]).for_each(|n| upgrades.add(lowered(n)));
        let ids = |turns: &[Lowered]| turns.iter().map(|t| t.utterance().unwrap().as_u128()).collect::<Vec<_>>();
        let newest = upgrades.newest(2);
        assert_eq!(ids(&newest), [5, 4]);
        upgrades.put_back(newest);
        upgrades.add(lowered(6));
        assert_eq!(ids(&upgrades.newest(1)), [6]);
        let newest = upgrades.newest(1);
        newest.into_iter().for_each(|turn| upgrades.try_last(turn));
        assert_eq!(ids(&upgrades.newest(9)), [4, 5], "what is no better the next time stands behind");
        assert!(upgrades.is_empty());
        let mut none = Upgrades::new(0);
        none.add(lowered(1));
        assert!(none.is_empty());
    }
}
