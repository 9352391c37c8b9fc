//! Settings of how conversations are finished.

use super::webhook;
use chrono::TimeDelta;
use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, path::PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Told of every conversation once it is finished: `https://HOST/PATH`. Default: nobody.
    pub webhook_url: Option<String>,
    /// Signs what the webhook is told, so that its receiver knows who speaks; at least 24 characters. Needed where there is a webhook.
    pub webhook_secret: Secret,
    /// The secret before it, which signs as well while receivers learn the new one. Default: none.
    pub webhook_old_secret: Secret,
    /// Authorities that signed the webhook's certificate, where this machine does not trust them already. Default: none.
    pub webhook_ca: Option<PathBuf>,
    /// Whether the webhook may be in a private network, on this machine, or reached without TLS. Default false.
    pub webhook_private: bool,
    /// Recordings are deleted this many days after their conversation ended: by each process with this setting, those it has. 0, the default:
    /// never.
    pub keep_recordings_days: u32,
    /// Conversations are deleted this many days after they ended, with everything that is known of them. 0, the default: never.
    pub keep_days: u32,
}

impl Settings {
    /// How long there are recordings after their conversation; `None`: for ever.
    pub fn recordings_stay(&self) -> Option<TimeDelta> {
        let timers = [self.keep_recordings_days, self.keep_days].into_iter().filter(|days| *days > 0);
        timers.min().map(|days| TimeDelta::days(days.into()))
    }

    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, days) in [("keep_recordings_days", self.keep_recordings_days), ("keep_days", self.keep_days)] {
            if days > 36_500 {
                return Err(format!("api.finalize.{name} is {days}: expected 0 to 36500"));
            }
        }
        let Some(url) = &self.webhook_url else { return Ok(()) };
        webhook::Target::parse(url, self.webhook_private).map_err(|problem| format!("api.finalize.webhook_url: {problem}"))?;
        for (name, secret) in [("webhook_secret", &self.webhook_secret), ("webhook_old_secret", &self.webhook_old_secret)] {
            let length = secret.expose().len();
            if length < 24 && (name == "webhook_secret" || length > 0) {
                return Err(format!(
                    "api.finalize.{name} has {length} characters: expected at least 24, such as `openssl rand -hex 24` makes"
                ));
            }
        }
        Ok(())
    }
}

/// Something that is shown to nobody.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }
    pub fn expose(&self) -> &str {
        &self.0
    }
    fn hidden(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "****" }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.hidden())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hidden())
    }
}
