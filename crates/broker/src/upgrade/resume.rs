//! Going on where an earlier image of this process stopped: what it has left, read and
//! taken over.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_core::policy::Peer;
use bindonce_core::registry::{self, ConnectionId, Event, Label};
use bindonce_core::succession::Place;
use bindonce_core::time::Timestamp;
use bindonce_observe::Happening;
use bindonce_sys::listen::UnixPath;
use bindonce_sys::{identity, inherit, process, upgrade};
use bindonce_wire::manifest::{self, Link as Written, LinkLease, Manifest};
use bindonce_wire::message::{Id, encode_result};
use bindonce_wire::result::UpgradeResult;
use tokio::net::{UnixListener, UnixStream};

use super::{NAME, VARIABLE};
use crate::answer;
use crate::connection::Link;
use crate::control::Control;
use crate::error::Error;
use crate::requests::Caller;
use crate::restore::{Found, as_written};
use crate::sending;
use crate::state::{State, now};
use crate::store::Store;
use crate::succession;

/// The longest state that is read.
const MAX_STATE: u64 = 256 << 20;

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
    let (manifest, _) = read(&mut File::from(inherit::take(number).map_err(unreadable)?))?;
    upgrade::take_name();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let own = (std::process::id(), process::start_time(own).unwrap_or_default());
    Ok((manifest.header.process == Some(own)).then_some(Inherited { manifest }))
}

/// Reads a state that another image may leave to this one, to prove that it can. Gives what that
/// one is answered, on standard output.
///
/// # Errors
/// [`Error::State`] with what is wrong with it.
pub fn check(state: &mut File) -> Result<String, Error> {
    let (manifest, bytes) = read(state)?;
    for entry in &manifest.listeners {
        let parsed = entry.listener().and_then(|_| entry.bound());
        parsed.map_err(|error| Error::State { reason: error.to_string() })?;
    }
    Ok(upgrade::answer(manifest.listeners.len(), &bytes))
}

fn read(file: &mut File) -> Result<(Manifest, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MAX_STATE).read_to_end(&mut bytes))
        .map_err(|error| Error::State { reason: error.to_string() })?;
    let manifest = Manifest::decode(&bytes);
    Ok((manifest.map_err(|error| Error::State { reason: error.to_string() })?, bytes))
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
        let Manifest { header, listeners, connections, services } = self.manifest;
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
                Err(reason) => {
                    let text = "listener lost in the upgrade: it is not what it was";
                    tracing::error!(listener = entry.listen, inode = entry.inode, reason, "{text}");
                    let text = format!("{}: {text}: {reason}", entry.listen);
                    state.journal.record(Happening::new(Kind::ListenerLost, text));
                }
            }
        }
        let stored = state.store.is_some();
        state.adopt(found, stored, None);
        state.succession.recall(services, header.floor);
        let mut places = Vec::new();
        let mut links = Vec::with_capacity(connections.len());
        let mut resumed = Vec::with_capacity(connections.len());
        for written in connections {
            match link(&written, &state) {
                Ok(link) => {
                    let read = read_link(&written);
                    places.extend(place(&written, &read));
                    links.push(read);
                    state.links.insert(link.caller.connection, Rc::clone(&link));
                    resumed.push((link, written.owed));
                }
                Err(error) => tracing::warn!(pid = written.pid, %error, "a connection was lost"),
            }
            state.next_connection = state.next_connection.max(written.id + 1);
        }
        let actions = state.registry.on(now(), Event::Resume(links));
        state.perform(actions);
        state.resume(places);
        tracing::info!(
            listeners = state.registry.len(),
            connections = resumed.len(),
            from = header.written_by,
            to = answer::VERSION,
            "upgraded in place"
        );
        let text = format!("upgraded in place, from {} to {}", header.written_by, answer::VERSION);
        let happening = Happening::new(Kind::Upgraded, text);
        state.journal.record(happening.pid(std::process::id().cast_signed()));
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
    // The kernel still has what is not written down.
    let groups = bindonce_sys::peer::credentials(stream.as_fd())?.groups.into();
    let caller = Caller { connection: ConnectionId(written.id), peer: peer(written), groups };
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

/// The place of a connection's generation among those of its service.
fn place(written: &Written, read: &registry::Link) -> Option<Place> {
    let (label, _) = read.label.clone()?;
    let turn = written.label.as_ref().and_then(|label| label.turn);
    let ordered = turn.map(succession::progress);
    Some(Place { connection: read.id, uid: read.peer.uid, label, ordered })
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
        let _ = sending::send(&link.stream, text.into(), deadline).await;
    }
}
