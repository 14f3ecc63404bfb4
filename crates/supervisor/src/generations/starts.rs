//! Starts of generations: those in progress, and what may be started again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

use bindonce_core::generation::GenerationId;

use crate::generations::start::{Prepared, Starting};
use bindonce_haproxy::cli::Version;

/// What the starts of a service need to know of each other.
pub(crate) struct Starts {
    /// Generations that are being started and have no process yet.
    in_progress: HashMap<GenerationId, Starting>,
    /// Configurations that may be started again.
    pub(crate) configurations: BTreeMap<GenerationId, Rc<Prepared>>,
    /// This process has read the configuration before.
    read_before: bool,
    /// The generation that may have nothing to listen on.
    pub(crate) may_be_empty: Option<GenerationId>,
    /// What the newest generation leaves of what served before it.
    pub(crate) kept: Kept,
    /// The `pidfile` that was written last.
    pub(crate) pid_file: Option<Rc<Path>>,
    /// Ghosts cannot be removed here: generations start without epoll.
    pub(crate) no_epoll: bool,
    /// The version of the binary, where no admin socket tells it.
    pub(crate) version: Option<Version>,
}

impl Starts {
    pub(crate) fn new(read_before: bool, no_epoll: bool, version: Option<Version>) -> Self {
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
    pub(crate) fn begin(&mut self, id: GenerationId, starting: Starting) {
        self.in_progress.insert(id, starting);
    }

    /// A start has led to a process, or to none, or is called off; none if it was called off before.
    pub(crate) fn end(&mut self, id: GenerationId) -> Option<Starting> {
        self.in_progress.remove(&id)
    }

    /// Whether any start is in progress.
    pub(crate) fn in_progress(&self) -> bool {
        !self.in_progress.is_empty()
    }

    /// The configuration is about to be read; gives whether it was before.
    pub(crate) fn read(&mut self) -> bool {
        std::mem::replace(&mut self.read_before, true)
    }
}

/// What the newest generation leaves of the listeners of the one that serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// The listeners that it does not have.
    pub(crate) left: Vec<String>,
    /// It has none of them.
    pub(crate) none: bool,
}
