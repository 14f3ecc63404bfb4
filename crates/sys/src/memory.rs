//! In-memory files for data passed on through a descriptor, and returning unused memory to the
//! system.

use std::fs::File;
use std::io;
use std::path::Path;

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

/// Releases the resident code of the program and of its libraries, and the program's constants;
/// what is needed again is read from the page cache. For a process that runs for months, after an
/// operation that needed far more of its program than serving does.
///
/// # Errors
/// Errors from reading /proc/self/exe and /proc/self/maps, and from madvise(2).
pub fn forget_program() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = read_only(line, &program) else { continue };
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: this is a private mapping of a file that nothing has written to: it is not
        // writable, and no relocation is in it (see `read_only`). So each page reads the same when
        // it comes from the file again (madvise(2), MADV_DONTNEED). Nothing unmaps it meanwhile:
        // the program stays, and no library is ever unloaded here.
        unsafe { rustix::mm::madvise(start, end, Advice::LinuxDontNeed)? };
    }
    Ok(())
}

/// Start and length of a private mapping that never differs from its file, from a line of
/// /proc/PID/maps (proc_maps(5)): code, or the begin of the program's file, which has its
/// constants. Later mappings of the program that are not writable have been: they were relocated
/// (PT_GNU_RELRO). The begin of a library may be one that another thread is still loading.
fn read_only(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (flags, offset) = (words.next()?, words.next()?);
    let path = &line[line.find('/')?..];
    let number = |text| usize::from_str_radix(text, 16).ok();
    let begins_program = number(offset) == Some(0) && program.to_str() == Some(path);
    if flags != "r-xp" && !(flags == "r--p" && begins_program) {
        return None;
    }
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn a_program_that_was_forgotten_still_runs() {
        super::forget_program().expect("madvise");
        let there = |line| super::read_only(line, Path::new("/usr/bin/x y"));
        for line in [
            "7ffd0000-7ffd2000 r-xp 00000000 00:00 0 [vdso]",
            "1000-3000 rw-p 00000000 fe:00 12 /usr/bin/x y",
            // Relocated, then made read-only.
            "1000-3000 r--p 00002000 fe:00 12 /usr/bin/x y",
            // A library's begin.
            "1000-3000 r--p 00000000 fe:00 13 /usr/lib/libc.so.6",
        ] {
            assert_eq!(there(line), None, "{line}");
        }
        for line in [
            "1000-3000 r-xp 00001000 fe:00 12 /usr/bin/x y",
            "1000-3000 r-xp 00001000 fe:00 13 /usr/lib/libc.so.6",
            "1000-3000 r--p 00000000 fe:00 12 /usr/bin/x y",
        ] {
            assert_eq!(there(line), Some((0x1000, 0x2000)), "{line}");
        }
    }

    #[test]
    fn numbers_grow() {
        let first = super::unique();
        assert!(super::unique() > first);
    }
}
