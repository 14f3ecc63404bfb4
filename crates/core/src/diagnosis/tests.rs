//! Findings from recorded facts: one host for each condition, and healthy ones.

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
        command: ["haproxy", "-db", "-f", "/etc/haproxy.cfg"].map(str::to_owned).to_vec(),
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
    Held { inode, name: "web".to_owned(), exclusive: true, listening: true, backlog: None }
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

#[test]
fn a_healthy_host_has_no_findings() {
    let healthy = look(vec![socket(":80", 1)], vec![haproxy(10, 5, &[1])]);
    assert_eq!(twice(&healthy), []);
    assert_eq!(look_again(&healthy), None);
    assert_eq!(diagnose(&Facts::default()), []);
}

#[test]
fn workers_of_one_master_and_shards_of_one_process_are_no_split() {
    let sockets = vec![socket(":80", 1), socket(":80", 2), socket(":81", 3), socket(":81", 4)];
    let worker =
        |pid, inode| Process { program: "nginx".to_owned(), root: 20, ..haproxy(pid, 5, &[inode]) };
    let healthy = look(sockets, vec![haproxy(10, 5, &[1, 2]), worker(21, 3), worker(22, 4)]);
    assert_eq!(twice(&healthy), []);
}

#[test]
fn split_names_the_older_pids_and_their_share() {
    let sockets = vec![socket(":80", 1), socket(":80", 2), socket(":80", 3)];
    let processes = vec![haproxy(953, 16, &[1]), haproxy(1571, 9, &[2]), haproxy(1618, 1, &[3])];
    let found = only(&look(sockets, processes), Kind::Split);
    assert_eq!(found.severity, Severity::Error);
    assert_eq!(found.culprits, [953, 1571]);
    assert_eq!(
        found.summary,
        "2 of 3 connections, 67 %, go to pid 953 (haproxy, started 09:14) and pid 1571 (haproxy, started 09:21): older than pid 1618 with the newest configuration"
    );
    assert!(found.remedy[0].starts_with("kill -USR1 953 1571 "), "{:?}", found.remedy);
    assert!((number(&found, "stale_percent") - 66.7).abs() < 0.1);
}

#[test]
fn a_split_on_many_addresses_is_one_finding() {
    let sockets = (0..40).map(|n| socket(&format!(":{}", 80 + n / 2), n + 1)).collect();
    let odd: Vec<u64> = (1..=40).filter(|n| n % 2 == 1).collect();
    let even: Vec<u64> = (1..=40).filter(|n| n % 2 == 0).collect();
    let found = only(&look(sockets, vec![haproxy(1, 9, &odd), haproxy(2, 1, &even)]), Kind::Split);
    assert_eq!((found.culprits, found.also.len()), (vec![1], 19));
}

#[test]
fn a_reload_that_passes_is_no_finding() {
    let sockets = || vec![socket(":80", 1), socket(":80", 2)];
    let during = look(sockets(), vec![haproxy(1, 9, &[1]), haproxy(2, 0, &[2])]);
    assert!(look_again(&during) >= Some(Duration::from_secs(1)), "{:?}", look_again(&during));
    let after = look(vec![socket(":80", 2)], vec![haproxy(2, 0, &[2])]);
    assert_eq!(diagnose(&Facts { earlier: Some(during.clone()), now: after }), []);
    // The next reload: others are the cause now.
    let sockets = vec![socket(":80", 2), socket(":80", 3)];
    let next = look(sockets, vec![haproxy(2, 1, &[2]), haproxy(3, 0, &[3])]);
    assert_eq!(diagnose(&Facts { earlier: Some(during), now: next }), []);
}

