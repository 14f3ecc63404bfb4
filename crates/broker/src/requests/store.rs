//! `store`: a client gives the broker sockets that it holds.
//!
//! The broker believes only what the kernel confirms: each descriptor must be a bound socket on the
//! stated address, listen, and belong to the stated network namespace. Rights and limits are those
//! for what the socket really is. A socket that the broker holds already is merely leased. One that
//! is missing after a crash comes back with its recorded name and options. Any other is held from
//! now on, unless its name or its address is taken.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::policy::Verb;
use bindonce_core::registry::Want;
use bindonce_core::text::count;
use bindonce_daemon::rpc::Link;
use bindonce_fd::MAX_FDS;
use bindonce_sys::clock::now;
use bindonce_sys::identity::{self, Identity};
use bindonce_sys::limits::is_chosen_port;
use bindonce_sys::{diag, listen};
use bindonce_wire::params::Give;
use bindonce_wire::result::StoreResult;
use bindonce_wire::{ErrorCode, RpcError};

use super::bind::allow_name;
use super::home::Home;
use super::text::invalid;
use crate::answer;
use crate::broker::Broker;
use crate::claims;
use crate::persistence::restore::{Found, as_written};

/// How descriptors are sent.
const HOW: &str =
    "send them with the first byte of the request, one for each listener, at most 253";

/// The error for more listeners than can come with a request.
pub(super) fn too_many() -> RpcError {
    let message = format!("the request announces more than {MAX_FDS} listeners");
    RpcError::new(ErrorCode::INVALID_PARAMS, message).with_hint(HOW)
}

/// Takes listeners, all or none.
pub(super) async fn store(
    broker: &RefCell<Broker>,
    link: &Rc<Link>,
    gives: Vec<Give>,
) -> Result<StoreResult, RpcError> {
    // Whatever these descriptors are, the last one of each is closed on another thread.
    let received = link.take_received();
    if received.len() != gives.len() {
        let message = format!(
            "the request announces {}; {} arrived",
            count(gives.len(), "listener"),
            count(received.len(), "descriptor")
        );
        return Err(RpcError::new(ErrorCode::INVALID_PARAMS, message).with_hint(HOW));
    }
    let home = Box::pin(Home::of(broker, &link.caller)).await?;
    let mut sockets = Vec::with_capacity(received.len());
    for (give, foreign) in gives.into_iter().zip(&received) {
        let mut asked: Listener = give.listen.parse().map_err(|error| invalid(&error))?;
        home.place(&mut asked)?;
        let spec = asked.clone().into();
        let broker = broker.borrow();
        broker.access.allow(&link.caller, Verb::Store, Some(&spec))?;
        allow_name(&broker, &link.caller, &spec)?;
        let fd = foreign.try_clone();
        let fd = fd.map_err(|error| RpcError::new(ErrorCode::LIMIT, error.to_string()))?;
        sockets.push((asked, fd, give.tentative));
    }
    let sorted = sort(&broker.borrow(), sockets)?;
    // What the sockets are decides, not what the caller said of them.
    for want in &sorted.wants {
        if let Wanted::Listen(spec) = &want.wanted {
            broker.borrow().access.allow(&link.caller, Verb::Store, Some(spec))?;
        }
    }
    for found in &sorted.found {
        let bound = &found.socket.bound;
        // A rule for port 0 covers the ports that the kernel chooses.
        if *bound != found.listener.address && !bound.port().is_some_and(is_chosen_port) {
            let listener = Listener { address: bound.clone(), ..found.listener.clone() };
            broker.borrow().access.allow(&link.caller, Verb::Store, Some(&listener.into()))?;
        }
    }
    let uid = link.caller.peer.uid;
    let room = broker.borrow().listeners.room(uid, sorted.new);
    let inquiry = Rc::clone(&broker.borrow().inquiry);
    if let Err(denied) = room {
        return Err(answer::claim_failed(&inquiry, denied).await);
    }
    let Sorted { found, wants, .. } = sorted;
    broker.borrow_mut().recovered(found, Some(uid));
    let claimed = claims::claim(broker, link.caller.connection, wants.into()).await;
    broker.borrow().persistence.gate.donated.notify_one();
    let leases = match claimed {
        Ok(leases) => leases,
        Err(failure) => return Err(answer::claim_failed(&inquiry, failure).await),
    };
    let ledger = Rc::clone(&broker.borrow().persistence.ledger);
    ledger.settled().await;
    let registry = &broker.borrow().listeners.registry;
    let held = leases.iter().filter_map(|lease| registry.held(lease.listener));
    Ok(StoreResult { listeners: held.map(|held| answer::bound(held, false)).collect() })
}

