//! Processes, identified so that a reused pid cannot be mistaken for the old process.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bindonce_core::text::printable;
use bindonce_core::time::Timestamp;
use nix::libc;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::time::{ClockId, clock_gettime};

/// When the process started, in clock ticks since boot (field 22 of /proc/PID/stat,
/// proc_pid_stat(5)). Together with the pid this identifies one process for as long as the system
/// runs. None if the process does not exist.
pub fn start_time(pid: i32) -> Option<u64> {
    Stat::of(pid).map(|stat| stat.start_time)
}

/// The parent of a process, which started or adopted it. None if the process does not exist.
pub fn parent(pid: i32) -> Option<i32> {
    Stat::of(pid).map(|stat| stat.parent)
}

/// The umask of this process. None if /proc does not report it.
pub fn umask() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(umask.trim(), 8).ok()
}

/// Whether the process is stopped, by a signal or by a tracer.
pub fn is_stopped(pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.is_stopped())
}

/// Fields of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The process id.
    pub pid: i32,
    /// The short name, as the process chose it.
    pub name: String,
    /// The state as in ps(1): `R`, `S`, `T` (stopped), `Z` ...
    pub state: char,
    /// The pid of the parent.
    pub parent: i32,
    /// The process group.
    pub group: i32,
    /// The session.
    pub session: i32,
    /// PF_* of the kernel's sched.h.
    flags: u64,
    /// Processor time used.
    pub processor: Duration,
    /// Number of threads.
    pub threads: u64,
    /// When the process started, in clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// None if the process does not exist.
    pub fn of(pid: i32) -> Option<Self> {
        Self::open(pid, &format!("/proc/{pid}/stat"))
    }

    /// The same for one thread of a process.
    pub(crate) fn of_thread(pid: i32, tid: i32) -> Option<Self> {
        Self::open(tid, &format!("/proc/{pid}/task/{tid}/stat"))
    }

    fn open(pid: i32, path: &str) -> Option<Self> {
        // A single read suffices: the kernel writes one short line.
        let mut line = [0; 2048];
        let length = fs::File::open(path).and_then(|mut file| file.read(&mut line)).ok()?;
        // The name in it may be anything, even invalid UTF-8.
        Self::read(pid, &String::from_utf8_lossy(line.get(..length)?))
    }

    /// Parses a line of /proc/PID/stat. None if the line is not valid.
    pub fn read(pid: i32, text: &str) -> Option<Self> {
        // The second field is the name in parentheses. The name may contain anything, including
        // spaces and parentheses: the other fields begin after the last parenthesis.
        let (head, rest) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        // The third field of the manual page is the first here.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let id = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
        Some(Self {
            pid,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: id(4)?,
            group: id(5)?,
            session: id(6)?,
            flags: number(9)?,
            processor: ticks(number(14)?.saturating_add(number(15)?)),
            threads: number(20)?,
            start_time: number(22)?,
        })
    }

    /// Whether the process has ended and only waits to be reaped.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Whether the process is stopped, by a signal or by a tracer.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Whether it is a kernel thread (PF_KTHREAD). In a container pid 2 may be any process.
    pub fn is_of_the_kernel(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    /// When the process started, as the time since boot.
    pub fn started(&self) -> Duration {
        ticks(self.start_time)
    }
}

/// Converts clock ticks to a time.
fn ticks(count: u64) -> Duration {
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(count.saturating_mul(1000) / hertz)
}

/// How often the first thread of a process has slept so far, if it sleeps in futex(2) now: it waits
/// for a lock, or for another thread to end. Two equal answers mean the same sleep. None if the
/// thread does not sleep in futex(2), or the kernel does not let us see it.
pub fn sleeps_for_a_thread(pid: i32) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/task/{pid}/{name}")).ok();
    // The rest of this function name differs between kernel versions.
    read("wchan").filter(|name| name.starts_with("futex"))?;
    let status = read("status")?;
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// When the system booted, from /proc/stat; None if the file does not say.
pub fn boot_time() -> Option<Timestamp> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds: u64 =
        text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Timestamp(seconds.saturating_mul(1000)))
}

