//! Which module holds the others up, and whether moving it would help, in one sentence.
//!
//! Pure: the same picture is always judged alike. Only `audio` and `inference` can move; the record stays with its process.

use serde::Serialize;
use utoipa::ToSchema;

/// A shorter look says nothing.
const AT_LEAST_S: f64 = 3.0;
/// Share of the cores from which a processor counts as full.
const FULL: f64 = 0.85;
/// Fewer calls of a target say nothing of it.
const ENOUGH_CALLS: usize = 10;
/// Share of calls that may fail before a target is the trouble.
const FAILING: f64 = 0.02;

/// What was seen of a process over the last seconds.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) window_s: f64,
    pub(super) cores: f64,
    /// Cores this process uses; `None` where it cannot be measured.
    pub(super) process: Option<f64>,
    /// Cores everything on this machine uses, this process included.
    pub(super) machine: Option<f64>,
    pub(super) modules: Vec<Seen>,
    /// What the process stands on and cannot fully use: its name, and why.
    pub(super) trouble: Option<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) name: String,
    /// Some of its calls are answered in this process.
    pub(super) here: bool,
    /// Cores its threads use here.
    pub(super) cpu: f64,
    pub(super) wait_p99_ms: Option<f64>,
    /// Work that waits longer is held up.
    pub(super) wait_limit_ms: f64,
    /// Its hop that is most over its limit.
    pub(super) slow: Option<Slow>,
    pub(super) refused: u64,
    pub(super) local: Calls,
    pub(super) remote: Calls,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    pub(super) hop: &'static str,
    pub(super) p99_ms: f64,
    pub(super) limit_ms: f64,
}

/// The last calls one side answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) calls: usize,
    pub(super) failed: usize,
    pub(super) p99_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Bottleneck {
    /// `null`: none, or not known.
    #[schema(example = "audio")]
    pub module: Option<String>,
    /// `null`: there is nothing to move, or it is not known.
    pub moving_helps: Option<bool>,
    /// For people.
    pub sentence: String,
}

pub(super) fn judge(picture: &Picture) -> Bottleneck {
    if let Some((name, why)) = &picture.trouble {
        // Whatever waits, waits for this.
        return Bottleneck {
            module: Some(name.clone()),
            moving_helps: Some(false),
            sentence: format!("{name} holds the others up: {why}."),
        };
    }
    let (Some(process), true) = (picture.process, picture.window_s >= AT_LEAST_S) else {
        return verdict(
            None,
            None,
            "Nothing can be said yet: this process has not been watched long enough, or its processor time cannot be read.".into(),
        );
    };
    if let Some(found) = picture.modules.iter().find_map(bad_elsewhere) {
        return found;
    }
    let busy = picture.machine.unwrap_or(0.0).max(process);
    let full = busy >= picture.cores * FULL;
    let of = |used: f64| format!("{used:.1} of {:.0} cores", picture.cores);
    let most = picture.modules.iter().filter(|module| module.cpu > 0.0).max_by(|a, b| a.cpu.total_cmp(&b.cpu));
    let Some((held, trouble)) =
        picture.modules.iter().filter_map(Seen::trouble).max_by(|a, b| a.1.0.total_cmp(&b.1.0)).map(|(m, t)| (m, t.1))
    else {
        return match most.filter(|_| full) {
            _ if full && busy > process * 2.0 => {
                verdict(None, None, format!("Nothing waits long here, but other programs use {} of this machine.", of(busy - process)))
            }
            Some(most) if most.cpu * 2.0 >= busy => {
                let sentence = format!("Nothing waits yet, but {} uses {}; {} room.", most.name, of(most.cpu), most.moving("would make"));
                verdict(Some(most), most.movable(), sentence)
            }
            Some(_) => verdict(
                None,
                None,
                format!("Nothing waits yet, but this machine is busy with {}; no single module uses most of it.", of(busy)),
            ),
            None => verdict(
                None,
                Some(false),
                format!(
                    "No module is a bottleneck: {} are busy, nothing waits long and nothing is refused; moving one would only add a hop.",
                    of(busy)
                ),
            ),
        };
    };
    let name = &held.name;
    if !held.here {
        let sentence = format!(
            "{name} is the bottleneck where it runs now: {trouble}; another endpoint would help, or taking part of its calls back."
        );
        return verdict(Some(held), Some(true), sentence);
    }
    if !full {
        let sentence = format!(
            "{name} is the bottleneck: {trouble}, although only {} are busy; moving it would not help by itself, its own threads and limits hold it back.",
            of(busy)
        );
        return verdict(Some(held), Some(false), sentence);
    }
    if busy > process * 2.0 {
        let others = of(busy - process);
        let sentence = format!(
            "{name} is held up: {trouble}, because other programs use {others} here; {}",
            match held.movable() {
                Some(true) => "moving it to a quieter machine would help.",
                _ => "this process would be better off on a quieter machine.",
            }
        );
        return verdict(Some(held), held.movable(), sentence);
    }
    match most.filter(|most| most.name != *name && most.cpu > held.cpu * 1.5) {
        Some(most) => {
            let sentence = format!(
                "{} is the bottleneck: it uses {} while {name} is held up ({trouble}); {} room.",
                most.name,
                of(most.cpu),
                most.moving("would make")
            );
            verdict(Some(most), most.movable(), sentence)
        }
        None => {
            let sentence = format!("{name} is the bottleneck: it uses {} and {trouble}; {} room.", of(held.cpu), held.moving("would make"));
            verdict(Some(held), held.movable(), sentence)
        }
    }
}

