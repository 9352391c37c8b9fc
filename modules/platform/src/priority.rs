//! Which threads give way to others when there is more to do than cores.

/// Lowers the calling thread's priority by so much niceness, up to the lowest there is. Linux keeps niceness per thread: no other one gives
/// way. False where the system refuses, and the thread keeps the priority of its process.
#[allow(unsafe_code)]
pub fn give_way(by: i32) -> bool {
    // SAFETY: both calls take and return plain numbers; `0` means the calling thread.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, (now + by).min(19)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code)]
    fn niceness() -> i32 {
        // SAFETY: takes and returns plain numbers.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn only_the_calling_thread_gives_way() {
        let before = niceness();
        let lowered = std::thread::spawn(|| (give_way(3), niceness())).join().expect("it does not panic");
        assert_eq!(lowered, (true, (before + 3).min(19)));
        assert_eq!(niceness(), before);
    }
}
