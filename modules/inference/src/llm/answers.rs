//! Answers that were given before, by the hash of everything that was asked.
//!
//! What is kept is the model's own text: whoever reads it holds it against the turn again, so a key that means something else, or a store that
//! was tampered with, gives no answer that could not have been given.

use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Callers may rely on: a failure is a miss, and costs a call little time.
#[async_trait]
pub(crate) trait Answers: Send + Sync + 'static {
    async fn find(&self, key: &str) -> Option<String>;
    async fn keep(&self, key: String, content: &str);
}

/// In this process, at most about `limit` of them.
pub(crate) struct InProcess {
    limit: usize,
    kept: Mutex<Kept>,
}

/// Those used since the newer half was last full, and those before them: what nobody asked for in between is forgotten.
#[derive(Default)]
struct Kept {
    newer: HashMap<String, String>,
    older: HashMap<String, String>,
}

impl InProcess {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::default() }
    }
}

impl Kept {
    fn add(&mut self, key: String, content: String, limit: usize) {
        if self.newer.len() >= limit.div_ceil(2) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, content);
    }
}

#[async_trait]
impl Answers for InProcess {
    async fn find(&self, key: &str) -> Option<String> {
        let mut kept = self.kept.lock();
        if let Some(content) = kept.newer.get(key) {
            return Some(content.clone());
        }
        let (key, content) = kept.older.remove_entry(key)?;
        kept.add(key, content.clone(), self.limit);
        Some(content)
    }

    async fn keep(&self, key: String, content: &str) {
        if self.limit > 0 {
            self.kept.lock().add(key, content.to_owned(), self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_stays_small_and_keeps_what_is_asked_for() {
        let answers = InProcess::new(8);
        answers.keep("asked for".into(), "yes").await;
        for n in 0..1_000 {
            answers.keep(n.to_string(), "x").await;
            assert_eq!(answers.find("asked for").await.as_deref(), Some("yes"));
            let kept = answers.kept.lock();
            assert!(kept.newer.len() + kept.older.len() <= 8);
        }
        assert_eq!(answers.find("3").await, None);
        let none = InProcess::new(0);
        none.keep("a".into(), "b").await;
        assert_eq!(none.find("a").await, None);
    }
}
