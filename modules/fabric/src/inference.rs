//! `Inference`, kept from elsewhere.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::metrics::{Locality, Meter};

pub(crate) const MODULE: &str = "inference";

pub(crate) struct Methods {
    pub(crate) analyze: Meter,
    pub(crate) summarize: Meter,
    pub(crate) tiers: Meter,
}

impl Methods {
    pub(crate) fn new(locality: Locality) -> Self {
        let meter = |method| Meter::new(locality, MODULE, method);
        Self { analyze: meter("analyze"), summarize: meter("summarize"), tiers: meter("tiers") }
    }
}
