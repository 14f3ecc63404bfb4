//! Texts for connections that wait, are dropped, or are refused.

use bindonce_core::text::count;

use super::sentence::Words;
use crate::diagnosis::{Finding, Lessee, NotAccepting, Overflow, Paused, Unserved};
use crate::facts::Look;
use crate::text::process::{process, processes};
use crate::text::units::{pids, s, span};

pub(super) fn unserved(look: &Look, finding: &Finding, unserved: &Unserved) -> Words {
    let Unserved { queue, queue_limit, waiting, full_in, .. } = unserved;
    let summary = if *queue == 0 {
        "no process accepts: the next client will wait and get no answer".to_owned()
    } else {
        let oldest = waiting.map(|time| format!(", the oldest for {}", span(time)));
        let full = match full_in {
            _ if queue > queue_limit => {
                "; it is full, further clients get no answer at all".to_owned()
            }
            Some(time) => format!("; at this rate it is full in {}", span(*time)),
            None => String::new(),
        };
        format!(
            "no process accepts: {queue} of {} wait in the queue{}{full}",
            queue_limit + 1,
            oldest.unwrap_or_default()
        )
    };
    let (cause, remedy) = not_accepting(look, finding, unserved);
    Words::new(summary, cause, remedy)
}

/// The cause and the remedy of a socket from which nobody accepts.
fn not_accepting(look: &Look, finding: &Finding, unserved: &Unserved) -> (String, String) {
    let holders = processes(look, &unserved.holders);
    let number = unserved.holders.len() as u64;
    match &unserved.cause {
        NotAccepting::NoHolder => (
            "no process holds the socket any more; a container or another pid namespace may"
                .to_owned(),
            format!(
                "ss -ltnpe 'sport = :{}'",
                finding.address.as_ref().and_then(|address| address.port()).unwrap_or(0)
            ),
        ),
        NotAccepting::Stopped(stopped) => (
            format!("{} is stopped (SIGSTOP, or a debugger)", processes(look, stopped)),
            format!("kill -CONT {}", pids(stopped)),
        ),
        NotAccepting::Hung => {
            let first = finding.pids.first().copied().unwrap_or_default();
            (
                format!(
                    "{holders} wait{0} for connections and accept{0} none: {1}",
                    s(number),
                    if number == 1 { "the process hangs" } else { "the processes hang" }
                ),
                format!(
                    "cat /proc/{first}/stack /proc/{first}/wchan   # where it hangs; then restart it"
                ),
            )
        }
        NotAccepting::HaproxyDoesNotAsk(pid) => (
            "haproxy holds the socket and does not accept (no epoll, poll or accept() wait on it): \
             paused (SIGTTOU), told to stop, or at a limit (maxconn, a rate) that its stats socket \
             would show"
                .to_owned(),
            format!(
                "kill -TTIN {pid}   # resumes a paused haproxy; no effect if haproxy is not paused"
            ),
        ),
        NotAccepting::Elsewhere { service, generation } => (
            format!(
                "generation {generation} of {service} serves it; its process is in another \
                 container and takes no connections"
            ),
            format!(
                "bindonce doctor {service}   # in the container of its supervisor, which sees it"
            ),
        ),
        NotAccepting::NoService { name, leased_by } => {
            let kept =
                format!("the broker keeps the listener {name:?} and no service accepts on it");
            match leased_by {
                None => (
                    kept,
                    format!(
                        "bindonce run -- haproxy -f FILE   # start what serves it, or: bindonce \
                         release {name}"
                    ),
                ),
                Some(Lessee::Generation(service, id)) => (
                    format!("{kept}; {service} generation {id} still has it"),
                    match look.is_supervised(service) {
                        true => format!(
                            "bindonce retire --name {service} {id}   # ends it, if it drains; then: \
                             bindonce release {name}"
                        ),
                        false => format!(
                            "# end generation {id} of {service}; then: bindonce release {name}"
                        ),
                    },
                ),
                Some(Lessee::Elsewhere) => (
                    format!("{kept}; a process of another container has claimed it"),
                    format!(
                        "# end the process of the other container that has claimed it; then: bindonce \
                         release {name}"
                    ),
                ),
                Some(Lessee::Process(pid)) => (
                    format!("{kept}; pid {pid} has claimed it"),
                    format!("kill {pid}   # ends its claim; then: bindonce release {name}"),
                ),
            }
        }
        NotAccepting::BrokerNotAsked(socket) => {
            let option = socket.as_ref().map(|path| format!(" --socket {path}"));
            (
                format!(
                    "{holders} keep{} the listener and no service accepts on it; the broker was \
                     not asked",
                    s(number)
                ),
                format!(
                    "bindonce doctor{}   # asks the broker, which knows what should serve",
                    option.unwrap_or_default()
                ),
            )
        }
        NotAccepting::HoldersDoNotAsk => (
            format!(
                "{holders} hold{} the socket and do{} not accept: no epoll, poll or accept() wait on it",
                s(number),
                if number == 1 { "es" } else { "" },
            ),
            format!(
                "ps -o pid,ppid,stat,wchan:20,args -p {}   # restart it if it should serve",
                pids(&finding.pids).replace(' ', ",")
            ),
        ),
    }
}

