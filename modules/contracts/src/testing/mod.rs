//! Fakes, and the suite every implementation passes.
