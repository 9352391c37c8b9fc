//! Finishes conversations that this process no longer hears: a crash cut them off, or hearing failed for good.
//!
//! The part of the recording beyond `safe` is heard and committed, what is known to be missing becomes a gap, and the conversation is
//! closed as abandoned. A caller who can come back has the resume window to do so first, here or at another process: a conversation that
//! moves on without us is heard there, and is left alone as long as it does.
//!
//! Nor is a close the end of it: a standby that takes the record's place may lack it, and the last words before it. The record is asked once
//! more, and what it lacks is heard again.

use super::{
    Shared,
    channel::{Door, Input},
    metrics as names,
    recording::{ChannelLog, Meta},
    session::{Begin, Conversation, Opening, Source},
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contracts::{
    CallCx, CallError, ConversationId, Epoch, ErrorKind, SamplePos, TenantId, TraceCx,
    audio::{Endpointing, Pace},
    conversation::{ConversationState, ConversationView},
};
use metrics::counter;
use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};

const ASK_BUDGET: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Conversations recovered at the same time: live callers come first.
const AT_ONCE: usize = 2;

/// What was in memory and on the wire when the process was killed.
const UNWRITTEN: &str = "the server stopped; what came after its last write is lost";
const UNRECORDED: &str = "the server stopped and nothing was recorded; what was not committed is lost";
const NOT_HEARD: &str = "the server could not hear the rest";
const TAKEN_BACK: &str = "the record lost it, and nothing was recorded";

