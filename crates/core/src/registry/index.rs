//! Finds listeners by key, by name, and by the keys that they would collide with, each in
//! logarithmic time, so that a request for ten thousand stays linear.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::ids::ListenerId;
use crate::key::Key;
use crate::name::Name;

/// Which listener has which key, name and place in the kernel.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By the key asked for, and by the address of the socket if that differs.
    keys: BTreeMap<Key, (ListenerId, Why)>,
    /// How many keys are wildcards. Without any, only the same place overlaps a single address.
    wildcards: usize,
    names: HashMap<Name, ListenerId>,
}

/// Why a listener has an entry under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Asked,
    Bound,
}

impl Index {
    pub(super) fn key(&self, key: &Key) -> Option<ListenerId> {
        self.keys.get(key).filter(|(_, why)| *why == Why::Asked).map(|(id, _)| *id)
    }

    pub(super) fn name(&self, name: &Name) -> Option<ListenerId> {
        self.names.get(name).copied()
    }

    /// The listeners that conflict with this key in the kernel.
    pub(super) fn overlapping<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = ListenerId> + 'a {
        let there = |(first, whole): (Key, bool)| {
            self.keys.range::<Key, _>(&first..).take_while(move |(other, _)| {
                first.cmp_place(other).is_eq() || (whole && first.covers(other))
            })
        };
        // Most claims are for a port that nobody has: one lookup shows it.
        let any = key.port_begins().is_none_or(|first| {
            let next = self.keys.range(first..).next();
            next.is_some_and(|(other, _)| key.is_at_port_of(other))
        });
        let near = any.then(|| key.near(self.wildcards > 0)).into_iter().flatten().flat_map(there);
        near.filter(|(other, _)| key.overlaps(other)).map(|(_, (id, _))| *id)
    }

    /// The listener that the same connections match: there is never a second one.
    pub(super) fn same_place(&self, key: &Key) -> Option<ListenerId> {
        let there = |(first, _): (Key, bool)| {
            let from = self.keys.range::<Key, _>(&first..);
            from.take_while(move |(other, _)| first.cmp_place(other).is_eq())
        };
        let mut near = key.near(self.wildcards > 0).flat_map(there);
        near.find(|(other, _)| key.is_same_place(other)).map(|(_, (id, _))| *id)
    }

    /// All pairs of one of these and a listener that overlaps it, each once and in order. None if
    /// there are more than `most`.
    pub(super) fn neighbours<'a>(
        &self,
        of: impl IntoIterator<Item = (ListenerId, &'a Key)>,
        most: usize,
    ) -> Option<Vec<(ListenerId, ListenerId)>> {
        let mut pairs = Vec::new();
        for (id, key) in of {
            let others = self.overlapping(key).filter(|other| *other != id);
            let room = most.saturating_sub(pairs.len()).saturating_add(1);
            pairs.extend(others.take(room).map(|other| (id, other)));
            if pairs.len() > most {
                return None;
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        Some(pairs)
    }

    /// Enters a listener under its key. The caller has checked that its place is free.
    pub(super) fn insert(&mut self, id: ListenerId, key: &Key) {
        let before = self.keys.insert(key.clone(), (id, Why::Asked));
        self.wildcards += usize::from(before.is_none() && key.is_wildcard());
    }

    /// Enters the address that a listener has in the kernel, which for port 0 is known only after
    /// bind.
    pub(super) fn occupy(&mut self, id: ListenerId, key: Key) {
        if let Entry::Vacant(entry) = self.keys.entry(key) {
            self.wildcards += usize::from(entry.key().is_wildcard());
            entry.insert((id, Why::Bound));
        }
    }

    pub(super) fn remove(&mut self, id: ListenerId, key: &Key) {
        if self.keys.get(key).is_some_and(|(other, _)| *other == id) {
            self.keys.remove(key);
            self.wildcards -= usize::from(key.is_wildcard());
        }
    }

    /// Undoes [`Index::occupy`].
    pub(super) fn vacate(&mut self, id: ListenerId, key: Key) {
        if let Entry::Occupied(entry) = self.keys.entry(key) {
            if *entry.get() == (id, Why::Bound) {
                self.wildcards -= usize::from(entry.key().is_wildcard());
                entry.remove();
            }
        }
    }

    /// Gives a listener a name. The caller has checked that the name is free.
    pub(super) fn insert_name(&mut self, id: ListenerId, name: &Name) {
        self.names.insert(name.clone(), id);
    }

    pub(super) fn remove_name(&mut self, id: ListenerId, name: &Name) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    /// The number of entries: keys, names.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.keys.len(), self.names.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::listener::Listener;

    /// So few keys that they often meet.
    fn key() -> impl Strategy<Value = Key> {
        let address = prop::sample::select(vec![
            ":80",
            "10.0.0.1:80",
            "10.0.0.2:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:10.0.0.1]:80",
            "udp@:80",
            "udp@10.0.0.1:80",
            "quic4@:80",
            "quic4@10.0.0.1:80",
            ":81",
            "10.0.0.1:81",
            "[::]:80,v6only",
            ":0",
            "/run/a",
            "/run/b",
            "abns@a",
            "abns@b",
        ]);
        let scope = prop::sample::select(vec!["", ",interface=a", ",interface=b", ",netns=n"]);
        (address, scope).prop_filter_map("a listener", |(address, scope)| {
            Some(format!("{address}{scope}").parse::<Listener>().ok()?.key())
        })
    }

    proptest! {
        #[test]
        fn finds_all_that_overlap_and_the_one_at_the_same_place(
            keys in prop::collection::vec(key(), 0..12),
            gone in any::<u16>(),
            asked in key(),
        ) {
            let mut index = Index::default();
            let mut held: Vec<(ListenerId, Key)> = Vec::new();
            for key in keys {
                if index.same_place(&key).is_none() && index.key(&key).is_none() {
                    let id = ListenerId(held.len() as u64);
                    index.insert(id, &key);
                    held.push((id, key));
                }
            }
            for (id, key) in &held {
                if gone >> id.0 & 1 == 1 {
                    index.remove(*id, key);
                }
            }
            held.retain(|(id, _)| gone >> id.0 & 1 == 0);
            let mut meeting: Vec<ListenerId> =
                held.iter().filter(|(_, other)| asked.overlaps(other)).map(|(id, _)| *id).collect();
                        let same = held.iter().find(|(_, other)| asked.is_same_place(other));
            prop_assert_eq!(index.same_place(&asked), same.map(|(id, _)| *id));
            let me = ListenerId(u64::MAX);
            meeting.sort_unstable();
            let all = index.neighbours([(me, &asked)], meeting.len()).expect("no more than these");
            prop_assert_eq!(&all.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), &meeting);
            if let Some(fewer) = meeting.len().checked_sub(1) {
                prop_assert_eq!(index.neighbours([(me, &asked)], fewer), None);
            }
        }
    }
}
