//! Hears from the record how far each channel is committed, and tells the sessions. One listener per process.
//!
//! Lossy like the signal it reads: a session that waits too long asks the record itself.

use contracts::{
    ChannelIndex, ConversationId,
    signal::{COMMITTED, Committed},
};
use parking_lot::Mutex;
use platform::bus::{Bus, Heard};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tracing::{debug, warn};

type Key = (ConversationId, ChannelIndex);

#[derive(Default)]
pub(super) struct Watermarks {
    followed: Mutex<HashMap<Key, watch::Sender<Option<Committed>>>>,
}

/// Follows one channel until it is dropped.
pub(super) struct Follow {
    all: Arc<Watermarks>,
    key: Key,
    news: watch::Receiver<Option<Committed>>,
}

impl Watermarks {
    /// The latest mark is kept: marks of one epoch only move forward.
    pub(super) fn follow(self: &Arc<Self>, conversation: ConversationId, channel: ChannelIndex) -> Follow {
        let (tx, news) = watch::channel(None);
        let key = (conversation, channel);
        self.followed.lock().insert(key, tx);
        Follow { all: self.clone(), key, news }
    }

    fn tell(&self, mark: Committed) {
        if let Some(tx) = self.followed.lock().get(&(mark.conversation, mark.channel)) {
            tx.send_if_modified(|last| {
                let newer = last.is_none_or(|last| (mark.epoch, mark.next_seq) > (last.epoch, last.next_seq));
                if newer {
                    *last = Some(mark);
                }
                newer
            });
        }
    }

    /// Runs until the bus shuts down or the future is dropped.
    pub(super) async fn listen(self: Arc<Self>, bus: Arc<dyn Bus>) {
        loop {
            match bus.listen(COMMITTED).await {
                Ok(mut listener) => {
                    while let Some(heard) = listener.next().await {
                        match heard {
                            Heard::Signal(payload) => match serde_json::from_slice(&payload) {
                                Ok(mark) => self.tell(mark),
                                Err(error) => warn!(%error, "unreadable watermark"),
                            },
                            Heard::Missed(count) => debug!(count, "watermarks missed"), // sessions ask for themselves
                        }
                    }
                    return;
                }
                Err(error) => {
                    warn!(%error, "cannot listen for watermarks");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Follow {
    /// The next news. Cancel-safe.
    pub(super) async fn next(&mut self) -> Committed {
        loop {
            if self.news.changed().await.is_err() {
                std::future::pending::<()>().await; // a newer session of this process follows the channel now
            }
            if let Some(mark) = *self.news.borrow_and_update() {
                return mark;
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut followed = self.all.followed.lock();
        if followed.get(&self.key).is_some_and(|tx| tx.receiver_count() <= 1) {
            followed.remove(&self.key);
        }
    }
}
