//! Ties a process group to the life of this process: a helper process kills the group when this
//! process ends, for whatever reason. (A death signal, PR_SET_PDEATHSIG(2const), reaches a child,
//! but not the processes that the child has started.)

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::process;
use crate::signals::Signal;

/// The hidden subcommand that must call [`run`].
pub const SUBCOMMAND: &str = "__tether";

/// Kills a process group when this process ends, or when the value is dropped.
#[derive(Debug)]
pub struct Tether {
    child: Child,
    /// The helper sees the end of this process at the other end of the pipe.
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

    /// Tells the helper which group. An empty pipe takes the message at once.
    pub(crate) fn tie(&mut self, leader: u32) -> io::Result<()> {
        self.pipe.write_all(leader.to_string().as_bytes())
    }

    /// Call it when the group has ended: the helper kills nothing any more.
    pub fn release(mut self) {
        // Before the pipe is closed. A failure means that the helper is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The helper: waits until the other process has ended, then kills the group.
pub fn run() {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    if let (Ok(_), Ok(leader)) = (read, text.parse::<i32>())
        && leader > 1
    {
        // A failure means that the group has ended by itself.
        let _ = process::signal_group(leader, Signal::SIGKILL);
    }
}
