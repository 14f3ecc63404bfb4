//! The broker's life: start, accept, end.

use std::cell::RefCell;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::{Flood, Kind};
use bindonce_daemon::rpc::Server;
use bindonce_daemon::{Journal, WhenWoken, state};
use bindonce_sys::clock::now;
use bindonce_sys::{limits, worker};
use tokio::net::UnixListener;
use tokio::task::{LocalSet, yield_now};
use tokio::time::timeout;

use crate::broker::{self, Broker, VERSION};
use crate::config::{Config, File};
use crate::control::Control;
use crate::error::Error;
use crate::generations;
use crate::guard;
use crate::handler::Handler;
use crate::listeners::watch::Guard;
use crate::notify;
use crate::pages;
use crate::parting;
use crate::persistence::Ledger;
use crate::persistence::file::{self, StateFile};
use crate::recovery;
use crate::start;
use crate::upgrade::{self, Inherited, Resumed};

/// How long the broker still answers clients while it ends.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// Time limit for rereading the configuration, including the lookup of users and groups.
const READ: Duration = Duration::from_secs(15);

/// Serves until `shutdown` is ready. Needs a current-thread runtime with I/O and time enabled.
///
/// # Errors
/// Any reason why the broker cannot start. Nothing is bound then, and no file is left.
pub async fn run(mut config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let limit = match limits::raise_nofile() {
        Ok(limit) => limit,
        Err(error) => {
            let (soft, _) = limits::nofile();
            tracing::warn!(%error, limit = soft, "cannot raise RLIMIT_NOFILE to its hard limit");
            soft
        }
    };
    let inherited = config.inherited.take();
    let (mut control, resumed) = match inherited {
        None => (Control::acquire(&config.socket)?, None),
        Some(inherited) => {
            let (control, listener) = inherited.control(&config.socket)?;
            (control, Some((inherited, listener)))
        }
    };
    let served = serve(&config, &mut control, resumed, limit, shutdown).await;
    let socket = control.socket.clone();
    if let Err(error) = control.remove() {
        tracing::warn!(socket = %socket.display(), %error, "cannot remove the control socket");
    }
    served
}

async fn serve(
    config: &Config,
    control: &mut Control,
    resumed: Option<(Inherited, UnixListener)>,
    limit: u64,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let owner = nix::unistd::geteuid().as_raw();
    let guard = Guard::new();
    let guard =
        guard.map_err(|source| Error::Runtime { socket: control.socket.clone(), source })?;
    let journal = Journal::open(&events_file(&control.socket), None);
    let mut broker = Broker::new(control.socket.clone(), owner, limit, guard, journal);
    broker.configure(config.rules.clone(), config.limits);
    let broker = Rc::new(RefCell::new(broker));
    let resumes = resumed.is_some();
    let served = async {
        let (listener, links) = match resumed {
            None => (begin(config, control, &broker).await?, Vec::new()),
            Some((inherited, listener)) => (listener, resume(control, &broker, inherited)?),
        };
        tracing::info!(
            socket = %control.socket.display(), pid = std::process::id(),
            descriptor_limit = limit, "broker serves"
        );
        if !resumes {
            broker.borrow().reporter.own(Kind::BrokerStarted, format!("bindonce {VERSION} serves"));
        }
        let tasks = LocalSet::new();
        let clients = Rc::clone(&broker.borrow().clients);
        let reporter = Rc::clone(&broker.borrow().reporter);
        let server = Server::new(Rc::clone(&clients), reporter, Handler(Rc::clone(&broker)));
        let ledger = Rc::clone(&broker.borrow().persistence.ledger);
        let serving = async {
            for (link, pending) in links {
                server.attend(link, pending);
            }
            tokio::join!(
                guard::keep(&broker),
                notify::run(&broker),
                notify::shrink_after(&clients.unburdened),
                notify::shrink_after(&clients.parted),
                keep_store(&ledger),
                generations::keep(&broker),
                parting::keep(&broker),
                Rc::clone(&server).accept(&listener),
                upgrade::keep(&broker, &listener, control, config),
                settle(&broker, config, resumes),
                broker::keep_file(&broker),
                reread(&broker, config),
                pages::keep(&broker, config),
            )
        };
        tokio::select! {
            _ = tasks.run_until(WhenWoken::new(serving)) => {}
            () = shutdown => {}
        }
        // A client may have hung up without its task having run yet. Give every task whose
        // connection is ready a turn, so that those leases end.
        let answered = tasks.run_until(async {
            for _ in 0..2 {
                yield_now().await;
            }
            while !clients.is_idle() {
                yield_now().await;
            }
        });
        let _ = timeout(LAST_REQUESTS, answered).await;
        notify::stopping();
        tracing::info!(socket = %control.socket.display(), "broker ends");
        broker.borrow().reporter.own(Kind::BrokerEnding, "broker ends, in order");
        Ok(())
    };
    let served = served.await;
    broker.borrow_mut().close();
    served
}

