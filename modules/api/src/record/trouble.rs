//! Whether the record takes writes, as its writer finds out.
//!
//! Invariant: a write that came to nothing is told until something was stored again, and for [`QUIET`] at least, because a disk that is full
//! takes a small write now and then.

use contracts::{CallError, ErrorKind};
use parking_lot::Mutex;
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Trouble(Mutex<Option<Failed>>);

struct Failed {
    why: String,
    at: Instant,
    /// Something was stored since.
    over: bool,
}

impl Trouble {
    /// A write came to nothing. Only the database's own failures count: what is refused for its contents says nothing about others.
    pub(super) fn failed(&self, error: &CallError) {
        if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::SpoolFull) {
            *self.0.lock() = Some(Failed { why: error.detail.clone(), at: Instant::now(), over: false });
        }
    }

    pub(super) fn stored(&self) {
        if let Some(failed) = &mut *self.0.lock() {
            failed.over = true;
        }
    }

    /// Why writes come to nothing; `None`: they do not.
    pub(super) fn now(&self) -> Option<String> {
        let mut failed = self.0.lock();
        if failed.as_ref().is_some_and(|failed| failed.over && failed.at.elapsed() >= QUIET) {
            *failed = None;
        }
        failed.as_ref().map(|failed| failed.why.clone())
    }

    /// Nothing was written since the last failure, and that was a while ago: only who tries finds out.
    pub(super) fn wants_a_try(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|failed| !failed.over && failed.at.elapsed() >= QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_is_told_until_something_was_stored_and_a_while_longer() {
        let trouble = Trouble::default();
        trouble.failed(&CallError::conflict("it is closed"));
        assert_eq!(trouble.now(), None, "a refusal is no trouble of the database");
        trouble.failed(&CallError::unavailable("the disk is full"));
        assert!(trouble.now().is_some_and(|why| why == "the disk is full") && !trouble.wants_a_try());
        trouble.stored();
        assert!(trouble.now().is_some(), "a small write may find room where others do not");
        let a_while_ago = || Instant::now().checked_sub(QUIET).expect("the machine has been up for longer");
        trouble.0.lock().as_mut().expect("told").at = a_while_ago();
        assert_eq!(trouble.now(), None);
        trouble.failed(&CallError::unavailable("the disk is full"));
        trouble.0.lock().as_mut().expect("told").at = a_while_ago();
        assert!(trouble.now().is_some() && trouble.wants_a_try());
    }
}
