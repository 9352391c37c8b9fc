//! Settings of the HTTP surface.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Names, without port, under which browsers and clients may address this server besides loopback; `*` allows every name.
    /// A request under another name is refused: a page elsewhere could otherwise point its own name at this machine. Default: none.
    pub allowed_hosts: Vec<String>,
}

impl Settings {
    pub fn check(&self) -> Result<(), String> {
        match self.allowed_hosts.iter().find(|host| host.is_empty() || host.contains(['/', ' '])) {
            Some(bad) => Err(format!("api.rest.allowed_hosts holds {bad:?}: expected a host name without scheme, port and path")),
            None => Ok(()),
        }
    }
}
