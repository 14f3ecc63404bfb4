//! The network namespace of a caller: an address that it claims is bound there, as if the caller
//! bound it.
//!
//! The kernel reports the namespace of the socket on which the caller connected. So no process is
//! looked up, and nothing that the caller says counts. A caller that connected from a namespace may
//! bind there; only root and the broker's user may name another namespace.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_daemon::rpc::Caller;
use bindonce_sys::{identity, listen, worker};
use bindonce_wire::{ErrorCode, RpcError};

use crate::broker::Broker;

/// How long the search for a namespace's name may take: it enters each namespace that has a name.
const LOOK: Duration = Duration::from_secs(2);

/// The namespace of the broker's own thread, which never leaves it. Asking takes a socket.
static OURS: LazyLock<Option<u64>> = LazyLock::new(identity::network);

/// The namespace of a caller.
pub(super) struct Home {
    /// The name of the namespace, if it is not the broker's own.
    name: Option<Result<String, RpcError>>,
    /// Whether the caller may name another namespace.
    anywhere: bool,
}

impl Home {
    /// Finds the namespace of a caller.
    pub(super) async fn of(broker: &RefCell<Broker>, caller: &Caller) -> Result<Self, RpcError> {
        let anywhere = broker.borrow().access.owns_names(caller);
        let (theirs, ours) = (caller.network, *OURS);
        let Some(cookie) = theirs.filter(|theirs| ours.is_some_and(|ours| ours != *theirs)) else {
            return Ok(Self { name: None, anywhere });
        };
        // Checked before work that costs more.
        broker.borrow().access.known(caller)?;
        let found = worker::within(LOOK, move || listen::name_of_netns(cookie)).await;
        let name = match found {
            Ok(Ok(Some(name))) => Ok(name),
            Ok(Ok(None)) => Err(nameless(caller)),
            // The next attempt may tell.
            Ok(Err(error)) => {
                Err(RpcError::new(ErrorCode::INTERNAL, elsewhere(&error.to_string())))
            }
            Err(error) => Err(RpcError::new(ErrorCode::INTERNAL, elsewhere(&error.to_string()))),
        };
        Ok(Self { name: Some(name), anywhere })
    }

    /// Puts the caller's namespace into a listener that it asks for. A path belongs to the file
    /// system, not to a network.
    pub(super) fn place(&self, asked: &mut Listener) -> Result<(), RpcError> {
        if matches!(asked.address, Address::Unix(_)) {
            return Ok(());
        }
        match (&self.name, &asked.options.netns) {
            (_, Some(_)) if self.anywhere => Ok(()),
            (None, None) => Ok(()),
            (Some(name), None) => {
                asked.options.netns = Some(name.clone()?);
                Ok(())
            }
            (Some(Ok(name)), Some(said)) if name == said => Ok(()),
            (_, Some(said)) => {
                let text = format!("the network namespace {said} is not the caller's");
                let hint = "only root and the broker's user may name another one; start the program in it: \
                            ip netns exec";
                Err(RpcError::new(ErrorCode::DENIED, text)
                    .with_hint(format!("{hint} {said} ..."))
                    .with("address", asked.address.to_string()))
            }
        }
    }
}

fn elsewhere(why: &str) -> String {
    format!("cannot identify the caller's network namespace: {why}")
}

fn nameless(caller: &Caller) -> RpcError {
    let pid = caller.peer.pid;
    let text =
        "the caller's network namespace has no name, so a listener there could not be recovered";
    RpcError::new(ErrorCode::CONFLICT, text).with_hint(format!(
        "give it a name (`ip netns attach NAME {pid}`), or start a broker in it; what this broker holds in its own \
         namespace is claimed by its name"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(home: &Home, listen: &str) -> Result<String, ErrorCode> {
        let mut asked = listen.parse().expect(listen);
        home.place(&mut asked).map_err(|error| error.code)?;
        Ok(asked.to_string())
    }

    #[test]
    fn what_is_claimed_is_where_the_caller_is() {
        let at = |name: Option<&str>, anywhere| Home {
            name: name.map(|it| Ok(it.to_owned())),
            anywhere,
        };
        let in_blue = Ok("10.0.0.1:80,netns=blue".to_owned());
        for home in [at(Some("blue"), false), at(Some("blue"), true)] {
            assert_eq!(placed(&home, "10.0.0.1:80"), in_blue);
            assert_eq!(placed(&home, "10.0.0.1:80,netns=blue"), in_blue);
            assert_eq!(placed(&home, "/run/a"), Ok("unix@/run/a".to_owned()));
        }
        // Only root and the broker's user may name another one.
        for home in [at(Some("red"), false), at(None, false)] {
            assert_eq!(placed(&home, "10.0.0.1:80,netns=blue"), Err(ErrorCode::DENIED));
        }
        assert_eq!(placed(&at(Some("red"), true), "10.0.0.1:80,netns=blue"), in_blue);
        let nowhere =
            Home { name: Some(Err(RpcError::new(ErrorCode::CONFLICT, ""))), anywhere: false };
        assert_eq!(placed(&nowhere, "10.0.0.1:80"), Err(ErrorCode::CONFLICT));
        assert_eq!(placed(&nowhere, "10.0.0.1:80,netns=blue"), Err(ErrorCode::DENIED));
        assert_eq!(placed(&at(None, false), "10.0.0.1:80"), Ok("10.0.0.1:80".to_owned()));
    }
}
