//! One test for each rule that a person could state, about claims. The invariants under random
//! events are in tests/registry.

mod ending;
mod names;
mod overlaps;

use std::sync::Arc;

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
    // Matching options are not changed; new listeners are opened first.
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
    // On failure all is as before, and the new socket is given back.
    let actions = shell.on(Event::ChangeFailed(TWO));
    let expected = [":80,backlog=128", ":80"];
    assert!(matches!(actions[..], [Action::Close(3, ..), Action::NotOpened(TWO)]), "{actions:?}");
    assert!(shell.refused(&expected[..1]).contains("has backlog=64"));
    // On success the options are as asked for.
    let actions = shell.on(Event::Claim(TWO, vec![wants[0].clone(), wants[2].clone()].into()));
    assert!(matches!(&actions[..], [Action::Change(TWO, changes)] if changes.len() == 2));
    let actions = shell.on(Event::Changed(TWO, vec![128, 4096]));
    assert!(matches!(actions[..], [Action::Grant(TWO, _)]), "{actions:?}");
    let same = [want(":80,backlog=128,freebind"), want("/run/a,mode=0660")];
    assert_eq!(shell.claim(ONE, &same), Ok(vec![(1, false), (2, false)]));
    // One request with two values.
    let twice = vec![changing(":80,backlog=1"), changing(":80,backlog=2")];
    let actions = shell.on(Event::Claim(ONE, twice.into()));
    let [Action::Refuse(ONE, refusal)] = &actions[..] else { panic!("{actions:?}") };
    assert!(refusal.to_string().contains("two settings"), "{refusal}");
    // An option of the key needs another socket.
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
    // The name is given back if neither it nor the listener has found another.
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
    // Held listeners, and new ones apart from those being opened, do not wait.
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
