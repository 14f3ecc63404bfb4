//! Reads a whole file that another process may be writing.
//!
//! A file that is rewritten in place is empty, then half complete, until its writer closes it. The
//! kernel knows whether a process has the file open for writing: it then refuses a read lease
//! (fcntl(2), F_SETLEASE). If no lease is available (another user's file without CAP_LEASE, some
//! network file systems), a file that changed in the last [`QUIET`] counts as being written.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::patience::Patience;
use crate::process::{numbered, open_flags, threads_with_own_descriptors};

/// How long a file must be unchanged, if no lease is available.
const QUIET: Duration = Duration::from_millis(20);

/// Most bytes read of one file. No configuration is larger, and a device may have no end.
const LARGEST: u64 = 256 << 20;

/// How long a pipe or a device may be silent.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Maximum number of symbolic links in a path, as path_resolution(7) limits them.
const LINKS: usize = 40;

/// F_SETSIG of linux/fcntl.h: the signal that the kernel sends when another process wants to open
/// the file.
const F_SETSIG: libc::c_int = 10;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unread {
    /// The file is still being written.
    #[error("it is being written{}, and was not complete within {:?}", by(.writers), .within)]
    BeingWritten {
        /// The processes that have the file open for writing, as far as visible.
        writers: Vec<i32>,
        /// How long the reader waited.
        within: Duration,
    },
    /// It is a pipe or a device that delivers nothing.
    #[error("it is not a regular file, and delivered nothing within {within:?}")]
    Silent {
        /// How long the reader waited.
        within: Duration,
    },
    /// The file is larger than the limit.
    #[error("it has more than {largest} MiB")]
    TooLarge {
        /// The limit in MiB.
        largest: u64,
    },
    /// A system call failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

fn by(writers: &[i32]) -> String {
    match writers {
        [] => String::new(),
        [pid] => format!(" by pid {pid}"),
        pids => {
            let pids: Vec<_> = pids.iter().map(i32::to_string).collect();
            format!(" by pids {}", pids.join(", "))
        }
    }
}

/// Opens a file for reading without blocking, neither on a pipe's writer nor on a lease.
///
/// # Errors
/// Errors from open(2).
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Reads a regular file of at most `most` bytes that any user of this host may have named. Nothing
/// else is opened: opening or reading a pipe or a device may have effects that only its owner may
/// want.
/// # Errors
/// Errors from the system calls, and for anything that is not such a file.
pub fn regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // The file that was checked is the file that is opened, wherever the path leads by then.
    found(&OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?, most)
}

/// The same for a file opened with O_PATH.
pub(crate) fn found(found: &File, most: u64) -> io::Result<Vec<u8>> {
    let metadata = found.metadata()?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(io::Error::other("it is not a regular file, or a very large one"));
    }
    let mut text = Vec::new();
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    open(Path::new(&path))?.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// Reads a file when no process is writing it; waits for that, `within` at most. Anything else than
/// a regular file (a pipe, a device) is read to its end, unless it is silent for [`SILENCE`].
///
/// # Errors
/// [`Unread`].
pub fn read(path: &Path, within: Duration) -> Result<Vec<u8>, Unread> {
    patiently(path, Patience::new(within))
}

fn patiently(path: &Path, mut patience: Patience) -> Result<Vec<u8>, Unread> {
    let mut changes = None;
    loop {
        // The watch comes before the next check, so the writer's close is not missed.
        let file = open(path)?;
        let before = file.metadata()?;
        let text = read_to_end(&file, SILENCE)?;
        let whole = !before.is_file()
            || (!being_written(&file, &before) && is_same(&before, &file.metadata()?, &text));
        if whole {
            return Ok(text);
        }
        let Some(left) = patience.next_wait(Instant::now()) else {
            let within = patience.limit();
            return Err(Unread::BeingWritten { writers: writers(&before), within });
        };
        match &changes {
            None => changes = Some(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)),
            Some(inotify) => wait(inotify.as_ref().ok(), left.min(QUIET)),
        }
        if let Some(Ok(inotify)) = &changes {
            // The file may be gone or replaced: the next open finds that.
            let _ = inotify.add_watch(
                path,
                AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_ATTRIB
                    | AddWatchFlags::IN_MOVE_SELF,
            );
        }
    }
}

