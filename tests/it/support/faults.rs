//! How often a fault strikes, and what came of it. `make test` tries a few; `make faults` many more, and prints a row for each kind.

#![allow(dead_code)] // each user needs its part

use std::env;

/// How many times: what `FAULTS` says, or else `usual`.
pub fn times(usual: usize) -> usize {
    match env::var("FAULTS") {
        Ok(said) => said.parse().unwrap_or_else(|_| panic!("FAULTS is {said:?}: expected a number")),
        Err(_) => usual,
    }
}

/// Counts what was survived. Told when it is dropped, so that a failing journey says how far it came.
pub struct Tally {
    fault: &'static str,
    passed: usize,
    of: usize,
}

impl Tally {
    pub fn of(fault: &'static str, times: usize) -> Self {
        Self { fault, passed: 0, of: times }
    }

    pub fn survived(&mut self, times: usize) {
        self.passed += times;
    }

    pub fn left(&self) -> usize {
        self.of.saturating_sub(self.passed)
    }

    pub fn is_whole(&self) -> bool {
        self.passed >= self.of
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // `.ci/faults` reads this line.
        println!("FAULT {} passed {} of {}", self.fault, self.passed, self.of.max(self.passed));
    }
}
