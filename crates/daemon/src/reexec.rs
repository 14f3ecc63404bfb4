//! Upgrade in place: a process executes a newer binary of its program, and keeps its pid, its
//! children, and every descriptor that it chooses to keep.
//!
//! exec(2) cannot be undone. So the new binary is first asked, in a child, whether it can continue
//! from the state that it will find ([`Installed::prove`]): it answers with what it has read. Until
//! [`Installed::take_over`] succeeds, nothing has changed. The file is opened once, so the binary
//! that was asked is the binary that is executed.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bindonce_sys::memory;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal;
use bindonce_sys::watch::Watch;
use bindonce_wire::{ErrorCode, RpcError};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::state::fnv1a;

/// The variable with the word at the beginning of an answer: it changes each time, so no old answer
/// counts.
const WORD: &str = "BINDONCE_PROOF";

/// Variables of the service manager, which are not passed on to the next image.
const PASSED: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The longest answer that is read, in bytes.
const ANSWER: u64 = 1024;

/// The answer of a binary that has read a state of these bytes, with this many entries. Empty if no
/// process has asked for it.
pub fn answer(entries: usize, state: &[u8]) -> String {
    let word = env::var(WORD).unwrap_or_default();
    if word.is_empty() { word } else { proof(&word, entries, state) }
}

fn proof(word: &str, entries: usize, state: &[u8]) -> String {
    // The hash shows that the bytes were read; it keeps no secret.
    format!("{word} {entries} {:016x}", fnv1a(state))
}

/// The pid and the start time of this process. With both, what one image leaves to the next is not
/// taken by another process, which may have the same pid later.
pub fn this_process() -> (u32, u64) {
    let pid = std::process::id();
    (pid, process::start_time(pid.cast_signed()).unwrap_or_default())
}

/// The error for a client that asked for an upgrade that failed.
pub fn failed(reason: &str) -> RpcError {
    RpcError::new(ErrorCode::UPGRADE_FAILED, format!("not upgraded, nothing has changed: {reason}"))
        .with_hint("correct that, or install a working binary where the old one was started")
}