/// The events file of the broker on this control socket. The next broker reads it too. Events are
/// not in the state file because they may be lost and the state may not, are appended far more
/// often, and do not depend on how this process ends.
pub fn events_file(socket: &Path) -> PathBuf {
    state::with_suffix(socket, ".events")
}

/// Sends to the service manager's store what could not be sent at once.
async fn keep_store(ledger: &Ledger) {
    if let Err(error) = ledger.keep_store().await {
        tracing::error!(%error, "cannot reach the descriptor store any more");
    }
}

/// Prepares everything that must be in place before the first client can connect.
async fn begin(
    config: &Config,
    control: &mut Control,
    broker: &Rc<RefCell<Broker>>,
) -> Result<UnixListener, Error> {
    let restored = start::restore(broker, &control.socket).await?;
    let store = broker.borrow().persistence.ledger.store();
    if store.is_none() {
        // Before this broker has a file: one that ends writes it.
        let left = file::left(&control.socket)?;
        let mut broker = broker.borrow_mut();
        broker.persistence.ledger.keep_in_file(StateFile::new(&control.socket));
        let missing = &mut broker.persistence.missing;
        (missing.entries, missing.left_in_order) = (left.listeners, left.in_order);
        broker.succession.recall(left.services, left.floor);
    }
    if broker.borrow().persistence.missing.is_empty() {
        start::bind_first(broker, config, false).await?;
    } else {
        // Clients hold some of the missing listeners. They can connect already; claims wait.
        broker.borrow().persistence.gate.shut();
    }
    let listener = control.listen(restored.control)?;
    let socket = control.socket.clone();
    let runtime = |source| Error::Runtime { socket: socket.clone(), source };
    if let Some(store) = &store {
        broker.borrow_mut().endpoint.file = control.leave();
        broker.borrow().rewrite();
        restored.stale.into_iter().for_each(|name| store.forget(name));
        store.keep_control(&listener).map_err(runtime)?;
        store.settle().await;
    } else {
        broker.borrow_mut().endpoint.file = control.path().cloned();
        broker.borrow().rewrite();
    }
    UnixListener::from_std(listener).map_err(runtime)
}

/// Recovers what the previous broker left with its clients, then reports readiness.
async fn settle(broker: &Rc<RefCell<Broker>>, config: &Config, resumes: bool) {
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    let recovers = !broker.borrow().persistence.missing.is_empty() && gate.is_shut();
    if recovers {
        recovery::run(broker).await;
    }
    if recovers || resumes {
        // Clients are connected, so a broker that ended here would do harm.
        if let Err(error) = start::bind_first(broker, config, true).await {
            tracing::error!(%error, hint = error.hint(), "cannot bind what the configuration says");
        }
    }
    if recovers {
        gate.open();
    }
    notify::ready(broker);
}

/// Rereads the rules and limits of the configuration on each order.
async fn reread(broker: &Rc<RefCell<Broker>>, config: &Config) {
    let mut told = Flood::default();
    loop {
        config.orders.reread.notified().await;
        // Endless orders must not fill the log; the events record each one.
        let is_told = told.on(now().0).is_some();
        start::bind_rest(broker).await;
        let Some(path) = &config.file else {
            if is_told {
                tracing::info!("asked to read the configuration again, but there is no file");
            }
            continue;
        };
        let from = path.clone();
        let read = move || File::read(&from).and_then(|file| Ok((file.rules()?, file.limits)));
        let read = worker::within(READ, read).await.unwrap_or_else(|source| {
            Err(Error::File { doing: "read the configuration", path: path.clone(), source })
        });
        match read {
            Ok((rules, limits)) => {
                let count = rules.len();
                broker.borrow_mut().configure(rules, limits);
                if is_told {
                    tracing::info!(path = %path.display(), rules = count, "rules and limits read again");
                }
                let text = format!("{count} rules and the limits read again: {}", path.display());
                broker.borrow().reporter.own(Kind::ConfigRead, text);
            }
            Err(error) => {
                if is_told {
                    tracing::error!(
                        %error,
                        hint = "correct it and send SIGHUP again; `bindonce check-config` tells more",
                        "the rules and limits stay as they were"
                    );
                }
                let text = format!("the rules and limits stay as they were: {error}");
                broker.borrow().reporter.own(Kind::ConfigRefused, text);
            }
        }
    }
}

/// Resumes where an earlier image of this process stopped.
fn resume(
    control: &mut Control,
    broker: &Rc<RefCell<Broker>>,
    inherited: Inherited,
) -> Result<Vec<Resumed>, Error> {
    let runtime = |source| Error::Runtime { socket: control.socket.clone(), source };
    let links = upgrade::resume(inherited, broker).map_err(runtime)?;
    let mut broker = broker.borrow_mut();
    broker.endpoint.file = control.path().cloned();
    if broker.persistence.ledger.store().is_some() {
        broker.endpoint.file = control.leave();
    } else {
        broker.persistence.ledger.keep_in_file(StateFile::new(&control.socket));
    }
    broker.rewrite();
    Ok(links)
}
