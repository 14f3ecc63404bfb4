//! The kinds of findings and their severities. Their names are stable: scripts and
//! docs/findings-*.md rely on them.

use std::fmt;

use serde::Serialize;

/// The kinds of findings, from the worst to the mildest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Several sockets on one address, held by different instances.
    Split,
    /// A replaced generation accepts on a socket that it shares with its successor.
    Stale,
    /// An address on which nobody accepts.
    Unserved,
    /// A socket that is bound and does not listen.
    Paused,
    /// A full accept queue, or connections dropped for lack of room.
    Overflow,
    /// A proxy at a limit of its own.
    Saturated,
    /// A process woken for a listener that it has closed.
    Ghost,
    /// A resource that is nearly used up.
    Limit,
    /// Replaced generations that do not end.
    Lingering,
    /// Replaced generations that answer more than a small share of their service's traffic.
    Answering,
    /// QUIC connections that have no socket of their own.
    Fallback,
    /// A socket beside which another process could bind.
    NotExclusive,
    /// A socket that haproxy bound itself under a supervisor.
    Foreign,
    /// Something that the broker should do and cannot.
    Broker,
}

impl Kind {
    /// Every kind, in order, with its name.
    pub(crate) const ALL: [(Self, &str); 14] = [
        (Self::Split, "split"),
        (Self::Stale, "stale"),
        (Self::Unserved, "unserved"),
        (Self::Paused, "paused"),
        (Self::Overflow, "overflow"),
        (Self::Saturated, "saturated"),
        (Self::Ghost, "ghost"),
        (Self::Limit, "limit"),
        (Self::Lingering, "lingering"),
        (Self::Answering, "answering"),
        (Self::Fallback, "fallback"),
        (Self::NotExclusive, "not-exclusive"),
        (Self::Foreign, "foreign"),
        (Self::Broker, "broker"),
    ];

    /// Whether the condition can be normal for a moment, so that it counts only if it lasts.
    pub(crate) fn may_be_momentary(self) -> bool {
        !matches!(
            self,
            Self::Limit
                | Self::Answering
                | Self::Fallback
                | Self::NotExclusive
                | Self::Foreign
                | Self::Broker
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// How bad a finding is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Clients fail, hang, or get stale answers now.
    Error,
    /// Clients will fail soon, or resources are wasted.
    Warning,
    /// Worth knowing; nothing is wrong, and a host with only notes is healthy.
    Note,
}
