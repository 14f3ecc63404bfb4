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

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::policy::Peer;
use bindonce_core::registry::{self, ConnectionId, Event, Label};
use bindonce_core::time::Timestamp;
use bindonce_sys::listen::UnixPath;
use bindonce_sys::{identity, inherit, memory, process, upgrade as system};
use bindonce_wire::manifest::{self, Link as Written, LinkLabel, LinkLease, Manifest};
use bindonce_wire::message::{Id, encode_result};
use bindonce_wire::result::UpgradeResult;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::answer;
use crate::config::Config;
use crate::connection::{self, Link};
use crate::control::Control;
use crate::error::Error;
use crate::requests::Caller;
use crate::restore::{Found, as_written};
use crate::state::{State, close_all, now};
use crate::store::Store;

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

/// The longest state that is read.
const MAX_STATE: u64 = 256 << 20;

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
        tracing::error!("not upgraded, nothing has changed: {story}");
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
    let binary = match system::installed() {
        Ok(binary) => binary,
        Err(error) => return format!("cannot tell where the binary is: {error}"),
    };
    let proof = state.borrow().snapshot(&[], listener, control);
    let file = match memory_file(&proof) {
        Ok(file) => file,
        Err(error) => return format!("cannot write the state: {error}"),
    };
    let arguments = std::iter::once(OsString::from(CHECK)).chain(std::env::args_os().skip(1));
    if let Err(story) = system::prove(&binary, arguments.collect(), Some(file), PROOF).await {
        return story;
    }
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
    binary: &Path,
    listener: &UnixListener,
    control: &Control,
) -> String {
    let links: Vec<(&Rc<Link>, Vec<u8>)> =
        state.links.values().filter_map(|link| Some((link, link.unread()?))).collect();
    let dropped = state.links.len() - links.len();
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
            binary = %binary.display(), listeners = held.len(), connections = links.len(),
            "becoming the binary that is installed now"
        );
        Err::<(), _>(system::become_binary(binary, &variables))
    });
    match result {
        Ok(()) => "it came back from the exec".to_owned(),
        Err(error) => format!("{} cannot be executed: {error}", binary.display()),
    }
}

fn memory_file(manifest: &Manifest) -> io::Result<File> {
    let mut file = memory::file(NAME)?;
    file.write_all_at(manifest.encode().as_bytes(), 0)?;
    file.rewind()?;
    Ok(file)
}

impl State {
    /// All that the next image must know.
    fn snapshot(
        &self,
        links: &[(&Rc<Link>, Vec<u8>)],
        listener: &UnixListener,
        control: &Control,
    ) -> Manifest {
        let mut manifest = self.manifest();
        let header = &mut manifest.header;
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        header.process = Some((std::process::id(), process::start_time(own).unwrap_or_default()));
        header.descriptors.insert("control".to_owned(), listener.as_raw_fd());
        header.descriptors.insert("lock".to_owned(), control.lock().as_raw_fd());
        header.store = self.store.as_ref().and_then(|store| store.name());
        for (entry, view) in manifest.listeners.iter_mut().zip(self.registry.list()) {
            entry.descriptor = Some(view.held.opened.handle.fd.as_raw_fd());
        }
        manifest.connections = self
            .registry
            .links()
            .filter_map(|link| {
                let same = |(other, _): &&(&Rc<Link>, _)| other.caller.connection == link.id;
                let (open, unread) = links.iter().find(same)?;
                Some(written(link, open, unread))
            })
            .collect();
        manifest
    }
}

fn written(link: registry::Link, open: &Link, unread: &[u8]) -> Written {
    let label = link.label.map(|(label, since)| LinkLabel {
        service: label.service.to_string(),
        generation: label.generation,
        pid: label.pid,
        state: answer::wire_state(label.phase),
        since: since.0,
    });
    let lease = |(inode, since): (u64, Timestamp)| LinkLease { inode, since: since.0 };
    Written {
        id: link.id.0,
        descriptor: Some(open.stream.as_raw_fd()),
        pid: link.peer.pid,
        uid: link.peer.uid,
        gid: link.peer.gid,
        label,
        leases: link.leases.into_iter().map(lease).collect(),
        unread: unread.to_vec(),
        owed: open.owed(),
    }
}

/// What an earlier image of this process has left to this one.
#[derive(Debug)]
pub struct Inherited {
    manifest: Manifest,
}

/// What an earlier image of this process has left to this one, if there was one. Call it once.
///
/// # Errors
/// [`Error::State`] if it cannot be read.
pub fn inherited() -> Result<Option<Inherited>, Error> {
    let Some(number) = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<RawFd>().ok())
    else {
        return Ok(None);
    };
    // The variable may come from another process, so what it names must be what it should be.
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    if !link.as_os_str().to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
        return Ok(None);
    }
    let unreadable = |error: io::Error| Error::State { reason: error.to_string() };
    let manifest = read(&mut File::from(inherit::take(number).map_err(unreadable)?))?;
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let own = (std::process::id(), process::start_time(own).unwrap_or_default());
    Ok((manifest.header.process == Some(own)).then_some(Inherited { manifest }))
}

/// Reads a state that another image may leave to this one, to prove that it can.
///
/// # Errors
/// [`Error::State`] with what is wrong with it.
pub fn check(state: &mut File) -> Result<(), Error> {
    let manifest = read(state)?;
    for entry in &manifest.listeners {
        let parsed = entry.listener().and_then(|_| entry.bound());
        parsed.map_err(|error| Error::State { reason: error.to_string() })?;
    }
    Ok(())
}

