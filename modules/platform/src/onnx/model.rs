//! A model's folder: `model.toml` says what the files are, and they are checked against it before anything loads them.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Runtime,
    Recognizer,
    Vad,
    Embedding,
}

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("no model in {dir}: expected a model.toml; `make models` fetches it", dir = .0.display())]
    Missing(PathBuf),
    #[error("{file} is not usable: {cause}", file = .file.display())]
    Unusable { file: PathBuf, cause: String },
    #[error("{file} is damaged: expected {expected}, found {found}; `make models` fetches it again", file = .file.display())]
    Damaged { file: PathBuf, expected: String, found: String },
}

/// An opened model folder whose files have been found whole.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
    manifest: Manifest,
}

#[derive(Clone, Debug, Deserialize)]
struct Manifest {
    name: String,
    kind: Kind,
    version: String,
    #[serde(default)]
    files: Vec<File>,
    /// Everything else the kind needs to know; read by [`ModelDir::parameter`].
    #[serde(flatten)]
    rest: toml::Table,
}

#[derive(Clone, Debug, Deserialize)]
struct File {
    name: String,
    bytes: u64,
    sha256: String,
}

/// What the models in a folder are, by their names: the hash of a `model.toml`, which holds the hash of every file.
pub fn hashes(models: &Path) -> BTreeMap<String, String> {
    let mut hashes = BTreeMap::new();
    for folder in fs::read_dir(models).into_iter().flatten().flatten() {
        if let Ok(manifest) = fs::read(folder.path().join("model.toml")) {
            hashes.insert(folder.file_name().to_string_lossy().into_owned(), hex::encode(&Sha256::digest(manifest)[..8]));
        }
    }
    hashes
}

impl ModelDir {
    /// Reads `model.toml` and checks kind, size and SHA-256 of every file it lists.
    pub fn open(path: &Path, kind: Kind) -> Result<Self, ModelError> {
        let toml_path = path.join("model.toml");
        let text = match fs::read_to_string(&toml_path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ModelError::Missing(path.to_owned())),
            Err(e) => return Err(ModelError::Unusable { file: toml_path, cause: e.to_string() }),
        };
        let manifest: Manifest =
            toml::from_str(&text).map_err(|e| ModelError::Unusable { file: toml_path.clone(), cause: e.message().to_owned() })?;
        if manifest.kind != kind {
            let (expected, found) = (format!("kind {kind:?}"), format!("kind {:?}", manifest.kind));
            return Err(ModelError::Damaged { file: toml_path, expected, found });
        }
        let model = Self { path: path.to_owned(), manifest };
        for file in &model.manifest.files {
            model.check(file)?;
        }
        Ok(model)
    }

    fn check(&self, file: &File) -> Result<(), ModelError> {
        let path = self.path.join(&file.name);
        let damaged = |expected: String, found: String| ModelError::Damaged { file: path.clone(), expected, found };
        let mut reader = match fs::File::open(&path) {
            Ok(reader) => reader,
            Err(e) => return Err(damaged(format!("a file of {} bytes", file.bytes), e.to_string())),
        };
        let bytes = reader.metadata().map(|m| m.len()).unwrap_or(0);
        if bytes != file.bytes {
            return Err(damaged(format!("{} bytes", file.bytes), format!("{bytes}")));
        }
        let mut hash = Sha256::new();
        io::copy(&mut reader, &mut hash).map_err(|e| damaged("a readable file".into(), e.to_string()))?;
        let found = hex::encode(hash.finalize());
        if found != file.sha256 {
            return Err(damaged(format!("sha256 {}", file.sha256), found));
        }
        Ok(())
    }

    /// The path of a file that `model.toml` lists.
    pub fn file(&self, name: &str) -> Result<PathBuf, ModelError> {
        if self.manifest.files.iter().any(|f| f.name == name) {
            return Ok(self.path.join(name));
        }
        let file = self.path.join("model.toml");
        Err(ModelError::Damaged { file, expected: format!("an entry for {name}"), found: "none".into() })
    }

    pub fn name(&self) -> &str {
        &self.manifest.name
    }
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// A number from `model.toml`, by dotted path: `parameters.layers`.
    pub fn parameter(&self, path: &str) -> Result<i64, ModelError> {
        let mut table = &self.manifest.rest;
        let (parents, leaf) = path.rsplit_once('.').unwrap_or(("", path));
        for part in parents.split('.').filter(|p| !p.is_empty()) {
            match table.get(part).and_then(toml::Value::as_table) {
                Some(inner) => table = inner,
                None => return Err(self.no_parameter(path)),
            }
        }
        table.get(leaf).and_then(toml::Value::as_integer).ok_or_else(|| self.no_parameter(path))
    }

    fn no_parameter(&self, path: &str) -> ModelError {
        ModelError::Damaged { file: self.path.join("model.toml"), expected: format!("a whole number {path}"), found: "none".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(kind: &str, bytes: &[u8], promised: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.onnx"), bytes).unwrap();
        let sha256 = hex::encode(Sha256::digest(promised));
        let toml = format!(
            "name='m'\nkind='{kind}'\nversion='1'\n[[files]]\nname='a.onnx'\nbytes={}\nsha256='{sha256}'\n[parameters]\nlayers=6\n",
            promised.len()
        );
        fs::write(dir.path().join("model.toml"), toml).unwrap();
        dir
    }

    #[test]
    fn a_whole_model_opens_and_tells_its_parameters() {
        let dir = folder("vad", b"weights", b"weights");
        let model = ModelDir::open(dir.path(), Kind::Vad).unwrap();
        assert_eq!(model.parameter("parameters.layers").unwrap(), 6);
        assert!(model.parameter("parameters.heads").is_err());
        assert!(model.file("b.onnx").is_err());
    }

    #[test]
    fn a_damaged_model_is_refused_with_what_was_expected() {
        for (bytes, says) in [(&b"weight"[..], "7 bytes"), (b"weightz", "sha256")] {
            let dir = folder("vad", bytes, b"weights");
            let error = ModelDir::open(dir.path(), Kind::Vad).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("make models"), "{error}");
        }
        let dir = folder("vad", b"weights", b"weights");
        assert!(ModelDir::open(dir.path(), Kind::Recognizer).unwrap_err().to_string().contains("kind Recognizer"));
        assert!(ModelDir::open(&dir.path().join("none"), Kind::Vad).unwrap_err().to_string().contains("make models"));
    }
}