/// Reads a file opened with [`open`], of any kind. A pipe or a device may be silent for at most
/// `silence`.
fn read_to_end(file: &File, silence: Duration) -> Result<Vec<u8>, Unread> {
    let mut text = Vec::new();
    let mut rest = file.take(LARGEST + 1);
    loop {
        // Some devices block in read(2), even with O_NONBLOCK.
        let ready = wait_for(file, silence);
        match rest.read_to_end(&mut text) {
            Ok(_) if text.len() as u64 > LARGEST => {
                return Err(Unread::TooLarge { largest: LARGEST >> 20 });
            }
            // A pipe without a writer so far is at its end, too.
            Ok(_) if ready => return Ok(text),
            Ok(_) => return Err(Unread::Silent { within: silence }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Unread::Silent { within: silence });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until data or the end can be read; false if that takes too long. A regular file is always
/// ready.
fn wait_for(file: &File, limit: Duration) -> bool {
    let mut patience = Patience::new(limit);
    while let Some(wait) = patience.next_wait(Instant::now()) {
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
    false
}

/// Waits for a change, or for `limit`: inotify does not report every change (mmap(2), network file
/// systems).
fn wait(inotify: Option<&Inotify>, limit: Duration) {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    match inotify {
        Some(inotify) => {
            let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], limit);
            let _ = inotify.read_events();
        }
        None => drop(poll(&mut [], limit)),
    }
}

/// Whether a process has the file open for writing; if the kernel does not say, whether the file
/// has just changed.
fn being_written(file: &File, before: &Metadata) -> bool {
    let set = |command, value: libc::c_int| {
        // SAFETY: both commands take an int, and the descriptor is open.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, value) })
    };
    // If a process opens the file for writing during our lease, the kernel sends us this signal,
    // whose default is to do nothing, and makes the process wait for these few microseconds.
    let leased = set(F_SETSIG, libc::SIGURG)
        .and_then(|_| set(libc::F_SETLEASE, libc::c_int::from(libc::F_RDLCK as i16)));
    match leased {
        Ok(_) => {
            let _ = set(libc::F_SETLEASE, libc::c_int::from(libc::F_UNLCK as i16));
            false
        }
        Err(Errno::EAGAIN) => true,
        Err(_) => {
            let changed = before.modified().map(|at| SystemTime::now().duration_since(at));
            // A time in the future comes from another clock: the second check compares.
            matches!(changed, Ok(Ok(ago)) if ago < QUIET)
        }
    }
}

/// Whether nothing was written during the read.
fn is_same(before: &Metadata, after: &Metadata, text: &[u8]) -> bool {
    let times = |m: &Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    times(before) == times(after) && after.len() == text.len() as u64
}

/// The processes that have this file open for writing.
fn writers(file: &Metadata) -> Vec<i32> {
    let numbers = |path: &Path| numbered(path).unwrap_or_default();
    let same = |other: &Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
    let writes = |process: &Path, fd: i32| {
        let open = fs::metadata(process.join(format!("fd/{fd}")));
        let flags = || open_flags(process, fd);
        open.is_ok_and(|open| same(&open))
            && flags().is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
    };
    let mut pids = numbers(Path::new("/proc"));
    pids.retain(|pid| {
        let process = Path::new("/proc").join(pid.to_string());
        let apart = threads_with_own_descriptors(*pid).into_iter();
        let apart = apart.map(|tid| process.join(format!("task/{tid}")));
        std::iter::once(process.clone())
            .chain(apart)
            .any(|table| numbers(&table.join("fd")).into_iter().any(|fd| writes(&table, fd)))
    });
    pids
}

/// Whether this path is an unnamed pipe, as of a shell's `<(...)` and `|`, whose content can be
/// read only once.
pub fn is_unnamed_pipe(path: &Path) -> bool {
    // Not opened: open could block on a writer, and a writer would notice a reader.
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&at) else { return false };
        if target.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") {
            return true;
        }
        // An absolute target replaces the whole path.
        at.pop();
        at.push(target);
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

    use super::*;
    use crate::testing::{Directory, stopped_within, while_exchanged};

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let directory = Directory::new("whole");
        let path = directory.path().join("file");
        fs::write(&path, "old").expect("write");
        assert_eq!(read(&path, Duration::ZERO).expect("read"), b"old");
        let mut file = File::create(&path).expect("truncate");
        let reader = {
            let path = path.clone();
            thread::spawn(move || read(&path, Duration::from_secs(30)))
        };
        for part in ["first ", "second ", "third"] {
            thread::sleep(Duration::from_millis(30));
            file.write_all(part.as_bytes()).expect("write");
        }
        drop(file);
        let text = reader.join().expect("the thread").expect("read");
        assert_eq!(text, b"first second third");
    }

    #[test]
    fn one_that_stays_open_is_refused_with_its_writer() {
        let directory = Directory::new("held");
        let path = directory.path().join("file");
        let _file = File::create(&path).expect("create");
        let within = Duration::from_millis(50);
        let Err(Unread::BeingWritten { writers, .. }) = read(&path, within) else {
            panic!("read");
        };
        assert_eq!(writers, [std::process::id().cast_signed()]);
        // A new file that replaces the old one is read.
        fs::write(directory.path().join("new"), "new").expect("write");
        fs::rename(directory.path().join("new"), &path).expect("rename");
        assert_eq!(read(&path, within).expect("read"), b"new");
    }

    #[test]
    fn a_writer_has_its_time_although_this_process_was_stopped() {
        let directory = Directory::new("stopped");
        let path = directory.path().join("file");
        let _file = File::create(&path).expect("create");
        let (limit, begun) = (Duration::from_millis(300), Instant::now());
        let read = patiently(&path, stopped_within(limit));
        assert!(matches!(read, Err(Unread::BeingWritten { .. })), "{read:?}");
        assert!(begun.elapsed() >= limit * 4 / 5, "{:?}", begun.elapsed());
    }

    /// A pipe replaces the file after it was checked: it is not opened, which its writer would
    /// notice.
    #[test]
    fn what_takes_the_place_of_a_regular_file_is_not_opened() {
        let directory = Directory::new("regular");
        let (file, pipe) = (directory.path().join("file"), directory.path().join("pipe"));
        fs::write(&file, "text").expect("a file");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        let (mut read, mut refused) = (0, 0);
        while_exchanged(&file, &pipe, |_| {
            while read < 2000 || refused < 2000 {
                match regular(&file, 100) {
                    Ok(text) => {
                        assert_eq!(text, b"text");
                        read += 1;
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("not a regular file"), "{error}");
                        refused += 1;
                    }
                }
            }
        });
    }

    #[test]
    fn what_never_comes_is_not_waited_for_and_what_has_no_end_not_read() {
        let directory = Directory::new("fifo");
        let path = directory.path().join("fifo");
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&path, mode).expect("a fifo");
        let short = Duration::from_millis(20);
        let silent = |file: &File| matches!(read_to_end(file, short), Err(Unread::Silent { .. }));
        let reader = open(&path).expect("without a writer");
        assert!(silent(&reader));
        let mut writer = File::options().write(true).open(&path).expect("a writer");
        assert!(silent(&reader));
        writer.write_all(b"half ").expect("write");
        assert!(silent(&reader), "its writer is still there");
        writer.write_all(b"all").expect("write");
        drop(writer);
        assert_eq!(read_to_end(&reader, short).expect("the rest"), b"all");
        let zero = open(Path::new("/dev/zero")).expect("open");
        assert!(matches!(read_to_end(&zero, short), Err(Unread::TooLarge { .. })));
    }

    #[test]
    fn a_pipe_without_a_name_is_known() {
        let (reader, _writer) = io::pipe().expect("pipe");
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        assert!(is_unnamed_pipe(Path::new(&path)));
        assert!(!is_unnamed_pipe(Path::new("/dev/null")));
        assert!(!is_unnamed_pipe(Path::new("/none/there")));
    }
}