fn read(file: &mut File) -> Result<Manifest, Error> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MAX_STATE).read_to_end(&mut bytes))
        .map_err(|error| Error::State { reason: error.to_string() })?;
    Manifest::decode(&bytes).map_err(|error| Error::State { reason: error.to_string() })
}

/// A connection that goes on, and the id of the upgrade that it has asked for.
pub(crate) type Resumed = (Rc<Link>, Option<String>);

impl Inherited {
    /// The lock and, in its place, the control socket.
    pub(crate) fn control(&self, socket: &Path) -> Result<(Control, UnixListener), Error> {
        let take = |name: &str| {
            let number = self.manifest.header.descriptors.get(name).copied().unwrap_or(-1);
            inherit::take(number).map_err(|source| Error::File {
                doing: "take over the descriptor of",
                path: PathBuf::from(name),
                source,
            })
        };
        let mut control = Control::resume(socket, take("lock")?)?;
        let listener = std::os::unix::net::UnixListener::from(take("control")?);
        let runtime = |source| Error::Runtime { socket: control.socket.clone(), source };
        let listener = UnixListener::from_std(listener).map_err(runtime)?;
        let file = control.socket.to_str().and_then(identity::file);
        control.keep(
            file.filter(|file| self.manifest.header.control.is_some_and(|was| same(was, file))),
        );
        Ok((control, listener))
    }

    /// Goes on with what is held and with who is connected. What cannot be taken over is
    /// named in the log, and the rest goes on.
    pub(crate) fn resume(self, state: &RefCell<State>) -> io::Result<Vec<Resumed>> {
        let Manifest { header, listeners, connections } = self.manifest;
        let mut state = state.borrow_mut();
        state.since = Timestamp(header.since);
        state.upgrade.done.set(header.upgrades);
        state.store = Store::new(header.store)?;
        // They were open when the descriptors were counted.
        let taken = (listeners.len() + connections.len()) as u64;
        state.other_descriptors = state.other_descriptors.saturating_sub(taken);
        let take = |entry: &manifest::Entry| -> Result<Found, String> {
            let fd = inherit::take(entry.descriptor.unwrap_or(-1)).map_err(|e| e.to_string())?;
            let found = identity::of(fd.as_fd()).map_err(|error| error.to_string())?;
            as_written(entry, &found, fd)
        };
        let mut found = Vec::with_capacity(listeners.len());
        for entry in &listeners {
            match take(entry) {
                Ok(listener) => found.push(listener),
                Err(reason) => tracing::error!(
                    listener = entry.listen,
                    inode = entry.inode,
                    reason,
                    "listener lost in the upgrade: it is not what it was"
                ),
            }
        }
        let stored = state.store.is_some();
        state.adopt(found, stored);
        let mut links = Vec::with_capacity(connections.len());
        let mut resumed = Vec::with_capacity(connections.len());
        for written in connections {
            match link(&written, &state) {
                Ok(link) => {
                    links.push(read_link(&written));
                    state.links.insert(link.caller.connection, Rc::clone(&link));
                    resumed.push((link, written.owed));
                }
                Err(error) => tracing::warn!(pid = written.pid, %error, "a connection was lost"),
            }
            state.next_connection = state.next_connection.max(written.id + 1);
        }
        let actions = state.registry.on(now(), Event::Resume(links));
        close_all(actions);
        tracing::info!(
            listeners = state.registry.len(),
            connections = resumed.len(),
            from = header.written_by,
            to = answer::VERSION,
            "upgraded in place"
        );
        Ok(resumed)
    }
}

fn same(was: manifest::File, now: &UnixPath) -> bool {
    (was.dev, was.ino) == (now.dev, now.ino)
}

fn peer(written: &Written) -> Peer {
    Peer { pid: written.pid, uid: written.uid, gid: written.gid }
}

fn link(written: &Written, state: &State) -> io::Result<Rc<Link>> {
    let fd: OwnedFd = inherit::take(written.descriptor.unwrap_or(-1))?;
    let stream = UnixStream::from_std(fd.into())?;
    let caller = Caller { connection: ConnectionId(written.id), peer: peer(written) };
    Ok(Link::new(stream, caller, &written.unread, state))
}

fn read_link(written: &Written) -> registry::Link {
    let label = written.label.as_ref().and_then(|label| {
        let read = Label {
            service: label.service.parse().ok()?,
            generation: label.generation,
            pid: label.pid,
            phase: answer::phase(label.state),
        };
        Some((read, Timestamp(label.since)))
    });
    let lease = |lease: &LinkLease| (lease.inode, Timestamp(lease.since));
    registry::Link {
        id: ConnectionId(written.id),
        peer: peer(written),
        label,
        leases: written.leases.iter().map(lease).collect(),
    }
}

/// Answers a request for the upgrade that has been done.
pub(crate) async fn answer(link: &Link, owed: &str, deadline: Duration) {
    let id = match serde_json::from_str(owed) {
        Ok(serde_json::Value::Number(number)) => Id::Number(number),
        Ok(serde_json::Value::String(text)) => Id::Text(text),
        _ => Id::Null,
    };
    let version = answer::VERSION.to_owned();
    let result = UpgradeResult { upgraded: true, pid: std::process::id(), version };
    if let Ok(text) = encode_result(&id, &result) {
        // A client that has gone meanwhile is noticed when its next request is read.
        let _ = connection::send(&link.stream, text.into(), deadline).await;
    }
}
