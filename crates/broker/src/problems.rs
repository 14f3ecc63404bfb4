//! What the broker should hold and cannot: configured listeners that are not bound, records that
//! are not written, listeners that are not recovered, and sockets that no client reaches.

use std::cell::RefCell;

use bindonce_wire::result::Problem;
use tokio::task::yield_now;

use crate::broker::{Broker, NotBound};
use crate::listeners::{away, hidden, unreachable};
use crate::persistence::Persistence;

/// Listeners examined in one turn; a UNIX path takes about 5 us.
const IN_A_TURN: usize = 64;

/// Number of unrecovered listeners that are named.
const NAMED: usize = 5;

/// All problems; many listeners take many turns.
pub(crate) async fn all(broker: &RefCell<Broker>) -> Vec<Problem> {
    let mut problems = Vec::new();
    {
        let broker = broker.borrow();
        problems.extend(broker.not_bound.iter().map(|NotBound { wanted, message, hint }| {
            let message = format!("{wanted} of the configuration is not bound: {message}");
            Problem::new("listener-not-bound", wanted.to_string(), message, hint.clone())
        }));
        problems.extend(broker.persistence.ledger.problem());
        problems.extend(not_recovered(&broker.persistence));
    }
    let mut after = None;
    loop {
        let looked_at = {
            let broker = broker.borrow();
            let held = broker.listeners.registry.after(after).take(IN_A_TURN);
            let look = |(id, held)| {
                after = Some(id);
                problems.extend(unreachable(held).or_else(|| hidden(held)).or_else(|| away(held)));
            };
            held.map(look).count()
        };
        if looked_at < IN_A_TURN {
            return problems;
        }
        yield_now().await;
    }
}

/// Listeners of the previous broker that this one does not hold.
fn not_recovered(persistence: &Persistence) -> Option<Problem> {
    // A tentative one ended with the previous broker.
    let missing = persistence.missing.entries.iter().filter(|entry| !entry.tentative);
    let count = missing.clone().count();
    let mut names: Vec<&str> = missing.take(NAMED).map(|entry| entry.listen.as_str()).collect();
    let first = (*names.first()?).to_owned();
    if count > NAMED {
        names.push("...");
    }
    let (state, hint) = if persistence.gate.is_shut() {
        ("not yet recovered", "this takes some seconds at most: ask again")
    } else {
        (
            "not recovered",
            "reload or end the processes that have them: then they are given back, or bound anew",
        )
    };
    let names = names.join(" ");
    let message = format!("listeners of the previous broker that are {state}: {count} ({names})");
    Some(Problem::new("listener-not-recovered", first, message, Some(hint.into())))
}