/// The received sockets, sorted.
struct Sorted {
    /// Sockets that the broker does not hold.
    found: Vec<Found>,
    /// Listeners that the caller uses from now on.
    wants: Vec<Want>,
    /// How many of `found` no broker has held before.
    new: usize,
}

/// Finds the sockets that are new to the broker, and all listeners that the caller now uses.
fn sort(broker: &Broker, sockets: Vec<(Listener, OwnedFd, bool)>) -> Result<Sorted, RpcError> {
    let held: HashMap<u64, _> =
        broker.listeners.registry.iter().map(|(_, held)| (held.opened.inode, held)).collect();
    let missing: HashMap<u64, _> =
        broker.persistence.missing.entries.iter().map(|entry| (entry.inode, entry)).collect();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut wants = Vec::with_capacity(sockets.len());
    let mut new = 0;
    for (asked, fd, tentative) in sockets {
        let refuse = |reason: String| {
            let message = format!("the descriptor for {asked} is not taken: {reason}");
            RpcError::new(ErrorCode::CONFLICT, message)
                .with("address", asked.address.to_string())
                .with_hint("give the broker a listening socket that is bound to that address")
        };
        let socket = identity::of(fd.as_fd())
            .map_err(|error| refuse(format!("it is no bound socket: {error}")))?;
        let inode = socket.inode;
        let same = held.get(&inode).filter(|held| held.opened.cookie == socket.cookie);
        let listener = if let Some(held) = same {
            let (is, at) = (&held.listener.address, &held.opened.bound);
            if asked.address != *is && asked.address != *at {
                return Err(refuse(format!("it is the socket of {}", held.listener)));
            }
            Listener::clone(&held.listener)
        } else {
            let found_here = match missing.get(&inode) {
                Some(entry) => as_written(entry, &socket, fd).map_err(refuse)?,
                None => {
                    network(&asked, &socket).map_err(refuse)?;
                    new += usize::from(!seen.contains(&inode));
                    Found { tentative, ..as_said(&asked, &socket, fd).map_err(refuse)? }
                }
            };
            if asked.address != found_here.listener.address
                && asked.address != found_here.socket.bound
            {
                return Err(refuse(format!("it is the socket of {}", found_here.listener)));
            }
            let listener = found_here.listener.clone();
            let key = listener.key();
            let other = missing.values().find(|entry| {
                entry.inode != inode && entry.listener().is_ok_and(|other| other.key() == key)
            });
            if let Some(other) = other {
                return Err(refuse(format!(
                    "that address is the socket with inode {}",
                    other.inode
                )));
            }
            if seen.insert(inode) {
                found.push(found_here);
            }
            listener
        };
        wants.push(Want {
            wanted: Wanted::Listen(listener.into()),
            tentative: true,
            change: false,
            held: false,
        });
    }
    check_free(broker, &found)?;
    Ok(Sorted { found, wants, new })
}

/// Whether all of these can be held beside the listeners held now.
fn check_free(broker: &Broker, found: &[Found]) -> Result<(), RpcError> {
    for new in found {
        if let Some(in_the_way) =
            broker.listeners.registry.in_the_way(&new.listener, &new.socket.bound)
        {
            let message = format!(
                "the descriptor for {} is not taken: {} is held, by another socket",
                new.listener,
                in_the_way.label()
            );
            return Err(RpcError::new(ErrorCode::CONFLICT, message)
                .with("address", new.listener.address.to_string())
                .with_hint("claim it to share the one that is held"));
        }
    }
    Ok(())
}

/// Whether a socket belongs to the network namespace that the listener names.
fn network(asked: &Listener, socket: &Identity) -> Result<(), String> {
    let here = match &asked.options.netns {
        None => Ok(identity::network()),
        Some(name) => listen::within_netns(name, identity::network),
    };
    let here = here.map_err(|error| error.to_string())?;
    let same = match (socket.network, here) {
        (Some(its), Some(here)) => its == here,
        // The kernel does not report the namespace, but its socket list covers only one.
        _ => {
            let listening = match &asked.options.netns {
                None => diag::listening(),
                Some(name) => {
                    listen::within_netns(name, diag::listening).and_then(std::convert::identity)
                }
            };
            let listening = listening.map_err(|error| error.to_string())?;
            listening.iter().any(|one| one.inode == socket.inode)
        }
    };
    if same { Ok(()) } else { Err("it belongs to another network namespace".to_owned()) }
}

