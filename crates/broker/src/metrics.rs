//! What a broker exports for Prometheus: itself, its listeners, and what was asked of it.
//! docs/operations.md lists every family.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::event::Kind;
use bindonce_core::listener::Wanted;
use bindonce_core::registry::{View, Want};
use bindonce_daemon::openmetrics::{Family, Page};
use bindonce_daemon::{events, scrape, self_metrics, state};
use bindonce_sys::diag;
use bindonce_sys::listen::{self, UnixPath};
use bindonce_sys::queue::{self, Buffer, Queue};
use tokio::sync::Mutex;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::answer;
use crate::broker::{Broker, VERSION};
use crate::claims;
use crate::config::Config;
use crate::listeners::{Held, Socket};
use crate::problems;

/// Who may connect is decided by the file: its owner and its group.
const MODE: u32 = 0o660;

/// So many listeners are looked at in one turn.
const IN_A_TURN: usize = 64;

/// The longest rest between two pages.
const REST: Duration = Duration::from_secs(1);

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

/// Where the broker on this control socket always exports its metrics.
pub(crate) fn socket(control: &Path) -> PathBuf {
    state::with_suffix(control, ".metrics")
}

/// Serves scrapes for as long as the broker runs: on a UNIX socket beside the control socket,
/// and on the listener of the configuration. Neither keeps the broker from anything.
pub(crate) async fn keep(broker: &Rc<RefCell<Broker>>, config: &Config) {
    let pages = Rc::default();
    tokio::join!(beside(broker, &pages), on_listener(broker, &pages, config));
}

/// The file of the UNIX socket, removed at the end.
struct File(Option<UnixPath>);

impl Drop for File {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = listen::unlink_if_ours(path)
        {
            tracing::warn!(path = %path.path.display(), %error, "cannot remove a UNIX path");
        }
    }
}

async fn beside(broker: &Rc<RefCell<Broker>>, pages: &Rc<Pages>) {
    let path = socket(&broker.borrow().socket);
    match listen::open_path(&path, MODE) {
        Ok(opened) => {
            let _file = File(opened.path);
            export(broker, pages, opened.fd, false).await;
        }
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "no metrics beside the control socket");
        }
    }
}

/// Claims the listener as any client would, and uses it as long as the broker runs.
async fn on_listener(broker: &Rc<RefCell<Broker>>, pages: &Rc<Pages>, config: &Config) {
    let Some(listener) = &config.metrics else { return };
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    gate.pass().await;
    let wanted = Wanted::Listen(listener.clone().into());
    let want = Want { wanted, tentative: false, change: true, held: false };
    let own = broker.borrow_mut().connect_itself();
    let leases = match claims::claim(broker, own, vec![want]).await {
        Ok(leases) => leases,
        Err(denied) => {
            let inquiry = Rc::clone(&broker.borrow().inquiry);
            let error = answer::claim_failed(&inquiry, denied).await;
            tracing::error!(
                %listener, %error, hint = error.hint(), "no metrics on the listener of --metrics"
            );
            return;
        }
    };
    let socket = leases.first().and_then(|lease| {
        let broker = broker.borrow();
        broker.listeners.registry.held(lease.listener)?.opened.handle.fd.try_clone().ok()
    });
    if let Some(socket) = socket {
        export(broker, pages, socket, matches!(listener.address, Address::Tcp(_))).await;
    }
}

async fn export(broker: &Rc<RefCell<Broker>>, pages: &Rc<Pages>, socket: OwnedFd, is_tcp: bool) {
    let (broker, pages) = (Rc::clone(broker), Rc::clone(pages));
    let page = move || {
        let (broker, pages) = (Rc::clone(&broker), Rc::clone(&pages));
        async move { pages.page(&broker).await }
    };
    if let Err(error) = scrape::serve(socket, is_tcp, page).await {
        tracing::warn!(%error, "metrics cannot be served");
    }
}

/// Pages, made one at a time: one serves all who have asked before it was begun, and the next waits so long that pages take a
/// tenth of the broker's time at most.
#[derive(Default)]
struct Pages {
    last: Mutex<Last>,
    /// How many wait for a page.
    waiting: Cell<usize>,
}

/// The page that was made last.
#[derive(Default)]
struct Last {
    /// When it was begun, and its text, while a request waits that it can answer.
    page: Option<(Instant, String)>,
    /// When the next may be begun.
    rested: Option<Instant>,
}

/// A request that waits for a page, until this is dropped.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pages {
    /// Everything, not older than this call.
    async fn page(&self, broker: &RefCell<Broker>) -> String {
        let asked = Instant::now();
        let waits = Waits::new(&self.waiting);
        let mut last = self.last.lock().await;
        drop(waits);
        let (begun, text) = match last.page.take() {
            Some((begun, text)) if begun >= asked => (begun, text),
            _ => {
                if let Some(rested) = last.rested {
                    sleep_until(rested).await;
                }
                let begun = Instant::now();
                let text = page(broker).await;
                last.rested = Some(Instant::now() + (begun.elapsed() * 9).min(REST));
                (begun, text)
            }
        };
        last.page = (self.waiting.get() > 0).then(|| (begun, text.clone()));
        text
    }
}

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

/// Everything, many listeners in many turns.
async fn page(broker: &RefCell<Broker>) -> String {
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
        let requests = broker.answered.iter().map(|(method, result, count)| {
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

/// Each family as a whole, as the format wants it.
async fn listeners(page: &mut Page, rows: &[Row]) {
    type Told = fn(&Row) -> Option<u64>;
    let each: [(&Family, Told); 8] = [
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

/// The kernel's books of this network namespace by inode: one look at each instead of calls for
/// each socket.
#[derive(Default)]
struct Books {
    stream: HashMap<u64, (Queue, u32)>,
    unix: HashMap<u64, Queue>,
}

impl Books {
    /// Those that these listeners stand in. A book that cannot be read tells nothing.
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
                // Of another network namespace, or not listening any more.
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

    use bindonce_daemon::Journal;

    use super::*;
    use crate::listeners::watch::Guard;

    #[tokio::test(flavor = "current_thread")]
    async fn a_page_serves_all_who_wait_and_is_not_kept() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let broker = RefCell::new(Broker::new(socket, 0, 1024, guard, Journal::in_memory(None)));
        let pages = Pages::default();
        let ask = || pages.page(&broker);
        // No two moments are the same.
        let time = async {
            loop {
                broker.borrow_mut().listeners.counts.granted += 1;
                yield_now().await;
            }
        };
        // The first is begun before the others ask.
        let (first, second, third) = tokio::select! {
            pages = async { tokio::join!(ask(), ask(), ask()) } => pages,
            () = time => unreachable!(),
        };
        for page in [&first, &second, &third] {
            assert!(page.contains("bindonce_listeners 0") && page.ends_with("# EOF\n"), "{page}");
        }
        assert_eq!(second, third, "one page for both");
        assert_ne!(first, second, "not older than the question");
        let rest = Duration::from_millis(50);
        let asked = Instant::now();
        {
            let mut last = pages.last.lock().await;
            assert!(last.page.is_none() && last.rested.is_some());
            last.rested = Some(asked + rest);
        }
        ask().await;
        assert!(asked.elapsed() >= rest, "the page before is paid for first");
    }

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
