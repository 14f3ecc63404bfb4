//! Generations that outlive their connection: a supervisor was killed before it could say that one serves.
//!
//! What such a generation has stays open, as if it had been confirmed, for as long as its process has it; only
//! that process accepts there, and the next supervisor finds it by what it claims. When the process ends before anybody has
//! claimed a listener of it, that listener ends as it would have ended with the connection.

use super::Registry;
use super::event::Action;
use super::ids::ConnectionId;
use super::release::CLOSED_AT_ONCE;

impl<H> Registry<H> {
    /// Keeps what a connection has tentatively, for the process that outlives it.
    pub(super) fn outlived(&mut self, connection: ConnectionId) {
        let leases = self.connections.get(&connection).into_iter();
        for id in leases.flat_map(|connection| connection.leases.keys()) {
            if let Some(held) = self.held.get_mut(id).filter(|held| held.tentative) {
                held.outlive(connection);
            }
        }
    }

    /// Ends what was kept for a process that is over, some at a time.
    pub(super) fn ended(&mut self, connection: ConnectionId, actions: &mut Vec<Action<H>>) {
        let kept = self.held.iter_mut().filter(|(_, held)| held.outlived == Some(connection));
        let mut ids = Vec::new();
        for (id, held) in kept.take(CLOSED_AT_ONCE) {
            held.doubt();
            ids.push(*id);
        }
        if ids.len() == CLOSED_AT_ONCE {
            actions.push(Action::Closing(connection));
        }
        for id in ids {
            self.close_unconfirmed(id, actions);
        }
    }
}
