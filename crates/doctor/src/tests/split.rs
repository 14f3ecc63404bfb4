//! Two configurations that serve at once, and hosts with only one.

use super::*;

fn of_two(earlier: Look, now: Look) -> Facts {
    Facts { earlier: Some(earlier), now, details: Details::default() }
}

#[test]
fn a_healthy_host_has_no_findings() {
    let healthy = look(vec![socket(":80", 1)], vec![haproxy(10, 5, &[1])]);
    assert_eq!(twice(&healthy), []);
    assert_eq!(look_again(&healthy, &examine(&healthy, None)), None);
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
    let (found, words) = only(&look(sockets, processes), Kind::Split);
    assert_eq!(found.severity, Severity::Error);
    assert_eq!(found.pids, [953, 1571]);
    assert_eq!(
        words.summary,
        "2 of 3 connections, 67 %, go to pid 953 (haproxy, started 09:14) and pid 1571 (haproxy, started 09:21): older than pid 1618 with the newest configuration"
    );
    insta::assert_snapshot!(written(&words));
    assert!((number(&found, "stale_percent") - 66.7).abs() < 0.1);
}

#[test]
fn a_split_on_many_addresses_is_one_finding() {
    let sockets = (0..40).map(|n| socket(&format!(":{}", 80 + n / 2), n + 1)).collect();
    let odd: Vec<u64> = (1..=40).filter(|n| n % 2 == 1).collect();
    let even: Vec<u64> = (1..=40).filter(|n| n % 2 == 0).collect();
    let host = look(sockets, vec![haproxy(1, 9, &odd), haproxy(2, 1, &even)]);
    let (found, _) = only(&host, Kind::Split);
    assert_eq!((found.pids, found.also.len()), (vec![1], 19));
}

#[test]
fn a_reload_that_passes_is_no_finding() {
    let sockets = || vec![socket(":80", 1), socket(":80", 2)];
    let during = look(sockets(), vec![haproxy(1, 9, &[1]), haproxy(2, 0, &[2])]);
    let again = look_again(&during, &examine(&during, None));
    assert!(again >= Some(Duration::from_secs(1)), "{again:?}");
    let after = look(vec![socket(":80", 2)], vec![haproxy(2, 0, &[2])]);
    assert_eq!(diagnose(&of_two(during.clone(), after)), []);
    // The next reload: other processes are the cause now.
    let sockets = vec![socket(":80", 2), socket(":80", 3)];
    let next = look(sockets, vec![haproxy(2, 1, &[2]), haproxy(3, 0, &[3])]);
    assert_eq!(diagnose(&of_two(during, next)), []);
}

#[test]
fn stale_is_the_older_on_one_socket() {
    let host = look(vec![socket(":80", 1)], vec![haproxy(5, 9, &[1]), haproxy(6, 1, &[1])]);
    let (found, said) = only(&host, Kind::Stale);
    assert_eq!(found.pids, [5]);
    insta::assert_snapshot!(written(&said));
    // A handover in progress is not a finding.
    let generations = |older, newer| {
        let mut both = vec![generation(1, 5, older), generation(2, 6, newer)];
        both.iter_mut().for_each(|one| one.since = Timestamp(NOW - 40).to_string());
        serving(1, both)
    };
    let mut handover = host.clone();
    handover.broker = generations(State::Serving, State::Starting);
    assert_eq!(twice(&handover), []);
    handover.broker = generations(State::Draining, State::Serving);
    let changing = |look: &mut Look, names: &[&str]| {
        let broker = look.broker.as_mut().expect("a broker");
        broker.changing = names.iter().map(|name| (*name).to_owned()).collect();
    };
    changing(&mut handover, &["edge"]);
    assert!(twice(&handover).iter().all(|one| one.kind() != Kind::Stale));
    changing(&mut handover, &[]);
    let found = twice(&handover);
    assert_eq!(found[0].kind(), Kind::Stale);
    let said = words(&handover, &found[0]);
    assert!(said.remedy[0].starts_with("kill -USR1 5 "), "no supervisor: {said:?}");
    handover.answers = supervised();
    let said = words(&handover, &found[0]);
    insta::assert_snapshot!(written(&said));
}