impl Seen {
    /// What is wrong with it, with how bad that is, in order of what callers feel most.
    fn trouble(&self) -> Option<(&Self, (f64, String))> {
        let mut troubles = vec![];
        let mut worst = 0.0_f64;
        if self.refused > 0 {
            troubles.push(format!("{} calls were refused", self.refused));
            worst = 1e6 + self.refused as f64;
        }
        if let Some(wait) = self.wait_p99_ms.filter(|wait| *wait > self.wait_limit_ms) {
            troubles.push(format!("its work waits {wait:.0} ms (p99; {:.0} are allowed)", self.wait_limit_ms));
            worst = worst.max(wait / self.wait_limit_ms.max(1.0));
        }
        if let Some(Slow { hop, p99_ms, limit_ms }) = self.slow {
            troubles.push(format!("{hop} takes {p99_ms:.0} ms (p99; {limit_ms:.0} are allowed)"));
            worst = worst.max(p99_ms / limit_ms);
        }
        (!troubles.is_empty()).then(|| (self, (worst, troubles.join(" and "))))
    }

    fn movable(&self) -> Option<bool> {
        Some(self.name != "api")
    }

    fn moving(&self, would: &str) -> String {
        match self.name.as_str() {
            "api" => format!("the record cannot move, so moving audio or inference {would}"),
            _ => format!("moving it to another machine {would}"),
        }
    }
}

/// A module whose endpoints do worse than this process, or badly.
fn bad_elsewhere(module: &Seen) -> Option<Bottleneck> {
    let Seen { name, local, remote, .. } = module;
    if remote.calls < ENOUGH_CALLS {
        return None;
    }
    let failing = remote.failed as f64 > remote.calls as f64 * FAILING;
    let slower = local.calls >= ENOUGH_CALLS && remote.p99_ms > local.p99_ms * 2.0 + 50.0;
    let sentence = match (failing, slower) {
        (true, _) => format!(
            "{name} is the bottleneck at its endpoints: {} of {} calls failed there; moving it back would help.",
            remote.failed, remote.calls
        ),
        (_, true) => format!(
            "{name} is the bottleneck at its endpoints: calls take {:.0} ms there (p99) against {:.0} ms here; moving it back would help.",
            remote.p99_ms, local.p99_ms
        ),
        (false, false) => return None,
    };
    Some(verdict(Some(module), Some(true), sentence))
}

