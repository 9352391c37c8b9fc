//! Live streams and where they are, so that they can be asked to move.

use super::table::RouteTable;
use contracts::{CallCx, audio::Mover, call_cx::RouteKey};
use parking_lot::Mutex;
use std::time::Duration;

#[derive(Default)]
pub(super) struct Live(Mutex<Vec<Stream>>);

#[derive(Clone)]
struct Stream {
    key: RouteKey,
    target: String,
    mover: Mover,
}

impl Live {
    pub(super) fn add(&self, key: RouteKey, target: &str, mover: Mover) {
        let mut streams = self.0.lock();
        if streams.len() == streams.capacity() {
            streams.retain(|stream| !stream.mover.is_over());
        }
        streams.push(Stream { key, target: target.into(), mover });
    }

    pub(super) fn at(&self, target: &str) -> usize {
        self.0.lock().iter().filter(|stream| stream.target == target && !stream.mover.is_over()).count()
    }

    /// Asks those whose place is another one by this table; says how many. Who is asked first depends on what is known of targets, which has
    /// locks of its own: none is taken while this one is held.
    pub(super) fn move_by<T: ?Sized>(&self, table: &RouteTable<T>, module: &str) -> usize {
        let streams: Vec<Stream> = {
            let mut streams = self.0.lock();
            streams.retain(|stream| !stream.mover.is_over());
            streams.clone()
        };
        let misplaced = streams.iter().filter(|stream| {
            let cx = CallCx { key: stream.key, ..CallCx::new(Duration::ZERO) };
            table.order(module, &cx).first().is_some_and(|first| first.name != stream.target)
        });
        misplaced.map(|stream| stream.mover.ask()).count()
    }
}
