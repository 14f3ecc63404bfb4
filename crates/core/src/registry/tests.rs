//! One test for each rule that a person could state; the invariants under random
//! events are in tests/registry.rs.

use super::*;

fn want(text: &str) -> Want {
    Want { wanted: text.parse().expect(text), tentative: false, change: false, held: false }
}

fn tentative(text: &str) -> Want {
    Want { tentative: true, ..want(text) }
}

const PEER: Peer = Peer { pid: 40, uid: 0, gid: 0 };
const ONE: ConnectionId = ConnectionId(1);
const TWO: ConnectionId = ConnectionId(2);

/// A registry whose sockets always open; handles are numbered.
#[derive(Default)]
struct Shell {
    registry: Registry<u32>,
    opened: u32,
    now: u64,
    /// The editions that were granted last.
    granted: BTreeMap<ListenerId, u32>,
}

impl Shell {
    fn new() -> Self {
        let mut shell = Self::default();
        for id in [ONE, TWO] {
            shell.on(Event::Connected(id, PEER));
        }
        shell
    }

    fn on(&mut self, event: Event<u32>) -> Vec<Action<u32>> {
        self.now += 1000;
        let actions = self.registry.on(Timestamp(self.now), event);
        for action in &actions {
            let Action::Grant(_, leases) = action else { continue };
            for lease in leases {
                let edition = self.registry.held(lease.listener).expect("granted").edition();
                let before = self.granted.insert(lease.listener, edition);
                assert_eq!(lease.changed, before != Some(edition), "{lease:?}");
            }
        }
        actions
    }

    fn open(&mut self, listeners: &[Arc<Listener>]) -> Vec<Opened<u32>> {
        let open = |listener: &Arc<Listener>| {
            self.opened += 1;
            let port = 40_000 + self.opened as u16;
            let bound = match listener.address.port() {
                Some(0) => listener.address.with_port(port),
                _ => listener.address.clone(),
            };
            let (inode, backlog) =
                (u64::from(self.opened), listener.options.backlog.unwrap_or(4096));
            Opened { handle: self.opened, bound, inode, cookie: inode, backlog, exclusive: true }
        };
        listeners.iter().map(open).collect()
    }

    fn claim(&mut self, id: ConnectionId, wants: &[Want]) -> Result<Vec<(u32, bool)>, Refusal> {
        let mut actions = self.on(Event::Claim(id, wants.to_vec().into()));
        loop {
            actions = match actions.last() {
                Some(Action::More(_)) => self.on(Event::More(id)),
                Some(Action::Open(_, listeners, _)) => {
                    let opened = self.open(&listeners.clone());
                    self.on(Event::Opened(id, opened))
                }
                _ => break,
            }
        }
        match actions.pop() {
            Some(Action::Grant(_, leases)) => Ok(leases
                .iter()
                .map(|lease| {
                    let held = self.registry.held(lease.listener).expect("granted");
                    (held.opened.handle, lease.created)
                })
                .collect()),
            Some(Action::Refuse(_, refusal)) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, wants: &[&str]) -> String {
        let wants: Vec<Want> = wants.iter().map(|text| want(text)).collect();
        let sizes = (self.registry.len(), self.registry.index.sizes());
        let text = self.claim(TWO, &wants).expect_err("refused").to_string();
        assert_eq!((self.registry.len(), self.registry.index.sizes()), sizes, "no trace");
        text
    }

    fn release(&mut self, id: ConnectionId, wanted: &[&str]) -> Vec<Action<u32>> {
        let wanted = wanted.iter().map(|text| text.parse().expect(text)).collect();
        self.on(Event::Release(id, wanted))
    }
}

#[test]
fn a_second_claim_gets_the_same_socket() {
    let mut shell = Shell::new();
    assert_eq!(shell.claim(ONE, &[want("web=:80")]), Ok(vec![(1, true)]));
    for again in ["web=*:80", ":80", "other=:80", "web", ":80,backlog=4096"] {
        assert_eq!(shell.claim(TWO, &[want(again)]), Ok(vec![(1, false)]), "{again}");
    }
    let all = [want(":80"), want(":81"), want(":81"), want(":82-83")];
    let leases = vec![(1, false), (2, true), (2, false), (3, true), (4, true)];
    assert_eq!(shell.claim(TWO, &all), Ok(leases));
}

#[test]
fn an_unnamed_listener_takes_the_first_name() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":80")]).expect("claim");
    shell.claim(ONE, &[want("web=:80")]).expect("claim");
    shell.claim(ONE, &[want("late=:80")]).expect("claim");
    assert_eq!(shell.claim(TWO, &[want("web")]), Ok(vec![(1, false)]));
    assert!(shell.claim(TWO, &[want("late")]).is_err());
}

