//! Label definitions: what a task may answer, in words. A file written by people, so every fault names the label and what was expected.

use crate::StartError;
use contracts::inference::Task;
use serde::Deserialize;
use std::{collections::HashSet, fs, path::Path};

const INTENT: &str = include_str!("../labels/intent.toml");
const SENTIMENT: &str = include_str!("../labels/sentiment.toml");

/// The labels of one task.
#[derive(Clone, Debug)]
pub struct Labels {
    pub task: Task,
    pub version: u32,
    /// Below this confidence no label is given.
    pub abstain_below: f32,
    pub labels: Vec<Label>,
    pub words: Words,
    /// The file as it was read; part of a run's configuration.
    pub source: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    pub name: String,
    pub description: String,
    /// Turns as they are spoken.
    pub examples: Vec<String>,
    /// Patterns that decide by themselves.
    #[serde(default)]
    pub phrases: Vec<String>,
    /// Patterns that only add up: half the weight of a phrase.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Patterns of twice the weight.
    #[serde(default)]
    pub strong: Vec<String>,
    /// Means that nothing fits: the insight abstains.
    #[serde(default)]
    pub none: bool,
    /// Beside other sentences one with this label weighs little.
    #[serde(default)]
    pub quiet: bool,
    /// A customer's later turn that says little by itself may carry it on.
    #[serde(default)]
    pub topic: bool,
    /// Only short turns mean it: in longer ones than this many words its patterns fade.
    #[serde(default)]
    pub short: Option<usize>,
    /// What a negation makes of it; without one a negated pattern counts for nothing.
    #[serde(default)]
    pub opposite: Option<String>,
    /// How likely it is in an agent's turn, beside a customer's: an agent who says "that's terrible" speaks of the caller's feeling.
    #[serde(default = "as_likely")]
    pub by_agent: f32,
    /// What rules answer when no pattern speaks for anything.
    #[serde(default)]
    pub default: bool,
}

fn as_likely() -> f32 {
    1.0
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// Turn round what follows within three words.
    #[serde(default)]
    pub negations: Vec<String>,
    /// Make the next pattern heavier.
    #[serde(default)]
    pub intensifiers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    task: Task,
    abstain_below: f32,
    labels: Vec<Label>,
    #[serde(default)]
    words: Words,
}

impl Labels {
    /// The file at `path`, or the bundled one.
    ///
    /// # Errors
    /// Names the file, the label and what was expected.
    pub fn read(task: Task, path: Option<&Path>) -> Result<Self, StartError> {
        let bundled = match task {
            Task::Intent => INTENT,
            Task::Sentiment => SENTIMENT,
        };
        let Some(path) = path else {
            return Self::parse(task, bundled).map_err(|cause| StartError::Labels { file: format!("{}.toml", task.name()).into(), cause });
        };
        let at_fault = |cause: String| StartError::Labels { file: path.to_owned(), cause };
        let text = fs::read_to_string(path).map_err(|e| at_fault(e.to_string()))?;
        Self::parse(task, &text).map_err(at_fault)
    }

    fn parse(task: Task, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        if file.task != task {
            return Err(format!("it defines the task {}: expected {}", file.task.name(), task.name()));
        }
        if file.version == 0 {
            return Err("version is 0: expected 1 or more".into());
        }
        if !(0.0..1.0).contains(&file.abstain_below) {
            return Err(format!("abstain_below is {}: expected 0 or more and less than 1", file.abstain_below));
        }
        if file.labels.len() < 2 {
            return Err(format!("it defines {} labels: expected at least 2", file.labels.len()));
        }
        let names: HashSet<&str> = file.labels.iter().map(|l| l.name.as_str()).collect();
        if names.len() < file.labels.len() {
            return Err("a label is defined twice".into());
        }
        for label in &file.labels {
            label.check(&names).map_err(|e| format!("label {:?}: {e}", label.name))?;
        }
        Ok(Self {
            task,
            version: file.version,
            abstain_below: file.abstain_below,
            labels: file.labels,
            words: file.words,
            source: text.into(),
        })
    }
}

impl Label {
    fn check(&self, names: &HashSet<&str>) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err("expected a name of up to 64 lower-case letters, digits and underscores".into());
        }
        if self.examples.len() < 2 {
            return Err(format!("{} examples: expected at least 2", self.examples.len()));
        }
        if let Some(empty) = self.examples.iter().position(|e| crate::turn::Turn::from_text(e).is_empty()) {
            return Err(format!("example {} has no words", empty + 1));
        }
        if !(0.01..=100.0).contains(&self.by_agent) {
            return Err(format!("by_agent is {}: expected 0.01 to 100", self.by_agent));
        }
        match &self.opposite {
            Some(other) if !names.contains(other.as_str()) => Err(format!("its opposite {other:?} is not defined")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_files_are_valid() {
        for task in Task::ALL {
            let labels = Labels::read(task, None).unwrap();
            assert!(labels.labels.iter().all(|l| l.examples.len() >= 8), "{}", task.name());
        }
    }

    #[track_caller]
    fn refused(text: &str, says: &str) {
        let error = Labels::parse(Task::Intent, text).unwrap_err();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_faulty_file_is_refused_with_what_was_expected() {
        refused("version = 1\ntask = 'sentiment'\nabstain_below = 0.4\nlabels = []", "expected intent");
        refused("version = 1\ntask = 'intent'\nabstain_below = 0.4\nlabels = []", "at least 2");
        refused("version = 1\ntask = 'intent'\nabstain_below = 1.5\nlabels = []", "less than 1");
        refused("task = 'intent'\nabstain_below = 0.4\nlabels = []", "version");
        refused("version = 0\ntask = 'intent'\nabstain_below = 0.4\nlabels = []", "version is 0");
        refused("nonsense", "TOML");
        let two = |b: &str| {
            format!(
                "version=1\ntask='intent'\nabstain_below=0.4\n[[labels]]\nname='a'\ndescription='d'\nexamples=['x','y']\n[[labels]]\nname='{b}'\ndescription='d'\nexamples=['x']"
            )
        };
        refused(&two("a"), "twice");
        refused(&two("B!"), "lower-case");
        refused(&two("b"), "1 examples: expected at least 2");
    }
}
