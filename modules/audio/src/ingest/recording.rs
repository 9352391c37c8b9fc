//! Audio's write-ahead log: what was received, as it was received, in one file per channel.
//!
//! - A sample stands at its position times its size, so writing a stretch again changes nothing and a hole reads as silence.
//! - Appending never waits for the disk; a thread of its own hands everything to the operating system every `flush_ms`.
//! - `meta.json` says `open` until the record has closed the conversation; it is only ever replaced whole.
//!
//! Survives kill -9 up to the last flush. Absent on purpose: fsync; surviving a power cut is not claimed.

mod view;

pub(super) use view::View;

use super::metrics as names;
use chrono::{DateTime, Utc};
use contracts::{
    ChannelIndex, ConversationId, Encoding, SamplePos,
    audio::{ChannelSpec, Frame},
};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime},
};
use tracing::{error, warn};

/// Audio that waits for a disk that refuses it; beyond, the oldest is given up and reads as silence.
const PENDING_BYTES: usize = 8 << 20;
/// What must fit before a disk that refused audio is trusted again.
const TRIED_BYTES: usize = 256 << 10;

/// All recordings of this process.
pub(super) struct Recordings {
    folder: PathBuf,
    /// Whether new conversations are recorded.
    on: bool,
    logs: Mutex<Vec<Weak<ChannelLog>>>,
    /// Why the last write failed.
    trouble: Mutex<Option<(io::ErrorKind, String)>>,
    /// Dropped: the thread ends.
    wake: Mutex<mpsc::Sender<tokio::sync::oneshot::Sender<()>>>,
}