#[test]
fn a_changing_claim_changes_what_is_held_or_leaves_no_trace() {
    let mut shell = Shell::new();
    let held = [want("web=:80,backlog=64"), want("/run/a,mode=0600")];
    shell.claim(ONE, &held).expect("claim");
    let changing = |text| Want { change: true, ..want(text) };
    // What is as it should be is not changed; what is new is opened first.
    assert_eq!(shell.claim(ONE, &[changing(":80,backlog=64")]), Ok(vec![(1, false)]));
    let wants =
        [changing(":80,backlog=128,freebind"), changing(":81"), changing("/run/a,mode=0660")];
    let actions = shell.on(Event::Claim(TWO, wants.to_vec().into()));
    let [Action::Open(TWO, listeners, _)] = &actions[..] else { panic!("{actions:?}") };
    let opened = shell.open(&listeners.clone());
    let actions = shell.on(Event::Opened(TWO, opened));
    let [Action::Change(TWO, changes)] = &actions[..] else { panic!("{actions:?}") };
    let texts: Vec<String> = changes.iter().map(|change| change.options.to_string()).collect();
    assert_eq!(texts, ["backlog=128,freebind", "mode=0660"]);
    // Failed: as before, and the new socket is given back.
    let actions = shell.on(Event::ChangeFailed(TWO));
    let expected = [":80,backlog=128", ":80"];
    assert!(matches!(actions[..], [Action::Close(3, ..), Action::NotOpened(TWO)]), "{actions:?}");
    assert!(shell.refused(&expected[..1]).contains("has backlog=64"));
    // Done: as asked for.
    let actions = shell.on(Event::Claim(TWO, vec![wants[0].clone(), wants[2].clone()].into()));
    assert!(matches!(&actions[..], [Action::Change(TWO, changes)] if changes.len() == 2));
    let actions = shell.on(Event::Changed(TWO, vec![128, 4096]));
    assert!(matches!(actions[..], [Action::Grant(TWO, _)]), "{actions:?}");
    let same = [want(":80,backlog=128,freebind"), want("/run/a,mode=0660")];
    assert_eq!(shell.claim(ONE, &same), Ok(vec![(1, false), (2, false)]));
    // One request, two values.
    let twice = vec![changing(":80,backlog=1"), changing(":80,backlog=2")];
    let actions = shell.on(Event::Claim(ONE, twice.into()));
    let [Action::Refuse(ONE, refusal)] = &actions[..] else { panic!("{actions:?}") };
    assert!(refusal.to_string().contains("two settings"), "{refusal}");
    // What belongs to the key is another socket.
    let actions = shell.on(Event::Claim(ONE, vec![changing(":80,interface=eth0")].into()));
    let [Action::Refuse(ONE, refusal)] = &actions[..] else { panic!("{actions:?}") };
    assert!(refusal.hint().contains("a new socket is needed"), "{}", refusal.hint());
    assert_eq!(refusal.address(), Some(&":80".parse().expect("address")));
}

