//! `bindonce check -- haproxy -f FILE`: `haproxy -c` on the rendered copy, with the
//! descriptors that `run` would give it.
//!
//! The check leaves nothing behind, however it ends: listeners that did not exist are claimed
//! tentatively and end with the connection, the copies are files in memory, and haproxy ends with
//! this process. If no broker runs and none was named, the sockets are opened and closed here.

mod haproxy;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce::{Claim, Client, State};
use bindonce_core::address::Address;
use bindonce_core::duration;
use bindonce_core::listener::{Key, ListenSpec, Listener, Options, Wanted};
use bindonce_core::name::Name;
use bindonce_core::patience::Patience;
use bindonce_haproxy::config::{Rendering, System};
use bindonce_supervisor::own_sockets;
use bindonce_sys::holders::Holder;
use bindonce_sys::listen;
use bindonce_sys::process::Exit;
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::{executable, inherit, limits};

use self::haproxy::End;
use crate::command::list;
use crate::globals::Globals;
use crate::stand_in;

const HELP: &str = "\
Examples:
  bindonce check -- haproxy -f /etc/haproxy/haproxy.cfg
      Before a reload, or in a pipeline

Exit codes:
  0  haproxy accepts the configuration, and every address can be bound
  1  Otherwise; the error of haproxy or of the broker is printed
  2  Wrong usage";

/// Check a haproxy configuration with real sockets; nothing stays bound
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A listener for `fd@${NAME}` in the configuration; may be given again
    #[arg(long, value_name = "NAME=ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    /// The service that will be reloaded; an address may overlap listeners that only this service uses
    #[arg(long, value_name = "SERVICE", default_value = "haproxy")]
    name: Name,
    /// The time limit for haproxy, and for reading the configuration before haproxy starts
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    /// The haproxy command, as in: -- haproxy -f /etc/haproxy/haproxy.cfg
    #[arg(last = true, required = true, value_name = "HAPROXY")]
    command: Vec<OsString>,
}

/// Runs the check. haproxy's own words say what is wrong; the exit code is 0 or 1.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    // `check -- haproxy -c -f FILE` asks for the check twice.
    let command =
        stand_in::command(args.command.into_iter().filter(|word| word != "-c").collect())?;
    executable::find(&command.program)?;
    let listeners = super::run::named(args.listen)?;
    let world = System::new(&command.program).context("cannot tell the current directory")?;
    let world = world.with(&inherit::SERVICE_MANAGER.map(Into::into), &[]);
    let rendering = Rc::new(super::render::read(&command, listeners, world, args.timeout)?);
    rendering.self_contained()?;
    let needed = 2 * (rendering.bindings.len() + rendering.files.len());
    limits::make_room(needed).context("cannot raise the open-files limit")?;

    // Leases last until haproxy has answered.
    let mut sockets = Sockets::of(&rendering, &args.name, globals)?;
    let descriptors = sockets.take();
    let patience = Patience::new(args.timeout);
    let end = haproxy::check(&command, &rendering, descriptors, &sockets.signals, patience)?;
    drop(sockets);
    match end {
        // Some versions report this only when they start (3.5).
        End::Exit(Exit::Code(0)) if !rendering.may_listen() && command.role.master.is_none() => {
            bail!(
                "No enabled listener found (check for 'bind' directives): haproxy does not start on this"
            )
        }
        End::Exit(Exit::Code(0)) => Ok(ExitCode::SUCCESS),
        End::Exit(Exit::Code(_)) => Ok(ExitCode::FAILURE),
        End::Exit(Exit::Signal(signal)) => bail!("signal {signal} ended `haproxy -c`"),
        End::Signal(signal) => bail!("{signal} ended the check; nothing stays bound"),
        End::Late => bail!(
            "`haproxy -c` gave no answer within {} and was ended: the configuration is not checked. \
             Give it more time with --timeout, or try `haproxy -c` by itself: haproxy 3.2's does not end \
             with some acme and ocsp-update configurations",
            duration::format(args.timeout)
        ),
    }
}

/// The descriptors of all bindings, in order, and what keeps them bound.
struct Sockets {
    /// Signals that end the check. Caught, so that anything bound here is removed first.
    signals: SignalFd,
    descriptors: Vec<OwnedFd>,
    /// The connection with the leases.
    _broker: Option<Client>,
}

