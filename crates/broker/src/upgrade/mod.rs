//! Becoming a newer binary in place: same pid, same sockets, same connections.
//!
//! First the installed binary is asked, in a child, whether it reads what this one would leave to
//! it: the manifest, and the configuration given on the command line. Then the broker waits for an
//! instant at which no request is being answered, writes its whole state and the numbers of its
//! descriptors into a memory file, and executes the new binary. The control socket is never closed:
//! clients that connect meanwhile wait in its queue. A failure before the exec leaves everything as
//! it was, and the client that asked gets the reason.
//!
//! A request that takes too long to answer (its client does not read) ends with its connection at
//! the exec; so does a connection in the middle of a malformed request.

mod inherited;
pub(crate) mod requested;
mod resume;
mod snapshot;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_daemon::Happening;
use bindonce_daemon::reexec::{self, Installed};
use bindonce_daemon::rpc::Link;
use bindonce_sys::memory;
use bindonce_wire::RpcError;
use bindonce_wire::manifest::Manifest;
use bindonce_wire::message::Id;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::config::Config;
use crate::control::Control;

pub use inherited::{Inherited, check, inherited};
#[cfg(test)]
pub(crate) use resume::remove;
pub(crate) use resume::{Resumed, resume};
use snapshot::snapshot;

/// The hidden subcommand by which a binary proves that it can resume from a broker's state (on
/// standard input) with the arguments that follow.
pub const CHECK: &str = "__check-broker";

/// How long the new binary may take to prove itself.
const PROOF: Duration = Duration::from_secs(10);

/// How long to wait for requests being answered. A slower one ends with its connection.
const CALM: Duration = Duration::from_secs(6);

/// Performs a client's request for an upgrade. Returns only on failure; after an upgrade the next
/// image answers.
pub(crate) async fn request(broker: &RefCell<Broker>, link: &Rc<Link>, id: &Id) -> RpcError {
    let upgrade = Rc::clone(&broker.borrow().upgrade);
    let (sender, failure) = oneshot::channel();
    upgrade.callers.borrow_mut().push(sender);
    link.set_upgrade(Some(serde_json::to_string(id).unwrap_or_else(|_| "null".to_owned())));
    upgrade.wanted.notify_one();
    let reason = failure.await.unwrap_or_else(|_| "the broker ends".to_owned());
    link.set_upgrade(None);
    reexec::failed(&reason)
}

/// Upgrades whenever a client or an order asks for it.
pub(crate) async fn keep(
    broker: &Rc<RefCell<Broker>>,
    listener: &UnixListener,
    control: &Control,
    config: &Config,
) {
    let upgrade = Rc::clone(&broker.borrow().upgrade);
    loop {
        tokio::select! {
            () = upgrade.wanted.notified() => {}
            () = config.orders.upgrade.notified() => {}
        }
        let reason = attempt(broker, listener, control).await;
        let text = format!("not upgraded, nothing has changed: {reason}");
        tracing::error!("{text}");
        broker.borrow().reporter.record(Happening::new(Kind::UpgradeFailed, text));
        for caller in upgrade.callers.take() {
            // The client may have gone.
            let _ = caller.send(reason.clone());
        }
    }
}

/// Becomes the binary that is installed now. Returns only on failure, with the reason.
async fn attempt(
    broker: &Rc<RefCell<Broker>>,
    listener: &UnixListener,
    control: &Control,
) -> String {
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    gate.pass().await;
    let binary = match Installed::open() {
        Ok(binary) => binary,
        Err(reason) => return reason,
    };
    let proof = snapshot(&broker.borrow(), &[], listener, control);
    let arguments = std::iter::once(OsString::from(CHECK)).chain(std::env::args_os().skip(1));
    let (entries, bytes) = (proof.listeners.len(), proof.encode());
    if let Err(reason) = binary.prove(arguments.collect(), entries, &bytes, PROOF).await {
        return reason;
    }
    tracing::info!(binary = %binary.path().display(), "the binary has proved itself");
    let clients = Rc::clone(&broker.borrow().clients);
    let ledger = Rc::clone(&broker.borrow().persistence.ledger);
    let until = Instant::now() + CALM;
    // The calm comes last: between it and the exec nothing runs that could begin an answer.
    loop {
        ledger.settled().await;
        clients.calm(until.saturating_duration_since(Instant::now())).await;
        if ledger.is_settled() || Instant::now() >= until {
            break;
        }
    }
    become_binary(&broker.borrow(), &binary, listener, control)
}

/// Nothing else runs from here to the exec, so the records stay true.
fn become_binary(
    broker: &Broker,
    binary: &Installed,
    listener: &UnixListener,
    control: &Control,
) -> String {
    let all = broker.clients.links();
    // A follower's connection ends too, but the follower reconnects and loses nothing.
    let following = all.iter().filter(|link| link.is_following()).count();
    let dropped = all.len() - following;
    let links: Vec<(Rc<Link>, Vec<u8>)> =
        all.into_iter().filter_map(|link| link.unread().map(|unread| (link, unread))).collect();
    let dropped = dropped - links.len();
    if dropped != 0 {
        tracing::warn!(
            count = dropped,
            "connections end with the upgrade: their requests are not complete, or their replies not \
             read"
        );
    }
    let mut manifest = snapshot(broker, &links, listener, control);
    manifest.header.broker.upgrades += 1;
    let result = memory_file(&manifest).and_then(|file| {
        let held = broker.listeners.registry.list();
        let sockets = held.iter().map(|view| view.held.opened.handle.fd.as_fd());
        let streams = links.iter().map(|(link, _)| link.stream.as_fd());
        let own = [file.as_fd(), listener.as_fd(), control.lock()];
        let _left = reexec::leave(own.into_iter().chain(sockets).chain(streams))?;
        let number = file.as_raw_fd().to_string().into();
        tracing::info!(
            binary = %binary.path().display(), listeners = held.len(), connections = links.len(),
            "becoming the binary that is installed now"
        );
        Err::<(), _>(binary.take_over(Some((inherited::VARIABLE, number))))
    });
    match result {
        Ok(()) => "it came back from the exec".to_owned(),
        Err(error) => format!("{} cannot be executed: {error}", binary.path().display()),
    }
}

fn memory_file(manifest: &Manifest) -> io::Result<File> {
    let mut file = memory::file(inherited::NAME)?;
    file.write_all_at(&manifest.encode(), 0)?;
    file.rewind()?;
    Ok(file)
}
