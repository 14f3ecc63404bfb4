//! What outlives this process, so that the next broker serves the same sockets: the [`Ledger`] records what is
//! held, and what the previous broker has left and is not yet recovered is
//! [`Missing`]. Until it is known what comes back, claims wait at the [`Gate`].

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

/// What one broker has written down, and what it has not recovered yet.
#[derive(Debug, Default)]
pub(crate) struct Persistence {
    /// The record of what is held, for the next broker.
    pub(crate) ledger: Rc<Ledger>,
    /// Listeners of the previous broker that are not yet recovered.
    pub(crate) missing: Missing,
    /// Shut until it is known what of it comes back.
    pub(crate) gate: Rc<Gate>,
}