impl Sockets {
    fn of(rendering: &Rendering, service: &Name, globals: &Globals) -> anyhow::Result<Self> {
        let mut client = match Client::connect(&globals.socket_path()) {
            Err(bindonce::Error::Connect { .. }) if !globals.socket_is_given() => {
                return Self::open(rendering);
            }
            client => client?,
        };
        let mut overlapping = overlapping(rendering);
        let listed = client.list()?.listeners;
        let held = held(service, &listed);
        let own = own(service, &listed, rendering, &held);
        if rendering.bindings.is_empty()
            && rendering.has_stats_socket()
            && held.values().any(|user| *user == User::Service)
        {
            bail!(
                "the configuration has nothing for clients to connect to, and service \"{service}\" has listeners \
                 now: a reload refuses it, unless it is given --allow-empty"
            );
        }
        let wanted: HashSet<Key> =
            rendering.bindings.iter().map(|one| one.listener.key()).collect();
        let mut claims = Vec::new();
        let mut theirs = Vec::with_capacity(overlapping.len());
        for (binding, overlaps) in std::iter::zip(&rendering.bindings, &mut overlapping) {
            let (mut listener, key) = (binding.listener.clone(), binding.listener.key());
            let it = held.get(&key);
            let beside = || held.iter().filter(|(other, _)| **other != key && other.overlaps(&key));
            // The broker refuses these to the service too, and says why.
            let refused = beside().any(|(other, user)| match user {
                User::Another(_) => !wanted.contains(other),
                User::Service => !*overlaps && other.is_same_place(&key),
                User::Nobody => false,
            });
            // Claim what the service has. Do not bind what only overlaps that, because it would
            // take connections.
            let mine = |user: &User| *user == User::Service;
            *overlaps |= !it.is_some_and(mine) && beside().any(|(_, user)| mine(user));
            *overlaps &= !refused;
            if let Some(User::Another(Some(other))) = it {
                // The configuration may be right, but meant for that service.
                eprintln!(
                    "bindonce: {}: {} is used by service \"{other}\": service \"{service}\" may not use it too \
                     (--name says which service the configuration is for)",
                    binding.place, binding.text
                );
            }
            if it.is_some() {
                // A reload changes the other options in place. The check changes nothing.
                let Options { v6only, mptcp, interface, netns, .. } = listener.options;
                listener.options =
                    Options { v6only, mptcp, interface, netns, ..Options::default() };
            }
            // A reload gives the broker the sockets that the service's own generation bound itself.
            let mut taken = None;
            if it.is_none() {
                let same = own.iter().find(|(address, _)| *address == binding.listener.address);
                taken = same.and_then(|(_, holder)| holder.take().ok());
                let meets = |address: &Address| {
                    let bound = Listener::new(None, address.clone(), Options::default());
                    bound.is_ok_and(|bound| bound.key().overlaps(&key))
                };
                *overlaps |= same.is_none() && own.iter().any(|(address, _)| meets(address));
            }
            if !*overlaps && taken.is_none() {
                claims.push(Claim::listen(listener.to_string()).tentative());
            }
            theirs.push(taken);
        }
        let leases = if claims.is_empty() {
            Vec::new()
        } else {
            client.claim(&claims).map_err(|error| at_its_line(error, rendering))?
        };
        let mut leases = leases.into_iter().map(bindonce::Lease::into_fd);
        let mut descriptors = Vec::with_capacity(overlapping.len());
        let all = std::iter::zip(&rendering.bindings, overlapping).zip(theirs);
        for ((binding, overlaps), theirs) in all {
            let given = match theirs {
                None if !overlaps => leases.next(),
                theirs => theirs,
            };
            descriptors.push(match given {
                Some(fd) => fd,
                None => listen::open(&stand_in(&binding.listener))?.fd,
            });
        }
        Ok(Self { signals: ending_signals()?, descriptors, _broker: Some(client) })
    }

    fn open(rendering: &Rendering) -> anyhow::Result<Self> {
        let signals = ending_signals()?;
        let mut sockets = Self { signals, descriptors: Vec::new(), _broker: None };
        for (binding, overlaps) in std::iter::zip(&rendering.bindings, overlapping(rendering)) {
            let stand_in = overlaps.then(|| stand_in(&binding.listener));
            let opened = listen::open(stand_in.as_ref().unwrap_or(&binding.listener))
                .with_context(|| format!("{}: {}", binding.place, binding.text))?;
            sockets.descriptors.push(opened.fd);
            if let Some(path) = opened.path {
                // The address can be bound. The descriptor is enough for haproxy, and a process
                // that is killed leaves no file. If another process has replaced or removed the
                // file, there is nothing to do.
                let _ = listen::unlink_if_ours(&path);
            }
        }
        Ok(sockets)
    }

    fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}

