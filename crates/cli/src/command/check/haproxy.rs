//! Runs `haproxy -c` on copies in memory, with a deadline. Neither haproxy nor what it starts
//! outlives this process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context as _;
use bindonce_core::patience::Patience;
use bindonce_haproxy::config::{Command, Messages, Rendering};
use bindonce_sys::inherit;
use bindonce_sys::process::{self, Exit, Pidfd};
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::spawn::{Launch, Started};
use bindonce_sys::tether::Tether;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// How much of haproxy's output is read between two looks at the time and at signals, in bytes.
const PART: usize = 16 * 1024;
/// The most that a pipe can hold after haproxy's end.
const LAST: usize = 1 << 20;

/// How a check ended.
pub(super) enum End {
    /// haproxy has answered.
    Exit(Exit),
    /// haproxy did not answer in time, and was ended.
    Late,
    /// This process got a signal, and haproxy was ended.
    Signal(Signal),
}

/// Checks the rendering with these descriptors, and passes on haproxy's messages.
pub(super) fn check(
    command: &Command,
    rendering: &Rc<Rendering>,
    descriptors: Vec<OwnedFd>,
    signals: &SignalFd,
    mut patience: Patience,
) -> anyhow::Result<End> {
    let (started, messages) = start(command, rendering, descriptors)?;
    let Started { pidfd, stderr, tether, .. } = started;
    let mut words = stderr.map(|stderr| Words::new(stderr, messages)).transpose()?;
    let end = loop {
        let open = words.as_ref().filter(|words| !words.ended).map(|words| words.pipe.as_fd());
        match wait(&pidfd, signals, open, &mut patience).context("cannot wait for haproxy")? {
            Event::Late => break Some(End::Late),
            Event::Signal => {
                if let Some(signal) = signals.read().context("cannot read a signal")? {
                    break Some(End::Signal(signal.signo));
                }
            }
            Event::Words => words.as_mut().map_or(Ok(()), |words| words.pass_on(PART))?,
            Event::Ended => break None,
        }
    };
    // Not reaped yet, so the process group is still haproxy's. Kills everything that a wrapper
    // around it started, too.
    let killed = process::signal_group(pidfd.pid(), Signal::SIGKILL);
    tether.into_iter().for_each(Tether::release);
    let end = match end {
        Some(end) => {
            killed.context("cannot end haproxy")?;
            end
        }
        None => {
            let exit = pidfd.try_wait().context("cannot wait for haproxy")?;
            End::Exit(exit.context("haproxy has not ended")?)
        }
    };
    if let Some(words) = &mut words {
        // haproxy's last output may still be in the pipe.
        words.pass_on(LAST)?;
        words.end();
    }
    Ok(end)
}

fn start(
    command: &Command,
    rendering: &Rc<Rendering>,
    mut descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(Started, Messages)> {
    let numbers: Vec<RawFd> = (inherit::FIRST..).take(descriptors.len()).collect();
    let mut files = Vec::new();
    for file in &rendering.files {
        let number = inherit::FIRST + RawFd::try_from(descriptors.len())?;
        files.push(PathBuf::from(format!("/dev/fd/{number}")));
        descriptors.push(in_memory(&file.text).context("cannot keep the copy in memory")?);
    }
    let mut launch = Launch::new(command.program.clone());
    launch.args.push("-c".into());
    launch.args.extend(command.arguments_on(&files));
    let environment = rendering.environment(&numbers);
    launch.env = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    launch.env_remove = inherit::SERVICE_MANAGER.map(OsString::from).to_vec();
    launch.descriptors = descriptors.into_iter().map(|fd| (String::new(), fd.into())).collect();
    launch.stderr = Stdio::piped();
    // haproxy has the sockets: if it were left behind, they would stay bound.
    launch.tied = true;
    let messages = Messages::new(Rc::clone(rendering), &files, inherit::FIRST);
    Ok((launch.start()?, messages))
}

/// A file without a name, which disappears with its last descriptor.
fn in_memory(text: &[u8]) -> std::io::Result<OwnedFd> {
    let file = memfd_create("haproxy.cfg", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(text)?;
    Ok(file.into())
}

enum Event {
    Signal,
    Words,
    Ended,
    Late,
}

/// Waits for the next event.
fn wait(
    child: &Pidfd,
    signals: &SignalFd,
    words: Option<BorrowedFd<'_>>,
    patience: &mut Patience,
) -> std::io::Result<Event> {
    while let Some(limit) = patience.next_wait(Instant::now()) {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(child.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(words.map(|words| PollFd::new(words, PollFlags::POLLIN)));
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any() == Some(true));
        if ready(0) {
            return Ok(Event::Signal);
        }
        // Its last words are read behind its end, after which what it has started may still write.
        if ready(1) {
            return Ok(Event::Ended);
        }
        if ready(2) {
            return Ok(Event::Words);
        }
    }
    Ok(Event::Late)
}

/// haproxy's standard error, read without waiting.
struct Words {
    pipe: File,
    ended: bool,
    /// The beginning of a line that has not ended yet.
    line: Vec<u8>,
    messages: Messages,
}

impl Words {
    fn new(pipe: OwnedFd, messages: Messages) -> anyhow::Result<Self> {
        let set = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        set.context("cannot read haproxy's output")?;
        Ok(Self { pipe: pipe.into(), ended: false, line: Vec::new(), messages })
    }

    /// Passes on the whole lines that are available, of `most` bytes and some at most: a program
    /// may write faster than this reads.
    fn pass_on(&mut self, most: usize) -> anyhow::Result<()> {
        let mut buffer = [0; PART];
        let mut all = 0;
        while all < most {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(read) => {
                    self.line.extend_from_slice(&buffer[..read]);
                    all += read;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read haproxy's output"),
            }
            while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let rest = self.line.split_off(end + 1);
                let line = std::mem::replace(&mut self.line, rest);
                self.print(&line);
            }
        }
        Ok(())
    }

    /// Passes on a last line that has no line end.
    fn end(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.print(&line);
    }

    fn print(&mut self, line: &[u8]) {
        // Standard error may have no reader; the exit code tells it too.
        let _ = std::io::stderr().write_all(&self.messages.of_the_user(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_read_in_parts() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let messages = Messages::new(Rc::new(Rendering::default()), &[], inherit::FIRST);
        let mut words = Words::new(reader.into(), messages).expect("words");
        writer.write_all(&[b'x'; 3 * PART]).expect("it has room");
        words.pass_on(PART).expect("read");
        assert_eq!(words.line.len(), PART);
        words.pass_on(LAST).expect("read");
        assert_eq!((words.line.len(), words.ended), (3 * PART, false));
        drop(writer);
        words.pass_on(PART).expect("read");
        assert!(words.ended);
    }
}