/// The entries of a /proc directory whose names are numbers; None if it cannot be read.
pub fn numbered(directory: &Path) -> Option<Vec<i32>> {
    let entries = fs::read_dir(directory).ok()?;
    Some(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// One thread for each descriptor table of a process besides the main thread's (unshare(2) with
/// CLONE_FILES, as thread groups of haproxy 3.5 do).
pub fn threads_with_own_descriptors(pid: i32) -> Vec<i32> {
    let mut apart = vec![pid];
    for tid in numbered(Path::new(&format!("/proc/{pid}/task"))).unwrap_or_default() {
        if !apart.iter().any(|known| share_descriptors(pid, *known, tid)) {
            apart.push(tid);
        }
    }
    apart.split_off(1)
}

/// Whether two threads of a process share a descriptor table (kcmp(2)). If the kernel does not say,
/// as in many containers: whether both have the same descriptors open.
pub(crate) fn share_descriptors(pid: i32, one: i32, other: i32) -> bool {
    const KCMP_FILES: libc::c_long = 2;
    if one == other {
        return true;
    }
    // SAFETY: kcmp takes five integers and reads no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    if order >= 0 {
        return order == 0;
    }
    let open = |tid: i32| {
        let base = Path::new("/proc").join(format!("{pid}/task/{tid}/fd"));
        let mut numbers = numbered(&base)?;
        numbers.sort_unstable();
        // Connections may be many; listeners and epoll instances come first.
        let first = numbers.iter().take(COMPARED);
        let links: Vec<_> = first.map(|fd| fs::read_link(base.join(fd.to_string())).ok()).collect();
        Some((numbers, links))
    };
    open(one) == open(other)
}

/// How many descriptors to compare by their link when kcmp(2) is not available.
const COMPARED: usize = 256;

/// A process and all its current descendants, such as a master's workers, with the process itself
/// first (proc_pid_task(5)). A descendant whose parent has ended is not found.
pub fn family(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        // Each thread has its own list of children.
        for thread in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
            // A pid that is reused during this walk must not cause an endless loop.
            let new: Vec<i32> = children.filter(|child| !found.contains(child)).collect();
            found.extend(new);
        }
    }
    found
}

/// Sends a signal to every process of a group whose leader was started by [`crate::spawn`].
///
/// # Errors
/// Errors from kill(2); `ESRCH` if no process of the group is left.
pub fn signal_group(leader: i32, signal: Signal) -> io::Result<()> {
    Ok(nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader), signal)?)
}

/// How long ago the process started, to a hundredth of a second; None if the process does not
/// exist.
pub fn age(pid: i32) -> Option<Duration> {
    let started = Stat::of(pid)?.started();
    Some(since_zero(ClockId::Boottime).saturating_sub(started))
}

/// The CPU time of this process, summed over all threads.
pub fn own_cpu_time() -> Duration {
    since_zero(ClockId::ProcessCPUTime)
}

fn since_zero(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanos)
}

/// Whether a process has CAP_NET_BIND_SERVICE (CapEff of /proc/PID/status, bit 10 of
/// capabilities(7)). None if the process does not exist.
pub fn binds_any_port(pid: i32) -> Option<bool> {
    status_binds_any_port(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The same, from the text of /proc/PID/status.
pub(crate) fn status_binds_any_port(status: &str) -> Option<bool> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(bits.trim(), 16).ok()? & 1 << 10 != 0)
}

/// Whether a process handles a signal itself (SigCgt of /proc/PID/status). False if the process does
/// not exist.
pub fn handles(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    bits & 1 << (signal as i32 - 1) != 0
}

