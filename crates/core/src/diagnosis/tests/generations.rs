//! Proxies at their limits, ghosts, and generations that should be gone.

use super::*;

#[test]
fn saturated_explains_a_queue_that_nobody_empties() {
    let mut process = haproxy(7, 9, &[1]);
    process.watches.clear();
    let mut host = look(vec![socket(":80", 1)], vec![process]);
    host.sockets[0].queue.used = 3;
    host.haproxies = vec![Haproxy {
        pid: 7,
        stopping: false,
        connections: Gauge { used: 500, limit: 500 },
        proxies: Vec::new(),
    }];
    assert!(
        only(&host, Kind::Saturated).summary.starts_with("haproxy is at its maxconn: 500 of 500")
    );
    host.haproxies[0].connections.used = 40;
    host.sockets[0].queue.used = 0;
    host.processes = look(Vec::new(), vec![haproxy(7, 9, &[1])]).processes;
    host.haproxies[0].proxies = vec![Proxy {
        name: "server app/s1".to_owned(),
        sessions: Gauge { used: 10, limit: 10 },
        queued: 4,
    }];
    let found = only(&host, Kind::Saturated);
    assert!(
        found.summary.starts_with("4 requests wait for server app/s1 (10 of 10"),
        "{}",
        found.summary
    );
}

#[test]
fn a_ghost_is_named_with_its_processor_time() {
    let mut old = haproxy(5, 9, &[]);
    old.watches = vec![Watch { inode: 1, input: true, live: false }];
    let host = look(vec![socket(":80", 1)], vec![old.clone(), haproxy(6, 1, &[1])]);
    let mut earlier = host.clone();
    earlier.at = Timestamp(NOW - 200);
    let mut now = host;
    old.used = Duration::from_millis(100);
    now.processes.insert(5, old);
    let found = diagnose(&Facts { earlier: Some(earlier), now });
    let ghost = found.iter().find(|one| one.kind == Kind::Ghost).expect("a ghost");
    assert_eq!((ghost.severity, ghost.culprits.as_slice()), (Severity::Error, [5].as_slice()));
    assert!(ghost.summary.contains("uses 50 % of a core"), "{}", ghost.summary);
}

#[test]
fn many_or_old_generations_linger_and_few_are_a_note() {
    let mut processes = vec![haproxy(100, 1, &[1])];
    processes.extend((0..6).map(|n| haproxy(10 + n, 8, &[])));
    let found = only(&look(vec![socket(":80", 1)], processes), Kind::Lingering);
    assert_eq!(found.severity, Severity::Warning);
    assert!(
        found.summary.starts_with("6 replaced generations drain, the oldest, pid 10"),
        "{}",
        found.summary
    );
    let few = look(vec![socket(":80", 1)], vec![haproxy(100, 1, &[1]), haproxy(10, 8, &[])]);
    assert_eq!(only(&few, Kind::Lingering).severity, Severity::Note);
    let old = look(vec![socket(":80", 1)], vec![haproxy(100, 1, &[1]), haproxy(10, 15, &[])]);
    assert_eq!(only(&old, Kind::Lingering).severity, Severity::Warning);
    // Another service, or another container, is no successor.
    let mut other = few;
    if let Some(process) = other.processes.get_mut(&10) {
        process.network = Some(2);
    }
    assert_eq!(twice(&other), []);
}