#[test]
fn each_name_has_a_free_port_of_its_own() {
    let mut shell = Shell::new();
    let claim = [want("a=127.0.0.1:0"), want("b=127.0.0.1:0"), want("127.0.0.1:0")];
    assert_eq!(shell.claim(ONE, &claim), Ok(vec![(1, true), (2, true), (3, true)]));
    assert_eq!(shell.claim(TWO, &claim[1..]), Ok(vec![(2, false), (3, false)]));
    let text = shell.refused(&[":40001"]);
    let held = "0.0.0.0:40001 overlaps 127.0.0.1:0 (port 40001), held as \"a\" since ";
    assert!(text.starts_with(held), "{text}");
    shell.on(Event::Gone(ONE));
    shell.on(Event::Gone(TWO));
    shell.on(Event::Connected(TWO, PEER));
    let actions = shell.release(TWO, &["127.0.0.1:40002", "a", "127.0.0.1:0"]);
    assert_eq!(actions.len(), 4, "{actions:?}");
    assert_eq!(shell.registry.index.sizes(), (0, 0));
}

#[test]
fn refusals_name_both_sides() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want("web=10.0.0.1:80,backlog=128"), want("/run/a,mode=0600")]).expect("ok");
    for (wants, text) in [
        (
            vec!["0.0.0.0:80"],
            "0.0.0.0:80 overlaps 10.0.0.1:80, held as \"web\" since 1970-01-01T00:00:04.000Z",
        ),
        (
            vec![":90", "10.0.0.1:80,backlog=64"],
            "10.0.0.1:80,backlog=64 asks for backlog=64, but 10.0.0.1:80, held as \"web\" since \
             1970-01-01T00:00:04.000Z, has backlog=128",
        ),
        (
            vec!["web=:81"],
            "the name \"web\" cannot stand for web=0.0.0.0:81: it is the name of 10.0.0.1:80, held \
             as \"web\" since 1970-01-01T00:00:04.000Z",
        ),
        (
            vec!["unix@/run/a,mode=0660"],
            "unix@/run/a,mode=0660 asks for mode=0660, but unix@/run/a, held since \
             1970-01-01T00:00:04.000Z, has mode=0600",
        ),
        (vec!["[::]:70", "[::]:70,v6only"], "[::]:70,v6only overlaps [::]:70, in the same request"),
        (
            vec!["x=:70", "x=:71"],
            "the name \"x\" cannot stand for both x=0.0.0.0:70 and x=0.0.0.0:71, in the same request",
        ),
        (
            vec![":70", ":70,backlog=1"],
            "0.0.0.0:70,backlog=1 and 0.0.0.0:70 in the same request are one address with two \
             settings: backlog=1, the system's backlog",
        ),
        (vec![":70", "nobody"], "no listener is held for nobody"),
        (
            vec!["y=/run/a", "y=:71"],
            "the name \"y\" cannot stand for y=0.0.0.0:71: it is the name of unix@/run/a, held since 1970-01-01T00:00:04.000Z",
        ),
        (
            vec![":1-65535", ":1-65535", ":1-65535"],
            "196605 listeners in one request are more than the 150000 that are allowed",
        ),
    ] {
        assert_eq!(shell.refused(&wants), text);
    }
}

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
    let new = |new, other| Overlap { new, other: Neighbour::New(other) };
    let held = |new, other| Overlap { new, other: Neighbour::Held(ListenerId(other)) };
    assert_eq!(overlaps(&mut shell, ONE, &["127.0.0.1:80", ":80"]), [new(0, 1), new(1, 0)]);
    // Whoever asks for one alone would take connections from the other.
    assert!(shell.refused(&["127.0.0.2:80"]).contains("overlaps 0.0.0.0:80, held"));
    assert!(shell.refused(&["127.0.0.1:80", "[::]:80"]).contains("overlaps 0.0.0.0:80, held"));
    // Who asks for both has both already.
    let overlapping = overlaps(&mut shell, TWO, &["127.0.0.2:80", ":80"]);
    assert_eq!(overlapping, [held(0, 1)]);
    // Not only those that are found first count.
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
    // What nobody has any more is the service's that had it last.
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
fn what_a_claim_gets_in_a_later_step_cannot_be_released_before() {
    let mut shell = Shell { registry: Registry::in_steps_of(1), ..Shell::default() };
    for id in [ONE, TWO] {
        shell.on(Event::Connected(id, PEER));
    }
    shell.claim(ONE, &[want("a=:80"), want("b=:81")]).expect("claim");
    shell.on(Event::Gone(ONE));
    shell.on(Event::Connected(ONE, PEER));
    let mut actions = shell.on(Event::Claim(TWO, vec![want(":80"), want(":81")].into()));
    while !actions.iter().any(|action| matches!(action, Action::Granting(..))) {
        actions = shell.on(Event::More(TWO));
    }
    while !matches!(actions.last(), Some(Action::Grant(..))) {
        let released = shell.on(Event::Release(ONE, vec!["b".parse().expect("name")]));
        assert!(
            matches!(&released[..], [Action::Refuse(_, Refusal::InUse { .. })]),
            "{released:?}"
        );
        actions = shell.on(Event::More(TWO));
    }
    assert_eq!(shell.claim(ONE, &[want("b")]), Ok(vec![(2, false)]));
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
    // The same service may, and another once this one drains.
    shell.on(Event::Join(TWO, label("web", State::Starting)));
    assert_eq!(shell.claim(TWO, &[want(":80")]), Ok(vec![(1, false)]));
    shell.on(Event::Join(TWO, label("edge", State::Starting)));
    shell.on(Event::Join(ONE, label("web", State::Draining)));
    assert_eq!(shell.claim(TWO, &[want(":80")]), Ok(vec![(1, false)]));
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
    // The first waits for a socket of its own; the second for that decision.
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
    // Alone it would have to have IPv4.
    assert!(shell.refused(&["[::]:80"]).starts_with("[::]:80 overlaps [::]:80,v6only, held"));
    // Both new, or the IPv6 one first: it has IPv4 where no other socket does.
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
fn release_waits_for_nobody_but_the_caller() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want("web=:80"), want(":81")]).expect("claim");
    shell.claim(TWO, &[want("web")]).expect("claim");
    let label = Label {
        service: "edge".parse().expect("name"),
        generation: 7,
        pid: 99,
        state: State::Serving,
    };
    shell.on(Event::Join(TWO, label));
    let actions = shell.release(ONE, &[":81", "web"]);
    let [Action::Refuse(ONE, refusal)] = &actions[..] else { panic!("{actions:?}") };
    let text = refusal.to_string();
    assert!(text.ends_with("is in use by edge generation 7 (pid 99)"), "{text}");
    assert_eq!(shell.registry.len(), 2);
    shell.on(Event::Gone(TWO));
    let actions = shell.release(ONE, &[":81", "web", "*:80"]);
    assert!(
        matches!(&actions[..], [
            Action::Close(2, _, Closing::Released),
            Action::Close(1, _, Closing::Released),
            Action::Released(ONE, names, rest),
        ] if rest.is_empty() && *names == ["0.0.0.0:81", "web"]),
        "{actions:?}"
    );
    assert_eq!(shell.claim(ONE, &[want("web=:80")]), Ok(vec![(3, true)]));
}

