//! What a start depends on, and what it comes to: the process that is to be started.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::Messages;
use bindonce_sys::spawn::Launch;

use super::moved::Serving;
use crate::generations::listeners::{HeldListener, Known};
use crate::generations::notifications::Notifications;
use crate::passed::Passed;

/// What a start depends on besides its configuration.
#[derive(Debug)]
pub(crate) struct StartOptions {
    /// An older generation is alive, so haproxy is given `-sf`.
    pub(crate) older_alive: bool,
    /// haproxy must not use epoll, where its ghosts could not be removed.
    pub(crate) no_epoll: bool,
    /// The descriptors of listeners that other generations have, so that none is opened twice.
    pub(crate) known: Known,
    /// What this service has inherited.
    pub(crate) passed: Rc<Passed>,
    /// The generation that serves, where there is one.
    pub(crate) serving: Option<Serving>,
    /// No generation serves: this start must work where a reload would rather fail.
    pub(crate) alone: bool,
}

/// How a configuration is read.
#[derive(Debug, Clone)]
pub(crate) struct ReadOptions {
    /// It was read by this process before.
    pub(crate) again: bool,
    /// As in [`StartOptions`].
    pub(crate) alone: bool,
    /// As in [`StartOptions`]: a condition can depend on it.
    pub(crate) no_epoll: bool,
    /// Devices of listeners that generations have.
    pub(crate) devices: BTreeSet<String>,
    /// Devices whose addresses the haproxy that serves has bound by itself.
    pub(crate) haproxys: BTreeSet<String>,
    /// The version of the haproxy that serves.
    pub(crate) version: Option<Version>,
}

/// What is to be started, and what belongs to it.
pub(super) struct Order {
    pub(super) launch: Launch,
    pub(super) messages: Messages,
    pub(super) admin: Option<PathBuf>,
    pub(super) notifications: Option<Notifications>,
}

/// The listeners' descriptors, to be passed on.
pub(super) fn passed(
    listeners: &[Rc<HeldListener>],
) -> impl Iterator<Item = (String, Arc<OwnedFd>)> {
    listeners.iter().map(|held| (String::new(), Arc::clone(&held.fd)))
}
