//! Generations that outlive their connection: a supervisor was killed before it could report that
//! one serves.
//!
//! The listeners of such a generation stay open, as if confirmed, for as long as its process has
//! them: only that process accepts there, and the next supervisor finds it by its claims. If the
//! process ends before a listener is claimed again, that listener ends as it would have ended with
//! the connection.

use super::Registry;
use super::event::Action;
use super::ids::{ConnectionId, Process};
use super::release::CLOSED_AT_ONCE;

impl<H> Registry<H> {
    /// Keeps the tentative listeners of a connection for the process that outlives it.
    pub(super) fn outlived(&mut self, connection: ConnectionId, process: Process) {
        let leases = self.connections.get(&connection).into_iter();
        for id in leases.flat_map(|connection| connection.leases.keys()) {
            if let Some(held) = self.held.get_mut(id).filter(|held| held.tentative) {
                held.outlive(process);
            }
        }
    }

    /// Ends the listeners that were kept for a process that is gone, some at a time.
    pub(super) fn ended(&mut self, process: Process, actions: &mut Vec<Action<H>>) {
        let kept = self.held.iter_mut().filter(|(_, held)| held.outlived == Some(process));
        let mut ids = Vec::new();
        for (id, held) in kept.take(CLOSED_AT_ONCE) {
            held.doubt();
            ids.push(*id);
        }
        if ids.len() == CLOSED_AT_ONCE {
            actions.push(Action::Closing(process));
        }
        for id in ids {
            self.close_unconfirmed(id, actions);
        }
    }
}
