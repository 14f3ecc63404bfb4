//! Finds what the threads of a process wait for, for programs that do not use epoll: the
//! descriptors of the accept(2), recv(2), poll(2) or select(2) call that blocks each thread.
//!
//! /proc/PID/task/TID/syscall names the call and its arguments, and /proc/PID/mem has the memory
//! that they point to: the process is not stopped. A running thread shows nothing, so an answer may
//! be incomplete, and says so.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bindonce_sys::process::numbered;
use nix::libc;

/// The waits of a process's threads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// The descriptors that the threads wait to read from or to accept on.
    pub(super) on: Vec<i32>,
    /// Whether every thread was blocked in a call with known descriptors.
    pub(super) complete: bool,
}

/// Limit on the descriptors read from one call.
const MOST: usize = 65_536;

/// Looks at every thread of a process.
pub(super) fn of(pid: i32) -> Waits {
    let mut waits = Waits { on: Vec::new(), complete: true };
    let memory = File::open(format!("/proc/{pid}/mem")).ok();
    let threads = numbered(Path::new(&format!("/proc/{pid}/task"))).unwrap_or_default();
    waits.complete = !threads.is_empty();
    for tid in threads {
        let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"));
        match line.ok().and_then(|line| Call::read(&line)) {
            Some(call) => match call.waits_on(memory.as_ref()) {
                Some(on) => waits.on.extend(on),
                None => waits.complete = false,
            },
            None => waits.complete = false,
        }
    }
    waits
}

/// A system call and its first two arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    number: libc::c_long,
    first: u64,
    second: u64,
}

impl Call {
    /// Reads `43 0x3 0x0 ...` (proc_pid_syscall(5)); None for `running`.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut argument =
            || -> Option<u64> { u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok() };
        Some(Self { number, first: argument()?, second: argument()? })
    }

    /// The descriptors that the call waits on; None if they are unknown.
    fn waits_on(self, memory: Option<&File>) -> Option<Vec<i32>> {
        match self.number {
            libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_read
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg => Some(vec![i32::try_from(self.first).ok()?]),
            libc::SYS_ppoll => self.polled(memory?),
            libc::SYS_pselect6 => self.selected(memory?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => self.polled(memory?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_select => self.selected(memory?),
            // io_uring can accept on any descriptor.
            libc::SYS_io_uring_enter => None,
            _ => Some(Vec::new()),
        }
    }

    /// poll(struct pollfd *, count): eight bytes each, descriptor and events.
    fn polled(self, memory: &File) -> Option<Vec<i32>> {
        let count = usize::try_from(self.second).ok()?.min(MOST);
        let mut bytes = vec![0; count * 8];
        memory.read_exact_at(&mut bytes, self.first).ok()?;
        let entry = |entry: &[u8]| {
            let fd = i32::from_ne_bytes(entry.get(..4)?.try_into().ok()?);
            let events = i16::from_ne_bytes(entry.get(4..6)?.try_into().ok()?);
            (events & libc::POLLIN != 0).then_some(fd)
        };
        Some(bytes.chunks_exact(8).filter_map(entry).collect())
    }

    /// select(count, fd_set *): a bit for each descriptor. The kernel keeps its own
    /// copy, so what the program passed is still there.
    fn selected(self, memory: &File) -> Option<Vec<i32>> {
        let count = usize::try_from(self.first).ok()?.min(MOST);
        if self.second == 0 {
            return Some(Vec::new());
        }
        let mut bytes = vec![0; count.div_ceil(8)];
        memory.read_exact_at(&mut bytes, self.second).ok()?;
        let is_set = |fd: &usize| bytes.get(fd / 8).is_some_and(|byte| byte >> (fd % 8) & 1 == 1);
        Some((0..count).filter(is_set).filter_map(|fd| i32::try_from(fd).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_and_a_running_thread_is_not() {
        let call = Call::read("288 0x3 0x0 0x0 0x80000 0x0 0x0 0x7ffd 0x7f00\n").expect("call");
        assert_eq!((call.number, call.first, call.second), (288, 3, 0));
        assert_eq!(Call::read("running\n"), None);
        assert_eq!(Call::read("-1 0x7ffd 0x7f00\n").map(|call| call.number), Some(-1));
    }

    #[test]
    fn a_thread_of_this_process_that_accepts_is_seen() {
        use std::os::fd::AsRawFd as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let number = listener.as_raw_fd();
        let thread = std::thread::spawn(move || listener.accept().map(drop));
        let pid = std::process::id().cast_signed();
        let seen = (0..1000).any(|_| {
            std::thread::yield_now();
            of(pid).on.contains(&number)
        });
        drop(std::net::TcpStream::connect(address).expect("connect"));
        thread.join().expect("thread").expect("accept");
        assert!(seen);
    }
}
