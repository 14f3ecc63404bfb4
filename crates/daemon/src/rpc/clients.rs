//! The connections: the state of each ([`Link`]), the memory of all, and the order in which they
//! are served ([`Turns`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::registry::ConnectionId;
use bindonce_sys::closing::Account;
use bindonce_wire::framing::Scanner;
use bindonce_wire::message::Notification;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::caller::Caller;
use super::limits::Limits;
use super::link::{Admission, Link};
use super::share::Budgets;
use super::turns::Turns;
use super::unreceived::Unreceived;

/// A user that has connections, or has passed descriptors that are not closed yet.
#[derive(Debug, Default)]
struct User {
    connections: usize,
    account: Account,
}

/// The users that have connections, so a refusal need not scan all connections.
#[derive(Debug, Default)]
struct Users {
    by_uid: BTreeMap<u32, User>,
    /// Connections whose users had no right when they connected.
    unknown: usize,
}

impl Users {
    /// How many connections this user has.
    fn connections(&self, uid: u32) -> usize {
        self.by_uid.get(&uid).map_or(0, |user| user.connections)
    }

    /// The descriptors of this user that are not closed yet.
    fn account(&self, uid: u32) -> Account {
        self.by_uid.get(&uid).map(|user| user.account.clone()).unwrap_or_default()
    }

    fn enter(&mut self, uid: u32, unknown: bool) -> Account {
        self.unknown += usize::from(unknown);
        let user = self.by_uid.entry(uid).or_default();
        user.connections += 1;
        user.account.clone()
    }

    fn leave(&mut self, uid: u32, unknown: bool) {
        self.unknown -= usize::from(unknown);
        if let Some(user) = self.by_uid.get_mut(&uid) {
            user.connections -= 1;
            if user.connections == 0 {
                self.by_uid.retain(|_, user| user.connections != 0 || user.account.unclosed() != 0);
            }
        }
    }
}

/// The clients of one server.
#[derive(Debug)]
pub struct Clients {
    /// Every connection that is being served.
    links: RefCell<BTreeMap<ConnectionId, Rc<Link>>>,
    users: RefCell<Users>,
    next: Cell<u64>,
    limits: Cell<Limits>,
    budgets: Budgets,
    /// Which connections have received what was sent to them.
    pub(super) unreceived: Unreceived,
    /// The order in which connections are served.
    pub(super) turns: Rc<Turns>,
    /// Notified when a connection has answered its requests, or has ended.
    calmer: Notify,
    /// Notified when a connection has ended, and with it a descriptor is free.
    pub(super) freed: Notify,
    /// Notified when a large request is answered, and its memory can be given back.
    pub unburdened: Notify,
    /// Notified when a connection has ended, and what it needed can be given back.
    pub parted: Notify,
}

impl Clients {
    /// No clients yet.
    pub fn new(limits: Limits) -> Rc<Self> {
        let clients = Self {
            links: RefCell::default(),
            users: RefCell::default(),
            next: Cell::new(0),
            limits: Cell::new(limits),
            budgets: Budgets::default(),
            unreceived: Unreceived::default(),
            turns: Rc::default(),
            calmer: Notify::new(),
            freed: Notify::new(),
            unburdened: Notify::new(),
            parted: Notify::new(),
        };
        clients.limit(limits);
        Rc::new(clients)
    }

    /// Sets the limits, from the next request and the next connection on.
    pub fn limit(&self, limits: Limits) {
        self.budgets.limit(&limits);
        self.limits.set(limits);
    }

    /// The current limits.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// A number for a new connection, never given twice.
    pub fn number(&self) -> ConnectionId {
        let id = self.next.get();
        self.next.set(id + 1);
        ConnectionId(id)
    }

    /// Admits another connection of this user, or returns the limit that is reached, and its value.
    pub(super) fn admit(
        &self,
        uid: u32,
        admission: Admission,
    ) -> Result<(), (&'static str, usize)> {
        let limits = self.limits.get();
        let users = self.users.borrow();
        // An eighth is reserved for root and the daemon's user, who have to put things right.
        let most = limits.connections - if admission.exempt { 0 } else { limits.connections / 8 };
        if admission.unknown && users.unknown >= limits.connections_without_rights {
            Err(("connections_without_rights", limits.connections_without_rights))
        } else if self.links.borrow().len() >= most {
            Err(("connections", most))
        } else if users.connections(uid) >= limits.connections_per_user {
            Err(("connections_per_user", limits.connections_per_user))
        } else {
            Ok(())
        }
    }

    /// The descriptors of a user that are not closed yet.
    pub(super) fn account(&self, uid: u32) -> Account {
        self.users.borrow().account(uid)
    }

