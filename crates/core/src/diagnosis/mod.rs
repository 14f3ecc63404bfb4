//! What is wrong with the listeners of a host, and what to do about it.
//!
//! [`diagnose`] is a function of [`Facts`]: what sock_diag, /proc, the broker and haproxy's
//! stats sockets said, as plain values. It gives findings, each with its numbers, its
//! cause, and the next command. A healthy host gives none but notes. Conditions that are
//! normal for a moment (a reload, a handover, a burst) count only when two looks show
//! them; [`look_again`] says when the second is due.

mod accepting;
mod broker;
mod facts;
mod finding;
mod generations;
mod limits;
mod ownership;
mod queues;
mod split;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

pub use accepting::Accepting;
pub use facts::{
    Connections, Facts, Gauge, Generation, Haproxy, Held, Life, Look, Mode, Network, Problem,
    Process, Proxy, Socket, User, Watch,
};
pub use finding::{Finding, Kind, Severity, Value};

/// The time between two looks: longer than a handover pauses, short enough to wait for.
const INTERVAL: Duration = Duration::from_millis(150);

/// A process younger than this may be in the middle of its start: a reload is not over yet.
const YOUNG: Duration = Duration::from_secs(2);

/// Everything that is wrong or worth knowing, the worst first.
#[must_use]
pub fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut found = examine(&facts.now, facts.earlier.as_ref());
    if let Some(earlier) = &facts.earlier {
        let before = examine(earlier, None);
        found.retain(|finding| {
            !finding.kind.may_be_momentary() || before.iter().any(|one| one.is_same_as(finding))
        });
    }
    found.sort_by(|one, other| {
        (one.severity, one.kind, &one.address).cmp(&(other.severity, other.kind, &other.address))
    });
    found
}

/// How long after a look the next one is due, to tell what lasts from what passes;
/// none if nothing in it needs that.
#[must_use]
pub fn look_again(look: &Look) -> Option<Duration> {
    let found = examine(look, None);
    let momentary: Vec<_> = found.iter().filter(|one| one.kind.may_be_momentary()).collect();
    if momentary.iter().all(|one| one.severity == Severity::Note) {
        return None;
    }
    // Where a process has just started on the same address, it is a reload that is not over yet.
    let youngest = momentary
        .iter()
        .filter(|one| matches!(one.kind, Kind::Split | Kind::Stale | Kind::Unserved))
        .flat_map(|one| look.holders_of(one).map(|process| look.age(process)))
        .min();
    match youngest.filter(|age| *age < YOUNG) {
        Some(age) => Some((YOUNG - age).max(INTERVAL)),
        None => Some(INTERVAL),
    }
}

/// Whom to see again before a look counts: those who hold a listener from which nobody was seen to
/// accept. To look at every process takes a while, and a handover meanwhile is missed if the older
/// generation is looked at after it and the newer one before.
#[must_use]
pub fn see_again(look: &Look) -> BTreeSet<i32> {
    let mut found = Vec::new();
    queues::unserved(look, None, &mut found);
    found.iter().flat_map(|finding| look.holders_of(finding)).map(|process| process.pid).collect()
}

/// The findings of one look; the one before gives rates.
fn examine(look: &Look, before: Option<&Look>) -> Vec<Finding> {
    let mut found = Vec::new();
    split::split(look, &mut found);
    split::stale(look, &mut found);
    queues::unserved(look, before, &mut found);
    queues::paused(look, &mut found);
    queues::overflow(look, before, &mut found);
    generations::saturated(look, &mut found);
    generations::ghosts(look, before, &mut found);
    generations::lingering(look, &mut found);
    limits::limits(look, &mut found);
    ownership::not_exclusive(look, &mut found);
    ownership::foreign(look, &mut found);
    broker::problems(look, &mut found);
    merged(found)
}

/// One process can be the cause on hundreds of addresses: that is one finding.
fn merged(found: Vec<Finding>) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::new();
    for finding in found {
        if !kept.iter_mut().any(|known| known.merge(&finding)) {
            kept.push(finding);
        }
    }
    kept
}

impl Look {
    /// The processes that hold a socket on an address of a finding.
    fn holders_of<'a>(&'a self, finding: &'a Finding) -> impl Iterator<Item = &'a Process> {
        let sockets = self.sockets.iter().filter(|socket| finding.concerns(&socket.address));
        sockets.flat_map(|socket| self.holders(socket.inode))
    }

    /// How long a process has run.
    pub(crate) fn age(&self, process: &Process) -> Duration {
        Duration::from_millis(self.at.0.saturating_sub(process.started.0))
    }

    /// The network namespace of a socket.
    pub(crate) fn network(&self, socket: &Socket) -> Option<&Network> {
        self.networks.iter().find(|network| network.id == socket.network)
    }

    /// The name of a socket's network namespace, if it is not the observer's own.
    pub fn network_name(&self, socket: &Socket) -> Option<String> {
        self.network(socket)?.name.clone()
    }

    /// The name of a process's network namespace, if it is not the observer's own.
    pub(crate) fn network_of(&self, process: &Process) -> Option<String> {
        let id = process.network?;
        self.networks.iter().find(|network| network.id == id)?.name.clone()
    }

    /// What the broker says of the generation that this process is.
    pub(crate) fn generation(&self, pid: i32) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.pid == pid)
    }

    /// The generation that serves a listener by the broker's word and whose process is none that is seen: it runs
    /// in another container, and what it does cannot be told from here.
    pub(crate) fn serving_elsewhere(&self, socket: &Socket) -> Option<&Generation> {
        let held = self.held.iter().find(|held| held.inode == socket.inode)?;
        let seen = |pid: i32| {
            self.processes.get(&pid).is_some_and(Process::is_haproxy)
                || self.holders(socket.inode).any(|one| one.pid == pid || one.parent == pid)
        };
        self.generations.iter().find(|one| {
            one.life == Life::Serving && one.listeners.contains(&held.name) && !seen(one.pid)
        })
    }

    /// Whether a generation of the broker's is starting, or has just changed: then a handover is under way, in which
    /// for some milliseconds nobody accepts. One that starts for very long is stuck, and no excuse.
    pub(crate) fn handover_under_way(&self, pids: &[i32]) -> bool {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut services = pids.iter().filter_map(|pid| self.generation(*pid));
        services.any(|one| {
            let changing = self.changing.contains(&one.service);
            changing
                || self.generations.iter().any(|other| {
                    other.service == one.service
                        && other.life == Life::Starting
                        && other.since.is_some_and(|since| {
                            Duration::from_millis(self.at.0.saturating_sub(since.0)) < PATIENCE
                        })
                })
        })
    }

    /// The process in an earlier look, if it is the same one.
    pub(crate) fn same<'a>(&'a self, process: &Process) -> Option<&'a Process> {
        self.processes.get(&process.pid).filter(|old| old.started == process.started)
    }

    /// The part of one core that a process used between an earlier look and this one, in percent.
    pub(crate) fn processor(&self, before: Option<&Look>, process: &Process) -> Option<f64> {
        let before = before?;
        let old = before.same(process)?;
        let wall = self.at.0.checked_sub(before.at.0).filter(|wall| *wall > 0)?;
        let used = process.used.saturating_sub(old.used);
        Some(used.as_secs_f64() * 100_000.0 / wall as f64)
    }
}
