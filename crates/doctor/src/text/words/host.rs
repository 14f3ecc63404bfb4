//! Texts for limits of the host, sockets that others can join or that haproxy bound itself, and
//! problems of the broker.

use bindonce::Problem;
use bindonce_core::text::count;

use super::sentence::Words;
use crate::diagnosis::{Fallback, Finding, Foreign, Limit, NotExclusive, Resource};
use crate::facts::Look;
use crate::text::process::{process, processes};
use crate::text::units::join;

pub(super) fn limit(look: &Look, limit: &Limit) -> Words {
    let double = limit.limit * 2;
    let (what, cause, remedy) = match &limit.resource {
        Resource::Descriptors(pid) => (
            format!("descriptors of {}", process(look, *pid)),
            "without a free descriptor it accepts no connection and opens none to a server",
            format!(
                "prlimit --pid {pid} --nofile={double}   # and LimitNOFILE= or ulimit-n, so that it \
                 lasts"
            ),
        ),
        Resource::Files => (
            "open files of the system (fs.file-max)".to_owned(),
            "no process can open a socket or a file any more",
            format!("sysctl -w fs.file-max={double}"),
        ),
        Resource::Conntrack => (
            "entries of connection tracking (nf_conntrack_max)".to_owned(),
            "new connections are dropped before any socket sees them",
            format!("sysctl -w net.netfilter.nf_conntrack_max={double}"),
        ),
        Resource::Ports(destination) => (
            format!("local ports for connections to {destination}"),
            "without a free one no connection to this destination can be made (EADDRNOTAVAIL)",
            "sysctl -w net.ipv4.ip_local_port_range='1024 65535'   # or more source or destination \
             addresses, or reuse of connections"
                .to_owned(),
        ),
    };
    let Limit { used, limit, percent, .. } = limit;
    Words::new(format!("{used} of {limit}, {percent:.0} %, {what}"), cause, remedy)
}

pub(super) fn not_exclusive(look: &Look, finding: &Finding, sockets: &NotExclusive) -> Words {
    let more = match sockets.sockets {
        0 | 1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    let cause = match &sockets.setter {
        _ if look.listener(sockets.inode).is_none() => {
            "a second process that binds the address by mistake gets its share of \
                               the connections instead of an error"
                .to_owned()
        }
        Some(program) => format!(
            "{program} has set SO_REUSEPORT on it, and binds sockets of its own beside it: those are \
             not handed over, and connections that wait in them are reset when it stops"
        ),
        None => {
            "it was taken over from a process that bound it with SO_REUSEPORT, and clearing the \
                 option does not help"
                .to_owned()
        }
    };
    let remedy = match &sockets.setter {
        Some(program) => format!(
            "# take SO_REUSEPORT out of the configuration of {program} (nginx: `reuseport` of the \
             listen line): all its workers accept from one socket as well"
        ),
        None => {
            "# bindonce run -- haproxy -f FILE binds each address once and without SO_REUSEPORT"
                .to_owned()
        }
    };
    let summary = format!(
        "another process can bind beside this{more}: SO_REUSEPORT is set (held by {})",
        processes(look, &finding.pids)
    );
    Words::new(summary, cause, remedy)
}

pub(super) fn fallback(look: &Look, finding: &Finding, fallback: &Fallback) -> Words {
    Words::new(
        format!(
            "HTTP/3 connections stay on the listener, and a reload loses those that are open: {} may not bind port {}",
            processes(look, &finding.pids),
            fallback.port
        ),
        format!(
            "haproxy binds a socket for each connection, which below port {} needs CAP_NET_BIND_SERVICE, and it has \
             given up root",
            fallback.unprivileged_from
        ),
        "# `setcap cap_net_bind_service` in the global section (haproxy 2.9 and later), and a reload".to_owned(),
    )
}

pub(super) fn foreign(look: &Look, finding: &Finding, sockets: &Foreign) -> Words {
    let first: Vec<String> = sockets.first.iter().map(ToString::to_string).collect();
    Words::new(
        format!(
            "haproxy bound {} by itself ({} in all): {}",
            join(&first),
            count(sockets.sockets as u64, "socket"),
            processes(look, &finding.pids)
        ),
        "bindonce left the line alone (peers, quic, namespaces, log-forward ...), so during a reload \
         two generations share the address by SO_REUSEPORT",
        "bindonce render --explain FILE   # names the line and the reason".to_owned(),
    )
}

pub(super) fn broker(problem: &Problem) -> Words {
    let cause = match problem.kind.as_str() {
        "listener-hidden" => {
            "until it is shown, the socket is bound to a device that does not exist"
        }
        "listener-not-recovered" => {
            "the processes that have them are unaffected; this broker can neither hand them out nor keep them bound"
        }
        "listener-unreachable" => {
            "clients come by another path, device, namespace or address than the socket's, or its users have an older socket"
        }
        _ => "the broker keeps what it holds, and tries again",
    };
    Words {
        summary: problem.message.clone(),
        cause: cause.to_owned(),
        remedy: problem.hint.iter().map(|hint| format!("# {hint}")).collect(),
    }
}