#[test]
fn a_release_names_one_listener_and_no_other_at_its_address() {
    let others = [("[::]:80", "[::]:80,v6only"), (":80", ":80,interface=lo"), (":80", ":80,mptcp")];
    for (one, other) in others.into_iter().flat_map(|(one, other)| [(one, other), (other, one)]) {
        let mut shell = Shell::new();
        shell.claim(ONE, &[want(one)]).expect("claim");
        shell.on(Event::Gone(ONE));
        let actions = shell.release(TWO, &[other]);
        assert!(
            matches!(&actions[..], [Action::Refuse(TWO, Refusal::NotFound { .. })]),
            "{one} {other}: {actions:?}"
        );
        assert_eq!(shell.registry.len(), 1);
    }
}

#[test]
fn many_are_released_some_at_a_time_but_for_those_that_are_claimed_meanwhile() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":1000-1199")]).expect("claim");
    let mut actions = shell.release(ONE, &[":1000-1199"]);
    // All were free when it was decided. One of them is leased by another connection when its turn comes.
    assert_eq!(shell.claim(TWO, &[want(":1150")]), Ok(vec![(151, false)]));
    let mut released = Vec::new();
    while let Some(Action::Released(ONE, names, rest)) = actions.pop() {
        assert!(actions.len() == names.len() && names.len() <= 64, "{actions:?}");
        released.extend(names);
        actions =
            if rest.is_empty() { Vec::new() } else { shell.on(Event::ReleaseRest(ONE, rest)) };
    }
    assert_eq!((released.len(), shell.registry.len()), (199, 1));
    assert!(!shell.registry.is_used(ONE) && shell.registry.is_used(TWO));
    assert!(matches!(
        shell.release(TWO, &[":1150"])[..],
        [Action::Close(151, ..), Action::Released(..)]
    ));
}