#[test]
fn a_holder_that_does_not_ask_is_not_stale() {
    let mut broker = haproxy(5, 9, &[1]);
    broker.program = "bindonce".to_owned();
    broker.activity.registrations[0].input = false;
    assert_eq!(twice(&look(vec![socket(":80", 1)], vec![broker, haproxy(6, 1, &[1])])), []);
}

/// QUIC sockets on one address, the last bound one first.
fn datagrams(reuseport: &[Option<bool>]) -> Vec<Socket> {
    let one = |(at, reuseport): (usize, &Option<bool>)| Socket {
        mode: Mode::Datagram,
        reuseport: *reuseport,
        ..socket("udp@10.0.0.1:443", at as u64 + 1)
    };
    reuseport.iter().enumerate().map(one).collect()
}

#[test]
fn of_datagram_sockets_those_with_so_reuseport_share_and_else_the_last_takes_all() {
    let yes = Some(true);
    let plain = vec![haproxy(3, 1, &[1]), haproxy(2, 5, &[2]), haproxy(1, 9, &[3])];
    let (found, _) = only(&look(datagrams(&[yes, yes, yes]), plain.clone()), Kind::Split);
    assert_eq!((found.pids.as_slice(), number(&found, "stale_sockets")), (&[1, 2][..], 2.0));
    // If SO_REUSEPORT could not be read, the sockets count as a plain haproxy's.
    let (found, _) = only(&look(datagrams(&[None; 3]), plain.clone()), Kind::Split);
    assert_eq!(found.pids, [1, 2]);
    // Another program's socket with only SO_REUSEADDR, bound last, and bound first.
    let with_theirs = |minutes, inode| {
        let mut all = plain.clone();
        all.retain(|process| !process.holds(inode));
        all.push(Process { program: "dns".to_owned(), ..haproxy(9, minutes, &[inode]) });
        all
    };
    let host = look(datagrams(&[Some(false), yes, yes]), with_theirs(1, 1));
    let (found, words) = only(&host, Kind::Split);
    assert_eq!((found.pids, found.severity), (vec![9], Severity::Error));
    insta::assert_snapshot!(written(&words));
    let host = look(datagrams(&[yes, yes, Some(false)]), with_theirs(20, 3));
    let (found, _) = only(&host, Kind::Split);
    assert_eq!((found.pids.as_slice(), number(&found, "sockets")), (&[2][..], 2.0));
    // Neither is a finding among programs that are not proxies.
    let mut others = with_theirs(1, 1);
    others.iter_mut().for_each(|process| process.program = "dns".to_owned());
    assert_eq!(twice(&look(datagrams(&[Some(false), yes, yes]), others)), []);
}

#[test]
fn what_is_bound_beside_the_brokers_socket_for_quic_takes_all() {
    for (bound, theirs, takes) in [
        ("quic4@10.0.0.1:443", "udp@10.0.0.1:443", true),
        ("quic4@:443", "udp@10.0.0.1:443", true),
        ("quic4@:443", "udp@10.0.0.1:444", false),
        ("quic6@:443", "udp@10.0.0.1:443", true),
        ("quic6@:443", "udp@:443", true),
        ("quic4@:443", "udp@[::1]:443", false),
        ("quic4@10.0.0.1:443", "udp@:443", false),
    ] {
        let Ok(Address::Quic(at)) = bound.parse() else { panic!("{bound}") };
        let datagram = |text: &str, inode| Socket { mode: Mode::Datagram, ..socket(text, inode) };
        let sockets = vec![datagram(theirs, 2), datagram(&format!("udp@{at}"), 1)];
        let mut host = look(sockets, vec![haproxy(6, 9, &[1]), haproxy(7, 1, &[2])]);
        host.broker = serving(1, vec![generation(1, 6, State::Serving)]);
        host.broker.as_mut().expect("a broker").status.listeners[0].bound = bound.to_owned();
        let found = twice(&host);
        let pids: Vec<_> = found.iter().map(|one| (one.kind(), one.pids.clone())).collect();
        let expected = if takes { vec![(Kind::Split, vec![7])] } else { Vec::new() };
        assert_eq!(pids, expected, "{bound} {theirs}");
        // A socket for a QUIC connection, connected a moment later.
        host.processes.insert(6, haproxy(6, 9, &[1, 2]));
        host.processes.remove(&7);
        let found = twice(&host);
        assert!(!takes || found.is_empty(), "{bound} {theirs} {found:?}");
    }
}
