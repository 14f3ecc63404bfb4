//! Requests to the loop from the task that answers intercepted calls.

use std::rc::Rc;

use bindonce_core::intercept::Failure;
use bindonce_core::listener::Listener;
use bindonce_sys::intercept::Call;
use tokio::sync::oneshot;

use crate::generations::listeners::HeldListener;

/// A listener that a program wants to bind.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) listener: Listener,
    /// The line of haproxy's configuration that names the address and was not claimed for the
    /// start.
    pub(crate) line: Option<String>,
    /// The program bound the address itself, and the broker got that socket. The listener is
    /// released when no generation has it.
    pub(crate) moved: bool,
    /// The listener, or how the call fails and why.
    pub(crate) reply: oneshot::Sender<Result<Given, (Failure, String)>>,
}

/// The listener that the program gets.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) held: Rc<HeldListener>,
    /// Whether no other generation has it: what the program has set on its own socket then applies.
    pub(crate) alone: bool,
}

/// A listen(2) of a program on a socket that it was given. The call continues when this is dropped.
#[derive(Debug)]
pub(crate) struct Listens {
    pub(crate) inode: u64,
    call: Option<Call>,
}

impl Listens {
    pub(super) fn at(inode: u64, call: Option<Call>) -> Self {
        Self { inode, call }
    }

    /// Stops the calling thread before its call returns.
    pub(super) fn stop(&self) {
        if let Some(call) = &self.call {
            call.stop_thread();
        }
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.go_on();
        }
    }
}
