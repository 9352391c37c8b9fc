//! The dial: who answers a module's calls, how it is turned, and what is told about it.
//!
//! Invariants: `local` and `remote` mean exactly that; `routed` shares calls by percentage, and each side answers for the other when it
//! cannot. Every change has a version, and is told with who made it and why.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a module's calls go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Local,
    Remote,
    /// By percentage, each side standing in for the other.
    Routed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dial {
    pub mode: Mode,
    /// Conversations that go to the endpoints, when routed; 0 to 100.
    pub remote_percent: u8,
    /// Calls that are also asked of the other side and only compared, when routed; 0 to 100.
    pub shadow_percent: u8,
    pub step_back: StepBack,
}

/// When the dial goes one stage back by itself, which it only does while this process hosts the module.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepBack {
    /// Share of remote calls that fail, 0 to 1; and more of them than of local ones. Default 0.02.
    pub error_rate: f64,
    /// 99th percentile of remote calls; and slower than local ones. Default 1500.
    pub p99_ms: u64,
    /// Calls of so many last seconds count. Default 30.
    pub window_s: u64,
}

impl Default for StepBack {
    fn default() -> Self {
        Self { error_rate: 0.02, p99_ms: 1500, window_s: 30 }
    }
}

/// Percentages on the way from `local` over `shadow` to `remote`.
const STAGES: [u8; 4] = [1, 10, 50, 100];
/// Of the stage `shadow`, when nothing else was asked for.
const SHADOW_PERCENT: u8 = 10;

impl Dial {
    /// The stage after this one; `None` at the end. What cannot be shadowed has no stage `shadow`.
    pub fn forward(self, shadows: bool) -> Option<Self> {
        let routed = |remote_percent| Self { mode: Mode::Routed, remote_percent, ..self };
        match self.mode {
            Mode::Local if shadows => Some(self.shadowed()),
            Mode::Local => Some(routed(STAGES[0])),
            Mode::Routed => match STAGES.into_iter().find(|stage| *stage > self.remote_percent) {
                Some(stage) => Some(routed(stage)),
                None => Some(Self { mode: Mode::Remote, ..self }),
            },
            Mode::Remote => None,
        }
    }

    /// The stage before this one; `None` at the beginning.
    pub fn back(self, shadows: bool) -> Option<Self> {
        let routed = |remote_percent| Self { mode: Mode::Routed, remote_percent, ..self };
        match self.mode {
            Mode::Remote => Some(routed(100)),
            Mode::Routed => match STAGES.into_iter().rev().find(|stage| *stage < self.remote_percent) {
                Some(stage) => Some(routed(stage)),
                None if shadows && self.remote_percent > 0 => Some(self.shadowed()),
                None => Some(Self { mode: Mode::Local, remote_percent: 0, shadow_percent: 0, ..self }),
            },
            Mode::Local => None,
        }
    }

    fn shadowed(self) -> Self {
        let shadow_percent = if self.shadow_percent == 0 { SHADOW_PERCENT } else { self.shadow_percent };
        Self { mode: Mode::Routed, remote_percent: 0, shadow_percent, ..self }
    }

    /// Share of conversations that go to the endpoints, 0 to 1.
    pub fn remote_share(self) -> f64 {
        match self.mode {
            Mode::Local => 0.0,
            Mode::Remote => 1.0,
            Mode::Routed => f64::from(self.remote_percent) / 100.0,
        }
    }

    pub fn asks_local(self) -> bool {
        self.mode == Mode::Local || self.mode == Mode::Routed && (self.remote_percent < 100 || self.shadow_percent > 0)
    }

    pub fn asks_remote(self) -> bool {
        self.mode == Mode::Remote || self.mode == Mode::Routed && (self.remote_percent > 0 || self.shadow_percent > 0)
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mode, self.shadow_percent) {
            (Mode::Local, _) => f.write_str("local"),
            (Mode::Remote, _) => f.write_str("remote"),
            (Mode::Routed, 0) => write!(f, "{} % remote", self.remote_percent),
            (Mode::Routed, shadow) => write!(f, "{} % remote, {shadow} % shadowed", self.remote_percent),
        }
    }
}

/// Of a name and of a reason, in characters.
pub const BY_CHARS: usize = 80;
pub const REASON_CHARS: usize = 300;

/// A wish: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Turn {
    pub mode: Option<Mode>,
    /// Means `routed`, unless a mode is given.
    pub remote_percent: Option<u8>,
    /// Means `routed`, unless a mode is given.
    pub shadow_percent: Option<u8>,
    pub step_back: Option<StepBack>,
    /// One stage onward or back, instead of the above.
    pub step: Option<Step>,
    /// To the dial before the last change, instead of the above.
    pub undo: bool,
    /// Streams whose place changes are asked to move there.
    pub move_live: bool,
    /// Checks and tells; changes nothing.
    pub dry_run: bool,
    /// Refused unless this is the version that is changed.
    pub version: Option<u64>,
    /// Who wishes it, as they say: told, not checked. At most [`BY_CHARS`].
    pub by: Option<String>,
    /// Why. At most [`REASON_CHARS`].
    pub reason: Option<String>,
}

impl Turn {
    /// Whether what is told of it can be shown on a page, a terminal and in a line of a log.
    ///
    /// # Errors
    /// [`TurnRefused::Invalid`], which names what was expected.
    pub fn can_be_told(&self) -> Result<(), TurnRefused> {
        for (name, text, most) in [("by", &self.by, BY_CHARS), ("reason", &self.reason, REASON_CHARS)] {
            let Some(text) = text else { continue };
            let chars = text.chars().count();
            if text.trim().is_empty() || chars > most {
                return Err(TurnRefused::Invalid(format!("{name} has {chars} characters: expected 1 to {most}, not only blanks")));
            }
            if let Some(bad) = text.chars().find(|char| misleads(*char)) {
                return Err(TurnRefused::Invalid(format!("{name} holds the control character {bad:?}: expected one line of text")));
            }
        }
        Ok(())
    }
}

