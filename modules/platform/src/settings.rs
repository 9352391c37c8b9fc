//! Settings of a process: defaults, then a file, then `QUICKCOMM_…` in the environment, then flags. An unknown key is an error.

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// Levels are separated by two underscores: `QUICKCOMM_HTTP__ADDR`.
pub const ENV_PREFIX: &str = "QUICKCOMM_";
/// Names with the prefix that are read by tools and tests, and are no settings.
const NOT_SETTINGS: [&str; 5] = ["QUICKCOMM_CONFIG", "QUICKCOMM_SPEECH", "QUICKCOMM_URL", "QUICKCOMM_ADMIN_URL", "QUICKCOMM_PYTHON"];

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("there is no configuration file {0}")]
    NoFile(String),
    #[error("{0}")]
    Bad(String),
}

/// Merges the layers into `T`, whose `Default` is the first of them. `flags` holds only what was given.
pub fn load<T: Default + Serialize + DeserializeOwned>(file: Option<&Path>, flags: impl Serialize) -> Result<T, SettingsError> {
    let mut layers = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(SettingsError::NoFile(path.display().to_string()));
        }
        layers = layers.merge(Toml::file_exact(path));
    }
    let env = Env::prefixed(ENV_PREFIX).filter(|key| !NOT_SETTINGS.iter().any(|name| *key == name[ENV_PREFIX.len()..])).split("__");
    layers.merge(env).merge(Serialized::defaults(flags)).extract().map_err(|error| {
        let each: Vec<String> = error.into_iter().map(describe).collect();
        SettingsError::Bad(each.join("; "))
    })
}

/// figment's text, with the key and the layer it came from in front.
fn describe(error: figment::Error) -> String {
    let key = error.path.join(".");
    let from = error.metadata.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
    match (key.is_empty(), from.is_empty()) {
        (true, true) => error.kind.to_string(),
        (true, false) => format!("{from}: {}", error.kind),
        (false, true) => format!("{key}: {}", error.kind),
        (false, false) => format!("{key} (from {from}): {}", error.kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Some_ {
        name: String,
        inner: Inner,
    }
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        ms: u32,
    }

    fn with(text: &str) -> Result<Some_, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load(Some(file.path()), serde_json::json!({}))
    }

    #[test]
    fn a_later_layer_wins() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = 'file'\n[inner]\nms = 5").unwrap();
        let got: Some_ = load(Some(file.path()), serde_json::json!({ "name": "flag" })).unwrap();
        assert_eq!(got, Some_ { name: "flag".into(), inner: Inner { ms: 5 } });
    }

    #[test]
    fn a_mistake_is_named_with_its_key() {
        assert!(with("nmae = 'x'").unwrap_err().to_string().contains("nmae"));
        let wrong = with("[inner]\nms = 'five'").unwrap_err().to_string();
        assert!(wrong.contains("inner.ms") && wrong.contains("u32"), "{wrong}");
        assert!(load::<Some_>(Some(Path::new("/nowhere.toml")), serde_json::json!({})).unwrap_err().to_string().contains("/nowhere.toml"));
    }
}
