//! Reads labels and prompts again when their files change.
//!
//! Invariants: a call sees one state of them, old or new; a file that cannot be used changes nothing, and the status says so until it can.
//! Nothing here touches sound: the files are read on a thread that waits, and the classifier learns on one that gives way.

use crate::{
    Local,
    definitions::{Definitions, Stamp},
    metrics as names,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A change is in force within a second; looking costs a few `stat`s.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Local {
    /// Until `stop`. Ends at once where everything is bundled.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        if self.sources.are_bundled() {
            return;
        }
        let (learn, news) = watch::channel(self.definitions.load_full());
        tokio::join!(self.follow(learn, &stop), self.teach(news, &stop));
    }

    async fn follow(&self, learn: watch::Sender<Arc<Definitions>>, stop: &CancellationToken) {
        // What was read at start may be older than the files are now.
        let mut seen = Stamp::default();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return }
            let sources = self.sources.clone();
            let known = seen.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let stamp = sources.stamp();
                (stamp != known).then(|| {
                    let read = sources.read().map_err(|e| e.to_string());
                    // Whoever is still writing has not finished saying it.
                    (sources.stamp() == stamp).then_some((stamp, read))
                })
            });
            let Ok(Some(Some((stamp, read)))) = looked.await else { continue };
            seen = stamp;
            match read {
                Ok(definitions) => self.take(definitions, &learn),
                Err(cause) => self.refuse(cause),
            }
        }
    }

    fn take(&self, definitions: Definitions, learn: &watch::Sender<Arc<Definitions>>) {
        *self.stale.lock() = None;
        metrics::gauge!(names::DEFINITIONS_STALE).set(0.0);
        let before = self.definitions.load_full();
        if definitions.same_as(&before) {
            return;
        }
        metrics::counter!(names::DEFINITIONS_READ, "outcome" => "taken").increment(1);
        let versions: Vec<u32> = definitions.labels.iter().map(|l| l.version).collect();
        info!(prompt = definitions.prompt.name(), summary = definitions.summary.name(), label_versions = ?versions, "labels and prompts were read again");
        let definitions = Arc::new(definitions);
        self.definitions.store(definitions.clone());
        if !before.has_labels_of(&definitions) {
            learn.send_replace(definitions);
        }
    }

    fn refuse(&self, cause: String) {
        let told = format!("{cause}; what was read before stays in force");
        if self.stale.lock().replace(told.clone()) == Some(told) {
            return; // another file has changed
        }
        metrics::counter!(names::DEFINITIONS_READ, "outcome" => "refused").increment(1);
        metrics::gauge!(names::DEFINITIONS_STALE).set(1.0);
        warn!(%cause, "labels and prompts cannot be used as they are now; the last good ones stay in force");
    }

    /// The newest only: what came in between is nobody's any more.
    async fn teach(&self, mut news: watch::Receiver<Arc<Definitions>>, stop: &CancellationToken) {
        let Ok(classifier) = &self.classifier else { return };
        loop {
            tokio::select! { changed = news.changed() => if changed.is_err() { return }, () = stop.cancelled() => return }
            let definitions = news.borrow_and_update().clone();
            classifier.loaded().await;
            if let Err(cause) = classifier.learn(definitions, self.nice).await {
                warn!(%cause, "the classifier has not learnt the new labels and goes by those before");
                *self.stale.lock() = Some(format!("the classifier has not learnt the new labels: {cause}"));
            }
        }
    }
}
