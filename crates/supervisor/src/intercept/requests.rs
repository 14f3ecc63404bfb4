//! What the task that answers the calls of a program asks of the loop.

use std::rc::Rc;

use bindonce_core::intercept::Failure;
use bindonce_core::listener::Listener;
use bindonce_sys::intercept::Call;
use tokio::sync::oneshot;

use crate::generations::listeners::HeldListener;

/// What a program wants to bind.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) listener: Listener,
    /// The line of haproxy's configuration that names it and was read otherwise.
    pub(crate) line: Option<String>,
    /// It has bound it by itself, and the broker was given that socket: it goes again when no generation has it.
    pub(crate) moved: bool,
    /// Its listener, or how the call fails, and why.
    pub(crate) reply: oneshot::Sender<Result<Given, (Failure, String)>>,
}

/// What it gets.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) held: Rc<HeldListener>,
    /// No other generation has it: what the program has set on its own socket holds for this one.
    pub(crate) alone: bool,
}

/// A program that listens on a socket that it was given. Its call goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Listens {
    pub(crate) inode: u64,
    call: Option<Call>,
}

impl Listens {
    pub(super) fn at(inode: u64, call: Option<Call>) -> Self {
        Self { inode, call }
    }

    /// The thread that listens stops before its call returns.
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
