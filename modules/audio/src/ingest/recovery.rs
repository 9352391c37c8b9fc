//! Finishes conversations that this process no longer hears: a crash cut them off, or hearing failed for good.
//!
//! The part of the recording beyond `safe` is heard and committed, what is known to be missing becomes a gap, and the conversation is
//! closed as abandoned. A caller who can come back has the resume window to do so first, here or at another process: a conversation that
//! moves on without us is heard there, and is left alone as long as it does.

use super::{
    Shared,
    channel::{Door, Input},
    metrics as names,
    recording::{ChannelLog, Meta},
    session::{Begin, Conversation, Opening, Source},
};
use bytes::Bytes;
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

/// Takes up conversations whose hearing failed in this process, after a while.
pub(super) async fn finish_later(shared: Weak<Shared>, mut waiting: mpsc::UnboundedReceiver<ConversationId>) {
    while let Some(id) = waiting.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        tokio::spawn(async move {
            await_caller(&shared, id).await;
            finish(&shared, id, Some(NOT_HEARD)).await;
        });
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
    let unreadable = |error: io::Error| CallError::internal(format!("the recording cannot be read: {error}"));
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
    let conversation = Conversation::open(shared, opening(&meta, &view), begin).await?;
    let mut reading = JoinSet::new();
    for n in 0..conversation.doors.len() {
        let conversation = conversation.clone();
        let log = shared.recordings.log(&meta, n);
        reading.spawn(async move {
            match log {
                Some(log) => replay(&conversation.doors[n], log).await,
                None => Ok(()),
            }
        });
    }
    while let Some(read) = reading.join_next().await {
        if let Ok(Err(error)) = read {
            warn!(conversation = %id, %error, "a recording ends early");
        }
    }
    let ends = conversation.doors.iter().map(|door| door.spec.rate.time_of(door.standing().received.0));
    let ended_at = meta.started_at + ends.max().unwrap_or_default();
    let gap = lost.map(|why| (Duration::from_millis(shared.settings.flush_ms), why));
    conversation.finish_cut_off(gap, ended_at);
    conversation.over().await;
    counter!(names::RECOVERED).increment(1);
    info!(conversation = %id, "finished from its recording");
    Ok(())
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
