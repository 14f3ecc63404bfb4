//! The name of a held listener: taken away and given back.

use std::sync::Arc;

use super::Registry;
use super::ids::ListenerId;
use crate::name::{MAX_LEN, Name};

/// How many bytes of a name stay when a port and a number follow it.
const STEM: usize = MAX_LEN - 16;

impl<H> Registry<H> {
    /// Takes a listener's name away. A name that an undecided claim gives it stays.
    pub(super) fn unname(&mut self, id: ListenerId) {
        let Some(held) = self.held.get(&id) else { return };
        let Some(name) = &held.listener.name else { return };
        let any_port = held.listener.address.port() == Some(0);
        // There the name tells listeners apart: without one, two could be the same.
        let another = any_port.then(|| self.stand_in(name, held.opened.bound.port().unwrap_or(0)));
        self.set_name(id, another.flatten());
    }

    /// Gives a listener a name back that it has lost.
    pub(super) fn rename(&mut self, id: ListenerId, name: Name) {
        let Some(held) = self.held.get(&id) else { return };
        // At port 0 no claim gives a held listener a name.
        let has_lost = held.listener.name.is_none() || held.listener.address.port() == Some(0);
        let named = self.pending.values().any(|plan| plan.names(id));
        if has_lost && !named && self.index.name(&name).is_none() {
            self.set_name(id, Some(name));
        }
    }

    /// A free name for a listener that loses this one: as in a range, with the port that it got.
    fn stand_in(&self, name: &Name, port: u16) -> Option<Name> {
        let stem = name.as_str().get(..STEM).unwrap_or(name.as_str());
        let first = std::iter::once(format!("{stem}-{port}"));
        let others = (2_u32..).map(|number| format!("{stem}-{port}-{number}"));
        let mut names = first.chain(others).filter_map(|text| text.parse::<Name>().ok());
        names.find(|name| self.index.name(name).is_none())
    }

    fn set_name(&mut self, id: ListenerId, name: Option<Name>) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let key = held.key();
        let before = std::mem::replace(&mut Arc::make_mut(&mut held.listener).name, name);
        held.edition += 1;
        if let Some(before) = before {
            self.index.remove_name(id, &before);
        }
        if let Some(name) = &held.listener.name {
            self.index.insert_name(id, name);
        }
        if held.key() != key {
            self.index.remove(id, &key);
            self.index.insert(id, &held.key());
        }
    }
}
