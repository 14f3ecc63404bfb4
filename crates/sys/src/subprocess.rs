//! Runs a program for its answer: its output, and how it ended. The deadline covers everything that
//! the program starts: all of it is in one process group, which is killed when the time is up.

use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::patience::Patience;
use crate::process::{self, Pidfd};
use crate::signals::{self, Signal};

/// Most bytes of an answer that are kept; the rest is read and discarded.
const LONGEST: usize = 1 << 20;

/// The answer of a program.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Answer {
    /// The reason of a failure for the user, never empty: the text on standard error, or how the
    /// program ended.
    pub fn complaint(&self) -> String {
        let output = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        if !output.is_empty() {
            return output;
        }
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("it ended with exit code {code} and printed nothing"),
            (None, Some(number)) => {
                let name = Signal::try_from(number).map_or("a signal", Signal::as_str);
                format!("it was ended by {name} and printed nothing")
            }
            (None, None) => "it ended and printed nothing".to_owned(),
        }
    }
}

/// The user under which to run a program that another user has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; the program gets no supplementary groups.
    pub gid: u32,
}

impl User {
    /// The user who started a process: its real user and group (proc_pid_status(5)), whatever
    /// rights the program has gained since.
    ///
    /// # Errors
    /// If the process does not exist.
    pub fn of(pid: i32) -> io::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let real = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        match (real("Uid:"), real("Gid:")) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err(io::Error::other("its user cannot be read")),
        }
    }

    /// Whether this process runs as that user.
    pub fn is_ours(self) -> bool {
        self.uid == nix::unistd::getuid().as_raw() && self.uid == nix::unistd::geteuid().as_raw()
    }
}

/// As [`answer`], with a file as standard input. If another user is given, the program runs as that
/// user, in a session of its own, so that it cannot reach our terminal; our own user changes
/// nothing.
///
/// # Errors
/// As [`answer`]; `EPERM` if this process may not become that user.
pub fn answer_on(
    mut command: Command,
    input: std::fs::File,
    user: Option<User>,
    within: Duration,
) -> io::Result<Answer> {
    match user.filter(|user| !user.is_ours()) {
        Some(user) => {
            command.gid(user.gid).uid(user.uid);
            // SAFETY: it only calls setsid(2) between fork and exec.
            unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
        }
        None => drop(command.process_group(0)),
    }
    run(command, input.into(), Patience::new(within))
}

/// Runs `command` to its end, which must come within the time `within`. Its standard input is
/// /dev/null, and its signals are reset. The program is killed if the calling thread ends.
///
/// # Errors
/// Why the program could not be started; [`io::ErrorKind::TimedOut`] if it was killed.
pub fn answer(mut command: Command, within: Duration) -> io::Result<Answer> {
    command.process_group(0);
    run(command, Stdio::null(), Patience::new(within))
}

/// Runs a command as the leader of a process group of its own.
fn run(mut command: Command, input: Stdio, mut patience: Patience) -> io::Result<Answer> {
    let (out_reader, out_writer) = io::pipe()?;
    let (error_reader, error_writer) = io::pipe()?;
    command.stdin(input).stdout(out_writer).stderr(error_writer);
    let parent = Pid::this();
    // SAFETY: between fork and exec it only calls sigaction(2), sigprocmask(2), prctl(2) and
    // getppid(2), which are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            signals::reset()?;
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before the death signal was set.
            if Pid::parent() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        })
    };
    let mut child = Running(command.spawn()?);
    // This closes our copies of the writing ends: only then can we see the end of the output.
    drop(command);
    let ended = Pidfd::open(child.0.id().cast_signed())?;
    let limit = bindonce_core::duration::format(patience.limit());
    let (mut stdout, mut stderr) = (Some(out_reader), Some(error_reader));
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    // Processes that the program started may keep its output open after its end; they are not
    // waited for.
    let mut over = false;
    while !over {
        let Some(wait) = patience.next_wait(Instant::now()) else {
            let text = format!("it did not end within {limit} and was killed");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        };
        // A closed pipe is replaced by the pidfd, which is not ready before the end.
        let fds = [
            ended.as_fd(),
            stdout.as_ref().map_or(ended.as_fd(), AsFd::as_fd),
            stderr.as_ref().map_or(ended.as_fd(), AsFd::as_fd),
        ];
        let mut watched = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut watched, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            done => drop(done?),
        }
        let [end, out_ready, error_ready] = watched.map(|fd| fd.any().unwrap_or_default());
        over = end;
        for (pipe, text, ready) in
            [(&mut stdout, &mut out, out_ready), (&mut stderr, &mut errors, error_ready)]
        {
            if ready && take(pipe, text)? == 0 {
                *pipe = None;
            }
        }
    }
    // The last output is still in the pipes. What the program left behind may write for ever.
    for (pipe, text) in [(&mut stdout, &mut out), (&mut stderr, &mut errors)] {
        while let Some(reader) = pipe.as_ref().filter(|_| text.len() < LONGEST) {
            let mut fd = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fd, PollTimeout::ZERO)? == 0 || take(pipe, text)? == 0 {
                *pipe = None;
            }
        }
    }
    Ok(Answer { status: child.0.wait()?, stdout: out, stderr: errors })
}

