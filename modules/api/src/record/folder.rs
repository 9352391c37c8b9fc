//! The data folder: made, locked and left in order.
//!
//! Invariant: one process at a time works in a folder. The lock is the kernel's, so it ends with the process, however that ends.

use super::OpenError;
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// What stands in the lock file after a stop in good order.
const STOPPED: &str = "stopped";
/// What a record needs before it can begin: its log, and who reads where in it.
const TRIED_BYTES: usize = 256 << 10;

pub(super) struct Folder {
    path: PathBuf,
    lock: Mutex<File>,
    /// The last process to work here ended without saying so.
    pub(super) unclean: bool,
}

impl Folder {
    /// Makes the folder if needed and takes it for this process.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let failed = |doing: &'static str| move |error: io::Error| OpenError::Folder { folder: path.to_owned(), doing, error };
        fs::create_dir_all(path).map_err(failed("make"))?;
        let name = path.join("quickcomm.lock");
        let mut lock = File::options().read(true).write(true).create(true).truncate(false).open(&name).map_err(failed("write to"))?;
        let mut said = String::new();
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let _ = lock.read_to_string(&mut said); // without the number the message is still true
                return Err(OpenError::Taken { folder: path.to_owned(), by: said.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        lock.read_to_string(&mut said).map_err(failed("read"))?;
        let unclean = !said.is_empty() && said.trim() != STOPPED;
        let folder = Self { path: path.to_owned(), lock: Mutex::new(lock), unclean };
        folder.say(&format!("process {}", std::process::id())).map_err(failed("write to"))?;
        Ok(folder)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("record.sqlite")
    }

    /// Notes that everything is in order, so that the next start need not look for damage, and gives the folder free.
    pub(super) fn leave(&self) {
        if let Err(error) = self.say(STOPPED) {
            tracing::warn!(%error, "the stop could not be noted; the next start will check the database");
        }
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = lock.unlock(); // it goes with the process in any case
    }

    /// What the disk says to a file of this size. SQLite calls a full one by several names.
    pub(super) fn try_disk(&self) -> io::Result<()> {
        let path = self.path.join("probe");
        let wrote = fs::write(&path, [0; TRIED_BYTES]);
        let removed = fs::remove_file(&path);
        wrote.and(removed)
    }

    fn say(&self, text: &str) -> io::Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{text}")?;
        lock.flush()
    }
}
