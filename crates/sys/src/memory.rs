//! In-memory files for data passed on through a descriptor, and returning unused memory to the
//! system.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::Advice;
use rustix::time::{ClockId, clock_gettime};

/// An empty file in memory (memfd_create(2)), close-on-exec. `name` shows in /proc/PID/fd.
///
/// # Errors
/// Errors from memfd_create(2).
pub fn file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Nanoseconds since boot: a number that grows with each call, for as long as the system runs.
pub fn unique() -> u128 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u128::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u128::try_from(now.tv_nsec).unwrap_or(0)
}

/// Returns freed memory to the system (malloc_trim(3)); does nothing if the C library is not glibc.
/// Call it after an operation with much memory, since the allocator keeps freed memory.
pub fn return_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and no pointer, is safe in any thread, and touches only
    // memory that the allocator knows to be free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Releases the resident code of the program and of its libraries; code that is needed again is
/// read from the page cache, a page at a time. For a process that runs for months, after an
/// operation that needed far more code than serving does.
///
/// # Errors
/// Errors from reading /proc/self/maps and from madvise(2).
pub fn forget_code() -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = code(line) else { continue };
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: this is a private mapping of a file that is executable and not writable
        // (proc_maps(5)): nothing has written to it (text has no relocations), so each page reads
        // the same when it comes from the file again (madvise(2), MADV_DONTNEED). Nothing unmaps it
        // meanwhile: no library is ever unloaded here.
        unsafe { rustix::mm::madvise(start, end, Advice::LinuxDontNeed)? };
    }
    Ok(())
}

/// Start and length of a private mapping of a file's code, from a line of /proc/PID/maps.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (flags, path) = (words.next()?, words.nth(3)?);
    if flags != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_that_was_forgotten_still_runs() {
        super::forget_code().expect("madvise");
        let vdso = "7ffd0000-7ffd2000 r-xp 00000000 00:00 0 [vdso]";
        assert_eq!(super::code(vdso), None);
        let data = "1000-3000 rw-p 00000000 fe:00 12 /usr/bin/x";
        assert_eq!(super::code(data), None);
        let text = "1000-3000 r-xp 00000000 fe:00 12 /usr/bin/x";
        assert_eq!(super::code(text), Some((0x1000, 0x2000)));
    }

    #[test]
    fn numbers_grow() {
        let first = super::unique();
        assert!(super::unique() > first);
    }
}
