//! Addresses that overlap, and listeners that two services want: who may have them.

use super::*;

#[test]
fn one_owner_may_have_a_wildcard_and_what_it_covers() {
    let mut shell = Shell::new();
    let overlaps = |shell: &mut Shell, id, wants: &[&str]| {
        let wants = wants.iter().map(|text| want(text)).collect();
        let actions = shell.on(Event::Claim(id, wants));
        let [Action::Open(_, listeners, overlaps)] = &actions[..] else { panic!("{actions:?}") };
        let opened = shell.open(&listeners.clone());
        shell.on(Event::Opened(id, opened));
        overlaps.clone()
    };
    let overlap = |new, other| Overlap { new, other, tentative: false };
    let new = |new, other| overlap(new, Neighbour::New(other));
    let held = |new, other| overlap(new, Neighbour::Held(ListenerId(other)));
    assert_eq!(overlaps(&mut shell, ONE, &["127.0.0.1:80", ":80"]), [new(0, 1), new(1, 0)]);
    // A claim of only one would take connections from the other.
    assert!(shell.refused(&["127.0.0.2:80"]).contains("overlaps 0.0.0.0:80, held"));
    assert!(shell.refused(&["127.0.0.1:80", "[::]:80"]).contains("overlaps 0.0.0.0:80, held"));
    // A claim of both may have both.
    let overlapping = overlaps(&mut shell, TWO, &["127.0.0.2:80", ":80"]);
    assert_eq!(overlapping, [held(0, 1)]);
    // Every overlapping listener counts, not only the first one found.
    let mut other = Shell::new();
    overlaps(&mut other, ONE, &["10.0.0.1:80"]);
    overlaps(&mut other, TWO, &["10.0.0.2:80"]);
    assert!(other.refused(&[":80", "10.0.0.2:80"]).contains("overlaps 10.0.0.1:80, held"));
    assert_eq!(
        overlaps(&mut other, ONE, &[":80", "10.0.0.2:80", "10.0.0.1:80"]),
        [held(0, 0), held(0, 1)]
    );
}

#[test]
fn what_overlaps_in_one_claim_is_bounded() {
    let wildcards = (0..600).map(|number| format!(":80,interface=d{number}"));
    let addresses = (0..600).map(|number| format!("10.0.{}.{}:80", number / 250, number % 250));
    let wants: Vec<String> = addresses.chain(wildcards).collect();
    let wants: Vec<&str> = wants.iter().map(String::as_str).collect();
    let mut shell = Shell::new();
    assert!(shell.refused(&wants).contains("overlap in more than 300000 pairs"));
    assert!(shell.claim(ONE, &[want(":80"), want("10.0.0.1:80")]).is_ok(), "nothing is left");
}

#[test]
fn what_overlaps_is_tentative_where_all_that_asks_for_it_is() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":80")]).expect("claim");
    let wants: [(&str, bool); 5] = [
        (":80", false),
        ("127.0.0.1:80", true),
        ("127.0.0.2:80", false),
        ("127.0.0.3:80", true),
        ("127.0.0.3:80", false),
    ];
    let wants = wants.map(|(text, tentative)| Want { tentative, ..want(text) });
    let actions = shell.on(Event::Claim(ONE, wants.to_vec().into()));
    let [Action::Open(_, _, overlaps)] = &actions[..] else { panic!("{actions:?}") };
    let tentative: Vec<_> = overlaps.iter().map(|one| (one.new, one.tentative)).collect();
    assert_eq!(tentative, [(0, true), (1, false), (2, false)]);
}

#[test]
fn a_generation_is_to_succeed_while_it_starts_and_another_serves() {
    let mut shell = Shell::new();
    let label = |service: &str, state| Label {
        service: service.parse().expect("name"),
        generation: 3,
        pid: 99,
        state,
    };
    let (starting, serving, draining) = (State::Starting, State::Serving, State::Draining);
    for (one, two, succeeds) in [
        (("web", serving), ("web", starting), true),
        (("edge", serving), ("web", starting), false),
        (("web", draining), ("web", starting), false),
        (("web", starting), ("web", starting), false),
        (("web", serving), ("web", serving), false),
    ] {
        assert!(!shell.registry.is_to_succeed(ConnectionId(3)));
        shell.on(Event::Join(ONE, label(one.0, one.1)));
        shell.on(Event::Join(TWO, label(two.0, two.1)));
        assert_eq!(shell.registry.is_to_succeed(TWO), succeeds, "{one:?} {two:?}");
    }
}

