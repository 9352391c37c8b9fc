//! How much memory this process holds, as the kernel tells it.

use std::fs;

/// Resident memory of this process; `None` where there is no `/proc`.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// By how much it has grown since `before`; what was given back meanwhile makes it zero.
pub fn grown_since(before: Option<u64>) -> Option<u64> {
    Some(resident_bytes()?.saturating_sub(before?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_becomes_resident() {
        let before = resident_bytes();
        let block = vec![1u8; 64 << 20];
        let grown = grown_since(before).unwrap_or_default();
        assert!(grown >= 48 << 20, "{grown} bytes for a block of {}", block.len());
    }
}
