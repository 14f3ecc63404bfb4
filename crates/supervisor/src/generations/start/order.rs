//! What a start depends on, and what it comes to: the process that is to be started.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::generation::{Configuration, GenerationId};
use bindonce_haproxy::config::Messages;
use bindonce_sys::spawn::Launch;

use super::moved::Serving;
use crate::generations::listeners::{HeldListener, Known};
use crate::generations::notifications::Notifications;

/// One start, and what it depends on.
pub(crate) struct Plan {
    pub(crate) id: GenerationId,
    pub(crate) configuration: Configuration,
    /// The configuration was read by this process before.
    pub(crate) read_before: bool,
    /// The listeners that serve now.
    pub(crate) served: Vec<String>,
    /// It may have nothing to listen on.
    pub(crate) may_be_empty: bool,
    /// Devices of listeners that generations have.
    pub(crate) devices: BTreeSet<String>,
    /// The descriptors of listeners that other generations have, so that none is opened twice.
    pub(crate) known: Known,
    /// The generation that serves. Where there is none, this start must work where a reload would rather fail.
    pub(crate) serving: Option<Serving>,
    /// An older generation is alive, so haproxy is given `-sf`.
    pub(crate) older_alive: bool,
    /// haproxy must not use epoll, where its ghosts could not be removed: a condition can depend on it.
    pub(crate) no_epoll: bool,
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
