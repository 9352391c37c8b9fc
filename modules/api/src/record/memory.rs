//! What the record's engine holds in memory.

use super::Record;

impl Record {
    /// Bytes SQLite holds now, of every connection of this process: pages, statements, sorting. By its own count.
    #[allow(unsafe_code)]
    pub fn memory_bytes() -> u64 {
        // SAFETY: takes nothing, reads a counter that SQLite guards by its own lock, and may be called from any thread at any time.
        let used = unsafe { libsqlite3_sys::sqlite3_memory_used() };
        u64::try_from(used).unwrap_or(0)
    }
}
