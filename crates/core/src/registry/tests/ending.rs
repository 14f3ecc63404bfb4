//! How leases end, and what closes a listener: a release, or the end of a tentative listener's last
//! lease.

use super::*;

/// The process of a generation.
const HAPROXY: Process = Process { pid: 99, start: 5 };

/// A generation that serves.
fn edge() -> Label {
    let service = "edge".parse().expect("name");
    Label { service, generation: 7, pid: 99, state: State::Serving }
}

#[test]
fn release_waits_for_nobody_but_the_caller() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want("web=:80"), want(":81")]).expect("claim");
    shell.claim(TWO, &[want("web")]).expect("claim");
    shell.on(Event::Join(TWO, edge()));
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
    for (plain, special) in others {
        for (one, other, closes) in [(plain, special, false), (special, plain, true)] {
            let mut shell = Shell::new();
            shell.claim(ONE, &[want(one)]).expect("claim");
            shell.on(Event::Gone(ONE));
            let actions = shell.release(TWO, &[other]);
            let closed = matches!(actions.first(), Some(Action::Close(..)));
            assert_eq!(closed, closes, "{one} {other}: {actions:?}");
            assert_eq!(shell.registry.len(), usize::from(!closes));
        }
    }
}

#[test]
fn many_are_released_some_at_a_time_but_for_those_that_are_claimed_meanwhile() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want(":1000-1199")]).expect("claim");
    let mut actions = shell.release(ONE, &[":1000-1199"]);
    // All were free when the release was decided. One is leased by another connection since then.
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
    shell.on(Event::Join(TWO, edge()));
    assert_eq!(shell.on(Event::Gone(TWO)), []);
    assert_eq!(shell.registry.len(), 2);
}

/// The supervisor of a generation is killed before it has reported that the generation serves.
#[test]
fn a_tentative_listener_stays_with_a_generation_that_outlives_its_connection() {
    let mut shell = Shell::new();
    let three = ConnectionId(3);
    let wants = [":80", ":81", ":82", ":83", ":84"].map(tentative);
    shell.claim(ONE, &wants).expect("claim");
    shell.claim(TWO, &[tentative(":84")]).expect("claim");
    shell.on(Event::Outlived(ONE, HAPROXY));
    assert_eq!(shell.on(Event::Gone(ONE)), []);
    let outlived = |shell: &Shell| {
        let held = shell.registry.iter().map(|(_, held)| !held.tentative);
        held.collect::<Vec<_>>()
    };
    assert_eq!(outlived(&shell), [true; 5], "a broker that is killed now has them again");
    let records = |shell: &Shell| -> Vec<_> {
        shell.registry.iter().map(|(_, held)| (held.outlived, held.edition())).collect()
    };
    let before = records(&shell);
    assert!(before.iter().all(|(process, _)| *process == Some(HAPROXY)), "{before:?}");
    // A tentative claim leaves no trace; the next supervisor's claim confirms.
    shell.claim(TWO, &[want(":81"), tentative(":82")]).expect("claim");
    let after = records(&shell);
    assert!(after[1].0.is_none() && after[1].1 > before[1].1, "its record is written anew");
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    shell.on(Event::Connected(three, PEER));
    shell.claim(three, &[tentative(":83")]).expect("claim");
    assert_eq!(shell.on(Event::Gone(three)), []);
    let actions = shell.on(Event::Ended(HAPROXY));
    let closed = |actions: &[Action<u32>]| -> Vec<u32> {
        let closed = actions.iter().map(|action| match action {
            Action::Close(handle, _, Closing::Unconfirmed) => *handle,
            other => panic!("{other:?}"),
        });
        closed.collect()
    };
    assert_eq!(closed(&actions), [1, 4]);
    assert_eq!(shell.on(Event::Ended(HAPROXY)), []);
    // Listeners that others have claimed meanwhile end with their leases.
    assert_eq!(closed(&shell.on(Event::Gone(TWO))), [3, 5]);
    assert_eq!(shell.registry.len(), 1);
}

#[test]
fn what_was_kept_for_a_process_is_closed_some_at_a_time() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[tentative(":1000-1099")]).expect("claim");
    shell.on(Event::Outlived(ONE, HAPROXY));
    while !shell.on(Event::Gone(ONE)).is_empty() {}
    assert_eq!(shell.registry.len(), 100);
    let mut steps = 0;
    loop {
        let actions = shell.on(Event::Ended(HAPROXY));
        steps += 1;
        assert!(actions.len() <= 33, "{actions:?}");
        if !actions.iter().any(|action| matches!(action, Action::Closing(HAPROXY))) {
            break;
        }
    }
    assert_eq!((steps, shell.registry.len()), (4, 0));
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
        // A listener whose lease has ended is free; the others are still in use.
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
