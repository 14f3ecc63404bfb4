//! The broker's state, and how the registry's decisions are performed.
//!
//! Everything here runs to its end without giving way to another task, so the
//! registry never has more than one claim in hand.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bindonce_core::budget::Budget;
use bindonce_core::policy::{Peer, Policy, Rule};
use bindonce_core::registry::{Action, ConnectionId, Event, ListenerId, Registry};
use bindonce_core::time::Timestamp;
use bindonce_observe::Journal;
use bindonce_sys::limits;
use bindonce_sys::listen::UnixPath;
use bindonce_wire::manifest::Entry;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::budgets::Told;
use crate::config::Limits;
use crate::connection::Link;
use crate::guard::Guard;
use crate::inquiry::Inquiry;
use crate::metrics::Counts;
use crate::records::Records;
use crate::recovery::Gate;
use crate::socket::Socket;
use crate::start::NotBound;
use crate::store::Store;
use crate::succession::Succession;
use crate::turns::Turns;
use crate::upgrade::Upgrade;

/// What one broker knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry<Socket>,
    pub(crate) policy: Policy,
    pub(crate) succession: Succession,
    pub(crate) guard: Rc<Guard>,
    /// Every connection that is being served.
    pub(crate) links: BTreeMap<ConnectionId, Rc<Link>>,
    pub(crate) upgrade: Rc<Upgrade>,
    /// Who has an address, for messages.
    pub(crate) inquiry: Rc<Inquiry>,
    /// Where listeners are written down for the broker after this one; none with a `store`.
    pub(crate) records: Option<Rc<Records>>,
    /// What has been counted, for metrics.
    pub(crate) counts: RefCell<Counts>,
    /// What has happened.
    pub(crate) journal: Rc<Journal>,
    /// Listeners of the broker before that have not been had back.
    pub(crate) missing: Vec<Entry>,
    /// Listeners of the configuration that could not be bound.
    pub(crate) not_bound: Vec<NotBound>,
    /// It ended in order: what nobody holds any more is not missing.
    pub(crate) left_in_order: bool,
    pub(crate) gate: Rc<Gate>,
    pub(crate) limits: Limits,
    /// Descriptors that have come from clients and are not taken yet.
    pub(crate) in_flight: Rc<RefCell<Budget>>,
    /// Rung when claims that have waited for another can be tried again.
    pub(crate) decided: Rc<Notify>,
    /// In which order connections are served.
    pub(crate) turns: Rc<Turns>,
    /// Rung when something large has ended.
    pub(crate) shrinking: Rc<Notify>,
    /// What is kept for clients.
    pub(crate) budget: Rc<RefCell<Budget>>,
    /// What the log has been told.
    pub(crate) told: Told,
    /// How many listeners claims of each user have created.
    pub(crate) owned: Rc<RefCell<HashMap<u32, usize>>>,
    /// Where listeners outlive this process; none without a service manager.
    pub(crate) store: Option<Rc<Store>>,
    /// Path of the control socket.
    pub(crate) socket: PathBuf,
    /// Its file, if it stays for the next broker.
    pub(crate) control: Option<UnixPath>,
    pub(crate) since: Timestamp,
    /// The soft limit on descriptors.
    pub(crate) descriptor_limit: u64,
    /// Descriptors that are open beside listeners and connections.
    pub(crate) other_descriptors: u64,
    pub(crate) somaxconn: u32,
    pub(crate) next_connection: u64,
    /// What was claimed and is not watched yet.
    pub(crate) unsettled: Vec<ListenerId>,
}

impl State {
    /// An empty broker. Descriptors that are open now count as taken for good.
    pub(crate) fn new(
        socket: PathBuf,
        owner: u32,
        descriptor_limit: u64,
        guard: Rc<Guard>,
        journal: Rc<Journal>,
    ) -> Self {
        let open = std::fs::read_dir("/proc/self/fd").map_or(16, Iterator::count);
        Self {
            registry: Registry::default(),
            policy: Policy::owner_only(owner),
            succession: Succession::default(),
            guard,
            links: BTreeMap::new(),
            upgrade: Rc::default(),
            inquiry: Rc::default(),
            records: None,
            counts: RefCell::default(),
            journal,
            missing: Vec::new(),
            not_bound: Vec::new(),
            left_in_order: false,
            gate: Rc::default(),
            limits: Limits::default(),
            in_flight: Rc::default(),
            decided: Rc::default(),
            turns: Rc::default(),
            shrinking: Rc::default(),
            budget: Rc::default(),
            told: Told::default(),
            owned: Rc::default(),
            store: None,
            socket,
            control: None,
            since: now(),
            descriptor_limit,
            other_descriptors: open as u64,
            somaxconn: limits::somaxconn(),
            next_connection: 0,
            unsettled: Vec::new(),
        }
    }

    /// Takes rules and limits, from the next request and the next connection on.
    pub(crate) fn regulate(&mut self, rules: Vec<Rule>, limits: Limits) {
        self.policy = self.policy.clone().with_rules(rules);
        self.in_flight.borrow_mut().set_limit(limits.descriptors_in_flight);
        self.budget.borrow_mut().set_limit(limits.buffered_bytes);
        self.succession.set_patience(limits.retire_time);
        self.limits = limits;
    }

    /// Enters a connection.
    pub(crate) fn connect(&mut self, peer: Peer) -> ConnectionId {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let actions = self.registry.on(now(), Event::Connected(id, peer));
        self.perform(actions);
        id
    }

    /// Ends a connection.
    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        self.leave(id);
        while self.end_leases(id) {}
    }

    /// A connection has ended: tells the service that it stood for.
    fn leave(&mut self, id: ConnectionId) {
        self.links.remove(&id);
        self.left(id);
        // What was being opened for it has been closed.
        let actions = self.registry.on(now(), Event::OpenFailed(id, Vec::new()));
        self.perform(actions);
    }

    /// Ends some leases of a connection that has ended. True if it has more.
    fn end_leases(&mut self, id: ConnectionId) -> bool {
        let actions = self.registry.on(now(), Event::Gone(id));
        let more = actions.iter().any(|action| matches!(action, Action::Leaving(_)));
        self.perform(actions);
        more
    }
}

/// Ends a connection; one that has many leases in many turns.
pub(crate) async fn disconnect(state: &RefCell<State>, id: ConnectionId) {
    state.borrow_mut().leave(id);
    while state.borrow_mut().end_leases(id) {
        yield_now().await;
    }
}

/// The time of day.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