#[test]
fn a_service_may_claim_what_overlaps_its_older_generation() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":80")]).expect("claim");
    let label = |service: &str, generation| Label {
        service: service.parse().expect("name"),
        generation,
        pid: 99,
        state: State::Serving,
    };
    shell.on(Event::Join(TWO, label("edge", 2)));
    assert!(shell.refused(&["127.0.0.1:80"]).contains("overlaps"), "nobody's is not the service's");
    shell.on(Event::Join(ONE, label("web", 1)));
    assert!(shell.refused(&["127.0.0.1:80"]).contains("overlaps"), "another service's");
    shell.on(Event::Join(ONE, label("edge", 1)));
    assert_eq!(shell.claim(TWO, &[want("127.0.0.1:80")]), Ok(vec![(2, true)]));
    let three = ConnectionId(3);
    shell.on(Event::Connected(three, Peer { uid: 1, ..PEER }));
    shell.on(Event::Join(three, label("edge", 3)));
    let refused = shell.claim(three, &[want("127.0.0.2:80")]);
    assert!(matches!(refused, Err(Refusal::Overlap { .. })), "another user's: {refused:?}");
    // A listener without a lease belongs to the service that had it last.
    let (four, five) = (ConnectionId(4), ConnectionId(5));
    for (id, service) in [(four, "web"), (five, "edge")] {
        shell.on(Event::Connected(id, PEER));
        shell.on(Event::Join(id, label(service, 4)));
    }
    for id in [ONE, TWO] {
        shell.on(Event::Gone(id));
    }
    assert!(shell.claim(four, &[want("127.0.0.2:80")]).is_err());
    assert_eq!(shell.claim(five, &[want("127.0.0.2:80")]), Ok(vec![(3, true)]));
}

#[test]
fn two_services_never_accept_from_one_listener() {
    let mut shell = Shell::new();
    let label = |service: &str, state| Label {
        service: service.parse().expect("name"),
        generation: 3,
        pid: 99,
        state,
    };
    shell.on(Event::Join(ONE, label("web", State::Serving)));
    shell.claim(ONE, &[want("web=:80")]).expect("claim");
    assert_eq!(shell.claim(TWO, &[want("web")]), Ok(vec![(1, false)]), "it is of no service");
    shell.on(Event::Gone(TWO));
    shell.on(Event::Connected(TWO, PEER));
    shell.on(Event::Join(TWO, label("edge", State::Starting)));
    for wants in [&["web"][..], &[":80"], &[":81", ":80", "127.0.0.1:80"]] {
        let said = shell.refused(wants);
        assert!(said.contains("web generation 3 (pid 99): service \"edge\" may not"), "{said}");
    }
    // The same service may, and another one once this one drains.
    shell.on(Event::Join(TWO, label("web", State::Starting)));
    assert_eq!(shell.claim(TWO, &[want(":80")]), Ok(vec![(1, false)]));
    shell.on(Event::Join(TWO, label("edge", State::Starting)));
    shell.on(Event::Join(ONE, label("web", State::Draining)));
    assert_eq!(shell.claim(TWO, &[want(":80")]), Ok(vec![(1, false)]));
}

#[test]
fn nobody_joins_a_service_with_a_listener_of_another() {
    let mut shell = Shell::new();
    let (web, edge): (Name, Name) = ("web".parse().expect("name"), "edge".parse().expect("name"));
    let (starting, serving, draining) = (State::Starting, State::Serving, State::Draining);
    let label =
        |service: &Name, state| Label { service: service.clone(), generation: 3, pid: 99, state };
    let may = |shell: &Shell, id, service, state| shell.registry.check_join(id, service, state);
    shell.on(Event::Join(ONE, label(&web, serving)));
    shell.claim(ONE, &[want(":80")]).expect("claim");
    // A client of no service shares it, and then wants to be one.
    shell.claim(TWO, &[want(":81"), want(":80")]).expect("claim");
    for state in [starting, serving] {
        let said = may(&shell, TWO, &edge, state).expect_err("refused").to_string();
        assert!(said.contains("web generation 3 (pid 99): service \"edge\" may not"), "{said}");
    }
    assert_eq!(may(&shell, TWO, &web, serving), Ok(()), "it is of the same service");
    assert_eq!(may(&shell, TWO, &edge, draining), Ok(()), "it does not accept");
    // The one that drains may not accept again once the other does.
    shell.on(Event::Join(ONE, label(&web, draining)));
    assert_eq!(may(&shell, TWO, &edge, serving), Ok(()));
    shell.on(Event::Join(TWO, label(&edge, serving)));
    assert!(may(&shell, ONE, &web, serving).is_err());
    assert_eq!(may(&shell, ONE, &web, draining), Ok(()));
    assert_eq!(may(&shell, TWO, &edge, starting), Ok(()), "what it has is its own");
    // A claim that is not granted yet counts.
    shell.on(Event::Gone(TWO));
    shell.on(Event::Connected(TWO, PEER));
    shell.on(Event::Join(TWO, label(&edge, starting)));
    let actions = shell.on(Event::Claim(TWO, vec![want(":80"), want(":82")].into()));
    assert!(matches!(actions[..], [Action::Open(..)]), "{actions:?}");
    assert!(may(&shell, ONE, &web, serving).is_err());
}

