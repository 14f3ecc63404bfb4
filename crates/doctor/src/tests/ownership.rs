//! Sockets that others could join or that haproxy bound itself, and limits that are nearly reached.

use super::*;

fn joinable(inode: u64) -> Option<Broker> {
    let mut broker = broker(inode);
    broker.status.listeners[0].exclusive = false;
    Some(broker)
}

#[test]
fn a_socket_that_others_can_join_is_a_note_unless_it_is_the_brokers() {
    let mut host = look(vec![socket(":80", 1)], vec![haproxy(7, 9, &[1])]);
    host.sockets[0].reuseport = Some(true);
    assert_eq!(only(&host, Kind::NotExclusive).0.severity, Severity::Note);
    host.broker = joinable(1);
    let (found, words_of) = only(&host, Kind::NotExclusive);
    assert_eq!(found.severity, Severity::Warning);
    insta::assert_snapshot!(written(&words_of));
}

#[test]
fn a_program_that_shares_its_port_with_itself_gets_advice_of_its_own() {
    let nginx = Process { program: "nginx".to_owned(), ..haproxy(7, 9, &[1, 2, 3]) };
    let mut host = look(vec![socket(":80", 1), socket(":80", 2), socket(":80", 3)], vec![nginx]);
    for socket in &mut host.sockets {
        socket.reuseport = Some(true);
    }
    host.broker = joinable(1);
    for found in twice(&host) {
        assert_eq!(found.kind(), Kind::NotExclusive);
        let words_of = words(&host, &found);
        assert!(!words_of.cause.contains("taken over"), "{words_of:?}");
        insta::assert_snapshot!(written(&words_of));
        assert!(!words_of.remedy[0].contains("haproxy"), "{words_of:?}");
    }
}

#[test]
fn what_haproxy_bound_by_itself_is_foreign() {
    let mut host = look(vec![socket(":80", 1), socket(":1024", 2)], vec![haproxy(7, 9, &[1, 2])]);
    host.broker = serving(1, vec![generation(3, 7, State::Serving)]);
    let (_, words_of) = only(&host, Kind::Foreign);
    insta::assert_snapshot!(written(&words_of));
}

#[test]
fn limits_near_their_end_are_found() {
    let mut process = haproxy(7, 9, &[1]);
    (process.usage.descriptors, process.usage.descriptor_limit) = (990, 1024);
    let mut host = look(vec![socket(":80", 1)], vec![process]);
    host.networks[0].conntrack = Some(Gauge { used: 999, limit: 1000 });
    let gauge = Gauge { used: 27_000, limit: 28_232 };
    host.networks[0].ports = Some(Ports { destination: "10.0.0.1:80".to_owned(), gauge });
    host.files = Some(Gauge { used: 10, limit: 1000 });
    let found = twice(&host);
    let severities: Vec<_> = found.iter().map(|one| (one.kind(), one.severity)).collect();
    let expected = [Severity::Error, Severity::Warning, Severity::Warning];
    assert_eq!(severities, expected.map(|severity| (Kind::Limit, severity)));
    let words_of = words(&host, &found[1]);
    insta::assert_snapshot!(written(&words_of));
}
