//! Names that root or the broker's user takes back from listeners of other users.

use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::name::Name;
use bindonce_core::registry::{Event, ListenerId};
use bindonce_daemon::Happening;
use bindonce_sys::clock::now;

use super::Listeners;
use super::socket::Socket;

/// A name that was taken from a user's listener.
#[derive(Debug)]
pub(crate) struct TakenName {
    name: Name,
    listener: ListenerId,
    uid: u32,
}

impl Listeners {
    /// Takes a name from another user's listener, for a claim by root or the broker's user. A name
    /// that one of those two gave, or an earlier broker, stays.
    pub(crate) fn take_back(&mut self, wanted: &Listener) -> Option<TakenName> {
        let name = wanted.name.as_ref()?;
        let (listener, held) = self.registry.with_name(name)?;
        let owner = held.opened.handle.owned.as_ref().map(|owned| owned.uid);
        let uid = owner.filter(|uid| !self.reporter.is_owner(*uid))?;
        if held.listener.key() == wanted.key() {
            return None;
        }
        self.rename(listener, Event::Unname(listener));
        Some(TakenName { name: name.clone(), listener, uid })
    }

    /// Gives back a name whose claim was refused.
    pub(crate) fn give_back(&mut self, TakenName { name, listener, .. }: TakenName) {
        self.rename(listener, Event::Rename(listener, name));
    }

    fn rename(&mut self, listener: ListenerId, event: Event<Socket>) {
        let actions = self.registry.on(now(), event);
        self.perform(actions);
        if let Some(held) = self.registry.held(listener) {
            self.ledger.record([held]);
        }
    }

    /// Reports a name that was taken for a granted claim.
    pub(crate) fn tell_taken(&self, TakenName { name, listener, uid }: &TakenName) {
        let Some(held) = self.registry.held(*listener) else { return };
        let address = held.listener.address.to_string();
        tracing::warn!(
            name = %name, address, uid, now = held.listener.label(),
            hint = "the listener stays; give each user's names in `names` of its [[rule]]",
            "root or the broker's user has taken the name of a listener back"
        );
        let text =
            format!("the name {name} was taken back from {address}, a listener of uid {uid}");
        self.reporter.record(Happening::new(Kind::ListenerChanged, text));
    }
}
