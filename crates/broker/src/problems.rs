//! What the broker should hold and cannot: configured listeners that are not bound, records that
//! are not written, listeners that are not recovered, and sockets that no client reaches.

use std::cell::RefCell;
use std::os::fd::AsFd as _;

use bindonce_core::registry::{ListenerId, View};
use bindonce_sys::listen;
use bindonce_wire::result::Problem;
use tokio::task::yield_now;

use crate::broker::{Broker, NotBound};
use crate::listeners::{Held, Socket, away, hidden, unreachable};
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
            let views = broker.listeners.registry.list_after(after, IN_A_TURN);
            after = views.last().map(|view| view.id);
            for view in &views {
                let held = view.held;
                let problem = broken(&broker, view.id, held).or_else(|| unreachable(held));
                let problem = problem.or_else(|| hidden(held)).or_else(|| away(held));
                problems.extend(problem.or_else(|| narrowed(held)).or_else(|| left_behind(view)));
            }
            views.len()
        };
        if looked_at < IN_A_TURN {
            return problems;
        }
        yield_now().await;
    }
}

/// The problem that a listener does not listen and could not be made to listen again.
fn broken(broker: &Broker, id: ListenerId, held: &Held) -> Option<Problem> {
    if !broker.listeners.guard.broken.borrow().contains(&id) {
        return None;
    }
    let label = held.listener.label();
    let message = format!(
        "{label} does not listen: a process that shares it has ended that, and it cannot be made to listen again"
    );
    let hint = if held.listener.address.ip().is_some() {
        "find the process that has taken the port (`ss -ltnp`) and end it: the broker tries again all the time".to_owned()
    } else {
        format!("stop what uses it, close it with `bindonce release {label}`, and start again")
    };
    Some(Problem::new("listener-broken", label, message, Some(hint)))
}

/// The problem that only processes with the old socket of a listener use it, as after a reload that
/// bound it anew and failed.
fn left_behind(view: &View<'_, Socket>) -> Option<Problem> {
    if !view.has_only_old_users() {
        return None;
    }
    let (label, since) = (view.held.listener.label(), view.held.since);
    let message = format!(
        "{label} listens, but its clients wait: it was bound anew at {since}, and no process that uses it has the new \
         socket"
    );
    let hint = "reload what uses it: its next generation gets the new socket";
    Some(Problem::new("listener-unreachable", label, message, Some(hint.to_owned())))
}

/// The problem that a process that shares a listener has bound it to a device.
fn narrowed(held: &Held) -> Option<Problem> {
    let device = listen::device_of_holder(held.opened.handle.fd.as_fd(), &held.listener)?;
    let label = held.listener.label();
    let message = format!(
        "{label} listens, but only clients that come through {device} reach it: a process that shares it has bound it to \
         that device"
    );
    let hint = format!(
        "stop what uses it, close it with `bindonce release {label}`, and start again: a new socket is bound to no device"
    );
    Some(Problem::new("listener-unreachable", label, message, Some(hint)))
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
