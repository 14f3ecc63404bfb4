//! Tests whether intercepted calls can be handled here, before the filter is installed: it cannot
//! be removed.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2};

use super::look;
use crate::error::Error;
use crate::process::Pidfd;

/// Takes a descriptor of a child of this process and reads its memory, as a supervisor does with
/// the program that it started: the profile of a container may refuse either, and so may Yama. Only
/// for a process with a single thread.
///
/// # Errors
/// [`Error::Call`] with the call that was refused.
pub(crate) fn on_a_child() -> Result<(), Error> {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::call("pipe", error))?;
    // SAFETY: this process has a single thread, so the child may call any function.
    match unsafe { fork() }.map_err(|error| Error::call("fork", error))? {
        ForkResult::Child => {
            drop(writing);
            // Until the parent closes its end, or ends.
            let _ = nix::unistd::read(&reading, &mut [0]);
            // SAFETY: this ends the process, and nothing in it is needed any more.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let tried =
                take(child.as_raw(), reading.as_raw_fd()).and_then(|()| read(child.as_raw()));
            drop(writing);
            let _ = waitpid(child, None);
            tried
        }
    }
}

fn take(child: i32, number: RawFd) -> Result<(), Error> {
    let taken = Pidfd::open(child).and_then(|child| child.take(number));
    taken.map(drop).map_err(|error| Error::call("pidfd_getfd", error))
}

/// Reads a static that parent and child have at the same address.
fn read(child: i32) -> Result<(), Error> {
    static THERE: u8 = 7;
    let at = (&raw const THERE).addr() as u64;
    let read = look::read(child, at, &mut [0])
        .and_then(|there| there.then_some(()).ok_or_else(|| io::ErrorKind::NotFound.into()));
    read.map_err(|error| Error::call("process_vm_readv", error))
}
