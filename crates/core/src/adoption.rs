//! Decides which sockets of a running program become listeners, one for each wanted address, and
//! why the others do not.
//!
//! A program may have several sockets on one address (haproxy's `shards`, or processes that each
//! bound it with SO_REUSEPORT), and the kernel spreads connections over them. A listener is one
//! socket, so one is taken. The others, its siblings, stay with the program until it closes them.

use std::collections::{HashMap, HashSet};

use crate::address::Address;
use crate::listener::{Key, Listener};

/// A socket that a program listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The listener as the kernel reports it.
    pub listener: Listener,
    /// Inode number of the socket.
    pub inode: u64,
    /// Why the socket cannot be taken, even if it is wanted.
    pub unfit: Option<Unfit>,
}

/// Why a socket cannot become a listener here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The socket is in another network namespace, where the same address is another place.
    #[error("it is in another network namespace")]
    OtherNamespace,
    /// The socket is bound and does not listen.
    #[error("it is bound and does not listen")]
    NotListening,
    /// The file at its path belongs to another socket, or is gone.
    #[error("its path leads to another socket, or nowhere")]
    PathGone,
}

/// A socket that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its index among the candidates.
    pub index: usize,
    /// The listener as it will be held, with the wanted name and options.
    pub listener: Listener,
    /// Indexes of the other sockets on the same address.
    pub siblings: Vec<usize>,
}

/// Why a socket is left to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The socket cannot become a listener.
    #[error("{0}")]
    Unfit(Unfit),
    /// No wanted listener matches. A later generation binds the address itself, or not at all.
    #[error("not among the listeners that were named")]
    NotWanted,
}

/// What to do with the candidates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The sockets to take.
    pub taken: Vec<Taken>,
    /// The sockets to leave to the program, without siblings.
    pub left: Vec<(usize, Reason)>,
    /// Wanted listeners that no candidate matches.
    pub missing: Vec<Listener>,
}

/// Decides what to take. Without `wanted`, every TCP listener is wanted.
pub fn plan(candidates: &[Candidate], wanted: Option<&[Listener]>) -> Plan {
    let mut plan = Plan::default();
    // The kernel does not know that a UDP socket is for QUIC.
    let seen_key = |listener: &Listener| listener.key().as_seen();
    let mut at: HashMap<Key, Vec<usize>> = HashMap::new();
    let mut order = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        match candidate.unfit {
            Some(unfit) => plan.left.push((index, Reason::Unfit(unfit))),
            None => {
                let key = seen_key(&candidate.listener);
                let there = at.entry(key.clone()).or_default();
                if there.is_empty() {
                    order.push(key);
                }
                there.push(index);
            }
        }
    }
    let mut take = |listener: Listener, there: Vec<usize>| {
        if let [index, siblings @ ..] = there.as_slice() {
            plan.taken.push(Taken { index: *index, listener, siblings: siblings.to_vec() });
        }
    };
    if let Some(wanted) = wanted {
        let mut seen = HashSet::new();
        for listener in wanted.iter().filter(|listener| seen.insert(listener.key())) {
            match at.remove(&seen_key(listener)) {
                Some(there) => take(listener.clone(), there),
                None => plan.missing.push(listener.clone()),
            }
        }
    } else {
        for key in &order {
            let tcp = |there: &Vec<usize>| {
                let first = there.first().and_then(|index| candidates.get(*index));
                first.is_some_and(|one| matches!(one.listener.address, Address::Tcp(_)))
            };
            if let Some(there) = at.get(key).filter(|there| tcp(there)).cloned() {
                if let Some(first) = there.first().and_then(|index| candidates.get(*index)) {
                    at.remove(key);
                    take(first.listener.clone(), there);
                }
            }
        }
    }
    let rest = at.into_values().flatten().map(|index| (index, Reason::NotWanted));
    plan.left.extend(rest);
    plan.left.sort_by_key(|(index, _)| *index);
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(inode: u64, text: &str) -> Candidate {
        Candidate { listener: text.parse().expect(text), inode, unfit: None }
    }

    fn wanted(texts: &[&str]) -> Vec<Listener> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn one_socket_for_each_address_under_the_wanted_name_and_options() {
        let there = [
            candidate(1, "127.0.0.1:80"),
            candidate(2, "127.0.0.1:1024"),
            candidate(3, "127.0.0.1:80"),
            candidate(4, "[::]:80,v6only"),
        ];
        let wanted = wanted(&["web=127.0.0.1:80,backlog=9", "[::]:80", "[::]:80,v6only"]);
        let plan = plan(&there, Some(&wanted));
        let taken: Vec<_> = plan.taken.iter().map(|one| (one.index, &one.siblings[..])).collect();
        assert_eq!(taken, [(0, &[2][..]), (3, &[])]);
        assert_eq!(plan.taken[0].listener, wanted[0]);
        // Dual-stack and IPv6 only are different places.
        assert_eq!(plan.missing, [wanted[1].clone()]);
        assert_eq!(plan.left, [(1, Reason::NotWanted)]);
    }

    #[test]
    fn without_a_wish_every_tcp_listener_and_nothing_else() {
        let mut there = vec![
            candidate(1, "unix@/run/a"),
            candidate(2, ":80"),
            candidate(3, "udp@:53"),
            candidate(4, ":81"),
        ];
        there[3].unfit = Some(Unfit::OtherNamespace);
        let plan = plan(&there, None);
        assert_eq!(plan.taken.iter().map(|one| one.index).collect::<Vec<_>>(), [1]);
        let other = Reason::Unfit(Unfit::OtherNamespace);
        assert_eq!(plan.left, [(0, Reason::NotWanted), (2, Reason::NotWanted), (3, other)]);
    }

    proptest! {
        /// Every socket is exactly one of these: taken, a sibling, or left with a reason. No
        /// address is taken twice.
        #[test]
        fn nothing_is_forgotten_or_taken_twice(
            ports in prop::collection::vec((1_u16..5, any::<bool>()), 0..20),
            wish in prop::option::of(prop::collection::vec(1_u16..7, 0..8)),
        ) {
            let there: Vec<_> = ports.iter().enumerate().map(|(index, (port, fit))| Candidate {
                unfit: (!fit).then_some(Unfit::NotListening),
                ..candidate(index as u64, &format!("127.0.0.1:{port}"))
            }).collect();
            let wish: Option<Vec<Listener>> = wish.map(|ports| {
                ports.iter().map(|port| format!("127.0.0.1:{port}").parse().expect("one")).collect()
            });
            let plan = plan(&there, wish.as_deref());
            let mut seen: Vec<usize> = plan.left.iter().map(|(index, _)| *index).collect();
            let mut keys = HashSet::new();
            for taken in &plan.taken {
                seen.push(taken.index);
                seen.extend(&taken.siblings);
                prop_assert!(keys.insert(taken.listener.key()));
                prop_assert!(plan.missing.iter().all(|one| one.key() != taken.listener.key()));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..there.len()).collect::<Vec<_>>());
        }
    }
}
