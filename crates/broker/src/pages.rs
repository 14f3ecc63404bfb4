//! The pages that the broker serves over HTTP: metrics and the status page, on a UNIX socket beside the control
//! socket, and on the listener of `--metrics`.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::listener::Wanted;
use bindonce_core::registry::Want;
use bindonce_daemon::scrape::{self, Served, Subject};
use bindonce_daemon::state;
use bindonce_sys::listen::{self, UnixPath};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::answer;
use crate::broker::Broker;
use crate::claims;
use crate::config::Config;
use crate::{metrics, status_page};

/// Who may connect is decided by the file: its owner and its group.
const MODE: u32 = 0o660;

/// Whoever can connect there may read the status page.
const BESIDE: Served = Served { is_tcp: false, status_page: scrape::StatusPage::Open };

/// The longest rest between two pages.
const REST: Duration = Duration::from_secs(1);

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

async fn beside(broker: &Rc<RefCell<Broker>>, pages: &Rc<Both>) {
    let path = socket(&broker.borrow().socket);
    match listen::open_path(&path, MODE) {
        Ok(opened) => {
            let _file = File(opened.path);
            export(broker, pages, opened.fd, BESIDE).await;
        }
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "no metrics beside the control socket");
        }
    }
}

/// Claims the listener as any client would, and uses it as long as the broker runs.
async fn on_listener(broker: &Rc<RefCell<Broker>>, pages: &Rc<Both>, config: &Config) {
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
        let served = Served {
            is_tcp: matches!(listener.address, Address::Tcp(_)),
            status_page: scrape::StatusPage::on(&listener.address, config.status_page),
        };
        export(broker, pages, socket, served).await;
    }
}

async fn export(broker: &Rc<RefCell<Broker>>, pages: &Rc<Both>, socket: OwnedFd, served: Served) {
    let (broker, pages) = (Rc::clone(broker), Rc::clone(pages));
    let page = move |subject| {
        let (broker, pages) = (Rc::clone(&broker), Rc::clone(&pages));
        async move {
            match subject {
                Subject::Metrics => Some(pages.metrics.page(|| metrics::page(&broker)).await),
                Subject::Status => Some(pages.status.page(|| status_page::html(&broker)).await),
                // The broker starts no process: a supervisor's page has them.
                Subject::Findings => None,
            }
        }
    };
    if let Err(error) = scrape::serve(socket, served, page).await {
        tracing::warn!(%error, "metrics cannot be served");
    }
}

/// What can be asked for.
#[derive(Default)]
struct Both {
    metrics: Pages,
    status: Pages,
}

/// Pages of one kind, made one at a time: one serves all who have asked before it was begun, and the next waits so long that pages take a
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
    /// The page that `make` makes, not older than this call.
    async fn page<F: Future<Output = String>>(&self, make: impl FnOnce() -> F) -> String {
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
                let text = make().await;
                last.rested = Some(Instant::now() + (begun.elapsed() * 9).min(REST));
                (begun, text)
            }
        };
        last.page = (self.waiting.get() > 0).then(|| (begun, text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use bindonce_daemon::Journal;
    use tokio::task::yield_now;

    use super::*;
    use crate::listeners::watch::Guard;

    #[tokio::test(flavor = "current_thread")]
    async fn a_page_serves_all_who_wait_and_is_not_kept() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let broker = RefCell::new(Broker::new(socket, 0, 1024, guard, Journal::in_memory(None)));
        let pages = Pages::default();
        let ask = || pages.page(|| metrics::page(&broker));
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
}