/// Which bindings overlap others of the configuration, as `127.0.0.1:80` and `*:80` do. A more
/// specific one would take connections from the serving generation as soon as it listened.
fn overlapping(rendering: &Rendering) -> Vec<bool> {
    let mut at_port: HashMap<u16, Vec<(u8, usize, Key)>> = HashMap::new();
    for (index, binding) in rendering.bindings.iter().enumerate() {
        if let Some(port) = binding.listener.address.port() {
            let key = binding.listener.key();
            at_port.entry(port).or_default().push((key.specificity(), index, key));
        }
    }
    let mut overlapping = vec![false; rendering.bindings.len()];
    for mut there in at_port.into_values() {
        there.sort_unstable_by_key(|(specificity, index, _)| (*specificity, *index));
        let mut at_ip: HashMap<IpAddr, Vec<(usize, &Key)>> = HashMap::new();
        for (place, (_, index, key)) in there.iter().enumerate() {
            // Specific addresses meet only wildcards, of which there are few, and the same address
            // with another `interface`.
            let wildcards = there[..place].iter().take_while(|(specificity, ..)| *specificity < 2);
            let wildcards = wildcards.map(|(_, other, key)| (*other, key));
            let ip =
                rendering.bindings[*index].listener.address.ip().map(|at| at.ip().to_canonical());
            let same = ip.map(|ip| at_ip.entry(ip).or_default());
            let before = wildcards.chain(same.iter().flat_map(|same| same.iter().copied()));
            for (other, _) in before.filter(|(_, other)| other.overlaps(key)) {
                overlapping[*index] = true;
                overlapping[other] = true;
            }
            same.into_iter().for_each(|same| same.push((*index, key)));
        }
    }
    overlapping
}

/// Who uses a listener of the broker.
#[derive(Debug, PartialEq, Eq)]
enum User {
    /// Only the service.
    Service,
    /// Others too. Names the other service that accepts or is about to, if there is one.
    Another(Option<String>),
    Nobody,
}

/// The sockets that the generations of a service have bound themselves, if the configuration has
/// listeners that the broker does not hold.
fn own(
    service: &Name,
    listed: &[bindonce::ListenerInfo],
    rendering: &Rendering,
    held: &HashMap<Key, User>,
) -> Vec<(Address, Holder)> {
    let new = rendering.bindings.iter().map(|binding| &binding.listener);
    let new = new.filter(|listener| !held.contains_key(&listener.key()));
    let new: Vec<_> = new.cloned().collect();
    if new.is_empty() {
        return Vec::new();
    }
    let inodes: HashSet<u64> = listed.iter().map(|listener| listener.inode).collect();
    let holders = listed.iter().flat_map(|listener| &listener.holders);
    let ours = holders.filter(|holder| {
        holder.service.as_deref() == Some(service.as_str()) && holder.state == Some(State::Serving)
    });
    let pids: HashSet<i32> = ours.filter_map(|holder| i32::try_from(holder.pid).ok()).collect();
    pids.into_iter().flat_map(|pid| own_sockets(pid, &inodes, &new)).collect()
}

/// The broker's listeners, and who uses each.
fn held(service: &Name, listed: &[bindonce::ListenerInfo]) -> HashMap<Key, User> {
    let read = |listener: &bindonce::ListenerInfo| {
        let service = Some(service.as_str());
        let user = match listener.holders.as_slice() {
            [] => User::Nobody,
            all if all.iter().all(|holder| holder.service.as_deref() == service) => User::Service,
            all => {
                let others = all.iter().filter(|holder| holder.state != Some(State::Draining));
                let mut others = others.filter_map(|holder| holder.service.as_deref());
                User::Another(others.find(|other| Some(*other) != service).map(str::to_owned))
            }
        };
        let options = list::option_words(listener);
        let text: Vec<_> = std::iter::once(listener.address.clone()).chain(options).collect();
        let text = text.join(",");
        Some((text.parse::<ListenSpec>().ok()?.first.key(), user))
    };
    listed.iter().filter_map(read).collect()
}

/// A socket of the same kind on a free port, which is all that `haproxy -c` looks at.
fn stand_in(listener: &Listener) -> Listener {
    let free = |at: SocketAddr| match at {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    let address = match &listener.address {
        Address::Tcp(at) => Address::Tcp(free(*at)),
        Address::Udp(at) => Address::Udp(free(*at)),
        Address::Quic(at) => Address::Quic(free(*at)),
        other => other.clone(),
    };
    Listener { name: None, address, options: Options::default() }
}

/// The error of a refused claim, with the line that wants the address.
fn at_its_line(error: bindonce::Error, rendering: &Rendering) -> anyhow::Error {
    let address = error.refusal().and_then(|refusal| refusal.data.get("address")?.as_str());
    match address.and_then(|address| rendering.binding_of(address)) {
        Some(binding) => {
            let line = format!("{}: {}", binding.place, binding.section);
            anyhow::Error::new(error).context(line)
        }
        None => error.into(),
    }
}

fn ending_signals() -> anyhow::Result<SignalFd> {
    SignalFd::new(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
        .context("cannot take signals over")
}