    /// Adds a new connection, or a resumed one with the part of a request that was read.
    pub fn enter(
        &self,
        stream: UnixStream,
        caller: Caller,
        admission: Admission,
        unread: &[u8],
    ) -> Rc<Link> {
        let id = caller.connection;
        self.next.set(self.next.get().max(id.0 + 1));
        let uid = caller.peer.uid;
        let mut scanner = Scanner::new(self.limits.get().request_bytes);
        let mut input = unread;
        // The part is less than a request, so it gives no frame.
        while scanner.next(&mut input).is_some() {}
        let account = self.users.borrow_mut().enter(uid, admission.unknown);
        let shares = self.budgets.shares(uid, admission.exempt);
        let link = Link::new(stream, caller, admission.unknown, scanner, account, shares);
        self.links.borrow_mut().insert(id, Rc::clone(&link));
        link
    }

    /// Whether a connection has ended while some of its leases have not.
    pub fn some_leave(&self) -> bool {
        self.links.borrow().values().any(|link| link.progress.leaving.get())
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, id: ConnectionId) {
        if let Some(link) = self.links.borrow_mut().remove(&id) {
            self.users.borrow_mut().leave(link.caller.peer.uid, link.unknown);
        }
        self.calmer();
        self.freed.notify_one();
    }

    /// The connection of this number.
    pub(super) fn link(&self, id: ConnectionId) -> Option<Rc<Link>> {
        self.links.borrow().get(&id).cloned()
    }

    /// Every connection.
    pub fn links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().values().cloned().collect()
    }

    /// Waits until another connection may be accepted.
    pub(super) async fn room(&self) {
        while self.links.borrow().len() >= self.limits.get().accepted {
            self.freed.notified().await;
        }
    }

    /// Sends a notification to a connection.
    pub fn tell(&self, id: ConnectionId, notification: &Notification) {
        if let Some(link) = self.links.borrow().get(&id) {
            link.tell(notification.encode());
        }
    }

    /// Ends a connection.
    pub fn cut(&self, id: ConnectionId) {
        if let Some(link) = self.links.borrow().get(&id) {
            link.cut();
        }
    }

    /// Notes that a connection has answered its requests.
    pub(super) fn calmer(&self) {
        self.calmer.notify_one();
    }

    /// Waits until no request is being answered, for `patience` at most.
    pub async fn calm(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while self.links.borrow().values().any(|link| link.is_busy()) {
            if timeout_at(until, self.calmer.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Whether no connection has work that could be done now.
    pub fn is_idle(&self) -> bool {
        self.turns.is_idle()
    }
}

#[cfg(test)]
mod tests {
    use bindonce_core::policy::Peer;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn nobody_takes_the_connections_of_all() {
        let limits = Limits {
            accepted: 100,
            connections: 16,
            connections_per_user: 10,
            connections_without_rights: 3,
            buffered_bytes: 0,
            request_bytes: 100,
            request_time: Duration::ZERO,
            idle_time: Duration::ZERO,
            descriptors_in_flight: 0,
            descriptors_unreceived: 0,
        };
        let clients = Clients::new(limits);
        let known = Admission { unknown: false, exempt: false };
        let unknown = Admission { unknown: true, exempt: false };
        let exempt = Admission { unknown: false, exempt: true };
        let mut peers = Vec::new();
        // How many of these connections have room, and the limit that refuses the next.
        let mut fill = |uid: u32, admission| {
            let mut count = 0;
            loop {
                if let Err((limit, _)) = clients.admit(uid, admission) {
                    return (count, limit);
                }
                let (peer, stream) = UnixStream::pair().expect("a pair");
                let peer_of = Peer { pid: 1, uid, gid: uid };
                let caller = Caller {
                    connection: clients.number(),
                    peer: peer_of,
                    groups: [].into(),
                    network: None,
                };
                clients.enter(stream, caller, admission, &[]);
                peers.push(peer);
                count += 1;
            }
        };
        assert_eq!(fill(1, unknown), (3, "connections_without_rights"));
        assert_eq!(fill(2, unknown), (0, "connections_without_rights"));
        assert_eq!(fill(3, known), (10, "connections_per_user"));
        // An eighth is reserved.
        assert_eq!(fill(4, known), (1, "connections"));
        assert_eq!(fill(0, exempt), (2, "connections"));
        // Connections that have ended no longer count.
        clients.links().iter().for_each(|link| clients.remove(link.caller.connection));
        let users = clients.users.borrow();
        assert_eq!((users.by_uid.len(), users.unknown), (0, 0));
    }
}