/// Breaks a line, moves a cursor, or turns the direction of what follows.
fn misleads(char: char) -> bool {
    char.is_control() || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    Forward,
    Back,
}

/// What turned the dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    File,
    Operator,
    StepBack,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Operator => "operator",
            Self::StepBack => "step_back",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteChange {
    pub at: DateTime<Utc>,
    pub module: String,
    /// That this change made.
    pub version: u64,
    pub by: By,
    /// Who, as they said.
    #[serde(default)]
    pub who: Option<String>,
    /// For people.
    pub from: String,
    pub to: String,
    /// As whoever turned it said; or why it went back by itself.
    pub reason: Option<String>,
    /// Live streams that were asked to move.
    pub asked_to_move: usize,
}

/// A module as its callers in this process reach it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    pub module: String,
    pub version: u64,
    pub dial: Dial,
    pub targets: Vec<TargetView>,
    /// Peers that were found in the registry and are asked no more, the latest first.
    #[serde(default)]
    pub lost: Vec<LostView>,
}

/// From where a target is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Configuration,
    Registry,
}

/// A peer that has left, or whose lease has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostView {
    pub name: String,
    pub at: DateTime<Utc>,
    /// For people.
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// `local`, or the endpoint.
    pub name: String,
    /// Why it cannot be reached.
    pub down: Option<String>,
    /// `None` for this process.
    #[serde(default)]
    pub source: Option<Source>,
    /// What is left of its lease in the registry, in ms; 0 where the registry does not tell.
    #[serde(default)]
    pub lease_ms: Option<u64>,
    /// The build it introduced itself with; `None` for this process and for who has not answered yet.
    pub version: Option<String>,
    /// The run of it that was met last; `None` like `version`, and from releases that do not tell.
    #[serde(default)]
    pub run: Option<RunView>,
    pub breaker: BreakerState,
    /// Calls under way, and how many may be.
    pub calls: usize,
    pub slots: usize,
    /// Live streams.
    pub streams: usize,
    /// Of the last seconds, as long as the dial's window.
    pub recent: RecentCalls,
}

/// One run of another process, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// Another one after every start.
    pub id: String,
    pub up_s: u64,
    /// Starts that were noticed since this process knows the target.
    pub restarts: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentCalls {
    pub calls: usize,
    pub failed: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

/// What a turn did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turned {
    pub from: Dial,
    pub to: Dial,
    pub version: u64,
    pub dry_run: bool,
    pub asked_to_move: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnRefused {
    #[error("there is no dial for {module:?}: there are {known}")]
    UnknownModule { module: String, known: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{module} would have no reachable target: tried {target}: {why}")]
    Unreachable { module: String, target: String, why: String },
    #[error("{module} is at version {is}, not {expected}: read it again")]
    Stale { module: String, is: u64, expected: u64 },
    #[error("{0} has not been changed: there is nothing to undo")]
    NothingToUndo(String),
}

/// The dials of this process.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    fn views(&self) -> Vec<RouteView>;
    /// The latest, newest first.
    fn changes(&self) -> Vec<RouteChange>;
    async fn turn(&self, module: &str, turn: Turn, by: By) -> Result<Turned, TurnRefused>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_why_fit_into_a_line_or_are_refused() {
        let told = |by: &str, reason: &str| {
            Turn { by: Some(by.into()), reason: Some(reason.into()), ..Turn::default() }
                .can_be_told()
                .map_err(|refused| refused.to_string())
        };
        assert_eq!(Turn::default().can_be_told(), Ok(()));
        assert_eq!(told("Ana María 分", &"é".repeat(REASON_CHARS)), Ok(()));
        for (by, reason, says) in [
            ("", "why", "by has 0 characters: expected 1 to 80"),
            ("ana", "  ", "reason has 2 characters"),
            (&"x".repeat(81), "why", "by has 81 characters"),
            ("ana", &"x".repeat(301), "expected 1 to 300"),
            ("ana\n12:00 root", "why", "by holds the control character '\\n'"),
            ("ana", "\u{1b}[2J", "reason holds the control character"),
            ("ana", "a\u{202e}b", "reason holds the control character"),
        ] {
            let refused = told(by, reason).expect_err(reason);
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn stages_lead_from_local_to_remote_and_back() {
        for shadows in [true, false] {
            let mut way = vec![Dial::default()];
            while let Some(next) = way[way.len() - 1].forward(shadows) {
                way.push(next);
            }
            let told: Vec<String> = way.iter().map(Dial::to_string).collect();
            match shadows {
                true => assert_eq!(told[..3], ["local", "0 % remote, 10 % shadowed", "1 % remote, 10 % shadowed"]),
                false => assert_eq!(told, ["local", "1 % remote", "10 % remote", "50 % remote", "100 % remote", "remote"]),
            }
            let mut back = way[way.len() - 1];
            for expected in told.iter().rev().skip(1) {
                back = back.back(shadows).expect("it is not local yet");
                assert_eq!(back.to_string(), *expected);
            }
            assert_eq!(back.back(shadows), None);
        }
        let between = Dial { mode: Mode::Routed, remote_percent: 25, ..Dial::default() };
        assert_eq!(between.back(true).map(|dial| dial.remote_percent), Some(10));
        assert_eq!(between.forward(true).map(|dial| dial.remote_percent), Some(50));
    }
}
