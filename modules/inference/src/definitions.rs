//! What understanding goes by, as people wrote it: label sets and prompts. Files with versions, read together or not at all.

use crate::{
    Settings, StartError,
    labels::Labels,
    prompts::{Prompt, Purpose},
    rules::Rules,
};
use contracts::inference::Task;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The names a file in the folder of definitions may have.
const FILES: [&str; 4] = ["intent.toml", "sentiment.toml", "summary.toml", "turn.toml"];

pub struct Definitions {
    /// Of every task, in their order.
    pub labels: Vec<Labels>,
    rules: Vec<Rules>,
    /// For a turn.
    pub prompt: Prompt,
    pub summary: Prompt,
}

/// Where they are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    folder: Option<PathBuf>,
    labels: [Option<PathBuf>; 2],
}

/// Changes when a file does: of each its inode, size and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<FileStamp>>);

type FileStamp = (u64, u64, i64, i64, i64);

impl Definitions {
    /// # Errors
    /// Names the file and what was expected.
    pub fn read(settings: &Settings) -> Result<Self, StartError> {
        Sources::of(settings).read()
    }

    pub fn labels(&self, task: Task) -> &Labels {
        &self.labels[place(task)]
    }

    pub(crate) fn rules(&self, task: Task) -> &Rules {
        &self.rules[place(task)]
    }

    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.prompt.source == other.prompt.source && self.summary.source == other.summary.source && self.has_labels_of(other)
    }

    pub(crate) fn has_labels_of(&self, other: &Self) -> bool {
        self.labels.iter().zip(&other.labels).all(|(a, b)| a.source == b.source)
    }
}

fn place(task: Task) -> usize {
    Task::ALL.iter().position(|t| *t == task).expect("all of them are listed")
}

impl Sources {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self { folder: settings.definitions.clone(), labels: [settings.intent_labels.clone(), settings.sentiment_labels.clone()] }
    }

    /// None of them is a file: what is bundled stays.
    pub(crate) fn are_bundled(&self) -> bool {
        self.folder.is_none() && self.labels.iter().all(Option::is_none)
    }

    pub(crate) fn read(&self) -> Result<Definitions, StartError> {
        if let Some(folder) = &self.folder {
            known_names(folder).map_err(|cause| StartError::Definitions { file: folder.clone(), cause })?;
        }
        let labels = Task::ALL.into_iter().map(|task| Labels::read(task, self.of_task(task).as_deref())).collect::<Result<Vec<_>, _>>()?;
        let rules = labels.iter().map(Rules::new).collect();
        Ok(Definitions { rules, labels, prompt: self.prompt(Purpose::Turn)?, summary: self.prompt(Purpose::Summary)? })
    }

    fn prompt(&self, purpose: Purpose) -> Result<Prompt, StartError> {
        let Some(file) = self.in_folder(purpose.name()) else { return Ok(Prompt::bundled(purpose)) };
        let read = fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|text| Prompt::parse(purpose, &text));
        read.map_err(|cause| StartError::Definitions { file, cause })
    }

    fn in_folder(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{name}.toml"))).filter(|file| file.exists())
    }

    /// A file that is named for the task goes before one in the folder.
    fn of_task(&self, task: Task) -> Option<PathBuf> {
        self.labels[place(task)].clone().or_else(|| self.in_folder(task.name()))
    }

    pub(crate) fn stamp(&self) -> Stamp {
        let in_folder = self.folder.iter().flat_map(|folder| FILES.iter().map(|name| folder.join(name)).chain([folder.clone()]));
        let look = |file: PathBuf| {
            let found = fs::metadata(file).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec(), found.ctime() ^ found.ctime_nsec()))
        };
        Stamp(in_folder.chain(self.labels.iter().flatten().cloned()).map(look).collect())
    }
}

/// A misspelt name would leave what is bundled in force without a word.
fn known_names(folder: &Path) -> Result<(), String> {
    let unreadable = |e: io::Error| format!("the folder cannot be read: {e}");
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.starts_with('.') && !FILES.contains(&name.as_str()) {
            return Err(format!("it holds {name}: expected {}", FILES.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_replaces_what_it_holds_and_a_name_nobody_reads_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { definitions: Some(folder.path().into()), ..Settings::default() };
        let bundled = Definitions::read(&settings).unwrap();
        assert_eq!(bundled.prompt.name(), Prompt::bundled(Purpose::Turn).name());
        fs::write(folder.path().join("turn.toml"), "version = 7\nsystem = 'Label it. {labels}'").unwrap();
        let ours = Definitions::read(&settings).unwrap();
        assert!(ours.prompt.name().starts_with("turn@7 "));
        assert_eq!(ours.labels(Task::Intent).source, bundled.labels(Task::Intent).source);
        fs::write(folder.path().join("intents.toml"), "").unwrap();
        let refused = Definitions::read(&settings).err().unwrap().to_string();
        assert!(refused.contains("intents.toml: expected intent.toml, sentiment.toml, summary.toml, turn.toml"), "{refused}");
    }

    #[test]
    fn the_file_at_fault_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { definitions: Some(folder.path().into()), ..Settings::default() };
        for (name, text, says) in [
            ("turn.toml", "version = 1\nsystem = ''", "{labels}"),
            ("summary.toml", "system = ''", "version"),
            ("sentiment.toml", "version = 1", "task"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
            let refused = Definitions::read(&settings).err().unwrap().to_string();
            assert!(refused.contains(name) && refused.contains(says), "{refused}");
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        let nowhere = Settings { definitions: Some("/nowhere/at/all".into()), ..Settings::default() };
        assert!(Definitions::read(&nowhere).err().unwrap().to_string().contains("/nowhere/at/all"));
    }
}
