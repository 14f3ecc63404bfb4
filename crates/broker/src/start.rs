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

use crate::answer;
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
        state.adopt(found.listeners, true);
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

/// Binds what the configuration says. A listener that was restored is changed to what the
/// configuration says now.
pub(crate) async fn bind_first(state: &RefCell<State>, config: &Config) -> Result<(), Error> {
    let metrics = config.metrics.iter().map(|listener| Wanted::Listen(listener.clone().into()));
    let wanted: Vec<Wanted> = config.listen.iter().cloned().chain(metrics).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    claim(state, wanted).await.map_err(|error| {
        let hint = error.hint().map(str::to_owned);
        Error::Listen { message: error.message, hint }
    })
}

/// A claim of the broker's own, which leaves no lease behind.
async fn claim(state: &RefCell<State>, wanted: Vec<Wanted>) -> Result<(), RpcError> {
    let want = |wanted| Want { wanted, tentative: false, change: true };
    let claimed = {
        let mut state = state.borrow_mut();
        let uid = nix::unistd::geteuid().as_raw();
        let own = state.connect(Peer { pid: std::process::id(), uid, gid: 0 });
        let claimed = state.claim(own, wanted.into_iter().map(want).collect());
        state.disconnect(own);
        claimed
    };
    match claimed {
        Ok(_) => Ok(()),
        Err(failure) => Err(answer::claim_failed(failure).await),
    }
}
