//! Findings from recorded facts: one host for each condition, and healthy ones. Here is what the
//! hosts are made of.

mod documentation;
mod generations;
mod ownership;
mod queues;
mod split;

use std::time::Duration;

use super::*;
use crate::time::Timestamp;

/// 2026-03-02T09:30:00Z.
const NOW: u64 = 1_772_443_800_000;
const MINUTE: u64 = 60_000;

fn socket(address: &str, inode: u64) -> Socket {
    Socket {
        network: 1,
        address: address.parse().expect(address),
        interface: None,
        inode,
        cookie: inode + 1000,
        mode: Mode::Listening,
        queue: Gauge { used: 0, limit: 128 },
        drops: 0,
        reuseport: Some(false),
        waiting: None,
    }
}

/// A haproxy that accepts on these sockets and started so many minutes ago.
fn haproxy(pid: i32, minutes: u64, sockets: &[u64]) -> Process {
    Process {
        pid,
        program: "haproxy".to_owned(),
        command: ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"].map(str::to_owned).to_vec(),
        network: Some(1),
        root: pid,
        parent: 1,
        started: Timestamp(NOW - minutes * MINUTE),
        state: 'S',
        memory: 20 << 20,
        descriptors: Gauge { used: 30, limit: 1024 },
        sockets: sockets.len() as u64 + 2,
        holds: sockets.to_vec(),
        watches: sockets
            .iter()
            .map(|inode| Watch { inode: *inode, input: true, live: true })
            .collect(),
        all_known: true,
        epoll: true,
        ..Process::default()
    }
}

fn look(sockets: Vec<Socket>, processes: Vec<Process>) -> Look {
    Look {
        at: Timestamp(NOW),
        sockets,
        processes: processes.into_iter().map(|process| (process.pid, process)).collect(),
        networks: vec![Network { id: 1, somaxconn: 4096, ..Network::default() }],
        ..Look::default()
    }
}

/// What the broker says of a listener called web.
fn held(inode: u64) -> Held {
    let (exclusive, listening, backlog, users) = (true, true, None, Vec::new());
    Held { inode, name: "web".to_owned(), exclusive, listening, backlog, users }
}

/// What the broker says of a generation of the service edge.
fn generation(id: u64, pid: i32, life: Life) -> Generation {
    Generation {
        service: "edge".to_owned(),
        id,
        pid,
        life,
        listeners: vec!["web".to_owned()],
        since: None,
    }
}

/// Findings when the same was seen twice.
fn twice(look: &Look) -> Vec<Finding> {
    let mut earlier = look.clone();
    earlier.at = Timestamp(NOW - 150);
    diagnose(&Facts { earlier: Some(earlier), now: look.clone() })
}

#[track_caller]
fn only(look: &Look, kind: Kind) -> Finding {
    let found = twice(look);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].kind, kind, "{found:#?}");
    found.into_iter().next().expect("one")
}

fn number(finding: &Finding, name: &str) -> f64 {
    match finding.evidence.iter().find(|(known, _)| *known == name) {
        Some((_, Value::Count(count))) => *count as f64,
        Some((_, Value::Decimal(number))) => *number,
        other => panic!("{name}: {other:?}"),
    }
}
