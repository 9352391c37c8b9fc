//! Names of what this module measures.

/// Tells the exporter what each name means.
pub fn describe() {}
