//! Starts of generations: those in progress, and what may be started again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

use bindonce_core::generation::GenerationId;

use super::start::{Prepared, Starting};
use super::version::Version;

/// What the starts of a service need to know of each other.
pub(super) struct Starts {
    /// Generations that are being started and have no process yet.
    in_progress: HashMap<GenerationId, Starting>,
    /// Configurations that may be started again.
    pub(super) configurations: BTreeMap<GenerationId, Rc<Prepared>>,
    /// This process has read the configuration before.
    read_before: bool,
    /// The generation that may have nothing to listen on.
    pub(super) may_be_empty: Option<GenerationId>,
    /// What the newest generation leaves of what served before it.
    pub(super) kept: Kept,
    /// The `pidfile` that was written last.
    pub(super) pid_file: Option<Rc<Path>>,
    /// Ghosts cannot be removed here: generations start without epoll.
    pub(super) no_epoll: bool,
    /// The version of the binary, where no admin socket tells it.
    pub(super) version: Option<Version>,
}

impl Starts {
    pub(super) fn new(read_before: bool, no_epoll: bool, version: Option<Version>) -> Self {
        Self {
            in_progress: HashMap::new(),
            configurations: BTreeMap::new(),
            read_before,
            may_be_empty: None,
            kept: Kept::default(),
            pid_file: None,
            no_epoll,
            version,
        }
    }

    /// A start has begun.
    pub(super) fn begin(&mut self, id: GenerationId, starting: Starting) {
        self.in_progress.insert(id, starting);
    }

    /// A start has led to a process, or to none, or is called off; none if it was called off before.
    pub(super) fn end(&mut self, id: GenerationId) -> Option<Starting> {
        self.in_progress.remove(&id)
    }

    /// Whether any start is in progress.
    pub(super) fn in_progress(&self) -> bool {
        !self.in_progress.is_empty()
    }

    /// The configuration is about to be read; gives whether it was before.
    pub(super) fn read(&mut self) -> bool {
        std::mem::replace(&mut self.read_before, true)
    }
}

/// What the newest generation leaves of the listeners of the one that serves.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// The listeners that it does not have.
    pub(super) left: Vec<String>,
    /// It has none of them.
    pub(super) none: bool,
}
