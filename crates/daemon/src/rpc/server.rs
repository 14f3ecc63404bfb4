//! Accepts connections, gives each a task, and cleans up after it.

use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_core::policy::Peer;
use bindonce_sys::{Errno, identity, limits, peer};
use bindonce_wire::message::{Id, encode_error};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{spawn_local, yield_now};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::caller::Caller;
use super::clients::Clients;
use super::connection;
use super::end::End;
use super::handler::{Excess, Handler};
use super::link::Link;
use super::sending::{Reply, send};
use crate::Happening;
use crate::reporter::Reporter;

/// How long to wait for a descriptor to become free before trying to accept again.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Serves the clients of one daemon.
#[derive(Debug)]
pub struct Server<H> {
    clients: Rc<Clients>,
    reporter: Rc<Reporter>,
    handler: H,
}

impl<H: Handler> Server<H> {
    /// A server for these clients, whose requests go to `handler`.
    pub fn new(clients: Rc<Clients>, reporter: Rc<Reporter>, handler: H) -> Rc<Self> {
        Rc::new(Self { clients, reporter, handler })
    }

    /// Accepts connections, until this is dropped. Connections have their own tasks, which
    /// continue. Call it within a [`tokio::task::LocalSet`].
    pub async fn accept(self: Rc<Self>, listener: &UnixListener) {
        let turns = Rc::clone(&self.clients.turns);
        spawn_local(async move { turns.give().await });
        let clients = Rc::clone(&self.clients);
        spawn_local(async move { clients.tell_received().await });
        let mut starved = false;
        loop {
            self.clients.room().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    starved = false;
                    if let Some(link) = self.admit(stream) {
                        self.attend(link, None);
                    }
                    // Many new connections at once must not delay the existing ones.
                    yield_now().await;
                }
                Err(error) => {
                    // The connection stays in the queue, so the socket stays readable:
                    // trying again at once would spin.
                    if !starved {
                        self.not_accepted(&error);
                    }
                    starved = true;
                    let _ = timeout(ACCEPT_AGAIN, self.clients.freed.notified()).await;
                }
            }
        }
    }

    fn not_accepted(&self, error: &io::Error) {
        let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
        if !shortages.iter().any(|errno| error.raw_os_error() == Some(*errno as i32)) {
            tracing::warn!(%error, "cannot accept a connection");
            return;
        }
        let hint = match error.raw_os_error() {
            Some(errno) if errno == Errno::EMFILE as i32 => limits::Reached::now().to_string(),
            _ => "the whole host is short of it: end what needs most".to_owned(),
        };
        tracing::error!(%error, hint, "cannot accept connections until a descriptor is free");
        let text = format!("cannot accept until a descriptor is free: {error}");
        self.reporter.own(Kind::LimitReached, text);
    }

    /// Admits a connection, or refuses it.
    fn admit(&self, stream: UnixStream) -> Option<Rc<Link>> {
        let credentials = match peer::credentials(stream.as_fd()) {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::warn!(%error, "cannot read the credentials of a new connection: connection closed");
                return None;
            }
        };
        let pid = u32::try_from(credentials.pid).unwrap_or(0);
        let peer = Peer { pid, uid: credentials.uid, gid: credentials.gid };
        let connection = self.clients.number();
        let network = identity::network_of(stream.as_fd());
        let caller = Caller { connection, peer, groups: credentials.groups.into(), network };
        let admission = self.handler.admission(&caller);
        if let Err((limit, most)) = self.clients.admit(peer.uid, admission) {
            if let Some(left_out) = self.reporter.refused(peer.uid, "connection") {
                tracing::warn!(pid, uid = peer.uid, limit, most, left_out, "connection refused");
            }
            let text = format!("connection of uid {} refused: {limit} = {most}", peer.uid);
            let happening = Happening::new(Kind::LimitReached, text).pid(i32::try_from(pid).ok());
            self.reporter.record(happening);
            let error = self.handler.refusal(Excess::Connections(limit, most));
            // A new connection has room for the error; if not, the close says as much.
            let _ = stream.try_write(&encode_error(&Id::Null, &error));
            let last = self.clients.account(peer.uid).end(stream.as_fd());
            drop(stream);
            drop(last);
            return None;
        }
        self.handler.connected(&caller);
        Some(self.clients.enter(stream, caller, admission, &[]))
    }

    /// Serves a connection in a task of its own. `pending` is a reply that its client already waits
    /// for.
    pub fn attend(self: &Rc<Self>, link: Rc<Link>, pending: Option<Reply>) {
        let server = Rc::clone(self);
        let uid = link.caller.peer.uid;
        let task = async move {
            let id = link.caller.connection;
            let lost = Lost { server: &server, link: &link };
            if let Some(pending) = pending {
                let deadline = server.clients.limits().request_time;
                // A client that has gone meanwhile is noticed when its next request is read.
                let _ = Box::pin(send(&link, &server.clients, pending, deadline)).await;
            }
            let end = connection::serve(&link, &server.clients, &server.handler).await;
            server.ended(&link, end);
            link.progress.leaving.set(true);
            // Boxed: each connection has room for whatever is not boxed, for as long as it is open.
            Box::pin(server.handler.disconnected(id)).await;
            let last = link.end();
            Box::pin(server.clients.received(&link)).await;
            drop(lost);
            drop(link);
            server.clients.remove(id);
            drop(last);
            server.clients.parted.notify_one();
        };
        spawn_local(self.clients.turns.paced(uid, task).in_current_span());
    }

    /// Reports why a connection ended.
    fn ended(&self, link: &Link, end: End) {
        let Peer { pid, uid, .. } = link.caller.peer;
        let text = match end {
            End::Closed | End::CutOff => return,
            End::Failed(error) => return tracing::debug!(pid, %error, "connection ended"),
            End::Idle => {
                return tracing::debug!(pid, "connection ended: it was idle and used nothing");
            }
            End::Malformed => {
                return tracing::debug!(pid, "connection ended: it did not send JSON");
            }
            End::Unfinished => "cut off: a request was not finished in time",
            End::NotRead => "cut off: its reply was not read in time",
            End::TooMuch => "cut off: its user exceeds the limit buffered_bytes",
            End::TooManyInFlight => "cut off: too many descriptors wait to be received by clients",
        };
        if let Some(left_out) = self.reporter.refused(uid, "cut off") {
            tracing::warn!(pid, uid, left_out, "{text}");
        }
        let happening = Happening::new(Kind::LimitReached, text).pid(i32::try_from(pid).ok());
        self.reporter.record(happening);
    }
}

/// If a connection's task panics, ends the connection like any other, with its leases.
struct Lost<'a, H: Handler> {
    server: &'a Server<H>,
    link: &'a Link,
}

impl<H: Handler> Drop for Lost<'_, H> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let id = self.link.caller.connection;
            self.server.handler.lost(id);
            self.server.clients.remove(id);
        }
    }
}
