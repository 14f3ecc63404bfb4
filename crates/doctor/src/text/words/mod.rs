//! Turns a finding into text: the summary, the cause, and the remedy.

mod generations;
mod host;
mod queues;
mod sentence;
mod split;

use crate::diagnosis::{Condition, Finding};
use crate::facts::Look;

pub(crate) use sentence::Words;

/// The text of a finding of this look.
pub(crate) fn words(look: &Look, finding: &Finding) -> Words {
    match &finding.condition {
        Condition::Split(split) => split::split(look, finding, split),
        Condition::Stale(stale) => split::stale(look, finding, stale),
        Condition::Unserved(unserved) => queues::unserved(look, finding, unserved),
        Condition::Absent(_) => queues::absent(look),
        Condition::Paused(paused) => queues::paused(look, finding, paused),
        Condition::Overflow(overflow) => queues::overflow(look, overflow),
        Condition::Saturated(saturated) => generations::saturated(look, finding, saturated),
        Condition::Ghost(ghost) => generations::ghost(look, finding, ghost),
        Condition::Lingering(lingering) => generations::lingering(look, finding, lingering),
        Condition::Answering(it) => generations::answering(finding, it),
        Condition::Fallback(it) => host::fallback(look, finding, it),
        Condition::Limit(limit) => host::limit(look, limit),
        Condition::NotExclusive(sockets) => host::not_exclusive(look, finding, sockets),
        Condition::Foreign(sockets) => host::foreign(look, finding, sockets),
        Condition::Broker(problem) => host::broker(problem),
    }
}
