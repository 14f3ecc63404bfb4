//! An address that moves from haproxy's own socket (`stats socket`, local peer) to a `bind` line.
//! The serving generation has bound it itself, so the broker cannot bind it. The broker gets that
//! very socket, and no client is refused.
//!
//! From then on that generation has the broker's socket there and takes it for its own, as after
//! [`crate::intercept`]. It is told to stop before the new one accepts, and keeps its lease if the
//! new one fails.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use bindonce::aio::Client;
use bindonce_core::address::Address;
use bindonce_core::generation::GenerationId;
use bindonce_core::listener::{Key, Listener, Options};
use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::{Binding, Rendering};
use bindonce_sys::holders::{self, Holder};
use bindonce_sys::{diag, identity, process, worker};
use tokio::sync::oneshot;

use crate::adopt::give;
use crate::error::Error;
use crate::generations::admin::Admin;
use crate::generations::changes;
use crate::generations::listeners::Known;
use crate::intercept::requests::Want;

/// How long a look at the sockets of a generation may take.
const LOOK: Duration = Duration::from_secs(10);

/// The serving generation, while another is started.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) id: GenerationId,
    pub(crate) pid: i32,
    /// The connection on which it is asked for the state of its servers.
    pub(crate) admin: Option<Admin>,
    pub(crate) version: Option<Version>,
    /// Devices whose addresses it has bound itself.
    pub(crate) devices: BTreeSet<String>,
    /// Its listeners from the broker, with the options that were claimed.
    pub(crate) has: HashMap<Key, Options>,
}

/// Gives the broker the sockets that haproxy has bound itself and whose address, or one that
/// overlaps it, a binding wants now. `want` claims each for the generation that bound it. Gives the
/// options of the files of UNIX sockets, for the claim.
///
/// # Errors
/// [`Error::OwnAddress`] if a socket cannot be taken.
pub(super) async fn take(
    lease: &mut Client,
    rendering: &Rendering,
    serving: &Serving,
    known: &Known,
    want: impl Fn(Want),
) -> Result<HashMap<Key, Options>, Error> {
    let mut taken = HashMap::new();
    let new = |binding: &&Binding| !serving.has.contains_key(&binding.listener.key());
    let new: Vec<_> = rendering.bindings.iter().filter(new).collect();
    if new.is_empty() {
        return Ok(taken);
    }
    let (pid, given) = (serving.pid, known.keys().copied().collect());
    let wanted: Vec<_> = new.iter().map(|binding| binding.listener.clone()).collect();
    let look = move || own_sockets(pid, &given, &wanted);
    let found = worker::within(LOOK, look).await.map_err(Error::system("look at haproxy"))?;
    for (address, holder) in found {
        let Ok(bound) = Listener::new(None, address, Options::default()) else { continue };
        let Some(binding) = wants(&new, &bound) else { continue };
        let failed = |why: String| Error::OwnAddress {
            place: binding.place.clone(),
            section: binding.section.clone(),
            address: bound.address.to_string(),
            generation: serving.id,
            why,
        };
        let fd =
            holder.take().map_err(|error| failed(format!("it cannot be taken over: {error}")))?;
        let Ok(seen) = identity::of(fd.as_fd()) else { continue };
        if seen.device_gone {
            continue;
        }
        // The same with the options of the socket.
        let bound = Listener { address: bound.address.clone(), ..seen.listener() };
        let Some(binding) = wants(&new, &bound) else { continue };
        let same = binding.listener.address == bound.address;
        let mut listener = if same { binding.listener.clone() } else { bound };
        if let Some(options) = of_file(&listener).filter(|_| same) {
            taken.insert(listener.key(), options.clone());
            listener.options = options;
        }
        let stored = lease.store(&[give(&listener, fd.as_fd())]).await;
        stored.map_err(|error| failed(format!("the broker does not take it: {error}")))?;
        let (reply, given) = oneshot::channel();
        let line = format!("{} by itself, where {} listens now", listener.address, binding.place);
        want(Want { listener, line: Some(line), moved: true, reply });
        match given.await {
            Ok(Ok(_)) => {}
            Ok(Err((_, why))) => return Err(failed(format!("it cannot keep it: {why}"))),
            // The supervisor is about to end.
            Err(_) => return Err(failed("the supervisor ends".to_owned())),
        }
    }
    Ok(taken)
}

/// The options of a binding, with the mode and owner of its socket's file: the line of haproxy's
/// own socket may have set them.
fn of_file(listener: &Listener) -> Option<Options> {
    let Address::Unix(path) = &listener.address else { return None };
    let file = std::fs::symlink_metadata(path).ok()?;
    let default = changes::default();
    let other = |id: u32, default: Option<String>| {
        Some(id.to_string()).filter(|id| Some(id) != default.as_ref())
    };
    Some(Options {
        mode: Some(file.mode() & 0o7777),
        user: other(file.uid(), default.user),
        group: other(file.gid(), default.group),
        ..listener.options.clone()
    })
}

/// The binding that wants this address, or else one that cannot be bound beside it.
fn wants<'a>(new: &[&'a Binding], bound: &Listener) -> Option<&'a Binding> {
    let key = bound.key();
    let same = |binding: &&&Binding| binding.listener.address == bound.address;
    let overlaps = |binding: &&&Binding| binding.listener.key().overlaps(&key);
    new.iter().find(same).or_else(|| new.iter().find(overlaps)).copied()
}

/// The sockets that the processes of a generation listen on, except for those in `given`. Of UNIX
/// sockets, only those that the paths of `wanted` lead to: a socket may have been bound under
/// another name.
pub fn own_sockets(pid: i32, given: &HashSet<u64>, wanted: &[Listener]) -> Vec<(Address, Holder)> {
    let listening = diag::listening().unwrap_or_default().into_iter();
    let listening = listening.filter(|socket| !matches!(socket.address, Address::Unix(_)));
    let at_path = |wanted: &Listener| match &wanted.address {
        Address::Unix(path) => {
            Some((diag::unix_at(Path::new(path)).ok()??, wanted.address.clone()))
        }
        _ => None,
    };
    let listening = listening.map(|socket| (socket.inode, socket.address));
    let mut listening: BTreeMap<_, _> =
        listening.chain(wanted.iter().filter_map(at_path)).collect();
    listening.retain(|inode, _| !given.contains(inode));
    let inodes: Vec<_> = listening.keys().copied().collect();
    let held = process::family(pid).into_iter().flat_map(|pid| holders::of_process(pid, &inodes));
    let own: BTreeMap<_, _> = held.map(|holder| (holder.inode, holder)).collect();
    own.into_iter()
        .filter_map(|(inode, holder)| Some((listening.remove(&inode)?, holder)))
        .collect()
}
