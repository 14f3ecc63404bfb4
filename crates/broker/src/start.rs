//! Listeners held before the first client can connect: those that the service manager kept, then
//! those of the configuration.

use std::cell::RefCell;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use bindonce_core::event::Kind;
use bindonce_core::listener::Wanted;
use bindonce_core::registry::Want;
use bindonce_daemon::{Happening, notify};
use bindonce_wire::RpcError;

use crate::answer;
use crate::broker::{Broker, NotBound};
use crate::claims;
use crate::config::Config;
use crate::error::Error;
use crate::generations;
use crate::persistence::restore;
use crate::persistence::store::Store;

/// What was restored besides listeners.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The control socket, if it was passed and is still at its path.
    pub(crate) control: Option<UnixListener>,
    /// Store names to forget once the manifest is written.
    pub(crate) stale: Vec<String>,
}

/// Restores what the service manager kept from an earlier broker.
pub(crate) async fn restore(broker: &RefCell<Broker>, socket: &Path) -> Result<Restored, Error> {
    let runtime = |source| Error::Runtime { socket: socket.to_owned(), source };
    let found = restore::restore(notify::passed().map_err(runtime)?, socket);
    {
        let mut broker = broker.borrow_mut();
        let store = Store::new(None).map_err(runtime)?;
        if let Some(store) = store {
            broker.persistence.ledger.keep_in_store(store);
        }
        let count = found.listeners.len();
        broker.listeners.adopt(found.listeners, true, None);
        broker.watch_survivors();
        if count != 0 {
            let text = format!("{count} listeners came back from the service manager");
            broker.reporter.record(Happening::new(Kind::ListenerRestored, text));
        }
        broker.succession.recall(found.services, found.floor);
    }
    for listener in found.missing {
        let name = listener.label();
        match claim(broker, vec![Wanted::Listen(listener.into())]).await {
            Ok(()) => tracing::warn!(listener = name, "listener bound anew: its socket was lost"),
            Err(error) => {
                tracing::error!(
                    listener = name, %error, hint = error.hint(),
                    "listener lost: the store did not have it, and it cannot be bound"
                );
                let text = format!("{name}: the store did not have it, and it cannot be bound");
                broker.borrow().reporter.record(Happening::new(Kind::ListenerLost, text));
            }
        }
    }
    Ok(Restored { control: found.control.map(UnixListener::from), stale: found.stale })
}

/// Binds the listeners of the configuration, and changes restored listeners to what it says now.
///
/// # Errors
/// All or nothing at the start of a broker that holds nothing. A broker that `serves` clients or
/// holds something must not end: it binds each listener that it can, and keeps the others in
/// [`Broker::not_bound`].
pub(crate) async fn bind_first(
    broker: &RefCell<Broker>,
    config: &Config,
    serves: bool,
) -> Result<(), Error> {
    let metrics = config.metrics.iter().map(|listener| Wanted::Listen(listener.clone().into()));
    let wanted: Vec<Wanted> = config.listen.iter().cloned().chain(metrics).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let Err(error) = claim(broker, wanted.clone()).await else { return Ok(()) };
    let holds_nothing = {
        let broker = broker.borrow();
        broker.listeners.registry.is_empty() && broker.persistence.missing.is_empty()
    };
    if holds_nothing && !serves {
        let hint = error.hint().map(str::to_owned);
        return Err(Error::Listen { message: error.message, hint });
    }
    bind_each(broker, wanted).await;
    Ok(())
}

/// Retries the listeners that could not be bound.
pub(crate) async fn bind_rest(broker: &RefCell<Broker>) {
    let rest = std::mem::take(&mut broker.borrow_mut().not_bound);
    bind_each(broker, rest.into_iter().map(|not_bound| not_bound.wanted).collect()).await;
}

async fn bind_each(broker: &RefCell<Broker>, wanted: Vec<Wanted>) {
    for wanted in wanted {
        let Err(error) = claim(broker, vec![wanted.clone()]).await else { continue };
        tracing::error!(
            listener = %wanted, %error, hint = error.hint(),
            "a listener of the configuration is not bound: the broker serves what it holds"
        );
        let hint = error.hint().unwrap_or("free its address and its name").to_owned();
        let hint = format!("{hint}; it is tried again with each `bindonce release` and on SIGHUP");
        let not_bound = NotBound { wanted, message: error.message, hint: Some(hint) };
        broker.borrow_mut().not_bound.push(not_bound);
    }
}

/// Makes a claim for the broker itself. It leaves no lease behind.
async fn claim(broker: &RefCell<Broker>, wanted: Vec<Wanted>) -> Result<(), RpcError> {
    let want = |wanted| Want { wanted, tentative: false, change: true, held: false };
    let own = broker.borrow_mut().connect_itself();
    let claimed = claims::claim(broker, own, wanted.into_iter().map(want).collect()).await;
    generations::disconnect(&mut broker.borrow_mut(), own);
    match claimed {
        Ok(_) => Ok(()),
        Err(failure) => {
            let inquiry = Rc::clone(&broker.borrow().inquiry);
            Err(answer::claim_failed(&inquiry, failure).await)
        }
    }
}