/// Gives this process the name of its program (ps(1), `comm`). After an exec by descriptor, the
/// name is the number of the descriptor. A name that was set since then stays.
pub fn take_name() {
    let is_number = |name: &CString| name.as_bytes().iter().all(u8::is_ascii_digit);
    if !nix::sys::prctl::get_name().is_ok_and(|name| is_number(&name)) {
        return;
    }
    let binary = started_from().unwrap_or_default();
    let name = binary.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if let Ok(name) = CString::new(name) {
        // A failure does not matter: it is only a name.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// The binary that is now installed at the path from which the running one was started.
#[derive(Debug)]
pub struct Installed {
    path: PathBuf,
    fd: OwnedFd,
    /// Changes with the file's content.
    edition: Edition,
}

/// The size, and the time of the last change of the content.
type Edition = (i64, i64, u64);

impl Installed {
    /// Opens the binary.
    ///
    /// # Errors
    /// What is wrong with the binary, in words for a person.
    pub fn open() -> Result<Self, String> {
        let path =
            started_from().map_err(|error| format!("cannot tell where the binary is: {error}"))?;
        let open = || -> io::Result<(OwnedFd, Edition)> {
            let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let edition = edition(&fd)?;
            Ok((fd, edition))
        };
        match open() {
            Ok((fd, edition)) => Ok(Self { path, fd, edition }),
            Err(error) => Err(format!("{} cannot be started: {error}", path.display())),
        }
    }

    /// The path of the binary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the binary with these arguments and with `state` as its standard input, for at most
    /// `patience`. Its standard output must be what [`answer`] returns for this state with this
    /// many entries.
    ///
    /// # Errors
    /// Why the binary cannot take over, in words for a person: it cannot be started, did not exit
    /// with 0 in time, or did not answer with what it should have read. The first line that it has
    /// printed instead says more.
    pub async fn prove(
        &self,
        arguments: Vec<OsString>,
        entries: usize,
        state: &[u8],
        patience: Duration,
    ) -> Result<(), String> {
        let path = self.path.display();
        let word = format!("bindonce-{}", memory::unique());
        let mut input = memory::file("bindonce-upgrade")
            .and_then(|mut file| file.write_all(state).map(|()| file))
            .map_err(|error| format!("cannot write the state: {error}"))?;
        input.rewind().map_err(|error| format!("cannot write the state: {error}"))?;
        let (answer_pipe, output) = io::pipe().map_err(|error| format!("no pipe: {error}"))?;
        let child = Command::new(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
            .arg0(&self.path)
            .args(arguments)
            .env(WORD, &word)
            .stdin(input)
            .stdout(Stdio::from(output))
            .spawn()
            .map_err(|error| format!("{path} cannot be started: {error}"))?;
        let proof_of = async {
            let pidfd = Pidfd::open(i32::try_from(child.id()).unwrap_or_default())?;
            let ended = Watch::new(&pidfd)?;
            let late = match bindonce_sys::patience::timeout(patience, ended.readable()).await {
                Ok(readable) => {
                    readable?;
                    false
                }
                Err(_) => {
                    pidfd.send(Signal::SIGKILL)?;
                    ended.readable().await?;
                    true
                }
            };
            pidfd.try_wait().map(|exit| exit.filter(|_| !late))
        };
        let exit = proof_of.await.map_err(|error| format!("{path} could not be asked: {error}"))?;
        // A child of the binary may still hold the pipe, so this does not wait for its end.
        rustix::io::ioctl_fionbio(&answer_pipe, true).map_err(|error| error.to_string())?;
        let mut text = Vec::new();
        let _ = answer_pipe.take(ANSWER).read_to_end(&mut text);
        if !exit.is_some_and(|exit| exit.success()) {
            let how = match exit {
                Some(exit) => exit.to_string(),
                None => format!("no answer in {} s", patience.as_secs()),
            };
            let text = String::from_utf8_lossy(&text);
            let why = text.lines().next().map(|line| format!(": {line}")).unwrap_or_default();
            return Err(format!("{path} cannot go on from this one: {how}{why}"));
        }
        if text.trim_ascii_end() != proof(&word, entries, state).as_bytes() {
            return Err(format!("{path} gave a wrong answer: it is not a bindonce binary"));
        }
        Ok(())
    }

    /// Executes the binary in place of this process, with the same arguments and the same
    /// environment, but without the service manager's variables, and with `variable` set. The
    /// signal mask stays as it is, so a signal that is sent meanwhile waits for the new image.
    /// (std's own `exec` resets the mask.) Returns only on failure, with the reason.
    pub fn take_over(&self, variable: Option<(&str, OsString)>) -> io::Error {
        match self.execute(variable) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn execute(&self, variable: Option<(&str, OsString)>) -> io::Result<std::convert::Infallible> {
        if edition(&self.fd)? != self.edition {
            return Err(io::Error::other("the file was modified after it had proved itself"));
        }
        let set = variable.map(|(name, value)| (OsString::from(name), value));
        let replaced = |name: &OsStr| {
            PASSED.iter().any(|other| name == *other)
                || set.as_ref().is_some_and(|set| set.0 == name)
        };
        let kept: Vec<_> = env::vars_os().filter(|(name, _)| !replaced(name)).collect();
        let pair = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_vec())
        };
        let environment = kept.into_iter().chain(set).map(pair).collect::<Result<Vec<_>, _>>()?;
        let word = |word: OsString| CString::new(word.into_vec());
        let arguments = env::args_os().map(word).collect::<Result<Vec<_>, _>>()?;
        Ok(nix::unistd::fexecve(&self.fd, &arguments, &environment)?)
    }
}

/// The path from which the running binary was started.
fn started_from() -> io::Result<PathBuf> {
    let binary = std::fs::read_link("/proc/self/exe")?;
    // The kernel adds this to the path of a file that was replaced.
    Ok(match binary.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(OsString::from_vec(path.to_vec())),
        None => binary,
    })
}

fn edition(fd: &OwnedFd) -> io::Result<Edition> {
    let found = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no file"));
    }
    Ok((found.st_size, found.st_mtime, found.st_mtime_nsec))
}

/// Descriptors that are left open over an exec of this process, until this is dropped.
/// Children inherit them too, so start none meanwhile.
#[derive(Debug)]
pub struct Left<'a>(Vec<BorrowedFd<'a>>);

/// Leaves descriptors open over an exec.
///
/// # Errors
/// Errors from fcntl(2); then no descriptor is left open.
pub fn leave<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Left<'a>> {
    let mut left = Left(Vec::new());
    for fd in fds {
        fcntl_setfd(fd, FdFlags::empty())?;
        left.0.push(fd);
    }
    Ok(left)
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // Cannot fail on an open descriptor.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::fcntl_getfd;

    use super::*;

    #[test]
    fn what_is_left_open_is_so_only_for_a_while() {
        let file = std::fs::File::open("/dev/null").expect("file");
        let flags = || fcntl_getfd(&file).expect("flags");
        let left = leave([file.as_fd()]).expect("leave");
        assert!(!flags().contains(FdFlags::CLOEXEC));
        drop(left);
        assert!(flags().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn an_answer_is_about_the_word_the_entries_and_the_bytes() {
        let one = proof("a", 1, b"state");
        assert_eq!(one, proof("a", 1, b"state"));
        for other in [proof("b", 1, b"state"), proof("a", 2, b"state"), proof("a", 1, b"stat")] {
            assert_ne!(one, other);
        }
        assert_eq!(answer(1, b"state"), "", "nobody has asked");
        assert!(Installed::open().expect("this test's binary").path().is_file());
    }
}
