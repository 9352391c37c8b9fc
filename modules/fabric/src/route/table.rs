//! A module's targets, and the dial that says in which order they are asked.

use super::{
    breaker::{Breaker, BreakerLimits},
    pick,
    recent::Recent,
};
use crate::{
    connect::{ConnectError, Health},
    metrics as names,
};
use contracts::{
    CallCx,
    call_cx::RouteKey,
    route::{Dial, Mode},
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Makes the handle to a module at an endpoint, and what asks for its health.
pub type Connect<T> = Arc<dyn Fn(&str) -> Result<(Arc<T>, Health), ConnectError> + Send + Sync>;

pub(super) const LOCAL: &str = "local";

/// Somebody who can answer. Outlives the tables it stands in, and with it what is known of it.
pub(super) struct Target<T: ?Sized> {
    /// `local`, or the endpoint.
    pub(super) name: String,
    pub(super) peer: Arc<T>,
    /// None for the module of this process.
    pub(super) health: Option<Health>,
    /// Why it did not answer when it was asked for its health.
    pub(super) down: Mutex<Option<String>>,
    pub(super) breaker: Breaker,
    pub(super) slots: Semaphore,
    pub(super) recent: Recent,
}

impl<T: ?Sized> Target<T> {
    pub(super) fn new(module: &'static str, name: &str, peer: Arc<T>, health: Option<Health>, slots: usize, limits: BreakerLimits) -> Self {
        let shown = metrics::gauge!(names::BREAKER, "module" => module, "target" => name.to_owned());
        Self {
            name: name.into(),
            peer,
            health,
            down: Mutex::default(),
            breaker: Breaker::new(limits, shown),
            slots: Semaphore::new(slots),
            recent: Recent::default(),
        }
    }

    pub(super) fn is_remote(&self) -> bool {
        self.health.is_some()
    }

    fn is_down(&self) -> bool {
        self.down.lock().is_some()
    }
}

pub(super) struct RouteTable<T: ?Sized> {
    pub(super) version: u64,
    pub(super) dial: Dial,
    pub(super) local: Option<Arc<Target<T>>>,
    pub(super) remote: Vec<Arc<Target<T>>>,
}

impl<T: ?Sized> RouteTable<T> {
    pub(super) fn targets(&self) -> impl Iterator<Item = &Arc<Target<T>>> {
        self.local.iter().chain(&self.remote)
    }

    /// Who is asked, one after the other. A place that did not work out before (`cx.attempt`) is not the first again; one that is known
    /// to be down is the last, whatever was tried.
    pub(super) fn order(&self, module: &str, cx: &CallCx) -> Vec<Arc<Target<T>>> {
        let mut order = match self.dial.mode {
            Mode::Local => self.local.iter().cloned().collect(),
            Mode::Remote => self.peers(cx.key),
            Mode::Routed => {
                let mut order = self.peers(cx.key);
                let remote_first = pick::goes_remote(module, cx.key, self.dial.remote_percent);
                let at = if remote_first { order.len() } else { 0 };
                order.splice(at..at, self.local.iter().cloned());
                order
            }
        };
        if order.len() > 1 {
            let skipped = usize::from(cx.attempt) % order.len();
            order.rotate_left(skipped);
            order.sort_by_key(|target| target.is_down()); // stable
        }
        order
    }

    /// Whether `first` answers for the other side, which is known to be down.
    pub(super) fn stands_in(&self, first: &Target<T>, module: &str, key: RouteKey) -> bool {
        let known = self.dial.mode == Mode::Routed && key != RouteKey::None;
        known && first.is_remote() != pick::goes_remote(module, key, self.dial.remote_percent)
    }

    /// Who compares notes with the first of `order`.
    pub(super) fn shadow_of(&self, first: &Target<T>, key: RouteKey) -> Option<Arc<Target<T>>> {
        if first.is_remote() { self.local.clone() } else { self.peers(key).into_iter().next() }
    }

    /// Peers in the order of `key`; those known to be down come last.
    fn peers(&self, key: RouteKey) -> Vec<Arc<Target<T>>> {
        let mut peers = self.remote.clone();
        if peers.len() < 2 {
            return peers;
        }
        if let RouteKey::Conversation(id) = key {
            pick::rank(&mut peers, id, |peer| &peer.name);
        }
        peers.sort_by_key(|peer| peer.is_down()); // stable
        if key == RouteKey::None {
            let up = peers.partition_point(|peer| !peer.is_down());
            pick::less_busy_of_two(&mut peers[..up], |peer| usize::MAX - peer.slots.available_permits());
        }
        peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::ConversationId;
    use std::time::Duration;

    #[test]
    fn who_is_known_to_be_down_is_asked_last_and_the_other_stands_in() {
        const THERE: &str = "http://127.0.0.1:9";
        let target = |name, health| Arc::new(Target::new("audio", name, Arc::new(()), health, 1, BreakerLimits::default()));
        let health = crate::connect::health(THERE).expect("loopback");
        let dial = Dial { mode: Mode::Routed, remote_percent: 100, ..Dial::default() };
        let table = RouteTable { version: 1, dial, local: Some(target(LOCAL, None)), remote: vec![target(THERE, Some(health))] };
        let key = RouteKey::Conversation(ConversationId::fresh());
        let order = |attempt| table.order("audio", &CallCx { key, attempt, ..CallCx::new(Duration::from_secs(1)) });
        let first = |attempt| order(attempt)[0].name.clone();
        assert_eq!((first(0), first(1), first(2)), (THERE.into(), LOCAL.into(), THERE.into()));
        assert!(!table.stands_in(&order(0)[0], "audio", key));
        *table.remote[0].down.lock() = Some("it does not answer".into());
        assert_eq!((first(0), first(1), first(2)), (LOCAL.into(), LOCAL.into(), LOCAL.into()));
        assert!(table.stands_in(&order(0)[0], "audio", key));
    }
}
