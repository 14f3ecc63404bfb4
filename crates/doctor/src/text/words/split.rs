//! Texts for two configurations that serve at once.

use bindonce_core::text::count;

use super::sentence::Words;
use crate::diagnosis::{Finding, Split, Stale};
use crate::facts::Look;
use crate::text::process::{process, processes};
use crate::text::units::{pids, s};

pub(super) fn split(look: &Look, finding: &Finding, split: &Split) -> Words {
    if split.takes_all {
        return takes_all(look, finding, split);
    }
    let Split { sockets, stale_sockets, stale_percent, newest_pid, silent, .. } = split;
    let older = processes(look, &finding.pids);
    let program = |pid: &i32| look.processes.get(pid).map(|process| &process.program);
    let newest = if finding.pids.iter().all(|pid| program(pid) == program(newest_pid)) {
        format!("older than pid {newest_pid} with the newest configuration")
    } else {
        format!("not {}", process(look, *newest_pid))
    };
    let silent = if silent.is_empty() {
        String::new()
    } else {
        format!("; pid {} does not accept, so what goes there hangs", pids(silent))
    };
    Words {
        summary: format!(
            "{stale_sockets} of {sockets} connections, {stale_percent:.0} %, go to {older}: {newest}"
        ),
        cause: format!(
            "each process bound the address for itself, with SO_REUSEPORT: the kernel spreads new \
             connections over all sockets by a hash of addresses and ports, regardless of their \
             configuration{silent}"
        ),
        remedy: end(look, &finding.pids),
    }
}

fn takes_all(look: &Look, finding: &Finding, split: &Split) -> Words {
    Words {
        summary: format!(
            "all new connections go to {}, and none to {}",
            processes(look, &finding.pids),
            process(look, split.newest_pid)
        ),
        cause: "it bound a UDP socket beside the other with SO_REUSEADDR, as QUIC requires: packets from a new client go \
                to the socket on the more specific address, otherwise to the one that was bound last"
            .to_owned(),
        remedy: vec![format!(
            "kill -TERM {}   # if it should not serve this address; else give it another one",
            pids(&finding.pids)
        )],
    }
}

pub(super) fn stale(look: &Look, finding: &Finding, stale: &Stale) -> Words {
    let beside = match stale.beside {
        Some(newest) => format!("beside {}", process(look, newest)),
        None => "and no other process does".to_owned(),
    };
    let mut remedy = end(look, &finding.pids);
    if let Some(service) = finding.service.as_ref().filter(|service| look.is_supervised(service)) {
        let proof = "proves that older generations have stopped, or ends them";
        remedy.insert(0, format!("bindonce reload --name {service}   # {proof}"));
    }
    Words {
        summary: format!(
            "{} still accept{} here{}, {beside}",
            processes(look, &finding.pids),
            s(finding.pids.len() as u64),
            and_more(stale.listeners),
        ),
        cause: "on one socket the process that is woken first takes the connection; measured, the \
                older generation takes 50 to 99 % of them"
            .to_owned(),
        remedy,
    }
}

/// The words for further listeners with the same condition.
pub(super) fn and_more(listeners: usize) -> String {
    match listeners {
        0 | 1 => String::new(),
        all => format!(" and {} more", count(all as u64 - 1, "listener")),
    }
}

/// The commands that end older processes.
fn end(look: &Look, older: &[i32]) -> Vec<String> {
    let all = pids(older);
    let processes = look.processes_of(older);
    let haproxies = processes.iter().filter(|process| process.is_haproxy());
    let haproxies: Vec<i32> = haproxies.map(|process| process.pid).collect();
    if haproxies.is_empty() {
        return vec![format!(
            "# expected if these processes form one service; otherwise end the older: kill -TERM {all}"
        )];
    }
    let mut remedy = Vec::new();
    if processes.iter().all(|process| process.stop_pending || process.is_stopped()) {
        let stopped = processes.iter().any(|process| process.is_stopped());
        let why = if stopped { "it is stopped" } else { "told to stop and did not" };
        remedy.push(format!(
            "kill -TERM {all}; kill -CONT {all}   # {why}: this ends its connections"
        ));
    } else {
        let haproxies = pids(&haproxies);
        remedy.push(format!(
            "kill -USR1 {haproxies}   # closes its listeners, finishes its connections"
        ));
    }
    if older.iter().all(|pid| look.generation(*pid).is_none()) {
        remedy.push(
            "# so that it cannot happen again: bindonce run -- haproxy -f FILE binds the address once"
                .to_owned(),
        );
    }
    remedy
}
