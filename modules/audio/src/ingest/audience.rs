//! The socket that listens to a conversation: at most one, the newest. Telling it never waits.
//!
//! A caller who reads slowly loses partials first; when even the rest does not fit, the seat is taken from it and the socket closes.

use super::metrics as names;
use contracts::{
    CallError, ChannelIndex, Epoch, SamplePos, TraceCx, UtteranceId,
    audio::{Spoken, Word},
    conversation::ConversationState,
};
use metrics::counter;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// Events waiting for the socket; the upper half is kept for what may not be lost.
const WAITING: usize = 512;

/// What a socket may have to tell its caller. Text is redacted already.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Started {
        channel: ChannelIndex,
        at: SamplePos,
    },
    Partial(Partial),
    Final(Final),
    /// Nothing was said up to `end`.
    Silence {
        channel: ChannelIndex,
        end: SamplePos,
    },
    Gap {
        channel: ChannelIndex,
        start: SamplePos,
        end: SamplePos,
        reason: String,
    },
    Retracted {
        channel: ChannelIndex,
        utterance: UtteranceId,
    },
    /// A finalize is done; `end` is where the channel's text ends now.
    Flushed {
        channel: ChannelIndex,
        token: u32,
        end: SamplePos,
    },
    Safe {
        channel: ChannelIndex,
        epoch: Epoch,
        pos: SamplePos,
    },
    /// Everything received on the channel has been told, up to `end`.
    Heard {
        channel: ChannelIndex,
        end: SamplePos,
    },
    /// What the caller sent cannot be.
    Refused {
        reason: String,
    },
    /// The conversation is closed in the record.
    Ended {
        state: ConversationState,
    },
    /// Hearing failed for good; the conversation goes on without this socket.
    Failed {
        error: CallError,
    },
    /// The process is leaving.
    Leaving,
}

#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) channel: ChannelIndex,
    pub(super) utterance: UtteranceId,
    pub(super) rev: u32,
    pub(super) start: SamplePos,
    pub(super) end: SamplePos,
    pub(super) words: Vec<Word>,
    pub(super) stable_words: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Final {
    pub(super) channel: ChannelIndex,
    pub(super) utterance: UtteranceId,
    pub(super) seq: u64,
    pub(super) end: SamplePos,
    pub(super) spoken: Spoken,
    pub(super) trace: TraceCx,
}

/// Why a seat was taken from its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unseated {
    /// A newer socket, or another process, has the conversation now.
    Superseded,
    /// It did not read.
    Slow,
    /// The conversation is over and everything has been told.
    Over,
}

#[derive(Default)]
pub(super) struct Audience {
    seat: Mutex<Option<Taken>>,
}

struct Taken {
    number: u64,
    tx: mpsc::Sender<Event>,
    why: Arc<OnceLock<Unseated>>,
}

/// The socket's side.
pub(super) struct Seat {
    pub(super) number: u64,
    rx: mpsc::Receiver<Event>,
    why: Arc<OnceLock<Unseated>>,
}

impl Audience {
    /// Seats a socket; the one before it is superseded.
    pub(super) fn sit(&self, number: u64) -> Seat {
        let (tx, rx) = mpsc::channel(WAITING);
        let why = Arc::new(OnceLock::new());
        let before = self.seat.lock().replace(Taken { number, tx, why: why.clone() });
        if let Some(before) = before {
            before.leave(Unseated::Superseded);
        }
        Seat { number, rx, why }
    }

    pub(super) fn is_seated(&self, number: u64) -> bool {
        self.seat.lock().as_ref().is_some_and(|taken| taken.number == number)
    }

    /// The socket has gone.
    pub(super) fn stand(&self, number: u64) {
        let mut seat = self.seat.lock();
        if seat.as_ref().is_some_and(|taken| taken.number == number) {
            *seat = None;
        }
    }

    pub(super) fn clear(&self, why: Unseated) {
        if let Some(taken) = self.seat.lock().take() {
            taken.leave(why);
        }
    }

    pub(super) fn tell(&self, event: Event) {
        let mut seat = self.seat.lock();
        let Some(taken) = &*seat else { return };
        if matches!(event, Event::Partial(_)) && taken.tx.capacity() < WAITING / 2 {
            counter!(names::DROPPED_PARTIALS).increment(1);
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = taken.tx.try_send(event)
            && let Some(slow) = seat.take()
        {
            counter!(names::SLOW_CALLERS).increment(1);
            slow.leave(Unseated::Slow);
        }
    }
}

impl Taken {
    fn leave(self, why: Unseated) {
        let _ = self.why.set(why); // the first reason counts
    }
}

impl Seat {
    /// The next event. An error is the last. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Event, Unseated> {
        // What was told before the seat was lost is still read.
        self.rx.recv().await.ok_or_else(|| self.why.get().copied().unwrap_or(Unseated::Over))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial() -> Event {
        let utterance = UtteranceId::from_u128(1);
        let (start, end) = (SamplePos(0), SamplePos(1));
        Event::Partial(Partial { channel: ChannelIndex(0), utterance, rev: 1, start, end, words: vec![], stable_words: 0 })
    }

    #[tokio::test]
    async fn the_newest_socket_has_the_seat() {
        let audience = Audience::default();
        let mut old = audience.sit(1);
        let mut new = audience.sit(2);
        audience.tell(Event::Leaving);
        assert!(matches!(old.next().await, Err(Unseated::Superseded)));
        assert!(matches!(new.next().await, Ok(Event::Leaving)));
        audience.stand(1);
        assert!(audience.is_seated(2), "an old socket's end does not take the new one's seat");
    }

    #[tokio::test]
    async fn a_slow_caller_loses_partials_first_and_then_the_seat() {
        let audience = Audience::default();
        let mut seat = audience.sit(1);
        for _ in 0..WAITING {
            audience.tell(partial());
        }
        assert!(audience.is_seated(1), "partials alone never cost the seat");
        for _ in 0..WAITING {
            audience.tell(Event::Leaving);
        }
        assert!(!audience.is_seated(1));
        let mut told = 0;
        let why = loop {
            match seat.next().await {
                Ok(_) => told += 1,
                Err(why) => break why,
            }
        };
        assert_eq!((told, why), (WAITING, Unseated::Slow));
    }
}
