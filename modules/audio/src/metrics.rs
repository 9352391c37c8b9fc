//! Names of what audio measures.