pub(super) fn absent(look: &Look) -> Words {
    Words::new(
        "nothing listens here: clients are refused".to_owned(),
        format!(
            "no socket on this address, or on one that covers it, in {} network namespaces",
            look.networks.len()
        ),
        "bindonce list   # is it held under another address? else start what serves it".to_owned(),
    )
}

pub(super) fn paused(look: &Look, finding: &Finding, paused: &Paused) -> Words {
    let pids = pids(&finding.pids);
    Words::new(
        format!(
            "bound and not listening: clients are refused, and no other process can bind it (held by {})",
            processes(look, &finding.pids)
        ),
        "a process that shares the socket has disconnected or shut it down, as haproxy does on \
         SIGTTOU with sockets that came by -x, or listen() was never called",
        match look.listener(paused.inode) {
            Some(listener) => format!(
                "bindonce list   # the broker makes {} listen again by itself; restart it if it does \
                 not",
                listener.name
            ),
            None if look.processes_of(&finding.pids).iter().any(|one| one.is_haproxy()) => {
                format!("kill -TTIN {pids}   # a paused haproxy listens again")
            }
            None => format!(
                "ps -o pid,stat,args -p {}   # it must call listen(), or give the address up",
                pids.replace(' ', ",")
            ),
        },
    )
}

pub(super) fn overflow(look: &Look, overflow: &Overflow) -> Words {
    let Overflow { queue, queue_limit, somaxconn, drops, new_drops, taker, .. } = overflow;
    let (what, verb) = match overflow.datagrams {
        true => ("datagram", "reads"),
        false => ("connection attempt", "takes connections"),
    };
    let mut parts = Vec::new();
    if overflow.is_full() {
        parts.push(format!("the accept queue is full ({queue} of {})", queue_limit + 1));
    }
    if *drops > 0 {
        let dropped = count(*drops, what);
        let new = match new_drops {
            0 => String::new(),
            new => format!(", {new} of them while looking"),
        };
        parts.push(format!("{dropped} dropped since the socket exists{new}"));
    }
    let double = queue_limit * 2;
    let (limit, remedy) = if overflow.datagrams {
        let remedy = format!(
            "# give it a larger receive buffer: `tune.rcvbuf.frontend {double}` in haproxy's global section (at most \
             net.core.rmem_max), and a reload"
        );
        ("the receive buffer", remedy)
    } else if overflow.is_of_the_system() {
        let remedy = format!(
            "sysctl -w net.core.somaxconn={double}   # then a backlog of {double} where it is bound, \
             and a restart"
        );
        ("net.core.somaxconn", remedy)
    } else {
        let backlog = double.max(*somaxconn);
        let remedy = format!(
            "# bind with a backlog of {backlog} (haproxy: `backlog {backlog}` in the frontend; \
             bindonce: ,backlog={backlog}); somaxconn allows {somaxconn}"
        );
        ("the backlog given to listen()", remedy)
    };
    let cause = match taker {
        Some(pid) => {
            format!("{} {verb} more slowly than they come", process(look, *pid))
        }
        None => format!("no process {verb} as fast as they come"),
    };
    Words::new(format!("{}; {limit} is the limit", parts.join(", ")), cause, remedy)
}
