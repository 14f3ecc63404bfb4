//! The pages that the broker serves over HTTP: metrics and the status page, on a UNIX socket beside
//! the control socket, and on the listener of `--metrics`.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::listener::Wanted;
use bindonce_core::registry::Want;
use bindonce_daemon::paced::Paced;
use bindonce_daemon::scrape::{self, Served, Subject};
use bindonce_daemon::state;
use bindonce_sys::listen::{self, UnixPath};

use crate::answer;
use crate::broker::Broker;
use crate::claims;
use crate::config::Config;
use crate::{metrics, status_page};

/// The file's owner and group decide who may connect.
const MODE: u32 = 0o660;

/// Everyone who can connect there may read the status page.
const BESIDE: Served = Served { is_tcp: false, status_page: scrape::StatusPage::Open };

/// Path where the broker on this control socket always exports its metrics.
pub(crate) fn socket(control: &Path) -> PathBuf {
    state::with_suffix(control, ".metrics")
}

/// Serves scrapes for as long as the broker runs: on a UNIX socket beside the control socket, and
/// on the listener of the configuration. If either fails, the broker still runs.
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
    let path = socket(&broker.borrow().endpoint.socket);
    match listen::open_control(&path, MODE) {
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
    let leases = match claims::claim(broker, own, vec![want].into()).await {
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
                // The broker starts no process; findings are on a supervisor's page.
                Subject::Findings => None,
            }
        }
    };
    if let Err(error) = scrape::serve(socket, served, page).await {
        tracing::warn!(%error, "metrics cannot be served");
    }
}

/// The pages that can be requested.
#[derive(Default)]
struct Both {
    metrics: Paced,
    status: Paced,
}
