//! Clients that wait or are dropped, and the process that causes it.

use super::*;

#[test]
fn unserved_tells_how_long_and_when_full() {
    let mut stopped = haproxy(7, 9, &[1]);
    stopped.state = 'T';
    let mut facts = seen_twice(look(vec![socket(":80", 1)], vec![stopped]));
    let earlier = facts.earlier.as_mut().expect("two looks");
    earlier.at = Timestamp(NOW - 100);
    earlier.sockets[0].queue = 19;
    facts.now.sockets[0].queue = 29;
    facts.details = waits(1, Duration::from_secs(3));
    let (_, said) = only_of(&facts, Kind::Unserved);
    assert_eq!(
        said.summary,
        "no process accepts: 29 of 129 wait in the queue, the oldest for 3 s; at this rate it is full in 1 s"
    );
    assert_eq!(said.remedy, ["kill -CONT 7"]);
}

#[test]
fn a_process_that_asks_and_takes_nothing_hangs() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].queue = 2;
    let mut facts = seen_twice(host);
    facts.details = waits(1, Duration::from_millis(50));
    assert_eq!(diagnose(&facts), [], "a burst");
    facts.details = waits(1, Duration::from_secs(5));
    let (_, said) = only_of(&facts, Kind::Unserved);
    insta::assert_snapshot!(written(&said));
    // A process that uses processor time is only slow.
    if let Some(process) = facts.now.processes.get_mut(&7) {
        process.usage.processor = Duration::from_millis(50);
    }
    assert_eq!(diagnose(&facts), []);
}

#[test]
fn nobody_is_accused_of_what_cannot_be_seen() {
    assert_eq!(twice(&look(vec![socket(":80", 1)], Vec::new())), []);
    let mut unknown = holds("server", 7, 9, &[1]);
    unknown.activity.all_known = false;
    assert_eq!(twice(&look(vec![socket(":80", 1)], vec![unknown])), []);
    // An invisible holder may be busy for a moment. Clients that wait for seconds are proof.
    let mut facts = seen_twice(look(vec![socket(":80", 1)], Vec::new()));
    facts.earlier.as_mut().expect("two looks").sockets[0].queue = 2;
    facts.now.sockets[0].queue = 2;
    assert_eq!(diagnose(&facts), [], "it is not known for how long");
    facts.details = waits(1, Duration::from_millis(900));
    assert_eq!(diagnose(&facts), []);
    facts.details = waits(1, Duration::from_secs(2));
    let (found, _) = only_of(&facts, Kind::Unserved);
    assert_eq!(found.pids, [0; 0]);
}

#[test]
fn a_listener_without_a_service_is_unserved() {
    let mut host = look(vec![socket(":80", 1)], vec![holds("bindonce", 5, 9, &[1])]);
    host.broker = Some(broker(1));
    let (found, said) = only(&host, Kind::Unserved);
    assert_eq!(found.severity, Severity::Warning);
    insta::assert_snapshot!(written(&said));

    // A listener in use cannot be released: its lessee ends first.
    let ours = Some(("edge", 3));
    for (generation, pid, answers, remedy) in [
        (ours, 40, supervised(), "bindonce retire --name edge 3"),
        (ours, 40, Vec::new(), "# end generation 3 of edge; then: bindonce release web"),
        (None, 40, Vec::new(), "kill 40"),
        // The broker cannot name a process of another pid namespace.
        (None, 0, Vec::new(), "# end the process of the other container"),
    ] {
        host.answers = answers;
        let mut holder = bindonce::HolderInfo::new(pid, 0, String::new());
        (holder.service, holder.generation) = match generation {
            Some((service, id)) => (Some(service.to_owned()), Some(id)),
            None => (None, None),
        };
        let listeners = &mut host.broker.as_mut().expect("a broker").status.listeners;
        listeners[0].holders = vec![holder];
        let (_, said) = only(&host, Kind::Unserved);
        assert!(said.remedy[0].starts_with(remedy), "{said:?}");
    }

    // If a generation in another container serves the listener, only a long wait is proof.
    host.broker = serving(1, vec![generation(7, 9, State::Serving)]);
    assert_eq!(twice(&host), []);
    host.sockets[0].queue = 3;
    let mut facts = seen_twice(host.clone());
    facts.details = waits(1, Duration::from_secs(4));
    let (found, said) = only_of(&facts, Kind::Unserved);
    assert_eq!(found.service.as_deref(), Some("edge"));
    insta::assert_snapshot!(written(&said));
    // A visible haproxy that does not hold the socket does not serve it.
    host.sockets[0].queue = 0;
    host.processes.insert(9, haproxy(9, 1, &[]));
    assert_eq!(only(&host, Kind::Unserved).0.severity, Severity::Warning);
}

