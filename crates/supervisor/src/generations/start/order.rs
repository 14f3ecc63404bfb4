//! What a start depends on, and what results from it: the process to start.

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
    /// Whether this process has read the configuration before.
    pub(crate) read_before: bool,
    /// The listeners that serve now.
    pub(crate) served: Vec<String>,
    /// Whether the generation may have no listeners.
    pub(crate) may_be_empty: bool,
    /// Devices of listeners that generations have.
    pub(crate) devices: BTreeSet<String>,
    /// The descriptors of listeners that other generations have: none is opened twice.
    pub(crate) known: Known,
    /// The serving generation. If there is none, this start must work where a reload would rather
    /// fail.
    pub(crate) serving: Option<Serving>,
    /// Whether an older generation is alive, so haproxy is given `-sf`.
    pub(crate) older_alive: bool,
    /// Whether haproxy must not use epoll, because its ghosts could not be removed. A condition can
    /// depend on this.
    pub(crate) no_epoll: bool,
}

/// The process to start, and what belongs to it.
pub(super) struct Order {
    pub(super) launch: Launch,
    pub(super) messages: Messages,
    pub(super) admin: Option<PathBuf>,
    pub(super) notifications: Option<Notifications>,
}

/// The listeners' descriptors, as they are passed to the process.
pub(super) fn passed(
    listeners: &[Rc<HeldListener>],
) -> impl Iterator<Item = (String, Arc<OwnedFd>)> {
    listeners.iter().map(|held| (String::new(), Arc::clone(&held.fd)))
}