/// Reads available output into `text`, as far as there is room.
fn take(pipe: &mut Option<io::PipeReader>, text: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let Some(reader) = pipe else { return Ok(0) };
    let read = reader.read(&mut buffer)?;
    let room = LONGEST.saturating_sub(text.len()).min(read);
    text.extend_from_slice(buffer.get(..room).unwrap_or_default());
    Ok(read)
}

/// A program that is killed on drop, with everything that it started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The program is gone already, but may have left others behind.
        let _ = process::signal_group(self.0.id().cast_signed(), Signal::SIGKILL);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stopped_within;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn what_it_says_and_how_it_ends_is_told() {
        let output = answer(shell("echo out; echo err >&2; exit 3"), LONG).expect("an answer");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"out\n"[..]));
        assert_eq!(output.complaint(), "err");
        let killed = answer(shell("kill -KILL $$"), LONG).expect("an answer");
        assert_eq!(killed.complaint(), "it was ended by SIGKILL and printed nothing");
        let silent = answer(shell("exit 2"), LONG).expect("an answer");
        assert_eq!(silent.complaint(), "it ended with exit code 2 and printed nothing");
        let much = answer(shell("head -c 3000000 /dev/zero; echo end >&2"), LONG).expect("much");
        assert_eq!((much.stdout.len(), much.complaint()), (LONGEST, "end".to_owned()));
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_all_that_it_has_started() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut command = shell("sleep 1000 & exec sleep 1000");
        // Both processes have the writing end until they end.
        let theirs = writer.try_clone().expect("a copy");
        // SAFETY: it only calls dup(2) between fork and exec.
        unsafe {
            command.pre_exec(move || {
                std::mem::forget(rustix::io::dup(&theirs)?);
                Ok(())
            })
        };
        drop(writer);
        let late = answer(command, Duration::from_millis(200)).expect_err("killed");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let mut left = Vec::new();
        { reader }.read_to_end(&mut left).expect("the end: nobody is left");
    }

    #[test]
    fn one_that_is_asked_while_this_process_is_stopped_has_its_time() {
        let mut command = shell("echo done");
        command.process_group(0);
        let output = run(command, Stdio::null(), stopped_within(LONG)).expect("an answer");
        assert_eq!(output.stdout, b"done\n");
    }

    #[test]
    fn one_whose_output_has_no_end_is_killed_in_time() {
        let late = answer(shell("exec yes"), Duration::from_millis(200)).expect_err("killed");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let left_behind = answer(shell("yes & exit 3"), LONG).expect("an answer");
        assert_eq!(left_behind.status.code(), Some(3));
    }

    #[test]
    fn another_user_s_program_has_that_user_s_rights_and_no_terminal() {
        assert!(User::of(std::process::id().cast_signed()).expect("we").is_ours());
        let nobody = User { uid: 65534, gid: 65534 };
        let script = "id -u; id -g; id -G; sh -c 'exec 3</dev/tty' 2>/dev/null || echo none";
        let nothing = std::fs::File::open("/dev/null").expect("/dev/null");
        let output = answer_on(shell(script), nothing, Some(nobody), LONG);
        if !nix::unistd::geteuid().is_root() {
            assert_eq!(output.expect_err("no right").kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        let output = String::from_utf8(output.expect("an answer").stdout).expect("text");
        assert_eq!(output, "65534\n65534\n65534\nnone\n");
    }

    #[test]
    fn a_file_is_its_input_for_another_user_too() {
        use std::io::{Seek as _, Write as _};
        let users = [None, Some(User { uid: 65534, gid: 65534 })];
        for user in
            users.into_iter().filter(|user| user.is_none() || nix::unistd::geteuid().is_root())
        {
            let file = nix::sys::memfd::memfd_create("ask", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
            let mut file = std::fs::File::from(file.expect("a file"));
            file.write_all(b"text").expect("write");
            file.rewind().expect("rewind");
            let output =
                answer_on(shell("cat; cat /dev/stdin"), file, user, LONG).expect("an answer");
            assert_eq!(output.stdout, b"texttext", "{user:?} {}", output.complaint());
        }
    }

    #[test]
    fn what_is_left_behind_is_not_waited_for() {
        let begun = Instant::now();
        let output = answer(shell("sleep 1000 & echo done"), LONG).expect("an answer");
        assert_eq!(output.stdout, b"done\n");
        assert!(begun.elapsed() < LONG);
    }
}
