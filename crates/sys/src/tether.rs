//! A process group that does not outlive this process, however that ends: a process beside both kills the group then.
//! (A death signal, PR_SET_PDEATHSIG(2const), reaches a child, and not what the child has started.)

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::process;
use crate::signals::Signal;

/// The hidden subcommand that must call [`run`].
pub const SUBCOMMAND: &str = "__tether";

/// Kills a process group when this process ends, or when it is dropped.
#[derive(Debug)]
pub struct Tether {
    child: Child,
    /// Its other end sees the end of this process.
    pipe: ChildStdin,
}

impl Tether {
    pub(crate) fn new() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("bindonce").arg(SUBCOMMAND).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, pipe })
    }

    /// Says which group. A pipe that is empty takes it at once.
    pub(crate) fn tie(&mut self, leader: u32) -> io::Result<()> {
        self.pipe.write_all(leader.to_string().as_bytes())
    }

    /// The group has ended: nothing is killed any more.
    pub fn release(mut self) {
        // Before the pipe is closed. It can only be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits beside the group until the other process has ended, and then kills the group.
pub fn run() {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    if let (Ok(_), Ok(leader)) = (read, text.parse::<i32>())
        && leader > 1
    {
        // The group has ended by itself, or does now.
        let _ = process::signal_group(leader, Signal::SIGKILL);
    }
}
