//! The invariants of the registry under random events, against a shell that may fail at any socket
//! and takes its time to open them.
//!
//! The numbers are those of docs/architecture.md.

#![allow(missing_docs)]

mod world;

use std::collections::BTreeMap;

use bindonce_core::registry::{Action, Event, Want};
use proptest::prelude::*;

use crate::world::{Step, WANTED, World, at_once, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn invariants_1_4_7_hold_at_every_step(
        steps in prop::collection::vec(step(), 1..60),
        at_once in at_once(),
    ) {
        let mut world = World::in_steps_of(at_once);
        for step in &steps {
            world.step(step)?;
        }
        // When all clients have gone and everything is released, nothing is left.
        world.answer(usize::MAX)?;
        world.answer_all()?;
        for client in 0..4 {
            world.step(&Step::Gone(client))?;
        }
        world.step(&Step::Connect(0))?;
        for view in world.picture() {
            let name = view.1.label().parse().expect("a label parses");
            let id = world.clients[&0];
            let actions = world.on(Event::Release(id, vec![name]))?;
            prop_assert!(matches!(actions.last(), Some(Action::Released(..))), "{actions:?}");
            world.invariants()?;
        }
        prop_assert_eq!(world.closed.len(), world.opened as usize);
    }

    #[test]
    fn invariant_6_the_same_claim_again_does_nothing(
        wants in prop::collection::vec((0..WANTED.len(), any::<bool>(), any::<bool>()), 1..6),
        steps in prop::collection::vec(step(), 0..20),
    ) {
        let mut world = World::default();
        for step in &steps {
            world.step(step)?;
        }
        world.answer_all()?;
        world.step(&Step::Connect(0))?;
        world.step(&Step::Claim(0, wants.clone()))?;
        world.answer_all()?;
        let id = world.clients[&0];
        let wants: Vec<Want> = wants
            .iter()
            .map(|(index, tentative, change)| Want {
                held: false,
                wanted: WANTED[*index].parse().expect("wanted"),
                tentative: *tentative,
                change: *change,
            })
            .collect();
        let before = world.picture();
        let actions = world.on(Event::Claim(id, wants.into()))?;
        prop_assert_eq!(world.picture(), before);
        match &actions[..] {
            [Action::Grant(_, leases)] => prop_assert!(leases.iter().all(|lease| !lease.created)),
            [Action::Refuse(..)] => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn invariant_4_nobody_who_holds_a_listener_loses_it(
        steps in prop::collection::vec(step(), 1..60),
        at_once in at_once(),
    ) {
        let mut world = World::in_steps_of(at_once);
        for step in &steps {
            let held_by = |world: &World| -> BTreeMap<u32, usize> {
                let views = world.registry.list();
                views.iter().map(|view| (view.held.opened.handle, view.holders.len())).collect()
            };
            let before = held_by(&world);
            world.step(step)?;
            let after = held_by(&world);
            for (handle, holders) in before {
                if !after.contains_key(&handle) {
                    // The client that closed it was the last holder, or there was none.
                    prop_assert!(holders <= 1, "{handle} had {holders} holders");
                    prop_assert!(matches!(
                        step,
                        Step::Release(..) | Step::Gone(_) | Step::Ended(_) | Step::Answer(_)
                    ));
                }
            }
        }
    }
}
