//! Proxies at their limits, ghosts, and generations that should be gone.

use super::*;

#[test]
fn saturated_explains_a_queue_that_nobody_empties() {
    let mut process = haproxy(7, 9, &[1]);
    process.activity.registrations.clear();
    let mut host = look(vec![socket(":80", 1)], vec![process]);
    host.sockets[0].queue = 3;
    host.haproxies = vec![Stats { pid: 7, connections: 500, limit: 500, ..Stats::default() }];
    let (_, said) = only(&host, Kind::Saturated);
    insta::assert_snapshot!(written(&said));
    host.haproxies[0].connections = 40;
    host.sockets[0].queue = 0;
    host.processes = look(Vec::new(), vec![haproxy(7, 9, &[1])]).processes;
    let name = "server app/s1".to_owned();
    host.haproxies[0].proxies = vec![Proxy { name, sessions: 10, limit: 10, queued: 4 }];
    let (_, said) = only(&host, Kind::Saturated);
    insta::assert_snapshot!(written(&said));
}

#[test]
fn a_ghost_is_named_with_its_processor_time() {
    let mut old = haproxy(5, 9, &[]);
    old.activity.registrations =
        vec![Registration { inode: 1, number: 9, input: true, live: false }];
    let host = look(vec![socket(":80", 1)], vec![old.clone(), haproxy(6, 1, &[1])]);
    let mut facts = seen_twice(host);
    facts.earlier.as_mut().expect("two looks").at = Timestamp(NOW - 200);
    old.usage.processor = Duration::from_millis(100);
    facts.now.processes.insert(5, old);
    let found = diagnose(&facts);
    let ghost = found.iter().find(|one| one.kind() == Kind::Ghost).expect("a ghost");
    let said = words(&facts.now, ghost);
    assert_eq!((ghost.severity, ghost.pids.as_slice()), (Severity::Error, [5].as_slice()));
    insta::assert_snapshot!(written(&said));
}

#[test]
fn a_generation_that_answers_more_than_a_small_share_is_found() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(6, 1, &[1])]);
    let all = Lately { seconds: 10, requests: 1000, bytes: 9 << 20, ..Lately::default() };
    let mut found = |lately: Lately, pids: Vec<i32>| {
        let told = Answered { lately, pids, connections: 4 };
        host.answers = vec![Answers { service: "edge".to_owned(), told: Ok(told) }];
        let found = twice(&host);
        assert!(found.iter().all(|one| one.kind() == Kind::Answering), "{found:#?}");
        found.len()
    };
    for (requests, is_found) in [(0, 0), (49, 0), (50, 1), (1000, 1)] {
        let few = Lately { draining_requests: requests, ..all };
        assert_eq!(found(few, vec![5]), is_found, "{requests}");
    }
    let few = Lately { requests: 9, draining_requests: 9, ..all };
    assert_eq!(found(few, vec![5]), 0, "so few are nothing");
    let tunnels = Lately { requests: 0, draining_bytes: 2 << 20, ..all };
    assert_eq!(found(tunnels, vec![5]), 1);
    let lately = Lately { draining_requests: 900, ..all };
    assert_eq!(found(lately, Vec::new()), 0, "none drains any more");
}

/// A master keeps the admin socket of its worker open until it ends.
#[test]
fn what_a_generation_that_drains_has_of_its_own_is_no_finding() {
    let mut master = haproxy(7, 1, &[1]);
    master.activity.registrations.clear();
    let mut host = look(vec![socket(":80", 1)], vec![master]);
    host.broker = serving(2, vec![generation(1, 7, State::Draining)]);
    let is_found = |host: &Look| twice(host).iter().any(|found| found.kind() == Kind::Unserved);
    assert!(!is_found(&host));
    // A waiting client makes it one.
    host.sockets[0].queue = 1;
    assert!(is_found(&host));
    host.sockets[0].queue = 0;
    host.broker = serving(2, vec![generation(1, 7, State::Serving)]);
    assert!(is_found(&host));
}

#[test]
fn many_or_old_generations_linger_and_few_are_a_note() {
    let mut processes = vec![haproxy(100, 1, &[1])];
    processes.extend((0..6).map(|n| haproxy(10 + n, 8, &[])));
    let (found, said) = only(&look(vec![socket(":80", 1)], processes), Kind::Lingering);
    assert_eq!(found.severity, Severity::Warning);
    let summary = "6 replaced generations drain, the oldest, pid 10";
    assert!(said.summary.starts_with(summary), "{said:?}");
    let few = look(vec![socket(":80", 1)], vec![haproxy(100, 1, &[1]), haproxy(10, 8, &[])]);
    assert_eq!(only(&few, Kind::Lingering).0.severity, Severity::Note);
    let old = look(vec![socket(":80", 1)], vec![haproxy(100, 1, &[1]), haproxy(10, 15, &[])]);
    assert_eq!(only(&old, Kind::Lingering).0.severity, Severity::Warning);
    // `bindonce status` shows the sessions of each generation, where there is a broker.
    let mut of_service = few.clone();
    of_service.broker =
        serving(1, vec![generation(1, 10, State::Draining), generation(2, 100, State::Serving)]);
    let (_, said) = only(&of_service, Kind::Lingering);
    assert!(said.remedy[0].starts_with("bindonce status   #"), "{said:?}");
    // A process of another service, or of another container, is not a successor.
    let mut other = few;
    if let Some(process) = other.processes.get_mut(&10) {
        process.network = Some(2);
    }
    assert_eq!(twice(&other), []);
}