#[test]
fn a_tentative_listener_ends_with_its_last_lease_unless_confirmed() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[tentative(":80"), tentative(":81"), tentative(":82")]).expect("claim");
    shell.claim(TWO, &[want(":81"), tentative(":82")]).expect("claim");
    let actions = shell.on(Event::Gone(ONE));
    assert!(matches!(&actions[..], [Action::Close(1, _, Closing::Unconfirmed)]), "{actions:?}");
    let label = Label {
        service: "edge".parse().expect("name"),
        generation: 7,
        pid: 99,
        state: State::Serving,
    };
    shell.on(Event::Join(TWO, label));
    assert_eq!(shell.on(Event::Gone(TWO)), []);
    assert_eq!(shell.registry.len(), 2);
}

/// The supervisor of a generation is killed before it has said that the generation serves.
#[test]
fn a_tentative_listener_stays_with_a_generation_that_outlives_its_connection() {
    let mut shell = Shell::new();
    let three = ConnectionId(3);
    let wants = [":80", ":81", ":82", ":83", ":84"].map(tentative);
    shell.claim(ONE, &wants).expect("claim");
    shell.claim(TWO, &[tentative(":84")]).expect("claim");
    shell.on(Event::Outlived(ONE));
    assert_eq!(shell.on(Event::Gone(ONE)), []);
    let outlived = |shell: &Shell| {
        let held = shell.registry.iter().map(|(_, held)| !held.tentative);
        held.collect::<Vec<_>>()
    };
    assert_eq!(outlived(&shell), [true; 5], "a broker that is killed now has them again");
    // A client that only tries leaves no trace; the next supervisor confirms.
    shell.claim(TWO, &[want(":81"), tentative(":82")]).expect("claim");
    shell.on(Event::Connected(three, PEER));
    shell.claim(three, &[tentative(":83")]).expect("claim");
    assert_eq!(shell.on(Event::Gone(three)), []);
    let actions = shell.on(Event::Ended(ONE));
    let closed = |actions: &[Action<u32>]| -> Vec<u32> {
        let closed = actions.iter().map(|action| match action {
            Action::Close(handle, _, Closing::Unconfirmed) => *handle,
            other => panic!("{other:?}"),
        });
        closed.collect()
    };
    assert_eq!(closed(&actions), [1, 4]);
    assert_eq!(shell.on(Event::Ended(ONE)), []);
    // Those that others have used meanwhile end as they would have.
    assert_eq!(closed(&shell.on(Event::Gone(TWO))), [3, 5]);
    assert_eq!(shell.registry.len(), 1);
}

