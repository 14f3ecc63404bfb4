//! A process that becomes a newer binary of its program, in place: same pid, same children,
//! and every descriptor that it chooses to keep.
//!
//! exec(2) cannot be taken back, so the new binary is asked first, in a child, whether it
//! can go on from what it will find ([`prove`]). Until [`become_binary`] succeeds, nothing
//! has changed.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};

/// The binary that is installed now where the running one was started from.
///
/// # Errors
/// Those of readlink(2).
pub fn installed() -> io::Result<PathBuf> {
    let binary = std::fs::read_link("/proc/self/exe")?;
    // The kernel says so of a file that was replaced.
    Ok(match binary.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(OsString::from_vec(path.to_vec())),
        None => binary,
    })
}

/// Runs `binary` with these arguments, `state` as its standard input, and as long as `patience`.
///
/// # Errors
/// Why it is not up to it, for a person: it cannot be started, or did not exit with 0 in time.
#[cfg(feature = "tokio")]
pub async fn prove(
    binary: &Path,
    arguments: Vec<OsString>,
    state: Option<std::fs::File>,
    patience: std::time::Duration,
) -> Result<(), String> {
    use std::process::{Command, Stdio};

    use crate::process::Pidfd;
    use crate::signals::Signal;
    use crate::watch::Watch;

    let child = Command::new(binary)
        .args(arguments)
        .stdin(state.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", binary.display()))?;
    let proof = async {
        let pidfd = Pidfd::open(i32::try_from(child.id()).unwrap_or_default())?;
        let ended = Watch::new(&pidfd)?;
        let late = match tokio::time::timeout(patience, ended.readable()).await {
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
    match proof.await {
        Ok(Some(exit)) if exit.success() => Ok(()),
        Ok(exit) => {
            let how = match exit {
                Some(exit) => exit.to_string(),
                None => format!("no answer in {} s", patience.as_secs()),
            };
            Err(format!("{} does not read the state of this one: {how}", binary.display()))
        }
        Err(error) => Err(format!("{} could not be asked: {error}", binary.display())),
    }
}

/// Descriptors that are left open over an exec of this process, until this is dropped.
/// Children inherit them too, so start none meanwhile.
#[derive(Debug)]
pub struct Left<'a>(Vec<BorrowedFd<'a>>);

/// Leaves descriptors open over an exec.
///
/// # Errors
/// Those of fcntl(2); none is left open then.
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

/// Executes `binary` in place of this process with the same arguments, and with the same
/// environment but for `variables`: one with a value is set, one without is taken away.
/// The signal mask stays as it is, so that a signal sent meanwhile waits for the new image. (std's own
/// `exec` resets the mask.) Returns only if it fails, with the reason.
pub fn become_binary(binary: &Path, variables: &[(&str, Option<OsString>)]) -> io::Error {
    match execute(binary, variables) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn execute(
    binary: &Path,
    variables: &[(&str, Option<OsString>)],
) -> io::Result<std::convert::Infallible> {
    let named = |name: &OsStr| variables.iter().any(|(other, _)| OsStr::new(other) == name);
    let kept = env::vars_os().filter(|(name, _)| !named(name));
    let set =
        variables.iter().filter_map(|(name, value)| Some((OsString::from(name), value.clone()?)));
    let pair = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec())
    };
    let environment = kept.chain(set).map(pair).collect::<Result<Vec<_>, _>>()?;
    let word = |word: OsString| CString::new(word.into_vec());
    let arguments = env::args_os().map(word).collect::<Result<Vec<_>, _>>()?;
    let path = CString::new(binary.as_os_str().as_bytes())?;
    // The thread that writes the log ends with this image.
    crate::log::finish(crate::log::LAST_WORDS);
    Ok(nix::unistd::execve(&path, &arguments, &environment)?)
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
    fn a_missing_binary_changes_nothing_and_is_an_error() {
        let error = become_binary(Path::new("/nonexistent/bindonce"), &[("A", None)]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(installed().expect("this test's binary").is_file());
    }
}
