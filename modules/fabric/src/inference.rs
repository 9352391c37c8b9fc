//! `Inference`, kept from elsewhere.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::metrics::{Locality, Meter};
use std::sync::Arc;

pub(crate) const MODULE: &str = "inference";

pub(crate) struct Methods {
    pub(crate) analyze: Meter,
    pub(crate) summarize: Meter,
    pub(crate) tiers: Meter,
}

impl Methods {
    pub(crate) fn new(locality: Locality) -> Self {
        Self::at(locality, &Arc::from(locality.name()))
    }

    /// For a target of its own name.
    pub(crate) fn at(locality: Locality, target: &Arc<str>) -> Self {
        let meter = |method| Meter::new(locality, target, MODULE, method);
        Self { analyze: meter("analyze"), summarize: meter("summarize"), tiers: meter("tiers") }
    }
}