#[test]
fn of_two_services_that_claim_a_listener_at_once_one_gets_it() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":80")]).expect("claim");
    shell.on(Event::Gone(ONE));
    let (three, edge) = (ConnectionId(3), ["web", "edge"]);
    shell.on(Event::Connected(three, PEER));
    for (id, service) in [TWO, three].into_iter().zip(edge) {
        let (service, state) = (service.parse().expect("name"), State::Starting);
        shell.on(Event::Join(id, Label { service, generation: 1, pid: 99, state }));
    }
    // The first waits for its own socket; the second for the first's decision.
    let first = shell.on(Event::Claim(TWO, vec![want(":80"), want(":81")].into()));
    let [Action::Open(_, listeners, _)] = &first[..] else { panic!("{first:?}") };
    let second = Event::Claim(three, vec![want(":80")].into());
    assert!(shell.on(second).is_empty());
    let opened = shell.open(&listeners.clone());
    let granted = shell.on(Event::Opened(TWO, opened));
    assert!(matches!(&granted[..], [Action::Grant(..), Action::Retry(id)] if *id == three));
    let refused = shell.on(Event::Retry(three));
    assert!(matches!(&refused[..], [Action::Refuse(_, Refusal::OtherService { .. })]));
}

#[test]
fn an_ipv6_wildcard_beside_a_held_ipv4_one_is_opened_without_ipv4() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":80")]).expect("claim");
    let both = [want(":80"), want("[::]:80")];
    let actions = shell.on(Event::Claim(ONE, both.to_vec().into()));
    let [Action::Open(_, listeners, overlaps)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((listeners[0].to_string().as_str(), &overlaps[..]), ("[::]:80,v6only", &[][..]));
    let opened = shell.open(&listeners.clone());
    shell.on(Event::Opened(ONE, opened));
    assert_eq!(shell.claim(TWO, &both), Ok(vec![(1, false), (2, false)]));
    // Claimed alone it would need IPv4.
    assert!(shell.refused(&["[::]:80"]).starts_with("[::]:80 overlaps [::]:80,v6only, held"));
    // Both new, or the IPv6 one first: it has IPv4 wherever no other socket does.
    for wants in [vec!["[::]:81", ":81"], vec![":82", "[::]:82"]] {
        let wants = wants.into_iter().map(want).collect();
        let actions = shell.on(Event::Claim(ONE, wants));
        let [Action::Open(_, listeners, overlaps)] = &actions[..] else { panic!("{actions:?}") };
        assert!(listeners.iter().all(|listener| !listener.options.v6only));
        assert_eq!(overlaps.len(), 2);
        let opened = shell.open(&listeners.clone());
        shell.on(Event::Opened(ONE, opened));
    }
    shell.claim(ONE, &[want("[::]:83")]).expect("claim");
    assert_eq!(shell.claim(ONE, &[want(":83"), want("[::]:83")]), Ok(vec![(8, true), (7, false)]));
}

#[test]
fn ten_thousand_on_one_port_are_not_compared_pairwise() {
    // 10,000 addresses on one port: pairwise it would be 50 million comparisons.
    let mut shell = Shell::new();
    let wants: Vec<Want> =
        (0..10_000).map(|n| want(&format!("10.0.{}.{}:80", n / 250, n % 250))).collect();
    #[expect(clippy::disallowed_methods, reason = "the test measures")]
    let start = std::time::Instant::now();
    assert_eq!(shell.claim(ONE, &wants).map(|leases| leases.len()), Ok(10_000));
    let first = start.elapsed();
    assert!(first < std::time::Duration::from_secs(5), "{first:?}");
    assert!(shell.claim(TWO, &wants).expect("held").iter().all(|(_, created)| !created));
}