pub(super) async fn recover(shared: &Arc<Shared>) {
    let recordings = shared.recordings.clone();
    let left = tokio::task::spawn_blocking(move || recordings.left_open()).await.unwrap_or_default();
    if left.is_empty() {
        return;
    }
    info!(conversations = left.len(), "an earlier run left conversations open");
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for meta in left {
        let (shared, room) = (shared.clone(), room.clone());
        tasks.spawn(async move {
            if meta.resumable {
                await_caller(&shared, meta.id).await;
            }
            let _turn = room.acquire().await.expect("the semaphore is never closed");
            let lost = if !meta.recorded {
                Some(UNRECORDED)
            } else if meta.complete {
                None
            } else {
                Some(UNWRITTEN)
            };
            finish(&shared, meta.id, lost).await;
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// What is to be done after a while.
pub(super) enum Later {
    /// Hearing it failed in this process.
    Finish(ConversationId),
    /// The record is asked whether it still knows.
    LookAgain(Closed, Duration),
}

/// A conversation that was closed here, or is to be.
pub(super) struct Closed {
    pub(super) opening: Arc<Opening>,
    pub(super) state: ConversationState,
    pub(super) ended_at: DateTime<Utc>,
}

pub(super) async fn do_later(shared: Weak<Shared>, mut waiting: mpsc::UnboundedReceiver<Later>) {
    while let Some(later) = waiting.recv().await {
        let Some(strong) = shared.upgrade() else { return };
        match later {
            Later::Finish(id) => drop(tokio::spawn(async move {
                await_caller(&strong, id).await;
                finish(&strong, id, Some(NOT_HEARD)).await;
            })),
            Later::LookAgain(closed, after) => drop(tokio::spawn(look_again(shared.clone(), after, closed))),
        }
    }
}

/// Gives the caller the resume window, and as much longer as the conversation moves on without us: then another process hears it. What an
/// earlier run had published is committed in the first half, as a rule.
async fn await_caller(shared: &Arc<Shared>, id: ConversationId) {
    let half = shared.settings.resume_window() / 2;
    tokio::time::sleep(half).await;
    let mut before = standing(shared, id).await;
    loop {
        tokio::time::sleep(half).await;
        if shared.find(id).is_some() || shared.leaving.is_cancelled() {
            return;
        }
        let now = standing(shared, id).await;
        if std::mem::replace(&mut before, now.clone()) == now {
            return;
        }
        info!(conversation = %id, "another process hears it now");
    }
}

/// Epoch and place of every channel; none where the record knows no such conversation. Asks until it is answered.
async fn standing(shared: &Shared, id: ConversationId) -> Vec<(Epoch, SamplePos)> {
    let mut wait = FIRST_RETRY;
    while !shared.leaving.is_cancelled() {
        match shared.conversations.conversation(CallCx::new(ASK_BUDGET).for_conversation(id), id).await {
            Ok(view) => return view.channels.iter().map(|channel| (channel.attached.epoch, channel.attached.safe)).collect(),
            Err(error) if error.kind == ErrorKind::NotFound => break,
            Err(error) => warn!(conversation = %id, %error, "the record does not say where it stands; asking again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
    vec![]
}

/// Tries until it is done, or somebody else has the conversation.
async fn finish(shared: &Arc<Shared>, id: ConversationId, lost: Option<&'static str>) {
    let mut wait = FIRST_RETRY;
    while !shared.leaving.is_cancelled() {
        match try_finish(shared, id, lost).await {
            Ok(()) => return,
            Err(error) => {
                warn!(conversation = %id, %error, "cannot finish it yet; trying again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LAST_RETRY);
            }
        }
    }
}

async fn try_finish(shared: &Arc<Shared>, id: ConversationId, lost: Option<&'static str>) -> Result<(), CallError> {
    if shared.find(id).is_some() {
        return Ok(()); // its caller came back
    }
    let Some(meta) = shared.recordings.meta(id).map_err(unreadable)? else { return Ok(()) };
    let view = match shared.conversations.conversation(CallCx::new(ASK_BUDGET).for_conversation(id), id).await {
        Ok(view) => view,
        Err(error) if error.kind == ErrorKind::NotFound => {
            info!(conversation = %id, "the record does not know it; its folder is removed");
            return shared.recordings.forget(id).map_err(unreadable);
        }
        Err(error) => return Err(error),
    };
    if view.conversation.state != ConversationState::Live {
        return shared.recordings.close(&meta).map_err(unreadable);
    }
    let begin = Begin::Again { safe: view.channels.iter().map(|c| c.attached.safe).collect() };
    let conversation = hear_rest(shared, opening(&meta, &view), begin, Some(&meta)).await?;
    let ends = conversation.doors.iter().map(|door| door.spec.rate.time_of(door.standing().received.0));
    let ended_at = meta.started_at + ends.max().unwrap_or_default();
    conversation.finish_as(ConversationState::Abandoned, gap(shared, lost), ended_at);
    conversation.over().await;
    counter!(names::RECOVERED).increment(1);
    info!(conversation = %id, "finished from its recording");
    Ok(())
}

fn gap(shared: &Shared, lost: Option<&'static str>) -> Option<(Duration, &'static str)> {
    lost.map(|why| (Duration::from_millis(shared.settings.flush_ms), why))
}

/// Opens it again and sends what was recorded; it is not finished yet.
async fn hear_rest(shared: &Arc<Shared>, opening: Opening, begin: Begin, meta: Option<&Meta>) -> Result<Arc<Conversation>, CallError> {
    let conversation = Conversation::open(shared, opening, begin).await?;
    let mut reading = JoinSet::new();
    for n in 0..conversation.doors.len() {
        let Some(log) = meta.and_then(|meta| shared.recordings.log(meta, n)) else { continue };
        let conversation = conversation.clone();
        reading.spawn(async move { replay(&conversation.doors[n], log).await });
    }
    while let Some(read) = reading.join_next().await {
        if let Ok(Err(error)) = read {
            warn!(conversation = %conversation.id(), %error, "a recording ends early");
        }
    }
    Ok(conversation)
}

async fn look_again(shared: Weak<Shared>, after: Duration, closed: Closed) {
    tokio::time::sleep(after).await;
    let Some(shared) = shared.upgrade() else { return };
    let mut wait = FIRST_RETRY;
    while !shared.leaving.is_cancelled() {
        let Err(error) = close_again(&shared, &closed).await else { return };
        warn!(conversation = %closed.opening.id, %error, "cannot see that it is still closed; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

async fn close_again(shared: &Arc<Shared>, closed: &Closed) -> Result<(), CallError> {
    let id = closed.opening.id;
    let safe = match shared.conversations.conversation(CallCx::new(ASK_BUDGET).for_conversation(id), id).await {
        Ok(view) if view.conversation.state != ConversationState::Live || shared.find(id).is_some() => return Ok(()),
        Ok(view) => view.channels.iter().map(|channel| channel.attached.safe).collect(),
        Err(error) if error.kind == ErrorKind::NotFound => vec![SamplePos::ZERO; closed.opening.channels.len()],
        Err(error) => return Err(error),
    };
    warn!(conversation = %id, "the record has lost that it was closed: what it lacks is heard again");
    let meta = shared.recordings.meta(id).map_err(unreadable)?;
    let opening = Opening { partials: None, pace: Pace::Batch, ..(*closed.opening).clone() };
    let conversation = hear_rest(shared, opening, Begin::Again { safe }, meta.as_ref()).await?;
    let lost = meta.is_none_or(|meta| !meta.recorded).then_some(TAKEN_BACK);
    conversation.finish_as(closed.state, gap(shared, lost), closed.ended_at);
    conversation.over().await;
    counter!(names::RECOVERED).increment(1);
    Ok(())
}

fn unreadable(error: io::Error) -> CallError {
    CallError::internal(format!("the recording cannot be read: {error}"))
}

fn opening(meta: &Meta, view: &ConversationView) -> Opening {
    let known = &view.conversation;
    Opening {
        id: known.id,
        source: Source::from_name(&meta.source),
        external_id: known.external_id.clone(),
        title: known.title.clone(),
        tags: known.tags.clone(),
        language: known.language.clone(),
        endpointing: Endpointing::default(),
        partials: None,
        pace: Pace::Batch,
        trace: TraceCx::root(),
        tenant: TenantId::default(),
        started_at: known.started_at,
        channels: view.channels.iter().map(|channel| channel.spec.clone()).collect(),
    }
}

/// Sends what was recorded beyond what the channel took in when it was opened.
async fn replay(door: &Door, log: Arc<ChannelLog>) -> io::Result<()> {
    let second = u64::from(door.spec.rate.hz());
    let mut from = door.standing().received;
    loop {
        let reader = log.clone();
        let data = tokio::task::spawn_blocking(move || reader.read(from, second)).await.map_err(io::Error::other)??;
        if data.is_empty() {
            return Ok(());
        }
        let samples = data.len() / door.spec.encoding.bytes_per_sample();
        let piece = Input::Audio { pos: Some(from), data: Bytes::from(data) };
        if door.input.send(piece).await.is_err() {
            return Ok(()); // the channel has ended; the conversation tells why
        }
        from = SamplePos(from.0 + samples as u64);
    }
}
