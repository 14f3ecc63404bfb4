//! What outlives this process, so that the next broker goes on with the same sockets: what is held is
//! written down in the [`Ledger`], and what the broker before has left and is not held again is
//! [`Missing`]. Until it is known what comes back, claims wait at the [`Gate`].

pub(crate) mod file;
pub(crate) mod found;
mod gate;
mod ledger;
mod missing;
pub(crate) mod store;

pub(crate) use gate::Gate;
pub(crate) use ledger::{Ledger, Mark, Recorded};
pub(crate) use missing::Missing;

use std::rc::Rc;

/// What one broker has written down, and what it has not recovered yet.
#[derive(Debug, Default)]
pub(crate) struct Persistence {
    /// What is held, for the broker after this one.
    pub(crate) ledger: Rc<Ledger>,
    /// What the broker before held.
    pub(crate) missing: Missing,
    /// Shut until it is known what of it comes back.
    pub(crate) gate: Rc<Gate>,
}
