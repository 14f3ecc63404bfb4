//! Becoming a newer binary in place: same pid, same sockets, same connections.
//!
//! The binary that is installed now is asked first, in a child, whether it reads what this
//! one leaves to it: the manifest, and the configuration as the command line says. Then the
//! broker waits for an instant at which no request is being answered, writes down all it knows, with
//! the numbers of its descriptors, into a memory file, and executes the new binary. The
//! control socket is never closed: who connects meanwhile waits in its queue. Whatever goes
//! wrong before the exec leaves everything as it was, and who asked is told why.
//!
//! A request that is being answered for too long (its client does not read) ends with its
//! connection at the exec; so does one in the middle of what is no good request.

mod resume;
mod snapshot;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_observe::Happening;
use bindonce_sys::memory;
use bindonce_sys::upgrade::{self as system, Installed};
use bindonce_wire::manifest::Manifest;
use bindonce_wire::message::Id;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::net::UnixListener;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::connection::Link;
use crate::control::Control;
use crate::state::State;

pub use resume::{Inherited, check, inherited};
pub(crate) use resume::{Resumed, answer};

/// The hidden subcommand that proves that a binary can go on from a state (on standard input)
/// with the arguments that follow.
pub const CHECK: &str = "__check-broker";

/// The variable that tells the next image the number of the memory file.
const VARIABLE: &str = "BINDONCE_UPGRADE_FD";

/// What the memory file is called, so that nothing else is taken for it.
const NAME: &str = "bindonce-upgrade";

/// What systemd passed to this process is not passed to the next image again.
const PASSED: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How long the new binary may take to prove itself.
const PROOF: Duration = Duration::from_secs(10);

/// How long requests that are being answered may take to be done: a lookup of a host name
/// may take 5 s.
const CALM: Duration = Duration::from_secs(6);

/// Upgrades of one broker, asked for and done.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    wanted: Notify,
    /// Those who wait to hear that it failed.
    callers: RefCell<Vec<oneshot::Sender<String>>>,
    /// Rung when a connection has answered its requests.
    calm: Notify,
    done: Cell<u64>,
}

impl Upgrade {
    /// How often this process has become another binary.
    pub(crate) fn count(&self) -> u64 {
        self.done.get()
    }

    /// A connection has answered its requests.
    pub(crate) fn calmer(&self) {
        self.calm.notify_one();
    }
}

/// A client asks for an upgrade. Comes back only if there was none: after one, the next image
/// answers.
pub(crate) async fn asked(state: &RefCell<State>, link: &Rc<Link>, id: &Id) -> RpcError {
    let upgrade = Rc::clone(&state.borrow().upgrade);
    let (sender, failure) = oneshot::channel();
    upgrade.callers.borrow_mut().push(sender);
    link.owe(Some(serde_json::to_string(id).unwrap_or_else(|_| "null".to_owned())));
    upgrade.wanted.notify_one();
    let story = failure.await.unwrap_or_else(|_| "the broker ends".to_owned());
    link.owe(None);
    RpcError::new(ErrorCode::UPGRADE_FAILED, format!("not upgraded, nothing has changed: {story}"))
        .with_hint("install a working binary where the running one was started from")
}

/// Upgrades as often as it is asked for, by a client or by the caller's signal.
pub(crate) async fn keep(
    state: &Rc<RefCell<State>>,
    listener: &UnixListener,
    control: &Control,
    config: &Config,
) {
    let upgrade = Rc::clone(&state.borrow().upgrade);
    loop {
        tokio::select! {
            () = upgrade.wanted.notified() => {}
            () = config.orders.upgrade.notified() => {}
        }
        let story = attempt(state, listener, control).await;
        let text = format!("not upgraded, nothing has changed: {story}");
        tracing::error!("{text}");
        state.borrow().journal.record(Happening::new(Kind::UpgradeFailed, text));
        for caller in upgrade.callers.take() {
            // Gone means that nobody wants to know.
            let _ = caller.send(story.clone());
        }
    }
}

/// Becomes the binary that is installed now. Comes back only if that fails, with the reason.
async fn attempt(state: &Rc<RefCell<State>>, listener: &UnixListener, control: &Control) -> String {
    let gate = Rc::clone(&state.borrow().gate);
    gate.pass().await;
    let binary = match Installed::open() {
        Ok(binary) => binary,
        Err(story) => return story,
    };
    let proof = state.borrow().snapshot(&[], listener, control);
    let arguments = std::iter::once(OsString::from(CHECK)).chain(std::env::args_os().skip(1));
    let (entries, bytes) = (proof.listeners.len(), proof.encode());
    if let Err(story) = binary.prove(arguments.collect(), entries, &bytes, PROOF).await {
        return story;
    }
    tracing::info!(binary = %binary.path().display(), "the binary has proved itself");
    calm(state).await;
    let store = state.borrow().store.clone();
    if let Some(store) = store {
        store.settled().await;
    }
    become_binary(&state.borrow(), &binary, listener, control)
}

/// Waits until no request is being answered, or for long enough.
async fn calm(state: &Rc<RefCell<State>>) {
    let upgrade = Rc::clone(&state.borrow().upgrade);
    let until = Instant::now() + CALM;
    while state.borrow().links.values().any(|link| link.is_busy()) {
        if timeout_at(until, upgrade.calm.notified()).await.is_err() {
            return;
        }
    }
}

/// From here to the exec nothing else runs, so what is written down stays true.
fn become_binary(
    state: &State,
    binary: &Installed,
    listener: &UnixListener,
    control: &Control,
) -> String {
    let links: Vec<(&Rc<Link>, Vec<u8>)> =
        state.links.values().filter_map(|link| Some((link, link.unread()?))).collect();
    // A follower's ends as well, and it connects again: nothing of it is lost.
    let following = state.links.values().filter(|link| link.is_following()).count();
    let dropped = state.links.len() - links.len() - following;
    if dropped != 0 {
        tracing::warn!(
            count = dropped,
            "connections end with the upgrade: their requests are not complete, or their replies not \
             read"
        );
    }
    let mut manifest = state.snapshot(&links, listener, control);
    manifest.header.upgrades += 1;
    let result = memory_file(&manifest).and_then(|file| {
        let held = state.registry.list();
        let sockets = held.iter().map(|view| view.held.opened.handle.fd.as_fd());
        let streams = links.iter().map(|(link, _)| link.stream.as_fd());
        let own = [file.as_fd(), listener.as_fd(), control.lock()];
        let _left = system::leave(own.into_iter().chain(sockets).chain(streams))?;
        let mut variables: Vec<(&str, Option<OsString>)> =
            PASSED.iter().map(|name| (*name, None)).collect();
        variables.push((VARIABLE, Some(file.as_raw_fd().to_string().into())));
        tracing::info!(
            binary = %binary.path().display(), listeners = held.len(), connections = links.len(),
            "becoming the binary that is installed now"
        );
        Err::<(), _>(binary.take_over(&variables))
    });
    match result {
        Ok(()) => "it came back from the exec".to_owned(),
        Err(error) => format!("{} cannot be executed: {error}", binary.path().display()),
    }
}

fn memory_file(manifest: &Manifest) -> io::Result<File> {
    let mut file = memory::file(NAME)?;
    file.write_all_at(&manifest.encode(), 0)?;
    file.rewind()?;
    Ok(file)
}
