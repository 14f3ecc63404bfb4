//! Decides what is wrong with the listeners of a host: a function of the facts, without a system
//! call and without text for people.
//!
//! [`examine`] finds the conditions of one look. Conditions that are normal for a moment (a reload,
//! a handover, a burst) count only when two looks show them: [`look_again`] says when the second is
//! due, and [`examine`] compares both. [`settle`] adds the answers to [`questions`], merges
//! findings with one cause, and sorts. A healthy host gives nothing but notes. Each look is
//! examined once.

mod broker;
mod condition;
mod finding;
mod generations;
mod kind;
mod limits;
mod ownership;
mod queues;
mod split;
mod stale;
mod target;
mod unserved;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::facts::{Details, Look, Questions};

pub(crate) use condition::{
    Answering, Condition, Fallback, Foreign, Ghost, Lessee, Limit, Lingering, NotAccepting,
    NotExclusive, Overflow, Paused, Resource, Saturated, Split, Stale, Unserved,
};
pub(crate) use finding::Finding;
pub(crate) use kind::{Kind, Severity};
pub(crate) use target::Target;

/// The time from the beginning of a look to that of the next: longer than the pause of a handover,
/// short enough to wait for.
const INTERVAL: Duration = Duration::from_millis(150);

/// A younger process may still be starting: a reload is in progress.
const YOUNG: Duration = Duration::from_secs(2);

/// The findings of a look; with an earlier look and its findings, only those that lasted since.
/// [`settle`] makes a report of them.
#[must_use]
pub(crate) fn examine(look: &Look, earlier: Option<(&Look, &[Finding])>) -> Vec<Finding> {
    let (before, known) = earlier.unzip();
    let mut found = Vec::new();
    split::find(look, &mut found);
    stale::find(look, &mut found);
    unserved::find(look, before, &mut found);
    queues::paused(look, &mut found);
    queues::overflow(look, before, &mut found);
    generations::saturated(look, &mut found);
    generations::ghosts(look, before, &mut found);
    generations::lingering(look, &mut found);
    generations::answering(look, &mut found);
    ownership::fallback(look, &mut found);
    limits::find(look, &mut found);
    ownership::not_exclusive(look, &mut found);
    ownership::foreign(look, &mut found);
    broker::problems(look, &mut found);
    if let Some(known) = known {
        found.retain(|finding| {
            !finding.kind().may_be_momentary() || known.iter().any(|one| one.is_same_as(finding))
        });
    }
    found
}

/// When the next look is due, counted from the beginning of this one, to tell lasting conditions
/// from momentary ones. None if no finding needs it.
#[must_use]
pub(crate) fn look_again(look: &Look, found: &[Finding]) -> Option<Duration> {
    let momentary: Vec<_> = found.iter().filter(|one| one.kind().may_be_momentary()).collect();
    // Only a second look shows whether past drops continue.
    let drops = |one: &Finding| one.kind() == Kind::Overflow;
    if momentary.iter().all(|one| one.severity == Severity::Note && !drops(one)) {
        return None;
    }
    // A process that has just started on the same address means a reload in progress.
    let reloads = momentary
        .iter()
        .filter(|one| matches!(one.kind(), Kind::Split | Kind::Stale | Kind::Unserved));
    let youngest = reloads
        .flat_map(|one| look.sockets.iter().filter(|socket| one.concerns(&socket.address)))
        .flat_map(|socket| look.holders(socket.inode))
        .map(|process| look.age(process))
        .min();
    Some(youngest.map_or(INTERVAL, |age| YOUNG.saturating_sub(age).max(INTERVAL)))
}

/// The questions to ask before [`settle`].
#[must_use]
pub(crate) fn questions(found: &[Finding]) -> Questions {
    let mut questions = Questions::default();
    for finding in found {
        match &finding.condition {
            Condition::Unserved(unserved) if unserved.queue > 0 => {
                questions.queues.insert(unserved.inode);
            }
            Condition::Lingering(_) => questions.connections.extend(&finding.pids),
            _ => {}
        }
    }
    questions
}

/// The findings of a report, the worst first: with the answers to the questions, and each condition
/// once.
#[must_use]
pub(crate) fn settle(look: &Look, mut found: Vec<Finding>, details: &Details) -> Vec<Finding> {
    found.retain_mut(|finding| {
        let Finding { condition, pids, .. } = finding;
        match condition {
            Condition::Unserved(unserved) => return unserved::lasts(unserved, details),
            Condition::Lingering(lingering) => generations::count(look, pids, lingering, details),
            _ => {}
        }
        true
    });
    // If nobody accepts from a queue, its overflow is not a finding of its own.
    let unserved = found.iter().filter(|one| one.kind() == Kind::Unserved);
    let unserved: BTreeSet<_> = unserved.filter_map(|one| one.address.clone()).collect();
    found.retain(|one| {
        one.kind() != Kind::Overflow || !one.addresses().any(|address| unserved.contains(address))
    });
    // One process can be the cause on hundreds of addresses: that counts as one finding.
    let mut kept: Vec<Finding> = Vec::new();
    for finding in found {
        if !kept.iter_mut().any(|known| known.merge(&finding)) {
            kept.push(finding);
        }
    }
    kept.sort_by(|one, other| {
        let (kind, others) = (one.kind(), other.kind());
        (one.severity, kind, &one.address).cmp(&(other.severity, others, &other.address))
    });
    kept
}