/// What stands in `meta.json`: enough to go on with a conversation after a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) id: ConversationId,
    pub(super) state: MetaState,
    /// False: only the fact that the conversation is open is kept, and only while it is.
    pub(super) recorded: bool,
    pub(super) source: String,
    /// Its caller may come back and send what is missing.
    pub(super) resumable: bool,
    /// The process left in good order: everything it received is written.
    pub(super) complete: bool,
    pub(super) language: String,
    pub(super) started_at: DateTime<Utc>,
    pub(super) channels: Vec<ChannelMeta>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MetaState {
    Open,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ChannelMeta {
    #[serde(flatten)]
    pub(super) spec: ChannelSpec,
    /// The first sample that can stand in the file: more than 0 when the conversation began on another machine.
    pub(super) from: SamplePos,
}

/// One conversation's folder, held open by whoever receives its audio.
pub(super) struct Recording {
    all: Arc<Recordings>,
    meta: Meta,
    channels: Vec<Arc<ChannelLog>>,
}

impl Recordings {
    /// Starts the thread that writes.
    pub(super) fn start(data: &Path, on: bool, flush: Duration) -> io::Result<Arc<Self>> {
        let (wake, woken) = mpsc::channel::<tokio::sync::oneshot::Sender<()>>();
        let all = Arc::new(Self {
            folder: data.join("recordings"),
            on,
            logs: Mutex::default(),
            trouble: Mutex::default(),
            wake: Mutex::new(wake),
        });
        let weak = Arc::downgrade(&all);
        std::thread::Builder::new().name("audio-recording".into()).spawn(move || {
            loop {
                let asked = match woken.recv_timeout(flush) {
                    Ok(asked) => Some(asked),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let Some(all) = weak.upgrade() else { return };
                all.flush_all();
                drop(all);
                if let Some(asked) = asked {
                    let _ = asked.send(()); // who asked may have gone
                }
            }
        })?;
        Ok(all)
    }

    pub(super) fn are_on(&self) -> bool {
        self.on
    }

    /// Why nothing can be recorded; `None`: it can.
    pub(super) fn trouble(&self) -> Option<String> {
        self.failure().map(|(_, why)| why)
    }

    /// The same, and of which kind it is.
    pub(super) fn failure(&self) -> Option<(io::ErrorKind, String)> {
        self.trouble.lock().clone()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn folder_of(&self, id: ConversationId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Makes the folder and says that the conversation is open, or takes up what an earlier run left. A new one that cannot be begun leaves
    /// nothing behind.
    pub(super) fn begin(self: &Arc<Self>, meta: Meta) -> io::Result<Recording> {
        let folder = self.folder_of(meta.id);
        let was_there = folder.exists();
        let begun = self.say_open(&folder, meta).inspect_err(|error| {
            if !was_there {
                let _ = fs::remove_dir_all(&folder); // an empty folder is passed over
            }
            self.complain(&folder, error);
        });
        let meta = begun?;
        let logs = meta.channels.iter().filter(|_| meta.recorded).map(|channel| {
            let path = folder.join(format!("{}.raw", channel.spec.index));
            let held = fs::metadata(&path).map_or(0, |file| file.len());
            let log = Arc::new(ChannelLog::new(path, channel.spec.encoding, held));
            self.logs.lock().push(Arc::downgrade(&log));
            log
        });
        let channels = logs.collect();
        Ok(Recording { all: self.clone(), meta, channels })
    }

    fn say_open(&self, folder: &Path, meta: Meta) -> io::Result<Meta> {
        let meta = self.meta(meta.id)?.map_or(meta, |before| Meta { state: MetaState::Open, complete: false, ..before });
        fs::create_dir_all(folder)?;
        write_whole(&folder.join("meta.json"), &meta)?;
        Ok(meta)
    }

    /// The sound of a conversation as far as it is written; `None` without recording. Reads the disk.
    pub(super) fn view(&self, id: ConversationId, only: Option<ChannelIndex>) -> io::Result<Option<View>> {
        let Some(meta) = self.meta(id)? else { return Ok(None) };
        let wanted = meta.channels.iter().filter(|c| only.is_none_or(|index| index == c.spec.index));
        let files = wanted.map(|c| (self.folder_of(id).join(format!("{}.raw", c.spec.index)), c.spec.clone()));
        View::open(files.collect())
    }

    /// What an earlier run left open; damaged folders are named and passed over.
    pub(super) fn left_open(&self) -> Vec<Meta> {
        let Ok(folders) = fs::read_dir(&self.folder) else { return vec![] };
        let mut open = vec![];
        for entry in folders.flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
            match self.meta(id) {
                Ok(Some(meta)) if meta.state == MetaState::Open => open.push(meta),
                Ok(_) => {}
                Err(error) => warn!(conversation = %id, %error, "unreadable recording"),
            }
        }
        open.sort_by_key(|meta| meta.id);
        open
    }

    pub(super) fn meta(&self, id: ConversationId) -> io::Result<Option<Meta>> {
        match fs::read(self.folder_of(id).join("meta.json")) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is sound to play. Looks at one file.
    pub(super) fn has(&self, id: ConversationId) -> bool {
        self.folder_of(id).join("0.raw").is_file()
    }

    /// For reading what an earlier run recorded.
    pub(super) fn log(&self, meta: &Meta, index: usize) -> Option<Arc<ChannelLog>> {
        let spec = &meta.channels.get(index).filter(|_| meta.recorded)?.spec;
        let path = self.folder_of(meta.id).join(format!("{}.raw", spec.index));
        let held = fs::metadata(&path).ok()?.len();
        Some(Arc::new(ChannelLog::new(path, spec.encoding, held)))
    }

    /// Everything appended so far has reached the operating system when this returns.
    pub(super) async fn flush(&self) {
        let (tx, done) = tokio::sync::oneshot::channel();
        if self.wake.lock().send(tx).is_ok() {
            let _ = done.await;
        }
    }

    /// Deletes what there is of a conversation.
    pub(super) fn forget(&self, id: ConversationId) -> io::Result<()> {
        fs::remove_dir_all(self.folder_of(id))
    }

    /// Deletes what was closed before `moment`, but for what is heard again; says how many. What cannot be deleted is named. Blocks on the disk.
    pub(super) fn forget_closed_before(&self, moment: SystemTime, is_heard: impl Fn(ConversationId) -> bool) -> usize {
        let Ok(folders) = fs::read_dir(&self.folder) else { return 0 };
        let mut forgotten = 0;
        for entry in folders.flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
            match self.closed_at(id) {
                Ok(Some(closed)) if closed < moment && !is_heard(id) => match self.forget(id) {
                    Ok(()) => forgotten += 1,
                    Err(error) => warn!(conversation = %id, %error, "a recording could not be deleted; it is tried again"),
                },
                Ok(_) => {}
                Err(error) => warn!(conversation = %id, %error, "unreadable recording"),
            }
        }
        forgotten
    }

    /// When it was said that the record has closed the conversation; `None`: it was not.
    fn closed_at(&self, id: ConversationId) -> io::Result<Option<SystemTime>> {
        match self.meta(id)? {
            Some(Meta { state: MetaState::Closed, .. }) => fs::metadata(self.folder_of(id).join("meta.json"))?.modified().map(Some),
            _ => Ok(None),
        }
    }

    /// The process leaves, and everything received is written.
    pub(super) fn mark_complete(&self, id: ConversationId) -> io::Result<()> {
        let Some(meta) = self.meta(id)? else { return Ok(()) };
        write_whole(&self.folder_of(id).join("meta.json"), &Meta { complete: true, ..meta })
    }

    /// Says that the record has closed the conversation.
    pub(super) fn close(&self, meta: &Meta) -> io::Result<()> {
        if !meta.recorded {
            return self.forget(meta.id);
        }
        write_whole(&self.folder_of(meta.id).join("meta.json"), &Meta { state: MetaState::Closed, ..meta.clone() })
    }

    fn flush_all(&self) {
        let logs: Vec<_> = {
            let mut logs = self.logs.lock();
            logs.retain(|log| log.strong_count() > 0);
            logs.iter().filter_map(Weak::upgrade).collect()
        };
        let from = Instant::now();
        let (mut wrote, mut failed) = (false, None);
        for log in logs {
            match log.flush() {
                Ok(bytes) => wrote |= bytes > 0,
                Err(error) => failed = Some((log.path.clone(), error)),
            }
        }
        if wrote {
            histogram!(names::RECORDING_SECONDS).record(from.elapsed());
        }
        if failed.is_none() && !wrote && self.trouble().is_some() {
            // Nobody writes, so nobody else would find out that it can be done again.
            failed = self.try_disk().err().map(|error| (self.folder.clone(), error));
        }
        match failed {
            Some((path, error)) => self.complain(&path, &error),
            None if self.trouble.lock().take().is_some() => warn!("audio can be recorded again"),
            None => {}
        }
    }

    fn complain(&self, path: &Path, error: &io::Error) {
        counter!(names::RECORDING_FAILURES).increment(1);
        if self.trouble.lock().replace((error.kind(), error.to_string())).is_none() {
            error!(path = %path.display(), %error, "audio cannot be recorded; new callers are refused until it can");
        }
    }

    /// Writes a few seconds of sound and takes them away again.
    fn try_disk(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("probe");
        let wrote = fs::write(&path, [0; TRIED_BYTES]);
        let removed = fs::remove_file(&path);
        wrote.and(removed)
    }
}

impl Recording {
    /// `None`: this conversation is not recorded.
    pub(super) fn channel(&self, index: usize) -> Option<Arc<ChannelLog>> {
        self.channels.get(index).cloned()
    }

    /// The record has closed the conversation.
    pub(super) async fn close(&self) -> io::Result<()> {
        self.all.flush().await;
        let (all, meta) = (self.all.clone(), self.meta.clone());
        tokio::task::spawn_blocking(move || all.close(&meta)).await.map_err(io::Error::other)?
    }

    /// The caller was refused before anything was said.
    pub(super) fn forget(self) {
        if let Err(error) = self.all.forget(self.meta.id) {
            warn!(conversation = %self.meta.id, %error, "cannot remove an empty recording");
        }
    }
}

/// One channel's file.
pub(super) struct ChannelLog {
    path: PathBuf,
    width: usize,
    /// The byte silence is made of.
    silence: u8,
    pending: Mutex<Pending>,
    file: Mutex<Written>,
}

#[derive(Default)]
struct Pending {
    frames: Vec<Frame>,
    bytes: usize,
}

struct Written {
    file: Option<File>,
    bytes: u64,
}

impl ChannelLog {
    fn new(path: PathBuf, encoding: Encoding, held: u64) -> Self {
        let width = encoding.bytes_per_sample();
        let held = held - held % width as u64; // a torn last sample is written over
        Self { path, width, silence: silence(encoding), pending: Mutex::default(), file: Mutex::new(Written { file: None, bytes: held }) }
    }

    /// Takes a frame for the next flush. Never waits for the disk.
    pub(super) fn append(&self, frame: Frame) {
        let mut pending = self.pending.lock();
        pending.bytes += frame.data.len();
        pending.frames.push(frame);
        if pending.bytes > PENDING_BYTES {
            let Pending { frames, bytes } = &mut *pending;
            let mut lost = 0;
            while *bytes > PENDING_BYTES / 2 && lost < frames.len() {
                *bytes -= frames[lost].data.len();
                lost += 1;
            }
            frames.drain(..lost);
            error!(path = %self.path.display(), frames = lost, "the disk takes nothing: audio is missing in the recording");
        }
    }

    /// One past the last sample written.
    pub(super) fn end(&self) -> SamplePos {
        SamplePos(self.file.lock().bytes / self.width as u64)
    }

    /// What was written at `from`, at most `samples`; empty at the end.
    pub(super) fn read(&self, from: SamplePos, samples: u64) -> io::Result<Vec<u8>> {
        let left = self.end().since(from).min(samples);
        let mut data = vec![0; left as usize * self.width];
        if !data.is_empty() {
            File::open(&self.path)?.read_exact_at(&mut data, from.0 * self.width as u64)?;
        }
        Ok(data)
    }

    /// Returns the bytes written. What could not be written stays pending.
    fn flush(&self) -> io::Result<usize> {
        let mut written = self.file.lock();
        let taken = std::mem::take(&mut *self.pending.lock());
        for (n, frame) in taken.frames.iter().enumerate() {
            if let Err(error) = self.write(&mut written, frame) {
                let mut pending = self.pending.lock();
                let rest = &taken.frames[n..];
                pending.bytes += rest.iter().map(|f| f.data.len()).sum::<usize>();
                pending.frames.splice(0..0, rest.iter().cloned());
                return Err(error);
            }
        }
        Ok(taken.bytes)
    }

    fn write(&self, written: &mut Written, frame: &Frame) -> io::Result<()> {
        let file = match &written.file {
            Some(file) => file,
            None => written.file.insert(OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?),
        };
        let at = frame.pos.0 * self.width as u64;
        if self.silence != 0 {
            // A hole in a file reads as zeros, and zero is loud in µ-law and A-law.
            let filler = [self.silence; 8192];
            while written.bytes < at {
                let piece = (at - written.bytes).min(filler.len() as u64);
                file.write_all_at(&filler[..piece as usize], written.bytes)?;
                written.bytes += piece;
            }
        }
        file.write_all_at(&frame.data, at)?;
        written.bytes = written.bytes.max(at + frame.data.len() as u64);
        Ok(())
    }
}

impl Drop for ChannelLog {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            error!(path = %self.path.display(), %error, "the end of a recording is lost");
        }
    }
}

pub(super) fn silence(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Linear16 | Encoding::Float32 => 0,
        Encoding::Mulaw => 0xff,
        Encoding::Alaw => 0xd5,
    }
}

