//! `Audio`, kept from elsewhere.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::metrics::{Locality, Meter};
use std::sync::Arc;

pub(crate) const MODULE: &str = "audio";

pub(crate) struct Methods {
    pub(crate) open: Meter,
}

impl Methods {
    pub(crate) fn new(locality: Locality) -> Self {
        Self::at(locality, &Arc::from(locality.name()))
    }

    /// For a target of its own name.
    pub(crate) fn at(locality: Locality, target: &Arc<str>) -> Self {
        Self { open: Meter::new(locality, target, MODULE, "open") }
    }
}
