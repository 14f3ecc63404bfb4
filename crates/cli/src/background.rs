//! `haproxy -D`: a supervisor continues in the background, and the exit code of the process that
//! was started tells whether it serves.
//!
//! Until it serves, its output goes through a pipe of the first process to that one's standard
//! error. So the process that continues keeps no descriptor of the caller, who may wait for it to
//! be closed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;

use anyhow::Context as _;
use bindonce_supervisor::{BACKGROUND as VARIABLE, SERVES};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether this process is the one in the background.
pub(crate) fn is_it() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The process that waits until this one serves, if this one is in the background.
pub(crate) fn starter() -> anyhow::Result<Option<Rc<OwnedFd>>> {
    if !is_it() {
        return Ok(None);
    }
    // This process may lead a session already, if an upgrade has executed it again.
    let _ = nix::unistd::setsid();
    let starter = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot keep the way to the process that started this one")?;
    let nowhere = std::fs::File::options().write(true).open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdout(&nowhere).context("cannot detach from standard output")?;
    Ok(Some(Rc::new(starter)))
}

/// Names of standard input, which may be a pipe with the configuration.
const INPUT: [&str; 3] = ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// Whether standard input is among these files.
pub(crate) fn reads_input(files: &[PathBuf]) -> bool {
    files.iter().any(|file| INPUT.iter().any(|name| file == Path::new(name)))
}

/// Starts the background process. Returns 0 when it serves, else its own exit code. Until it serves
/// it has our standard input, if that is among `files`.
pub(crate) fn start(
    name: &OsStr,
    arguments: &[OsString],
    files: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    let (mut words, error_writer) = io::pipe().context("cannot make a pipe")?;
    let (mut news, writer) = io::pipe().context("cannot make a pipe")?;
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, "1")
        .stdin(if reads_input(files) { Stdio::inherit() } else { Stdio::null() })
        .stdout(writer)
        .stderr(error_writer)
        .spawn()
        .context("cannot start the process in the background")?;
    let (mut said, mut text, mut outcome) = (Vec::new(), [0; 4096], None);
    loop {
        let mut fds = [&words, &news].map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        // At the end, pass on what is still in the pipe, but wait for no more: other processes may
        // have the pipe too.
        let timeout = if outcome.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            done => done.context("cannot wait for the supervisor")?,
        };
        let [has_words, has_news] = fds.map(|fd| fd.any().unwrap_or_default());
        if has_words {
            let read = words.read(&mut text).context("cannot read the output of the supervisor")?;
            // Without a reader there is no one to tell.
            let _ = io::stderr().write_all(text.get(..read).unwrap_or_default());
            if read > 0 {
                continue;
            }
        }
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
        if has_news {
            let read = news.read(&mut text).context("cannot read whether the service serves")?;
            said.extend_from_slice(text.get(..read).unwrap_or_default());
            if said == SERVES {
                outcome = Some(ExitCode::SUCCESS);
            } else if said.ends_with(b"\n") {
                outcome = Some(ExitCode::FAILURE);
            } else if read == 0 {
                let status = child.wait().context("cannot wait for the supervisor")?;
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                outcome = Some(ExitCode::from(code.filter(|code| *code != 0).unwrap_or(1)));
            }
        }
    }
}
