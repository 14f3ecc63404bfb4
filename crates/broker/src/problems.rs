//! What the broker should hold and cannot: listeners of the configuration that are not bound, records that are not written, and
//! sockets that no client reaches.

use std::cell::RefCell;

use bindonce_wire::result::Problem;
use tokio::task::yield_now;

use crate::broker::{Broker, NotBound};
use crate::listeners::{hidden, unreachable};

/// So many listeners are looked at in one turn: a UNIX path takes some 5 us.
const IN_A_TURN: usize = 64;

/// All of it, many listeners in many turns.
pub(crate) async fn all(broker: &RefCell<Broker>) -> Vec<Problem> {
    let mut problems = Vec::new();
    {
        let broker = broker.borrow();
        problems.extend(broker.not_bound.iter().map(|NotBound { wanted, message, hint }| {
            let message = format!("{wanted} of the configuration is not bound: {message}");
            Problem::new("listener-not-bound", wanted.to_string(), message, hint.clone())
        }));
        problems.extend(broker.persistence.ledger.problem());
    }
    let mut after = None;
    loop {
        let looked_at = {
            let broker = broker.borrow();
            let held = broker.listeners.registry.after(after).take(IN_A_TURN);
            let look = |(id, held)| {
                after = Some(id);
                problems.extend(unreachable(held).or_else(|| hidden(held)));
            };
            held.map(look).count()
        };
        if looked_at < IN_A_TURN {
            return problems;
        }
        yield_now().await;
    }
}
