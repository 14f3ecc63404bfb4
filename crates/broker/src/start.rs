//! What is held before anybody can connect: what the service manager has kept, then what
//! the configuration says.

use std::cell::RefCell;
use std::os::unix::net::UnixListener;
use std::path::Path;

use bindonce_core::event::Kind;
use bindonce_core::listener::Wanted;
use bindonce_core::policy::Peer;
use bindonce_core::registry::Want;
use bindonce_observe::Happening;
use bindonce_sys::notify;
use bindonce_wire::RpcError;
use bindonce_wire::result::Problem;

use crate::answer;
use crate::claiming;
use crate::config::Config;
use crate::error::Error;
use crate::restore;
use crate::state::State;
use crate::store::Store;

/// What there is to go on with beside listeners.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The control socket, if it was passed and stands at its path.
    pub(crate) control: Option<UnixListener>,
    /// Names in the store to be forgotten once the manifest is written.
    pub(crate) stale: Vec<String>,
}

/// Takes back what the service manager has kept of an earlier broker.
pub(crate) async fn restore(state: &RefCell<State>, socket: &Path) -> Result<Restored, Error> {
    let runtime = |source| Error::Runtime { socket: socket.to_owned(), source };
    let found = restore::restore(notify::passed().map_err(runtime)?, socket);
    {
        let mut state = state.borrow_mut();
        state.store = Store::new(None).map_err(runtime)?;
        let count = found.listeners.len();
        state.adopt(found.listeners, true, None);
        if count != 0 {
            let text = format!("{count} listeners came back from the service manager");
            state.journal.record(Happening::new(Kind::ListenerRestored, text));
        }
        state.succession.recall(found.services, found.floor);
    }
    for listener in found.missing {
        let name = listener.label();
        match claim(state, vec![Wanted::Listen(listener.into())]).await {
            Ok(()) => tracing::warn!(listener = name, "listener bound anew: its socket was lost"),
            Err(error) => {
                tracing::error!(
                    listener = name, %error, hint = error.hint(),
                    "listener lost: the store did not have it, and it cannot be bound"
                );
                let text = format!("{name}: the store did not have it, and it cannot be bound");
                state.borrow().journal.record(Happening::new(Kind::ListenerLost, text));
            }
        }
    }
    Ok(Restored { control: found.control.map(UnixListener::from), stale: found.stale })
}

/// A listener of the configuration that could not be bound.
#[derive(Debug)]
pub(crate) struct NotBound {
    wanted: Wanted,
    message: String,
    hint: Option<String>,
}

/// Binds what the configuration says. A listener that was restored is changed to what the
/// configuration says now.
///
/// # Errors
/// All or nothing, where nothing is held yet. A broker that holds something must not end: each is bound that
/// can be, and what cannot is kept in [`State::not_bound`].
pub(crate) async fn bind_first(state: &RefCell<State>, config: &Config) -> Result<(), Error> {
    let metrics = config.metrics.iter().map(|listener| Wanted::Listen(listener.clone().into()));
    let wanted: Vec<Wanted> = config.listen.iter().cloned().chain(metrics).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let Err(error) = claim(state, wanted.clone()).await else { return Ok(()) };
    let holds_nothing = {
        let state = state.borrow();
        state.registry.is_empty() && state.missing.is_empty()
    };
    if holds_nothing {
        let hint = error.hint().map(str::to_owned);
        return Err(Error::Listen { message: error.message, hint });
    }
    bind_each(state, wanted).await;
    Ok(())
}

/// Tries again to bind what could not be bound.
pub(crate) async fn bind_rest(state: &RefCell<State>) {
    let rest = std::mem::take(&mut state.borrow_mut().not_bound);
    bind_each(state, rest.into_iter().map(|not_bound| not_bound.wanted).collect()).await;
}

async fn bind_each(state: &RefCell<State>, wanted: Vec<Wanted>) {
    for wanted in wanted {
        let Err(error) = claim(state, vec![wanted.clone()]).await else { continue };
        tracing::error!(
            listener = %wanted, %error, hint = error.hint(),
            "a listener of the configuration is not bound: the broker goes on with what it holds"
        );
        let hint = error.hint().unwrap_or("free its address and its name").to_owned();
        let hint = format!("{hint}; it is tried again with each `bindonce release` and on SIGHUP");
        let not_bound = NotBound { wanted, message: error.message, hint: Some(hint) };
        state.borrow_mut().not_bound.push(not_bound);
    }
}

impl State {
    /// What the broker should do and cannot.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let not_bound = self.not_bound.iter().map(|NotBound { wanted, message, hint }| {
            let message = format!("{wanted} of the configuration is not bound: {message}");
            Problem::new("listener-not-bound", wanted.to_string(), message, hint.clone())
        });
        let records = self.records.iter().filter_map(|records| records.problem());
        not_bound.chain(records).chain(self.astray()).collect()
    }
}

/// A claim of the broker's own, which leaves no lease behind.
async fn claim(state: &RefCell<State>, wanted: Vec<Wanted>) -> Result<(), RpcError> {
    let want = |wanted| Want { wanted, tentative: false, change: true };
    let uid = nix::unistd::geteuid().as_raw();
    let own = state.borrow_mut().connect(Peer { pid: std::process::id(), uid, gid: 0 });
    let claimed = claiming::claim(state, own, wanted.into_iter().map(want).collect()).await;
    state.borrow_mut().disconnect(own);
    match claimed {
        Ok(_) => Ok(()),
        Err(failure) => Err(answer::claim_failed(state, failure).await),
    }
}
