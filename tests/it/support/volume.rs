//! A small disk of its own that can be filled: a tmpfs, which only root may mount.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

pub struct Volume(PathBuf);

impl Volume {
    /// `None` after saying loudly that the test is skipped. Everybody may write to it.
    pub fn of(mebibytes: u32) -> Option<Self> {
        let path = tempfile::Builder::new().prefix("qc-disk-").tempdir().expect("a temporary folder").keep();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "quickcomm-test"]).arg(&path).output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            let _ = fs::remove_dir(&path);
            eprintln!("SKIPPED: a disk that can be filled is a tmpfs, and only root may mount one");
            return None;
        }
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("it is ours");
        Some(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all the room there is.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.filler()).expect("a file can be made");
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0; size];
            while file.write(&piece).is_ok_and(|written| written == size) {}
        }
    }

    pub fn make_room(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps it until then.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}