/// Replaces a file in one step: a reader, and a start after a crash, sees the old text or the new one.
fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let next = path.with_extension("json.next");
    fs::write(&next, serde_json::to_vec_pretty(value)?)?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use contracts::{ChannelIndex, SampleRate, audio::Role};

    pub(super) fn meta(encoding: Encoding, channels: u8) -> Meta {
        let channel = |n| ChannelMeta {
            spec: ChannelSpec { index: ChannelIndex(n), role: Role::Unknown, encoding, rate: SampleRate::HZ_8000 },
            from: SamplePos::ZERO,
        };
        Meta {
            id: ConversationId::fresh(),
            state: MetaState::Open,
            recorded: true,
            source: "native".into(),
            resumable: true,
            complete: false,
            language: "en".into(),
            started_at: Utc::now(),
            channels: (0..channels).map(channel).collect(),
        }
    }

    fn frame(pos: u64, data: &'static [u8]) -> Frame {
        Frame { pos: SamplePos(pos), data: Bytes::from_static(data) }
    }

    #[tokio::test]
    async fn a_sample_stands_at_its_position_whatever_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let all = Recordings::start(folder.path(), true, Duration::from_secs(60)).unwrap();
        let recording = all.begin(meta(Encoding::Mulaw, 1)).unwrap();
        let log = recording.channel(0).unwrap();
        for frame in [frame(0, b"abc"), frame(6, b"gh"), frame(1, b"bcd")] {
            log.append(frame);
        }
        assert_eq!(log.end(), SamplePos(0), "nothing waits for the disk");
        all.flush().await;
        assert_eq!(log.read(SamplePos(0), 99).unwrap(), b"abcd\xff\xffgh");
        assert_eq!(log.read(SamplePos(6), 1).unwrap(), b"g");
        assert_eq!(log.read(SamplePos(8), 9).unwrap(), b"");
    }

    #[tokio::test]
    async fn an_open_conversation_is_found_after_a_crash_and_a_closed_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let one = meta(Encoding::Linear16, 2);
        let two = meta(Encoding::Linear16, 1);
        {
            let all = Recordings::start(folder.path(), true, Duration::from_millis(20)).unwrap();
            let kept = all.begin(one.clone()).unwrap();
            kept.channel(1).unwrap().append(frame(0, b"aabb"));
            all.begin(two.clone()).unwrap().close().await.unwrap();
            drop(kept); // what was appended and not flushed is written now
        }
        let all = Recordings::start(folder.path(), true, Duration::from_millis(20)).unwrap();
        assert_eq!(all.left_open(), std::slice::from_ref(&one));
        let again = all.begin(one.clone()).unwrap();
        assert_eq!(again.channel(1).unwrap().end(), SamplePos(2));
        assert_eq!(all.meta(two.id).unwrap().unwrap().state, MetaState::Closed);
    }

    #[tokio::test]
    async fn what_was_closed_long_ago_is_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let all = Recordings::start(folder.path(), true, Duration::from_millis(20)).unwrap();
        let begin = || all.begin(meta(Encoding::Mulaw, 1)).unwrap();
        let (old, young, open, heard) = (begin(), begin(), begin(), begin());
        for recording in [&old, &young, &open, &heard] {
            recording.channel(0).unwrap().append(frame(0, b"abc"));
        }
        for closed in [&old, &young, &heard] {
            closed.close().await.unwrap();
        }
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        for aged in [&old, &open, &heard] {
            File::options().append(true).open(all.folder_of(aged.meta.id).join("meta.json")).unwrap().set_modified(now - 2 * day).unwrap();
        }
        let forget = |keep: Duration| all.forget_closed_before(now - keep, |id| id == heard.meta.id);
        assert_eq!((forget(3 * day), forget(day), forget(day)), (0, 1, 0));
        assert!(!all.folder_of(old.meta.id).exists());
        assert!([&young, &open, &heard].iter().all(|kept| all.has(kept.meta.id)));
    }

    #[tokio::test]
    async fn without_recordings_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let all = Recordings::start(folder.path(), false, Duration::from_millis(20)).unwrap();
        let recording = all.begin(Meta { recorded: false, ..meta(Encoding::Alaw, 1) }).unwrap();
        assert!(recording.channel(0).is_none());
        let id = recording.meta.id;
        recording.close().await.unwrap();
        assert!(!all.folder_of(id).exists());
    }

    #[tokio::test]
    async fn a_disk_that_refuses_loses_nothing_while_it_can_be_held() {
        let folder = tempfile::tempdir().unwrap();
        let all = Recordings::start(folder.path(), true, Duration::from_secs(60)).unwrap();
        let recording = all.begin(meta(Encoding::Mulaw, 1)).unwrap();
        let log = recording.channel(0).unwrap();
        fs::create_dir(&log.path).unwrap(); // a folder where the file should be
        log.append(frame(0, b"abc"));
        all.flush().await;
        assert!(all.trouble().is_some());
        fs::remove_dir(&log.path).unwrap();
        log.append(frame(3, b"d"));
        all.flush().await;
        assert_eq!(all.trouble(), None);
        assert_eq!(log.read(SamplePos(0), 9).unwrap(), b"abcd");
    }

    #[tokio::test]
    async fn a_disk_that_takes_no_new_caller_is_tried_until_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let all = Recordings::start(folder.path(), true, Duration::from_secs(60)).unwrap();
        fs::write(all.folder(), "a file where the folder should be").unwrap();
        assert!(all.begin(meta(Encoding::Mulaw, 1)).is_err() && all.trouble().is_some());
        all.flush().await;
        assert!(all.trouble().is_some(), "nothing has changed");
        fs::remove_file(all.folder()).unwrap();
        all.flush().await;
        assert_eq!(all.trouble(), None, "nobody speaks, and it was found out all the same");
        assert_eq!(fs::read_dir(all.folder()).unwrap().count(), 0);
    }
}