#[test]
fn stale_is_the_older_on_one_socket() {
    let host = look(vec![socket(":80", 1)], vec![haproxy(5, 9, &[1]), haproxy(6, 1, &[1])]);
    let found = only(&host, Kind::Stale);
    assert_eq!(found.culprits, [5]);
    assert!(found.summary.contains("beside pid 6"), "{}", found.summary);
    // A handover of the broker's that is under way is none.
    let generation = |pid, id, life| Generation {
        service: "edge".to_owned(),
        id,
        pid,
        life,
        listeners: Vec::new(),
        since: Some(Timestamp(NOW - 40)),
    };
    let mut handover = host.clone();
    handover.held = vec![held(1)];
    handover.generations = vec![generation(5, 1, Life::Serving), generation(6, 2, Life::Starting)];
    assert_eq!(twice(&handover), []);
    handover.generations = vec![generation(5, 1, Life::Draining), generation(6, 2, Life::Serving)];
    handover.changing = vec!["edge".to_owned()];
    assert!(twice(&handover).iter().all(|one| one.kind != Kind::Stale));
    handover.changing.clear();
    let found = twice(&handover);
    assert_eq!(found[0].kind, Kind::Stale);
    assert!(found[0].remedy[0].starts_with("bindonce reload --name edge"), "{:?}", found[0]);
}

#[test]
fn a_holder_that_does_not_ask_is_not_stale() {
    let mut broker = haproxy(5, 9, &[1]);
    broker.program = "bindonce".to_owned();
    broker.watches[0].input = false;
    assert_eq!(twice(&look(vec![socket(":80", 1)], vec![broker, haproxy(6, 1, &[1])])), []);
}

#[test]
fn unserved_tells_how_long_and_when_full() {
    let mut stopped = haproxy(7, 9, &[1]);
    stopped.state = 'T';
    let mut host = look(vec![socket(":80", 1)], vec![stopped]);
    let mut earlier = host.clone();
    earlier.at = Timestamp(NOW - 100);
    earlier.sockets[0].queue.used = 19;
    host.sockets[0].queue.used = 29;
    host.sockets[0].waiting = Some(Duration::from_secs(3));
    let found = diagnose(&Facts { earlier: Some(earlier), now: host });
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        found[0].summary,
        "nobody accepts: 29 of 129 wait in the queue, the oldest for 3 s; at this rate it is full in 1 s"
    );
    assert_eq!(found[0].remedy, ["kill -CONT 7"]);
}

#[test]
fn a_process_that_asks_and_takes_nothing_hangs() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].queue.used = 2;
    host.sockets[0].waiting = Some(Duration::from_millis(50));
    assert_eq!(twice(&host), [], "a burst");
    host.sockets[0].waiting = Some(Duration::from_secs(5));
    let found = only(&host, Kind::Unserved);
    assert!(found.cause.contains("hangs"), "{}", found.cause);
    // One that works meanwhile is only slow.
    let mut busy = host.clone();
    if let Some(process) = busy.processes.get_mut(&7) {
        process.used = Duration::from_millis(50);
    }
    host.at = Timestamp(NOW - 150);
    assert_eq!(diagnose(&Facts { earlier: Some(host), now: busy }), []);
}

#[test]
fn nobody_is_accused_of_what_cannot_be_seen() {
    assert_eq!(twice(&look(vec![socket(":80", 1)], Vec::new())), []);
    let mut unknown = haproxy(7, 9, &[1]);
    (unknown.program, unknown.all_known) = ("server".to_owned(), false);
    unknown.watches.clear();
    assert_eq!(twice(&look(vec![socket(":80", 1)], vec![unknown])), []);
}

#[test]
fn a_listener_without_a_service_is_unserved() {
    let mut broker = haproxy(5, 9, &[1]);
    broker.program = "bindonce".to_owned();
    broker.watches[0].input = false;
    let mut host = look(vec![socket(":80", 1)], vec![broker]);
    host.held = vec![held(1)];
    let found = only(&host, Kind::Unserved);
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.remedy[0].contains("bindonce release web"), "{:?}", found.remedy);

    // Unless the broker knows of one that serves in another container: then only time tells.
    host.generations = vec![Generation {
        service: "edge".to_owned(),
        id: 7,
        pid: 9,
        life: Life::Serving,
        listeners: vec!["web".to_owned()],
        since: None,
    }];
    assert_eq!(twice(&host), []);
    host.sockets[0].queue.used = 3;
    host.sockets[0].waiting = Some(Duration::from_secs(4));
    let found = only(&host, Kind::Unserved);
    assert_eq!(found.service.as_deref(), Some("edge"));
    assert!(found.cause.contains("edge generation 7 serves it"), "{}", found.cause);
    // A haproxy that is seen and does not hold the socket is no excuse.
    host.sockets[0].queue.used = 0;
    host.processes.insert(9, haproxy(9, 1, &[]));
    assert_eq!(only(&host, Kind::Unserved).severity, Severity::Warning);
}