#[test]
fn what_was_kept_for_a_process_is_closed_some_at_a_time() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[tentative(":1000-1099")]).expect("claim");
    shell.on(Event::Outlived(ONE));
    while !shell.on(Event::Gone(ONE)).is_empty() {}
    assert_eq!(shell.registry.len(), 100);
    let mut steps = 0;
    loop {
        let actions = shell.on(Event::Ended(ONE));
        steps += 1;
        assert!(actions.len() <= 33, "{actions:?}");
        if !actions.iter().any(|action| matches!(action, Action::Closing(ONE))) {
            break;
        }
    }
    assert_eq!((steps, shell.registry.len()), (4, 0));
}

#[test]
fn a_name_that_is_taken_away_is_free_and_the_listener_stays() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want("web=:8000")]).expect("claim");
    assert!(shell.claim(TWO, &[want("web=:80")]).is_err());
    let (id, held) = shell.registry.with_name(&"web".parse().expect("name")).expect("named");
    let edition = held.edition();
    assert_eq!(shell.on(Event::Unname(id)), []);
    assert_ne!(shell.registry.held(id).expect("held").edition(), edition);
    assert!(shell.claim(ONE, &[want("web")]).is_err(), "nobody's now");
    assert_eq!(shell.claim(TWO, &[want("web=:80")]), Ok(vec![(2, true)]));
    assert_eq!(shell.claim(ONE, &[want(":8000")]), Ok(vec![(1, false)]));
    assert_eq!(shell.on(Event::Unname(ListenerId(99))), []);
    // It is given back where neither has got another.
    let name = |text: &str| text.parse::<crate::name::Name>().expect("a name");
    let named = |shell: &Shell, text| shell.registry.with_name(&name(text)).map(|(id, _)| id);
    shell.on(Event::Rename(id, name("web")));
    assert_ne!(named(&shell, "web"), Some(id), "another has it");
    shell.on(Event::Rename(id, name("mine")));
    assert_eq!(named(&shell, "mine"), Some(id));
    shell.on(Event::Rename(id, name("yours")));
    assert_eq!((named(&shell, "mine"), named(&shell, "yours")), (Some(id), None));
}

#[test]
fn many_leases_end_some_at_a_time() {
    let mut shell = Shell::new();
    let count = 3 * release::CLOSED_AT_ONCE + 1;
    let range = format!(":1000-{}", 999 + count);
    shell.claim(ONE, &[tentative(&range)]).expect("claim");
    let (mut closed, mut steps) = (0, 0);
    loop {
        let actions = shell.on(Event::Gone(ONE));
        let leaves = matches!(actions[0], Action::Leaving(ONE));
        let some = actions.len() - usize::from(leaves);
        assert!(some <= release::CLOSED_AT_ONCE);
        closed += some;
        steps += 1;
        assert_eq!(shell.registry.len(), count - closed);
        assert_eq!(shell.registry.caller(ONE).is_some(), leaves);
        if !leaves {
            break;
        }
        // What it has left is free; what it has not left yet is in use.
        let last = format!(":{}", 999 + count);
        assert!(matches!(shell.release(TWO, &[":1000"])[..], [Action::Refuse(..)]), "not held");
        let refused = shell.release(TWO, &[&last]);
        assert!(matches!(refused[..], [Action::Refuse(_, Refusal::InUse { .. })]), "{refused:?}");
    }
    assert_eq!(steps, 4);
}

#[test]
fn leases_that_close_nothing_end_more_at_a_time() {
    let mut shell = Shell::new();
    let count = 2 * release::ENDED_AT_ONCE + 1;
    shell.claim(ONE, &[want(&format!(":1000-{}", 999 + count))]).expect("claim");
    let leaves = |shell: &mut Shell| !shell.on(Event::Gone(ONE)).is_empty();
    assert_eq!([(); 3].map(|()| leaves(&mut shell)), [true, true, false]);
    assert_eq!((shell.registry.len(), shell.registry.leases_of(0)), (count, 0));
}

