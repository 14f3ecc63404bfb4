//! The connections: each with its state ([`Link`]), the memory of all of them, and in which order
//! they are served ([`Turns`]).

mod answered;
mod caller;
mod end;
mod link;
mod sending;
mod share;
mod turns;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bindonce_core::budget::Budget;
use bindonce_core::registry::ConnectionId;
use bindonce_wire::message::Notification;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::config::Limits;

use answered::Answered;
use turns::Turns;

pub(crate) use caller::Caller;
pub(crate) use end::End;
pub(crate) use link::{Admission, LARGE, Link, Taken};
pub(crate) use sending::{Reply, Sending, send};

/// The clients of one broker.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Every connection that is being served.
    links: BTreeMap<ConnectionId, Rc<Link>>,
    next: u64,
    pub(crate) limits: Limits,
    /// Bytes that are kept.
    budget: Rc<RefCell<Budget>>,
    /// Descriptors that have come and are not taken yet.
    in_flight: Rc<RefCell<Budget>>,
    /// In which order connections are served.
    pub(crate) turns: Rc<Turns>,
    /// Rung when something large has ended.
    pub(crate) shrinking: Rc<Notify>,
    pub(crate) answered: Answered,
}

impl Clients {
    /// Takes limits, from the next request and the next connection on.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.in_flight.borrow_mut().set_limit(limits.descriptors_in_flight);
        self.budget.borrow_mut().set_limit(limits.buffered_bytes);
        self.limits = limits;
    }

    /// A number for a connection, never given twice.
    pub(crate) fn number(&mut self) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        id
    }

    /// Whether another connection of this user is admitted; else the limit that is reached, and its value.
    pub(crate) fn admit(
        &self,
        uid: u32,
        admission: Admission,
    ) -> Result<(), (&'static str, usize)> {
        let limits = &self.limits;
        let same = self.links.values().filter(|link| link.caller.peer.uid == uid);
        let unknown = self.links.values().filter(|link| link.unknown);
        // Some are kept for those who have to put things right.
        let most = limits.connections - if admission.exempt { 0 } else { limits.connections / 8 };
        if admission.unknown && unknown.count() >= limits.connections_without_rights {
            Err(("connections_without_rights", limits.connections_without_rights))
        } else if self.links.len() >= most {
            Err(("connections", most))
        } else if same.count() >= limits.connections_per_user {
            Err(("connections_per_user", limits.connections_per_user))
        } else {
            Ok(())
        }
    }

    /// Enters a new connection, or a resumed one with the part of a request that was read.
    pub(crate) fn enter(
        &mut self,
        stream: UnixStream,
        caller: Caller,
        admission: Admission,
        unread: &[u8],
    ) -> Rc<Link> {
        let id = caller.connection;
        self.next = self.next.max(id.0 + 1);
        let kept = (self.limits.request_bytes, &self.budget, &self.in_flight);
        let link = Link::new(stream, caller, admission, unread, kept);
        self.links.insert(id, Rc::clone(&link));
        link
    }

    /// A connection has ended, and its leases end from now on.
    pub(crate) fn leave(&self, id: ConnectionId) {
        if let Some(link) = self.links.get(&id) {
            link.progress.leaving.set(true);
        }
    }

    /// Whether a connection has ended and some of its leases have not.
    pub(crate) fn some_leave(&self) -> bool {
        self.links.values().any(|link| link.progress.leaving.get())
    }

    /// A connection has ended, and so has its last lease.
    pub(crate) fn remove(&mut self, id: ConnectionId) {
        self.links.remove(&id);
    }

    /// Every connection.
    pub(crate) fn links(&self) -> impl Iterator<Item = &Rc<Link>> {
        self.links.values()
    }

    /// Sends a notification to a connection.
    pub(crate) fn tell(&self, id: ConnectionId, notification: &Notification) {
        if let Some(link) = self.links.get(&id) {
            link.tell(notification.encode());
        }
    }

    /// Ends a connection.
    pub(crate) fn cut(&self, id: ConnectionId) {
        if let Some(link) = self.links.get(&id) {
            link.cut();
        }
    }
}
