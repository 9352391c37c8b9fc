//! `Audio`, kept from elsewhere.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::metrics::{Locality, Meter};

pub(crate) const MODULE: &str = "audio";

pub(crate) struct Methods {
    pub(crate) open: Meter,
}

impl Methods {
    pub(crate) fn new(locality: Locality) -> Self {
        Self { open: Meter::new(locality, MODULE, "open") }
    }
}