#[test]
fn a_claim_waits_for_one_that_is_opened_only_where_they_meet() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":90"), want("held=:91"), want(":92,backlog=5")]).expect("held");
    let first = [
        want("web=:80"),
        want("10.0.0.1:85"),
        want("late=:90"),
        Want { change: true, ..want(":92,backlog=6") },
    ];
    let actions = shell.on(Event::Claim(ONE, first.to_vec().into()));
    let [Action::Open(ONE, listeners, _)] = &actions[..] else { panic!("{actions:?}") };
    let listeners = listeners.clone();
    // What is held, and what is new and apart from it, does not wait.
    assert_eq!(shell.claim(TWO, &[want("held"), want(":91")]), Ok(vec![(2, false); 2]));
    assert_eq!(shell.claim(TWO, &[want(":81")]), Ok(vec![(4, true)]));
    assert!(shell.claim(TWO, &[want("held=:86")]).is_err());
    let meeting = [
        ":80",
        "web",
        "web=:82",
        ":85",
        "[::]:85",
        "late",
        "late=:83",
        "other=:90",
        ":70-80",
        ":92,backlog=7",
    ];
    let mut waiting = Vec::new();
    let sizes = shell.registry.index.sizes();
    for (number, text) in meeting.iter().enumerate() {
        let id = ConnectionId(10 + number as u64);
        shell.on(Event::Connected(id, PEER));
        let change = text.contains("backlog");
        assert_eq!(
            shell.on(Event::Claim(id, vec![Want { change, ..want(text) }].into())),
            [],
            "{text}"
        );
        assert_eq!(shell.registry.index.sizes(), sizes, "who waits has nothing");
        waiting.push(id);
    }
    shell.on(Event::Gone(waiting.remove(0)));
    let opened = shell.open(&listeners);
    let actions = shell.on(Event::Opened(ONE, opened));
    assert!(matches!(actions[..], [Action::Change(ONE, _)]), "not decided yet: {actions:?}");
    let actions = shell.on(Event::Changed(ONE, vec![6]));
    let retries: Vec<_> = actions
        .iter()
        .filter_map(|action| if let Action::Retry(id) = action { Some(*id) } else { None })
        .collect();
    assert_eq!(retries, waiting);
    let granted = |actions: Vec<Action<u32>>| matches!(actions[..], [Action::Grant(..)]);
    assert!(granted(shell.on(Event::Retry(waiting[0]))), "web");
    assert!(matches!(shell.on(Event::Retry(waiting[1]))[..], [Action::Refuse(..)]), "web=:82");
    assert_eq!(shell.on(Event::Retry(waiting[0])), [], "once");
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

#[test]
fn the_edition_tells_whether_what_was_written_down_is_still_true() {
    let mut shell = Shell::new();
    let edition = |shell: &Shell| shell.registry.list()[0].held.edition();
    shell.claim(ONE, &[tentative("127.0.0.1:80")]).expect("new");
    let mut last = edition(&shell);
    let mut changed = |shell: &Shell| std::mem::replace(&mut last, edition(shell)) != last;
    shell
        .claim(TWO, &[tentative(":80"), tentative("other=:81"), tentative("other=:82")])
        .expect_err("overlap");
    shell.claim(TWO, &[tentative("127.0.0.1:80")]).expect("known");
    assert!(!changed(&shell), "nothing new");
    shell.claim(TWO, &[tentative("web=127.0.0.1:80")]).expect("named");
    assert!(changed(&shell), "named");
    shell.claim(TWO, &[want("127.0.0.1:80")]).expect("confirmed");
    assert!(changed(&shell), "confirmed");
    shell.claim(TWO, &[want("web")]).expect("known");
    assert!(!changed(&shell), "nothing new");
}
