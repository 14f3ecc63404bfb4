//! Files in memory, for what is handed on through a descriptor.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};

/// An empty file in memory (memfd_create(2)), close-on-exec. `name` shows in /proc/PID/fd.
///
/// # Errors
/// Those of memfd_create(2).
pub fn file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// A number that is larger each time, for as long as the system runs: nanoseconds since boot.
pub fn unique() -> u128 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u128::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u128::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_grow() {
        let first = super::unique();
        assert!(super::unique() > first);
    }
}
