//! `Conversations`, which the module `api` keeps, kept from elsewhere.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod wire;

use crate::metrics::{Locality, Meter};
use std::sync::Arc;

pub(crate) const MODULE: &str = "api";

pub(crate) struct Methods {
    pub(crate) open: Meter,
    pub(crate) attach: Meter,
    pub(crate) commit: Meter,
    pub(crate) record: Meter,
    pub(crate) close: Meter,
    pub(crate) conversation: Meter,
    pub(crate) watch: Meter,
}

impl Methods {
    pub(crate) fn new(locality: Locality) -> Self {
        Self::at(locality, &Arc::from(locality.name()))
    }

    /// For a target of its own name.
    pub(crate) fn at(locality: Locality, target: &Arc<str>) -> Self {
        let meter = |method| Meter::new(locality, target, MODULE, method);
        Self {
            open: meter("open"),
            attach: meter("attach"),
            commit: meter("commit"),
            record: meter("record"),
            close: meter("close"),
            conversation: meter("conversation"),
            watch: meter("watch"),
        }
    }
}
