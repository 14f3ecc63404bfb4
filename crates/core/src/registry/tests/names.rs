//! Names of listeners: what a claim looks up by one, and what remains when one is taken away.

use super::*;
use crate::listener::Wanted;
use crate::name::MAX_LEN;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

#[test]
fn what_a_step_looks_up_by_name_can_be_judged_before_it() {
    let mut shell = Shell { registry: Registry::in_steps_of(2), ..Shell::default() };
    shell.on(Event::Connected(ONE, PEER));
    shell.on(Event::Connected(TWO, PEER));
    shell.claim(ONE, &[want("a=:80"), want("r=:81-83")]).expect("claim");
    let wants = ["a", "r=:81-83", ":80", "r-83", "late"].map(want).to_vec();
    let named = |shell: &Shell, event: &Event<u32>| {
        let named = shell.registry.named_in(event);
        named.map(|(want, some)| (want.wanted.to_string(), some)).collect::<Vec<_>>()
    };
    let one = |text: &str| (text.to_owned(), 0..1);
    let range = |some| ("r=0.0.0.0:81-83".to_owned(), some);
    let claim = Event::Claim(TWO, wants.into());
    assert_eq!(named(&shell, &claim), [one("a"), range(0..1)]);
    let mut actions = shell.on(claim);
    let steps = [vec![range(1..3)], vec![one("r-83")], vec![one("late")]];
    for step in steps {
        assert_eq!(actions, [Action::More(TWO)]);
        assert_eq!(named(&shell, &Event::More(TWO)), step);
        actions = shell.on(Event::More(TWO));
    }
    // It is given up, and looks up nothing more.
    assert!(named(&shell, &Event::More(TWO)).is_empty());
    while actions == [Action::More(TWO)] {
        actions = shell.on(Event::More(TWO));
    }
    assert!(matches!(actions[..], [Action::Refuse(TWO, Refusal::NotFound { .. })]), "{actions:?}");
}

#[test]
fn what_a_waiting_claim_looks_up_is_judged_when_it_is_retried() {
    let mut shell = Shell::new();
    let actions = shell.on(Event::Claim(ONE, vec![want("web=:80")].into()));
    assert!(matches!(actions[..], [Action::Open(..)]), "{actions:?}");
    assert_eq!(shell.on(Event::Claim(TWO, vec![want(":81"), want("web")].into())), []);
    let retry = Event::Retry(TWO);
    let named: Vec<_> = shell.registry.named_in(&retry).map(|(want, _)| &want.wanted).collect();
    assert_eq!(named, [&Wanted::Named(name("web"))]);
}

/// A listener at port 0 is found by its name too.
#[test]
fn a_listener_at_port_0_that_loses_its_name_is_still_the_only_one_of_its_key() {
    let mut shell = Shell::new();
    shell.claim(ONE, &[want("127.0.0.1:0"), want("web=127.0.0.1:0")]).expect("claim");
    let web = name("web");
    let (id, _) = shell.registry.with_name(&web).expect("named");
    shell.on(Event::Unname(id));
    let label = |shell: &Shell| shell.registry.held(id).expect("held").listener.label();
    assert_eq!(label(&shell), "web-40002");
    // Its name and the key that it had are free.
    assert_eq!(shell.claim(TWO, &[want("web=127.0.0.1:0")]), Ok(vec![(3, true)]));
    let both = [want("127.0.0.1:0"), want("web-40002=127.0.0.1:0")];
    assert_eq!(shell.claim(ONE, &both), Ok(vec![(1, false), (2, false)]));
    // It gets the name back once nobody else has it.
    shell.on(Event::Rename(id, web.clone()));
    assert_eq!(label(&shell), "web-40002");
    shell.on(Event::Gone(TWO));
    shell.on(Event::Connected(TWO, PEER));
    shell.release(TWO, &["web"]);
    shell.on(Event::Rename(id, web));
    assert_eq!(shell.claim(ONE, &[want("web=127.0.0.1:0")]), Ok(vec![(2, false)]));
    shell.on(Event::Gone(ONE));
    shell.release(TWO, &["web", "127.0.0.1:0"]);
    assert_eq!((shell.registry.len(), shell.registry.index.sizes()), (0, (0, 0)));
}

#[test]
fn a_name_that_stands_in_for_another_is_free() {
    let mut shell = Shell::new();
    let (long, short) = ("a".repeat(MAX_LEN), "web".to_owned());
    let wants = [want("web-40002=:80"), want("web=:0"), want(&format!("{long}=:0"))];
    shell.claim(ONE, &wants).expect("claim");
    let cut = format!("{}-40003", &long[..MAX_LEN - 16]);
    for (lost, stands_in) in [(short, "web-40002-2".to_owned()), (long, cut)] {
        let (id, _) = shell.registry.with_name(&name(&lost)).expect("named");
        shell.on(Event::Unname(id));
        let found = shell.registry.with_name(&name(&stands_in)).map(|(id, _)| id);
        assert_eq!(found, Some(id), "{stands_in}");
    }
}