#[test]
fn paused_is_bound_and_answers_nobody() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].mode = Mode::Bound;
    assert_eq!(only(&host, Kind::Paused).remedy[0].split("  ").next(), Some("kill -TTIN 7"));
    // Bound from which to connect, by somebody else, and gone in the second look.
    let after = look(Vec::new(), vec![haproxy(7, 9, &[])]);
    assert_eq!(diagnose(&Facts { earlier: Some(host), now: after }), []);
}

#[test]
fn overflow_says_which_limit_it_is() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].queue = Gauge { used: 129, limit: 128 };
    host.sockets[0].drops = 40;
    let mut earlier = host.clone();
    earlier.at = Timestamp(NOW - 150);
    earlier.sockets[0].drops = 30;
    if let Some(process) = host.processes.get_mut(&7) {
        process.used = Duration::from_millis(90);
    }
    let facts = Facts { earlier: Some(earlier.clone()), now: host.clone() };
    let found = diagnose(&facts);
    assert_eq!((found[0].kind, found[0].severity), (Kind::Overflow, Severity::Error));
    assert!(found[0].summary.contains("backlog"), "{}", found[0].summary);
    assert!((number(&found[0], "new_drops") - 10.0).abs() < 0.1);
    let mut facts = facts;
    facts.now.networks[0].somaxconn = 128;
    assert!(diagnose(&facts)[0].summary.contains("somaxconn is the limit"));
    // What was dropped long ago is worth a note.
    facts.now.sockets[0].queue.used = 0;
    facts.now.sockets[0].drops = 30;
    facts.earlier.as_mut().expect("earlier").sockets[0].queue.used = 0;
    assert_eq!(diagnose(&facts)[0].severity, Severity::Note);
}

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

#[test]
fn a_socket_that_others_can_join_is_a_note_unless_it_is_the_brokers() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].reuseport = Some(true);
    assert_eq!(only(&host, Kind::NotExclusive).severity, Severity::Note);
    host.held = vec![Held { exclusive: false, ..held(1) }];
    assert_eq!(only(&host, Kind::NotExclusive).severity, Severity::Warning);
}

#[test]
fn what_haproxy_bound_by_itself_is_foreign() {
    let mut host = look(vec![socket(":80", 1), socket(":1024", 2)], vec![haproxy(7, 9, &[1, 2])]);
    host.held = vec![held(1)];
    host.generations = vec![Generation {
        service: "edge".to_owned(),
        id: 3,
        pid: 7,
        life: Life::Serving,
        listeners: Vec::new(),
        since: None,
    }];
    let found = only(&host, Kind::Foreign);
    assert!(found.summary.starts_with("haproxy bound 0.0.0.0:1024 by itself"), "{}", found.summary);
}

#[test]
fn limits_near_their_end_are_found() {
    let mut process = haproxy(7, 9, &[1]);
    process.descriptors = Gauge { used: 990, limit: 1024 };
    let mut host = look(vec![socket(":80", 1)], vec![process]);
    host.networks[0].conntrack = Some(Gauge { used: 999, limit: 1000 });
    host.networks[0].ephemeral =
        Some(("10.0.0.1:80".to_owned(), Gauge { used: 27_000, limit: 28_232 }));
    host.files = Some(Gauge { used: 10, limit: 1000 });
    let found = twice(&host);
    let severities: Vec<_> = found.iter().map(|one| (one.kind, one.severity)).collect();
    let expected = [Severity::Error, Severity::Warning, Severity::Warning];
    assert_eq!(severities, expected.map(|severity| (Kind::Limit, severity)));
    assert!(found[1].summary.starts_with("990 of 1024, 97 %"), "{}", found[1].summary);
}
