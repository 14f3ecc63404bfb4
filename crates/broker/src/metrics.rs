//! What a broker exports for Prometheus: itself, its listeners, and its requests. docs/metrics.md
//! lists every family.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::AsFd as _;

use bindonce_core::address::Address;
use bindonce_core::event::Kind;
use bindonce_core::registry::View;
use bindonce_daemon::openmetrics::{Family, Page};
use bindonce_daemon::{events, self_metrics};
use bindonce_sys::diag;
use bindonce_sys::queue::{self, Buffer, Queue};
use tokio::task::yield_now;

use crate::broker::{Broker, VERSION};
use crate::listeners::{Held, Socket};
use crate::problems;

/// Listeners examined in one turn.
const IN_A_TURN: usize = 64;

const UPGRADES: Family = Family::counter(
    "bindonce_broker_upgrades",
    "Times this process became another binary in place.",
);
const CONNECTIONS: Family =
    Family::gauge("bindonce_broker_connections", "Clients that are connected.");
const CONNECTIONS_MAX: Family =
    Family::gauge("bindonce_broker_connections_limit", "Clients that may be connected.");
const REQUESTS: Family =
    Family::counter("bindonce_broker_requests", "Requests, by method and what came of them.");
const CLAIMED: Family = Family::counter(
    "bindonce_broker_claims_granted",
    "Listeners handed out, one for each descriptor.",
);
const LISTENERS: Family = Family::gauge("bindonce_listeners", "Listeners that are held.");
const MISSING: Family = Family::gauge(
    "bindonce_listeners_missing",
    "Listeners of an earlier broker that were not recovered.",
);
const PROBLEMS: Family = Family::gauge(
    "bindonce_broker_problems",
    "What the broker should do and cannot: listeners that are not bound, state that is not written.",
);
const OPENED: Family = Family::counter("bindonce_listeners_opened", "Listeners that were bound.");
const CLOSED: Family = Family::counter("bindonce_listeners_closed", "Listeners that were closed.");
const QUEUE: Family =
    Family::gauge("bindonce_listener_accept_queue", "Connections that wait to be accepted.");
const QUEUE_MAX: Family = Family::gauge(
    "bindonce_listener_accept_queue_limit",
    "Connections that may wait to be accepted.",
);
const RECEIVE: Family = Family::gauge(
    "bindonce_listener_receive_queue_bytes",
    "What waits in the receive buffer of a datagram listener, such as one for QUIC.",
);
const RECEIVE_MAX: Family = Family::gauge(
    "bindonce_listener_receive_buffer_bytes",
    "The receive buffer of a datagram listener.",
);
const DROPS: Family = Family::counter(
    "bindonce_listener_drops",
    "What the kernel dropped on this socket: connection attempts without room in the queue, or datagrams.",
);
const LISTENING: Family =
    Family::gauge("bindonce_listener_listening", "Whether the socket is in the LISTEN state.");
const REPAIRS: Family = Family::counter(
    "bindonce_listener_repairs",
    "Times it had left LISTEN and was made to listen again.",
);
const HOLDERS: Family =
    Family::gauge("bindonce_listener_holders", "Connections that have a lease on it.");
const DENIALS: Family =
    Family::counter("bindonce_broker_denials", "Requests that the rules did not allow.");
const LIMITS: Family = Family::counter(
    "bindonce_broker_limits_reached",
    "Requests and connections that a limit refused.",
);
const FOLLOWERS: Family =
    Family::gauge("bindonce_event_followers", "Clients that follow the events.");

/// The metrics of one listener.
struct Row {
    name: String,
    queue: Option<Queue>,
    buffer: Option<Buffer>,
    drops: Option<u32>,
    listening: Option<bool>,
    repairs: u64,
    holders: usize,
}

/// The whole page; many listeners take many turns.
pub(crate) async fn page(broker: &RefCell<Broker>) -> String {
    let problems = problems::all(broker).await.len();
    let rows = rows(broker).await;
    let mut page = Page::default();
    {
        let broker = broker.borrow();
        self_metrics(&mut page, VERSION);
        page.single(&UPGRADES, broker.upgrade.count());
        page.single(&CONNECTIONS, broker.listeners.registry.connections());
        page.single(&CONNECTIONS_MAX, broker.clients.limits().connections);
        let counts = &broker.listeners.counts;
        let requests = broker.answering.counts().map(|(method, result, count)| {
            ([("method", method.to_owned()), ("result", result.to_owned())], count)
        });
        page.family(&REQUESTS, requests);
        page.single(&CLAIMED, counts.granted);
        page.single(&DENIALS, broker.reporter.journal.count(Kind::Denied));
        page.single(&LIMITS, broker.reporter.journal.count(Kind::LimitReached));
        page.single(&LISTENERS, broker.listeners.registry.len());
        page.single(&MISSING, broker.persistence.missing.len());
        page.single(&PROBLEMS, problems);
        page.single(&OPENED, counts.opened);
        page.single(&CLOSED, counts.closed);
    }
    listeners(&mut page, &rows).await;
    let broker = broker.borrow();
    events(&mut page, &broker.reporter.journal);
    page.single(&FOLLOWERS, broker.reporter.journal.followers());
    page.finish()
}