/// The flags of an open descriptor (proc_pid_fdinfo(5)). `process` is the /proc directory of a
/// process or thread. None if the descriptor does not exist.
pub(crate) fn open_flags(process: &Path, fd: i32) -> Option<i32> {
    let info = fs::read_to_string(process.join(format!("fdinfo/{fd}"))).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

/// Resident memory in bytes (/proc/PID/statm). None if the process does not exist.
pub fn memory(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The short name of a program, as `ps -o comm` shows it (proc_pid_comm(5)), made printable, since
/// a process chooses its name. None if the process does not exist.
pub fn name(pid: i32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
    Some(printable(&comm).into_owned())
}

/// The command line on one line, made printable, whatever the process wrote there. Empty for a
/// zombie, a kernel thread, and a process that does not exist.
pub fn shown(pid: i32) -> String {
    let words = command(pid).unwrap_or_default();
    printable(&words.join(" ")).into_owned()
}

/// The raw command line, one element per argument; [`shown`] is for people. Empty for a zombie or a
/// kernel thread. None if the process does not exist.
pub fn command(pid: i32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    if line.is_empty() {
        return Some(Vec::new());
    }
    Some(
        line.split(|byte| *byte == 0)
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
    )
}

/// A process, held by a descriptor (pidfd_open(2)): the descriptor keeps naming this process when
/// its pid is reused, and becomes readable when the process ends.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    pid: i32,
}

impl Pidfd {
    /// Opens the process that has this pid now. For a child that is not reaped yet this is
    /// certainly the child.
    ///
    /// # Errors
    /// Errors from pidfd_open(2); `ESRCH` if the process does not exist.
    pub fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(nix::errno::Errno::ESRCH)?;
        let fd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self { fd, pid })
    }

    /// The pid that was passed to [`Pidfd::open`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Errors from pidfd_send_signal(2); `ESRCH` once the process has ended.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal as i32)
            .ok_or(nix::errno::Errno::EINVAL)?;
        Ok(rustix::process::pidfd_send_signal(&self.fd, signal)?)
    }

    /// Whether the process has ended, even if only its parent may reap it.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1..))
    }

    /// Reaps the process if it is our child and has ended; None if it still runs.
    ///
    /// # Errors
    /// Errors from waitid(2); `ECHILD` if it is not our child or is reaped already.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), options) {
            Ok(status) => Ok(status.map(|status| match status.exit_status() {
                Some(code) => Exit::Code(code),
                None => Exit::Signal(status.terminating_signal().unwrap_or_default()),
            })),
            // The descriptor is non-blocking, which some kernels report instead of "not yet".
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills the process, if it still runs, and reaps it. It must be our child. The end of a killed
    /// process takes only a moment.
    pub fn kill_and_reap(&self) {
        // A failure means that the process has ended by itself.
        let _ = self.send(Signal::SIGKILL);
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        // A process that was reaped already, or hangs in the kernel, is not waited for.
        let _ = poll(&mut polled, Some(&second));
        let _ = self.try_wait();
    }

    /// Opens a thread, for its own descriptor table (PIDFD_THREAD).
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.9; `ESRCH` if the thread does not exist.
    pub fn of_thread(tid: i32) -> io::Result<Self> {
        let flag = rustix::process::PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());
        let thread = rustix::process::Pid::from_raw(tid).ok_or(rustix::io::Errno::SRCH)?;
        Ok(Self { fd: rustix::process::pidfd_open(thread, flag)?, pid: tid })
    }

    /// Duplicates a descriptor of that process into ours (pidfd_getfd(2)).
    ///
    /// # Errors
    /// `EPERM` without the right to trace the process; `EBADF` if it has no such descriptor.
    pub fn take(&self, number: i32) -> io::Result<OwnedFd> {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        Ok(rustix::process::pidfd_getfd(&self.fd, number, flags)?)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// True for exit code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "{signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_process_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        for name in ["sh", "a b", "evil) S 1 2", ")))", "(("] {
            let stat = Stat::read(9, &format!("9 ({name}) {tail}")).expect(name);
            assert_eq!((stat.name.as_str(), stat.state), (name, 'S'));
            assert_eq!((stat.parent, stat.group, stat.session), (1, 2, 3));
            assert_eq!((stat.flags, stat.threads, stat.start_time), (6, 17, 777));
            assert_eq!(stat.processor, ticks(23));
        }
        for bad in ["", "9 (sh", "9 (sh) S 1", "9 (sh) S a b"] {
            assert_eq!(Stat::read(9, bad), None);
        }
    }

    #[test]
    fn which_signals_a_process_handles_is_known() {
        let own = std::process::id().cast_signed();
        // The standard library does, to report an overflow of the stack.
        assert!(handles(own, Signal::SIGSEGV));
        assert!(!handles(own, Signal::SIGTTIN));
        assert!(!handles(i32::MAX, Signal::SIGSEGV));
    }

    #[test]
    fn children_of_children_and_of_other_threads_are_family() {
        use std::io::{BufRead as _, BufReader};
        use std::process::{Command, Stdio};
        // The thread must not end before the child: another thread would get the child.
        std::thread::spawn(|| {
            let mut child = Command::new("sh")
                .args(["-c", "sh -c 'echo $$; read end; exit 0'; exit 0"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("sh");
            let mut line = String::new();
            let out = child.stdout.take().expect("stdout");
            BufReader::new(out).read_line(&mut line).expect("a line");
            let (child_pid, grandchild) =
                (child.id().cast_signed(), line.trim().parse().expect("a pid"));
            let all = family(std::process::id().cast_signed());
            assert!(all.contains(&child_pid) && all.contains(&grandchild), "{all:?}");
            assert_eq!(family(child_pid), [child_pid, grandchild]);
            drop(child.stdin.take());
            child.wait().expect("its end");
            assert_eq!(family(grandchild), [grandchild]);
        })
        .join()
        .expect("the thread");
    }

    #[test]
    fn this_process_is_there_and_is_itself() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        assert!(start_time(pid).expect("started") > 0);
        assert!(memory(pid).expect("memory") > 100_000);
        assert!(!command(pid).expect("command").is_empty());
        assert_eq!(start_time(i32::MAX), None);
    }
}
