//! Who waits, who is dropped, and whose fault it is.

use super::*;

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

    // What is used cannot be released: who uses it ends first.
    for (generation, remedy) in
        [(Some(("edge".to_owned(), 3)), "bindonce retire --name edge 3"), (None, "kill 40")]
    {
        host.held[0].users = vec![User { pid: 40, generation }];
        let found = only(&host, Kind::Unserved);
        assert!(found.remedy[0].starts_with(remedy), "{:?}", found.remedy);
    }
    host.held[0].users.clear();

    // Unless the broker knows of one that serves in another container: then only time tells.
    host.generations = vec![generation(7, 9, Life::Serving)];
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
fn whoever_holds_a_listener_and_does_not_ask_is_named() {
    let holds = |program: &str, pid| Process {
        program: program.to_owned(),
        command: vec![program.to_owned()],
        watches: Vec::new(),
        ..haproxy(pid, 5, &[1])
    };
    let host = look(vec![socket(":80", 1)], vec![holds("server", 5), holds("server", 6)]);
    let found = only(&host, Kind::Unserved);
    assert!(found.cause.starts_with("pid 5 (server, started 09:25) and pid 6 "), "{}", found.cause);
    assert!(found.cause.ends_with(" hold the socket and do not ask for connections"));
    // A broker that does not listen where it was looked for, and its supervisor.
    let mut run = holds("bindonce", 6);
    run.command.extend(["run", "--socket", "/a/b.sock", "--", "x"].map(str::to_owned));
    let host = look(vec![socket(":80", 1)], vec![holds("bindonce", 5), run]);
    let found = only(&host, Kind::Unserved);
    assert!(found.cause.ends_with("the broker was not asked"), "{}", found.cause);
    assert!(
        found.remedy[0].starts_with("bindonce doctor --socket /a/b.sock "),
        "{:?}",
        found.remedy
    );
}

#[test]
fn who_holds_a_listener_that_nobody_accepts_from_is_seen_again() {
    let healthy = look(vec![socket(":80", 1)], vec![haproxy(10, 5, &[1])]);
    assert_eq!(see_again(&healthy), BTreeSet::new());
    // As in a reload: the broker and the supervisor, and no generation that has the socket.
    let keeps = |pid| Process {
        program: "bindonce".to_owned(),
        watches: Vec::new(),
        ..haproxy(pid, 5, &[1])
    };
    let between = look(vec![socket(":80", 1)], vec![keeps(5), keeps(6), haproxy(7, 0, &[])]);
    assert_eq!(see_again(&between), BTreeSet::from([5, 6]));
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
