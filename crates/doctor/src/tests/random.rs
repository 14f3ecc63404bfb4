//! Every set of facts gives a report.

use proptest::prelude::*;

use super::*;
use crate::Examination;
use crate::text;

prop_compose! {
    /// Few inodes, addresses and pids, so that values coincide.
    fn any_socket()(
        inode in 1..6_u64,
        port in 80..83_u16,
        mode in prop::sample::select(vec![Mode::Listening, Mode::Datagram, Mode::Bound]),
        queue in 0..200_u64,
        queue_limit in 0..130_u64,
        drops in 0..3_u64,
        reuseport in any::<Option<bool>>(),
    ) -> Socket {
        Socket { mode, queue, queue_limit, drops, reuseport, ..socket(&format!(":{port}"), inode) }
    }
}

prop_compose! {
    fn any_process()(
        pid in 1..6_i32,
        parent in 1..6_i32,
        minutes in 0..20_u64,
        held in prop::collection::btree_set(1..6_u64, 0..4),
        program in prop::sample::select(vec!["haproxy", "nginx", "bindonce"]),
        state in prop::sample::select(vec!['S', 'T', 'R']),
        (asks, live, all_known) in any::<(bool, bool, bool)>(),
        descriptors in 0..1024_u64,
    ) -> Process {
        let held: Vec<u64> = held.into_iter().collect();
        let mut process = haproxy(pid, minutes, &held);
        (process.parent, process.state, process.program) = (parent, state, program.to_owned());
        process.activity.registrations.iter_mut().for_each(|one| {
            (one.input, one.live) = (asks, live);
        });
        process.activity.all_known = all_known;
        process.usage.descriptors = descriptors;
        process
    }
}

prop_compose! {
    fn any_look()(
        sockets in prop::collection::vec(any_socket(), 0..6),
        processes in prop::collection::vec(any_process(), 0..5),
        stopping in any::<bool>(),
        connections in 0..600_u64,
        states in prop::option::of(prop::collection::vec(
            prop::sample::select(vec![State::Starting, State::Serving, State::Draining]), 0..3)),
    ) -> Look {
        // Each inode belongs to one socket.
        let mut inodes = std::collections::BTreeSet::new();
        let sockets = sockets.into_iter().filter(|socket| inodes.insert(socket.inode)).collect();
        let mut look = look(sockets, processes);
        look.haproxies = vec![Stats { pid: 2, stopping, connections, limit: 500, ..Stats::default() }];
        look.broker = states.and_then(|states| {
            let known = states.into_iter().zip(1..).map(|(state, id)| generation(id, id as u32, state));
            serving(1, known.collect())
        });
        look
    }
}

proptest! {
    #[test]
    fn every_look_gives_a_report(
        before in any_look(), now in any_look(), twice in any::<bool>(), seconds in 0..5_u64,
    ) {
        let details = waits(1, Duration::from_secs(seconds));
        let before = Look { at: Timestamp(NOW - 150), ..before };
        let facts = Facts { earlier: twice.then_some(before), now, details };
        let found = diagnose(&facts);
        prop_assert!(found.is_sorted_by_key(|one| (one.severity, one.kind())));
        for one in &found {
            prop_assert!(one.pids.iter().all(|pid| facts.now.processes.contains_key(pid)));
        }
        // Two equal looks find nothing that one look does not.
        if !twice {
            let again = seen_twice(facts.now.clone());
            for one in diagnose(&Facts { details: facts.details.clone(), ..again }) {
                prop_assert!(found.iter().any(|other| other.kind() == one.kind()), "{one:#?}");
            }
        }
        let Facts { now, .. } = facts;
        let examination = Examination { look: now, found, target: None, spent: Duration::ZERO };
        let report = text::json(&examination);
        prop_assert_eq!(report["healthy"].as_bool(), Some(examination.is_healthy()));
        let screen = text::screen(&examination);
        prop_assert_eq!(screen.starts_with("healthy"), examination.is_healthy(), "{}", screen);
    }
}
