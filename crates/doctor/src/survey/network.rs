//! Reads the counters and limits of a network namespace.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use bindonce_sys::{Error, diag, limits};

use crate::facts::{Gauge, Network, Ports};

/// Reads the network namespace of the calling thread, which has this id and name. `known`: the
/// ports in use, if they were counted a moment ago.
///
/// # Errors
/// [`Error::Call`] if connections had to be counted and counting failed.
pub(super) fn read(
    id: u64,
    name: Option<String>,
    known: Option<Option<Ports>>,
) -> Result<Network, Error> {
    let netstat = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let conntrack =
        |name: &str| limits::number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    Ok(Network {
        id,
        name,
        somaxconn: limits::somaxconn().into(),
        listen_overflows: counter(&netstat, "ListenOverflows"),
        listen_drops: counter(&netstat, "ListenDrops"),
        unprivileged: limits::unprivileged_ports(),
        conntrack: conntrack("count").zip(conntrack("max")).map(gauge),
        ports: known.map_or_else(ports, Ok)?,
    })
}

fn gauge((used, limit): (u64, u64)) -> Gauge {
    Gauge { used, limit }
}

/// A counter of `TcpExt:`: one line has the names and the next the values.
fn counter(netstat: &str, name: &str) -> u64 {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return 0;
    };
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(word, _)| *word == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Connections are counted only if they could use up this part of the port range, in percent: the
/// kernel walks through the connections of all namespaces to show those of one.
const WORTH_COUNTING: u64 = 80;

fn ports() -> Result<Option<Ports>, Error> {
    let Some(range) = limits::chosen_ports() else {
        return Ok(None);
    };
    let size = range.len() as u64;
    let (all, v6) = in_use();
    if all < size * WORTH_COUNTING / 100 {
        return Ok(None);
    }
    // A local port is in use for one pair of local address and destination.
    let mut taken: HashMap<(IpAddr, SocketAddr), u64> = HashMap::new();
    diag::all_connections(v6 > 0, |connection| {
        if range.contains(&connection.local.port()) {
            *taken.entry((connection.local.ip(), connection.remote)).or_default() += 1;
        }
    })?;
    let most = taken.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map(|((_, remote), count)| Ports {
        destination: remote.to_string(),
        gauge: gauge((count, size)),
    }))
}

/// Number of TCP sockets in this namespace, including TIME_WAIT: all, and IPv6.
fn in_use() -> (u64, u64) {
    let (mut sum, mut v6) = (0, 0);
    for file in ["sockstat", "sockstat6"] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        for line in text.lines().filter(|line| line.starts_with("TCP")) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            for name in ["inuse", "tw"] {
                let at = words.iter().position(|word| *word == name);
                let value = at.and_then(|at| words.get(at + 1)?.parse::<u64>().ok());
                sum += value.unwrap_or(0);
                v6 += value.filter(|_| file == "sockstat6").unwrap_or(0);
            }
        }
    }
    (sum, v6)
}

/// Open files of the whole system, and their limit (fs.file-nr).
pub(super) fn open_files() -> Option<Gauge> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let words: Vec<u64> = text.split_ascii_whitespace().filter_map(|w| w.parse().ok()).collect();
    match words.as_slice() {
        [used, _, limit] => Some(gauge((*used, *limit))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: ListenDrops\nIpExt: 9\n";
        assert_eq!(counter(text, "ListenOverflows"), 22);
        assert_eq!(counter(text, "ListenDrops"), 333);
        assert_eq!(counter(text, "Absent"), 0);
    }

    #[test]
    fn this_system_tells() {
        let network = read(1, None, None).expect("a network");
        assert!(network.somaxconn > 0);
        assert!(*limits::chosen_ports().expect("ports").start() > 0);
        assert!(open_files().is_some_and(|files| files.used > 0 && files.limit >= files.used));
    }
}
