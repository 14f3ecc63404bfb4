//! Texts for proxies at their limits, and for generations that should be gone.

use bindonce_core::text::count;
use bindonce_haproxy::counters::Unit;

use super::sentence::Words;
use super::split::and_more;
use crate::diagnosis::{Answering, Finding, Ghost, Lingering, Saturated};
use crate::facts::Look;
use crate::text::process::{process, processes};
use crate::text::units::{bytes, s, span};

pub(super) fn saturated(look: &Look, finding: &Finding, saturated: &Saturated) -> Words {
    let Saturated { sessions, limit, queued, proxy } = saturated;
    let (what, cause, remedy) = match proxy {
        None => (
            format!("haproxy is at its maxconn: {sessions} of {limit} connections"),
            "it accepts no more on any address until a connection ends; clients wait in the \
             kernel's queues",
            format!(
                "# raise `maxconn` in the global section above {limit} and reload; what keeps \
                 connections: echo 'show sess' | socat - UNIX:STATS_SOCKET"
            ),
        ),
        Some(name) if *queued == 0 => (
            format!("{name} is at its maxconn: {sessions} of {limit} sessions"),
            "clients of this frontend wait in the kernel's queue while other addresses work",
            format!("# raise `maxconn` of {name} above {limit} and reload"),
        ),
        Some(name) => {
            let requests = count(*queued, "request");
            let of = match limit {
                0 => String::new(),
                limit => format!(" ({sessions} of {limit} sessions)"),
            };
            (
                format!("{requests} wait{} for {name}{of}", s(*queued)),
                "the servers are at their limit, so clients of this backend hang while others work",
                format!("# look at {name}: slow, down, or with a `maxconn` that is too low"),
            )
        }
    };
    Words::new(format!("{what}, in {}", processes(look, &finding.pids)), cause, remedy)
}

pub(super) fn ghost(look: &Look, finding: &Finding, ghost: &Ghost) -> Words {
    let pid = finding.pids.first().copied().unwrap_or_default();
    let used = match ghost.processor_percent {
        Some(percent) => format!(" ({percent:.0} % of a core)"),
        None => String::new(),
    };
    let sockets = look.processes.get(&pid).map_or(0, |process| process.usage.sockets);
    let mut remedy = Vec::new();
    if let Some(service) = finding.service.as_ref().filter(|service| look.is_supervised(service)) {
        let done = "the supervisor removes ghosts of its generations";
        remedy.push(format!("bindonce reload --name {service}   # {done}"));
    }
    remedy.push(format!(
        "kill -TERM {pid}   # ends it, and the {} that it still has",
        count(sockets, "socket")
    ));
    Words {
        summary: format!(
            "{} still has the closed listener{} in its epoll set: each new connection wakes it{used}",
            process(look, pid),
            and_more(ghost.listeners)
        ),
        cause: "epoll watches the open socket, not the descriptor: closing the one while others \
                hold the other leaves the registration behind, and the process cannot remove it"
            .to_owned(),
        remedy,
    }
}

pub(super) fn lingering(look: &Look, finding: &Finding, lingering: &Lingering) -> Words {
    let Lingering { generations, age, connections, memory, kept_by } = lingering;
    let oldest = finding.pids.first().copied().unwrap_or_default();
    let cause = match kept_by {
        Some((ends, idle)) => format!(
            "the oldest is kept by the connection {ends}, on which nothing has moved for {}",
            span(*idle)
        ),
        None => {
            let sockets = look.processes.get(&oldest).map_or(0, |process| process.usage.sockets);
            format!("the oldest has {} open", count(sockets, "socket"))
        }
    };
    let end = format!("kill -TERM {oldest}   # ends the oldest and its connections");
    let remedy = match (look.generation(oldest), &finding.service) {
        (Some(_), Some(_)) => {
            vec!["bindonce status   # the sessions that keep each generation".to_owned(), end]
        }
        _ => {
            let limit =
                "# set `hard-stop-after` in the global section, so that none lingers without end";
            vec![end, limit.to_owned()]
        }
    };
    Words {
        summary: format!(
            "{} {}, the oldest, {}, for {}; together {} and {} of memory",
            count(*generations as u64, "replaced generation"),
            if *generations == 1 { "drains" } else { "drain" },
            process(look, oldest),
            span(*age),
            count(*connections, "connection"),
            bytes(*memory),
        ),
        cause,
        remedy,
    }
}

pub(super) fn answering(finding: &Finding, answering: &Answering) -> Words {
    let Answering { percent, unit, answered, all, seconds, connections } = answering;
    let service = finding.service.as_deref().unwrap_or_default();
    let (verb, noun, numbers, which, limit) = match unit {
        Unit::Requests => (
            "answered",
            "requests",
            format!("{answered} of {all}"),
            "clients keep using them (HTTP keep-alive, HTTP/2)",
            "# for future reloads, shorten `timeout http-keep-alive` and `close-spread-time`",
        ),
        Unit::Bytes => (
            "sent",
            "bytes",
            format!("{} of {}", bytes(*answered), bytes(*all)),
            "they carry no requests (TCP, tunnels)",
            "# for future reloads, shorten `timeout tunnel`, or `timeout client` and `timeout server` of TCP",
        ),
    };
    let mut remedy = vec![format!(
        "bindonce retire --name {service}   # ends the oldest of them and its connections"
    )];
    if *unit == Unit::Requests {
        let idle = "closes idle connections of older generations; requests in progress stay";
        remedy.insert(0, format!("bindonce reload --name {service} --drain-idle 5s   # {idle}"));
    }
    remedy.push(limit.to_owned());
    let draining = count(finding.pids.len() as u64, "draining generation");
    Words {
        summary: format!(
            "{draining} of \"{service}\" {verb} {percent:.0} % of the service's {noun} in the last {seconds} s ({numbers}), on {}",
            count(*connections, "connection"),
        ),
        cause: format!(
            "a connection stays with the generation that has accepted it, and with its configuration; {which}"
        ),
        remedy,
    }
}