#[test]
fn whoever_holds_a_listener_and_does_not_ask_is_named() {
    let holds = |program, pid| holds(program, pid, 5, &[1]);
    let host = look(vec![socket(":80", 1)], vec![holds("server", 5), holds("server", 6)]);
    let (_, said) = only(&host, Kind::Unserved);
    insta::assert_snapshot!(written(&said));
    // A broker at another socket than the one that was asked, and its supervisor.
    let mut run = holds("bindonce", 6);
    run.command.extend(["run", "--socket", "/a/b.sock", "--", "x"].map(str::to_owned));
    let host = look(vec![socket(":80", 1)], vec![holds("bindonce", 5), run]);
    let (_, said) = only(&host, Kind::Unserved);
    insta::assert_snapshot!(written(&said));
}

#[test]
fn who_holds_a_listener_that_nobody_accepts_from_is_seen_again() {
    let healthy = look(vec![socket(":80", 1)], vec![haproxy(10, 5, &[1])]);
    assert_eq!(healthy.holders_of_idle_listeners(), BTreeSet::new());
    // As in a reload: the broker and the supervisor have the socket, and no generation has it.
    let keeps = |pid| holds("bindonce", pid, 5, &[1]);
    let between = look(vec![socket(":80", 1)], vec![keeps(5), keeps(6), haproxy(7, 0, &[])]);
    assert_eq!(between.holders_of_idle_listeners(), BTreeSet::from([5, 6]));
}

#[test]
fn paused_is_bound_and_answers_nobody() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].mode = Mode::Bound;
    let (_, said) = only(&host, Kind::Paused);
    assert_eq!(said.remedy[0].split("  ").next(), Some("kill -TTIN 7"));
    // Bound by another program to connect from, and gone in the second look.
    let now = look(Vec::new(), vec![haproxy(7, 9, &[])]);
    assert_eq!(diagnose(&Facts { earlier: Some(host), now, details: Details::default() }), []);
}

#[test]
fn overflow_says_which_limit_it_is() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    (host.sockets[0].queue, host.sockets[0].drops) = (129, 40);
    let mut facts = seen_twice(host);
    facts.earlier.as_mut().expect("two looks").sockets[0].drops = 30;
    if let Some(process) = facts.now.processes.get_mut(&7) {
        process.usage.processor = Duration::from_millis(90);
    }
    let (found, said) = only_of(&facts, Kind::Overflow);
    assert_eq!(found.severity, Severity::Error);
    insta::assert_snapshot!(written(&said));
    assert!((number(&found, "new_drops") - 10.0).abs() < 0.1);
    facts.now.networks[0].somaxconn = 128;
    let (_, said) = only_of(&facts, Kind::Overflow);
    insta::assert_snapshot!(written(&said));
    // Past drops are worth a note.
    (facts.now.sockets[0].queue, facts.now.sockets[0].drops) = (0, 30);
    facts.earlier.as_mut().expect("two looks").sockets[0].queue = 0;
    assert_eq!(only_of(&facts, Kind::Overflow).0.severity, Severity::Note);
}

#[test]
fn a_full_queue_that_nobody_empties_is_one_finding() {
    let mut stopped = haproxy(7, 9, &[1]);
    stopped.state = 'T';
    let mut host = look(vec![socket(":80", 1)], vec![stopped]);
    (host.sockets[0].queue, host.sockets[0].drops) = (129, 40);
    let mut facts = seen_twice(host);
    facts.details = waits(1, Duration::from_secs(3));
    let (_, said) = only_of(&facts, Kind::Unserved);
    insta::assert_snapshot!(written(&said));
}

#[test]
fn datagrams_that_are_dropped_now_are_told_of_proxies() {
    let mut host = look(vec![socket("udp@10.0.0.1:443", 1)], vec![haproxy(7, 9, &[1])]);
    (host.sockets[0].mode, host.sockets[0].queue_limit) = (Mode::Datagram, 212_992);
    (host.sockets[0].queue, host.sockets[0].drops) = (213_504, 40);
    // Only a second look shows whether drops continue.
    assert!(look_again(&host, &examine(&host, None)).is_some());
    let mut facts = seen_twice(host);
    assert_eq!(only_of(&facts, Kind::Overflow).0.severity, Severity::Note);
    facts.earlier.as_mut().expect("two looks").sockets[0].drops = 30;
    let (found, words) = only_of(&facts, Kind::Overflow);
    assert_eq!(found.severity, Severity::Error);
    insta::assert_snapshot!(written(&words));
    for look in facts.earlier.iter_mut().chain([&mut facts.now]) {
        look.processes.get_mut(&7).expect("it").program = "dns".to_owned();
    }
    assert_eq!(diagnose(&facts), []);
}
