//! State that outlives this process, so that the next broker serves the same sockets. The
//! [`Ledger`] records what is held. [`Missing`] is what the previous broker left and this one has
//! not recovered yet. Claims wait at the [`Gate`] until it is known which listeners come back.

pub(crate) mod file;
mod gate;
mod ledger;
mod missing;
pub(crate) mod restore;
pub(crate) mod store;

pub(crate) use gate::Gate;
pub(crate) use ledger::{Ledger, Mark, Recorded};
pub(crate) use missing::Missing;

use std::rc::Rc;

/// What one broker has recorded, and what it has not recovered yet.
#[derive(Debug, Default)]
pub(crate) struct Persistence {
    /// The record of what is held, for the next broker.
    pub(crate) ledger: Rc<Ledger>,
    /// Listeners of the previous broker that are not yet recovered.
    pub(crate) missing: Missing,
    /// Shut until it is known which missing listeners come back.
    pub(crate) gate: Rc<Gate>,
}
