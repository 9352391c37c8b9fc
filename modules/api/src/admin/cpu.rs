//! Processor time per module, read from the names of this process's threads.
//!
//! Invariant: the totals never go down: what a thread has used stays counted after it has ended.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
};

pub(crate) const CPU_SECONDS: &str = "quickcomm_cpu_seconds_total";
/// Ticks per second in `/proc/…/stat`: the kernel's USER_HZ, 100 on every Linux we run on.
pub(super) const TICKS_PER_SECOND: f64 = 100.0;
/// By prefix of the thread's name, which the kernel cuts at 15 bytes.
const MODULES: [(&str, &str); 10] = [
    ("audio", "audio"),
    ("inference", "inference"),
    ("record", "record"),
    ("admin", "admin"),
    ("fabric", "fabric"),
    ("api", "api"),
    ("http", "api"),
    ("live", "api"),
    ("tokio", "api"),
    ("actix", "api"),
];

fn module_of(thread: &str) -> &'static str {
    MODULES.iter().find(|(prefix, _)| thread.starts_with(prefix)).map_or("other", |(_, module)| module)
}

/// Names the current thread for the kernel, where a library started it and gave it a name of its own.
pub fn name_thread(name: &str) {
    let _ = fs::write("/proc/thread-self/comm", name); // only a label: where /proc is missing, nothing else is lost
}

#[derive(Default)]
pub(crate) struct CpuMeter(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// Threads by id and start time, because ids are used again.
    running: HashMap<(u32, u64), (&'static str, u64)>,
    ended: BTreeMap<&'static str, u64>,
}

impl CpuMeter {
    /// Appends the totals as Prometheus text. Empty where there is no `/proc`.
    pub(crate) fn append(&self, text: &mut String) {
        let totals = self.totals();
        if totals.is_empty() {
            return;
        }
        let _ = writeln!(text, "# HELP {CPU_SECONDS} Processor time used by the threads of a module, in seconds.");
        let _ = writeln!(text, "# TYPE {CPU_SECONDS} counter");
        for (module, ticks) in totals {
            let _ = writeln!(text, "{CPU_SECONDS}{{module=\"{module}\"}} {}", ticks as f64 / TICKS_PER_SECOND);
        }
    }

    pub(super) fn totals(&self) -> BTreeMap<&'static str, u64> {
        let now: HashMap<_, _> = threads().into_iter().map(|t| ((t.id, t.started), (module_of(&t.name), t.ticks))).collect();
        let mut seen = self.0.lock();
        let gone: Vec<_> = seen.running.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, used)| *used).collect();
        for (module, ticks) in gone {
            *seen.ended.entry(module).or_default() += ticks;
        }
        let mut totals = seen.ended.clone();
        for (module, ticks) in now.values() {
            *totals.entry(module).or_default() += ticks;
        }
        seen.running = now;
        totals
    }
}

struct Thread {
    id: u32,
    name: String,
    started: u64,
    ticks: u64,
}

fn threads() -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return vec![] };
    tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            parse(id, &fs::read_to_string(task.path().join("stat")).ok()?) // gone meanwhile: skipped
        })
        .collect()
}

/// A line of `/proc/…/stat`: the name stands in parentheses and may itself hold any of them, so the last one ends it.
fn parse(id: u32, stat: &str) -> Option<Thread> {
    let (from, to) = (stat.find('(')?, stat.rfind(')')?);
    let name = stat.get(from + 1..to)?.to_owned();
    let rest: Vec<&str> = stat.get(to + 1..)?.split_ascii_whitespace().collect();
    let field = |n: usize| rest.get(n - 3)?.parse::<u64>().ok(); // numbered as in proc(5), where the state is field 3
    Some(Thread { id, name, started: field(22)?, ticks: field(14)? + field(15)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_counted_by_the_first_word_of_its_name() {
        for (thread, module) in [
            ("audio-worker-0", "audio"),
            ("record-writer", "record"),
            ("tokio-runtime-w", "api"),
            ("actix-server ac", "api"),
            ("quickcomm", "other"),
        ] {
            assert_eq!(module_of(thread), module, "{thread}");
        }
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_is_read_whole() {
        let stat = "71 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 4711 0 0";
        let thread = parse(71, stat).unwrap();
        assert_eq!((thread.name.as_str(), thread.ticks, thread.started), ("a) b (c", 300, 4711));
        assert!(parse(71, "71 (cut) S 1").is_none());
    }

    #[test]
    fn time_stays_counted_after_its_thread_has_ended() {
        let meter = CpuMeter::default();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("inference-test".into())
            .spawn(move || {
                let start = std::time::Instant::now();
                while start.elapsed() < std::time::Duration::from_millis(80) {
                    std::hint::spin_loop();
                }
                tell.send(()).unwrap();
                let _ = ended.recv();
            })
            .unwrap();
        told.recv().unwrap();
        let before = meter.totals()["inference"];
        assert!(before >= 1, "80 ms are eight ticks on an idle machine");
        end.send(()).unwrap();
        thread.join().unwrap();
        assert!(meter.totals()["inference"] >= before);
    }
}
