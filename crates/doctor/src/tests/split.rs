//! Two configurations at once, and hosts where only one answers.

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
    // The next reload: others are the cause now.
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
    // A handover of the broker's that is under way is none.
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
    insta::assert_snapshot!(written(&said));
}

#[test]
fn a_holder_that_does_not_ask_is_not_stale() {
    let mut broker = haproxy(5, 9, &[1]);
    broker.program = "bindonce".to_owned();
    broker.activity.registrations[0].input = false;
    assert_eq!(twice(&look(vec![socket(":80", 1)], vec![broker, haproxy(6, 1, &[1])])), []);
}