/// A socket known only by what the caller says and the kernel confirms.
fn as_said(asked: &Listener, socket: &Identity, fd: OwnedFd) -> Result<Found, String> {
    if !socket.listening {
        return Err("it does not listen".to_owned());
    }
    if socket.device_gone {
        return Err(identity::NO_DEVICE.to_owned());
    }
    let any_port = asked.address.port() == Some(0);
    let place = match socket.bound.port() {
        Some(_) if any_port => socket.bound.with_port(0),
        _ => socket.bound.clone(),
    };
    let path = match (&asked.address, &place) {
        // The socket may have been bound under a temporary name, and renamed.
        (Address::Unix(path), Address::Unix(_)) => {
            let there = diag::unix_is_at(socket.inode, Path::new(path));
            match (there, identity::file(path)) {
                (Ok(true), Some(file)) => Some(file),
                (Err(error), _) => return Err(format!("whose {path} is cannot be told: {error}")),
                _ => return Err(format!("{path} is another socket's, or gone")),
            }
        }
        // SO_REUSEADDR on a UDP socket only suggests that it is for QUIC.
        (Address::Udp(_), Address::Quic(_)) if place.as_seen() == asked.address => None,
        _ if place != asked.address => return Err(format!("it is bound to {}", socket.bound)),
        _ => None,
    };
    let mut listener = asked.clone();
    let seen = &socket.options;
    listener.options.v6only = seen.v6only;
    listener.options.mptcp = seen.mptcp;
    if !socket.hidden {
        listener.options.interface = seen.interface.clone();
    }
    listener.options.transparent = seen.transparent;
    listener.options.freebind = seen.freebind;
    let bound = match (&asked.address, &socket.bound) {
        (Address::Unix(_), _) => asked.address.clone(),
        (Address::Udp(_), bound) => bound.as_seen(),
        (_, bound) => bound.clone(),
    };
    let Identity { inode, cookie, hidden, .. } = *socket;
    let opened = listen::Opened { fd, bound, inode, cookie, path, hidden };
    Ok(Found {
        listener,
        socket: opened,
        exclusive: socket.exclusive,
        since: now(),
        tentative: false,
        owner: None,
        outlived: None,
        backlog: None,
    })
}

#[cfg(test)]
mod tests {
    use bindonce_daemon::Journal;

    use super::*;
    use crate::listeners::watch::Guard;
    use crate::persistence::Recorded as _;

    /// The record of a killed broker decides what a socket is, not the client that gives it back.
    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_socket_comes_back_as_what_was_written_and_nothing_else() {
        let broker = || {
            let guard = Guard::new().expect("a guard");
            let socket = "/nonexistent/bindonce.sock".into();
            Broker::new(socket, 0, 1024, guard, Journal::in_memory(None))
        };
        let mut before = broker();
        let connection = before.connect_itself();
        let before = RefCell::new(before);
        let wanted = "web=127.0.0.1:0".parse().expect("a listener");
        let want = Want { wanted, tentative: false, change: false, held: false };
        claims::claim(&before, connection, vec![want].into()).await.expect("granted");
        let before = before.borrow();
        let (_, held) = before.listeners.registry.iter().next().expect("it");
        let text = serde_json::to_string(&held.entry()).expect("an entry");
        let mut next = broker();
        next.persistence.missing.entries = vec![serde_json::from_str(&text).expect("an entry")];
        let give = |listen: &str| {
            let fd = held.opened.handle.fd.try_clone().expect("a copy");
            sort(&next, vec![(listen.parse().expect("a listener"), fd, false)])
        };
        let refused = give("127.0.0.1:1").err().expect("refused");
        assert!(refused.message.contains("it is the socket of web="), "{}", refused.message);
        // Another holder may have bound it to a device.
        let socket = socket2::SockRef::from(&*held.opened.handle.fd);
        socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
        for known in ["127.0.0.1:0", &held.opened.bound.to_string()] {
            let sorted = give(known).expect("taken");
            assert_eq!((sorted.found.len(), sorted.new), (1, 0));
        }
    }
}