/// The metrics of each listener.
async fn rows(broker: &RefCell<Broker>) -> Vec<Row> {
    let books = Books::of(broker.borrow().listeners.registry.iter().map(|(_, held)| held));
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        yield_now().await;
        let broker = broker.borrow();
        let views = broker.listeners.registry.list_after(after, IN_A_TURN);
        let Some(last) = views.last() else { return rows };
        after = Some(last.id);
        rows.extend(views.iter().map(|view| books.row(view)));
    }
}

/// Writes each family as a whole, as the format requires.
async fn listeners(page: &mut Page, rows: &[Row]) {
    type Value = fn(&Row) -> Option<u64>;
    let each: [(&Family, Value); 8] = [
        (&QUEUE, |row| row.queue.map(|queue| queue.len.into())),
        (&QUEUE_MAX, |row| row.queue.map(|queue| queue.limit.into())),
        (&RECEIVE, |row| row.buffer.map(|buffer| buffer.len.into())),
        (&RECEIVE_MAX, |row| row.buffer.map(|buffer| buffer.limit.into())),
        (&DROPS, |row| row.drops.map(u64::from)),
        (&LISTENING, |row| row.listening.map(u64::from)),
        (&REPAIRS, |row| Some(row.repairs)),
        (&HOLDERS, |row| Some(row.holders as u64)),
    ];
    for (family, value) in each {
        let samples =
            rows.iter().filter_map(|row| Some(([("listener", row.name.clone())], value(row)?)));
        page.family(family, samples);
        yield_now().await;
    }
}

/// The kernel's socket lists of this network namespace, by inode: one read of each list instead of
/// calls for each socket.
#[derive(Default)]
struct Books {
    stream: HashMap<u64, (Queue, u32)>,
    unix: HashMap<u64, Queue>,
}

impl Books {
    /// Reads the lists in which these listeners appear. A list that cannot be read counts as empty.
    fn of<'a>(held: impl Iterator<Item = &'a Held>) -> Self {
        let (mut tcp, mut unix) = (false, false);
        for held in held {
            match held.listener.address {
                Address::Tcp(_) => tcp = true,
                Address::Udp(_) | Address::Quic(_) => {}
                _ => unix = true,
            }
        }
        let read = |wanted: bool, book: fn() -> Result<Vec<diag::Socket>, bindonce_sys::Error>| {
            let sockets = if wanted { book().unwrap_or_default() } else { Vec::new() };
            sockets.into_iter()
        };
        Self {
            stream: read(tcp, diag::tcp).map(|s| (s.inode, (s.queue, s.drops))).collect(),
            unix: read(unix, diag::unix).map(|s| (s.inode, s.queue)).collect(),
        }
    }

    fn row(&self, view: &View<'_, Socket>) -> Row {
        let (listener, opened) = (&view.held.listener, &view.held.opened);
        let fd = opened.handle.fd.as_fd();
        let mut buffer = None;
        let (queue, drops, listening) = match listener.address {
            Address::Tcp(_) => match self.stream.get(&opened.inode) {
                Some((queue, drops)) => (Some(*queue), Some(*drops), Some(true)),
                // In another network namespace, or no longer listening.
                None => {
                    let queue = queue::accept_queue(fd).ok();
                    (queue, None, Some(queue.is_some()))
                }
            },
            Address::Udp(_) | Address::Quic(_) => {
                buffer = queue::receive_buffer(fd).ok();
                (None, buffer.map(|buffer| buffer.drops), None)
            }
            _ => {
                let queue = self.unix.get(&opened.inode).copied();
                (queue, None, Some(queue::is_listening(fd)))
            }
        };
        Row {
            name: listener.label(),
            queue,
            buffer,
            drops,
            listening,
            repairs: opened.handle.watch.repaired(),
            holders: view.holders.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use bindonce_core::registry::Want;
    use bindonce_daemon::Journal;

    use super::*;
    use crate::claims;
    use crate::listeners::watch::Guard;

    #[tokio::test(flavor = "current_thread")]
    async fn a_page_is_made_in_turns() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let connection = broker.connect_itself();
        let broker = RefCell::new(broker);
        let name = |number| format!("abns@bindonce-page-{}-{number}", std::process::id());
        let want = |number| Want {
            wanted: name(number).parse().expect("a listener"),
            tentative: false,
            change: false,
            held: false,
        };
        let claimed = claims::claim(&broker, connection, (0..2 * IN_A_TURN).map(want).collect());
        assert_eq!(claimed.await.expect("granted").len(), 2 * IN_A_TURN);
        let mut looks = std::pin::pin!(rows(&broker));
        let mut context = Context::from_waker(Waker::noop());
        let mut turns = 0;
        let rows = loop {
            match looks.as_mut().poll(&mut context) {
                Poll::Ready(rows) => break rows,
                Poll::Pending => turns += 1,
            }
        };
        assert_eq!((turns, rows.len()), (3, 2 * IN_A_TURN));
        let mut page = Page::default();
        let mut families = std::pin::pin!(listeners(&mut page, &rows));
        let turns =
            std::iter::from_fn(|| families.as_mut().poll(&mut context).is_pending().then_some(()));
        assert_eq!(turns.count(), 8, "one for each family");
    }
}