fn verdict(module: Option<&Seen>, moving_helps: Option<bool>, sentence: String) -> Bottleneck {
    Bottleneck { module: module.map(|module| module.name.clone()), moving_helps, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, cpu: f64, wait_p99_ms: f64) -> Seen {
        Seen { name: name.into(), here: true, cpu, wait_p99_ms: Some(wait_p99_ms), wait_limit_ms: 150.0, ..Seen::default() }
    }

    fn picture(process: f64, modules: Vec<Seen>) -> Picture {
        Picture { window_s: 30.0, cores: 2.0, process: Some(process), machine: Some(process), modules, trouble: None }
    }

    #[track_caller]
    fn check(picture: &Picture, module: Option<&str>, moving_helps: Option<bool>, says: &str) {
        let found = judge(picture);
        assert_eq!((found.module.as_deref(), found.moving_helps), (module, moving_helps), "{}", found.sentence);
        assert!(found.sentence.contains(says), "{}", found.sentence);
    }

    #[test]
    fn an_idle_process_has_none() {
        check(&picture(0.2, vec![seen("audio", 0.1, 3.0), seen("inference", 0.0, 1.0)]), None, Some(false), "0.2 of 2 cores");
    }

    #[test]
    fn what_was_not_watched_is_not_judged() {
        check(&Picture { window_s: 1.0, ..picture(2.0, vec![seen("audio", 2.0, 900.0)]) }, None, None, "yet");
        check(&Picture { process: None, ..picture(2.0, vec![seen("audio", 2.0, 900.0)]) }, None, None, "yet");
    }

    #[test]
    fn what_waits_for_a_full_disk_is_not_put_down_to_the_processor() {
        let trouble = Some(("record".into(), "its disk is full".into()));
        let busy = Picture { trouble, ..picture(1.9, vec![seen("audio", 1.7, 400.0)]) };
        check(&busy, Some("record"), Some(false), "record holds the others up: its disk is full.");
    }

    #[test]
    fn who_fills_the_processor_and_waits_would_better_move() {
        let full = picture(1.9, vec![seen("audio", 1.7, 400.0), seen("inference", 0.1, 5.0)]);
        check(&full, Some("audio"), Some(true), "uses 1.7 of 2 cores and its work waits 400 ms");
    }

    #[test]
    fn who_fills_the_processor_while_another_waits_would_better_move() {
        let full = picture(1.9, vec![seen("audio", 0.4, 400.0), seen("inference", 1.4, 5.0)]);
        check(&full, Some("inference"), Some(true), "while audio is held up");
    }

    #[test]
    fn who_waits_on_an_idle_processor_gains_nothing_by_moving() {
        check(&picture(0.5, vec![seen("inference", 0.3, 900.0)]), Some("inference"), Some(false), "would not help");
        let slow = Some(Slow { hop: "decode", p99_ms: 400.0, limit_ms: 150.0 });
        check(
            &picture(0.5, vec![Seen { slow, ..seen("audio", 0.3, 1.0) }]),
            Some("audio"),
            Some(false),
            "decode takes 400 ms (p99; 150 are allowed)",
        );
        let refusing = Seen { refused: 4, ..seen("audio", 0.3, 1.0) };
        check(&picture(0.5, vec![seen("inference", 0.1, 900.0), refusing]), Some("audio"), Some(false), "4 calls were refused");
    }

    #[test]
    fn a_full_processor_is_told_before_anything_waits() {
        check(&picture(1.9, vec![seen("audio", 1.8, 20.0)]), Some("audio"), Some(true), "Nothing waits yet");
        check(&picture(1.9, vec![seen("api", 1.8, 20.0)]), Some("api"), Some(false), "cannot move");
    }

    #[test]
    fn other_programs_are_named() {
        let idle = Picture { machine: Some(2.0), ..picture(0.0, vec![seen("audio", 0.0, 4.0)]) };
        check(&idle, None, None, "other programs use 2.0 of 2 cores");
        let crowded = Picture { machine: Some(2.0), ..picture(0.4, vec![seen("audio", 0.3, 400.0)]) };
        check(&crowded, Some("audio"), Some(true), "other programs use 1.6 of 2 cores");
    }

    #[test]
    fn endpoints_that_do_worse_are_the_bottleneck() {
        let calls = |calls, failed, p99_ms| Calls { calls, failed, p99_ms };
        let slow = Seen { local: calls(50, 0, 20.0), remote: calls(50, 0, 300.0), ..seen("inference", 0.1, 1.0) };
        check(&picture(0.3, vec![slow.clone()]), Some("inference"), Some(true), "300 ms there (p99) against 20 ms here");
        let failing = Seen { remote: calls(50, 5, 20.0), ..slow.clone() };
        check(&picture(0.3, vec![failing]), Some("inference"), Some(true), "5 of 50 calls failed");
        let few = Seen { remote: calls(3, 3, 900.0), ..slow };
        check(&picture(0.3, vec![few]), None, Some(false), "No module");
        let away = Seen { here: false, refused: 2, ..seen("inference", 0.0, 0.0) };
        check(&picture(0.3, vec![away]), Some("inference"), Some(true), "where it runs now");
    }
}
