//! Panics on demand, so that tests see what one costs. Outside of tests there is nothing here.

/// Where the engine can be made to panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// While a channel's bytes are decoded.
    Decode,
    Detector,
    Recognizer,
    /// Anywhere else on a worker's thread.
    Thread,
}

#[cfg(not(test))]
#[derive(Default)]
pub(super) struct Faults(());

#[cfg(not(test))]
impl Faults {
    #[inline(always)]
    pub(super) fn strike(&self, _: Place) {}
}

#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults(parking_lot::Mutex<Vec<Place>>);

#[cfg(test)]
impl Faults {
    /// The next `times` passages of `place` panic.
    pub(super) fn arm(&self, place: Place, times: usize) {
        self.0.lock().extend(std::iter::repeat_n(place, times));
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(super) fn strike(&self, place: Place) {
        let armed = {
            let mut armed = self.0.lock();
            let at = armed.iter().position(|armed| *armed == place);
            at.map(|at| armed.swap_remove(at))
        };
        assert!(armed.is_none(), "asked to panic: {place:?}");
    }
}
