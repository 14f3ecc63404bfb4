//! The rendered copy of a configuration, and the variables, listeners and checks needed to start
//! haproxy on it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_core::name::Name;
use bindonce_sys::directory::Directory;
use serde::{Deserialize, Serialize};

use super::binds::NO_DEVICE;
use super::server_state::ServerState;
use super::stats_file::StatsFile;
use super::world::World;
use super::{Error, Place, reader, saved};

/// The caller's additions to the user's configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Supplied<'a> {
    /// The listeners of `--listen NAME=ADDR`, each with a name, ranges already expanded.
    /// `fd@${NAME}` in the configuration is bound to the listener, and a bind line with the same
    /// address takes its name.
    pub listeners: &'a [Listener],
    /// The caller's own variables that haproxy needs until the last file is read: a `resetenv` of
    /// the user's keeps them.
    pub keep: &'a [&'a str],
}

/// One of haproxy's configuration files, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedFile {
    /// The path that haproxy alone would have used for the user's file.
    #[serde(with = "saved::path")]
    pub user_path: PathBuf,
    /// The file name of the copy, unique among the copies.
    pub name: String,
    /// Whether the user has no such file: it restores the effect of `default-path config` at the
    /// start of the next file, or the environment of a master's worker.
    pub injected: bool,
    /// The text of the copy.
    #[serde(skip)]
    pub text: Vec<u8>,
    /// The differences from the user's file, in order.
    pub changes: Vec<Change>,
}

/// One difference between a copy and the user's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The bytes of the copy.
    pub range: Range<usize>,
    /// The bytes of the user's file.
    pub was: Box<[u8]>,
}

/// A listener that haproxy gets from the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The listener to claim. It has a name only if `--listen` gave one.
    pub listener: Listener,
    /// The number under which haproxy would have inherited the descriptor, if it would have.
    pub inherited: Option<RawFd>,
    /// The variable that carries the number of the descriptor.
    pub variable: String,
    /// The bind line.
    pub place: Place,
    /// Further lines of the section that share the socket: each for threads of its own, or with the
    /// same options.
    pub also: Vec<Place>,
    /// The section, as in `frontend web`.
    pub section: String,
    /// The address as haproxy reads it, before it expands variables in addresses.
    pub text: String,
    /// The missing device that the line names: the listener is bound on every interface.
    #[serde(default)]
    pub device: Option<String>,
}

impl Binding {
    /// Whether it is for QUIC.
    pub fn is_quic(&self) -> bool {
        matches!(self.listener.address, Address::Quic(_))
    }

    /// The text before the number of the descriptor.
    pub(super) fn prefix(&self) -> &'static str {
        if self.is_quic() { "quic+fd@" } else { "fd@" }
    }
}

/// An address that is left to haproxy to bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The line.
    pub place: Place,
    /// The section, as in `frontend web`.
    pub section: String,
    /// The address as written in the user's file.
    pub text: String,
    /// Why the address is left to haproxy.
    pub reason: Cow<'static, str>,
    /// For a descriptor that haproxy would have to inherit: why it cannot.
    pub descriptor: Option<String>,
    /// Whether haproxy listens on the address; false if it ignores the line.
    pub listens: bool,
    /// The addresses that haproxy then listens on, as far as the line shows: a `stats socket`, the
    /// local peer, a path for datagrams.
    #[serde(default)]
    pub own: Vec<Address>,
    /// The device that is the reason: missing now, or missing when haproxy first bound the address.
    pub device: Option<String>,
    /// The listeners that haproxy then has; used while reading only.
    #[serde(skip)]
    pub(super) listeners: Vec<Listener>,
}

/// An environment variable that the rendered copy reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The bindings whose descriptor numbers the variable holds, by index: one, or a whole range of
    /// ports.
    pub bindings: Range<usize>,
    /// Whether the value is `fd@3,fd@4,...` instead of one number: with one variable for each port
    /// of a long range, the time of haproxy's start would grow with the square of the range.
    pub list: bool,
}

/// A configuration, ready to start haproxy on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rendering {
    /// The copies, in the order of haproxy's `-f`.
    pub files: Vec<RenderedFile>,
    /// The listeners to claim, in order.
    pub bindings: Vec<Binding>,
    /// The variables to set, in order.
    pub variables: Vec<Variable>,
    /// Further variables to set, with their values.
    pub constants: Vec<(String, String)>,
    /// The addresses left to haproxy.
    pub left_alone: Vec<LeftAlone>,
    /// Whether haproxy binds its own TCP addresses without SO_REUSEPORT (`noreuseport`, `-dR`):
    /// another generation cannot bind the same address.
    pub no_reuse_port: bool,
    /// How haproxy runs.
    #[serde(flatten)]
    pub mode: ProcessMode,
    /// Names of `--listen` that the configuration does not use.
    pub unused: Vec<Name>,
    /// Whether the configuration has a `cluster-secret`.
    pub has_cluster_secret: bool,
    /// The server-state files that the configuration loads, the global one first.
    pub server_states: Vec<ServerState>,
    /// The `stats-file` that the configuration loads.
    pub stats_file: Option<StatsFile>,
}

/// How haproxy runs under the supervisor, or would run alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessMode {
    /// Whether haproxy runs as a master with its own workers.
    pub master_worker: bool,
    /// Whether haproxy alone would run as a master, by `-W`, `-Ws` or `master-worker`.
    pub is_master: bool,
    /// Whether haproxy alone would run in the background, by `-D` or by `daemon` without an option
    /// for the foreground.
    pub is_daemon: bool,
    /// haproxy polls without epoll, by `-de` or `noepoll`.
    pub no_epoll: bool,
    /// The absolute path of the pid file that haproxy would write.
    #[serde(with = "saved::optional_path")]
    pub pid_file: Option<PathBuf>,
    /// How many reloads an older generation may survive, if haproxy alone would run as a master
    /// that ends it after more (`mworker-max-reloads`).
    pub max_reloads: Option<u64>,
}

impl Rendering {
    /// The variables to start haproxy with, when the descriptor of `bindings[i]` will have the
    /// number `numbers[i]` in haproxy. Variables whose bindings have no number are left out.
    pub fn environment(&self, numbers: &[RawFd]) -> Vec<(String, String)> {
        let value = |variable: &Variable| {
            let numbers = numbers.get(variable.bindings.clone())?;
            let mut value = String::new();
            for (index, number) in numbers.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let first = self.bindings.get(variable.bindings.start);
                let prefix = first.filter(|_| variable.list).map_or("", Binding::prefix);
                // Writing to a String does not fail.
                let _ = write!(value, "{comma}{prefix}{number}");
            }
            Some((variable.name.clone(), value))
        };
        self.variables.iter().filter_map(value).chain(self.constants.iter().cloned()).collect()
    }

    /// The devices whose addresses are left to haproxy because the device is missing or appeared
    /// late.
    pub fn haproxys_devices(&self) -> BTreeSet<String> {
        self.left_alone.iter().filter_map(|left| left.device.clone()).collect()
    }

    /// The missing devices whose addresses the broker can bind on every interface, as haproxy
    /// would. Left out are devices with which two lines get the same address: haproxy's sockets
    /// split the connections between the lines. (They count all the same where they overlap a
    /// listener of the broker: haproxy could not bind there at all.)
    pub(super) fn missing_for_the_broker(&self, world: &dyn World) -> BTreeSet<String> {
        let held: Vec<_> = self.bindings.iter().map(|binding| binding.listener.key()).collect();
        let missing = || self.left_alone.iter().filter(|left| left.reason == NO_DEVICE);
        let keys = missing().flat_map(|left| {
            let whose = (left.device.as_deref(), left.section.as_str());
            left.listeners.iter().map(move |listener| (listener.key(), whose))
        });
        // Keys of one place are neighbours once sorted.
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        let mut split = BTreeSet::new();
        for (one, other) in keys.iter().zip(keys.iter().skip(1)) {
            if one.1 != other.1 && one.0.is_same_place(&other.0) {
                split.extend([one.1.0, other.1.0]);
            }
        }
        let overlaps = |one: &Listener| held.iter().any(|key| key.overlaps(&one.key()));
        let ours = missing().filter(|left| {
            let device = left.device.as_deref();
            let is_haproxys = split.contains(&device)
                || device.is_some_and(|device| world.is_haproxys_device(device));
            !is_haproxys || left.listeners.iter().any(overlaps)
        });
        ours.filter_map(|left| left.device.clone()).collect()
    }

    /// The lines that name a missing device and whose address the broker has bound on every
    /// interface: the line, its address, and the device.
    pub fn without_device(&self) -> impl Iterator<Item = (&Place, &str, &str)> {
        let firsts = self.variables.iter().filter_map(|it| self.bindings.get(it.bindings.start));
        firsts.filter_map(|one| Some((&one.place, one.text.as_str(), one.device.as_deref()?)))
    }

    /// The binding for this address, in the form in which the broker names a refused one.
    pub fn binding_of(&self, address: &str) -> Option<&Binding> {
        self.bindings.iter().find(|binding| binding.listener.address.to_string() == address)
    }

    /// Whether haproxy certainly has something to listen on without anything that bindonce adds: an
    /// address from the broker, or an admin socket of the user's. Otherwise only haproxy knows
    /// (peers, QUIC), and refuses to start if there is nothing.
    pub fn surely_listens(&self) -> bool {
        !self.bindings.is_empty() || self.has_stats_socket()
    }

    /// Whether haproxy may have something to listen on. If it has nothing, it refuses to start.
    pub fn may_listen(&self) -> bool {
        !self.bindings.is_empty() || self.left_alone.iter().any(|left| left.listens)
    }

    /// Whether the user's configuration has an admin socket, which alone is enough for haproxy to
    /// start.
    pub fn has_stats_socket(&self) -> bool {
        self.left_alone.iter().any(|left| left.text.starts_with("stats socket "))
    }

    /// A bind line that may name an address and was not claimed: haproxy takes a branch that the
    /// reader did not take, or expands the line in another way.
    pub fn unclaimed_bind(&self, address: &str) -> Option<Place> {
        let names = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let bind = matches!(words.next(), Some("bind" | "dgram-bind"));
            bind && words.next().is_some_and(|word| may_stand_for(word, address))
        };
        let (file, line, _) = self.lines().find(|(.., text)| names(text))?;
        Some(Place { file: file.clone(), line })
    }

    /// The lines of the files, each with the user's path and its number.
    fn lines(&self) -> impl Iterator<Item = (&PathBuf, usize, Cow<'_, str>)> {
        self.files.iter().flat_map(|RenderedFile { user_path, text, .. }| {
            let lines = reader::lines(text).map(|line| String::from_utf8_lossy(&text[line]));
            lines.zip(1..).map(move |(line, number)| (user_path, number, line))
        })
    }

    /// Whether the text has a `bind` line at all, even in a branch that the reader skipped.
    pub fn has_bind_line(&self) -> bool {
        let is_bind = |line: &str| line.split_ascii_whitespace().next() == Some("bind");
        self.lines().any(|(.., line)| is_bind(&line))
    }

    /// Whether haproxy, or a program that it starts, may call bind(2) while it serves: for a
    /// connection to a server with `source`, for a QUIC connection, in an external check. Judged by
    /// the text.
    pub fn binds_while_it_serves(&self) -> bool {
        let says = |line: &str| {
            let words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let mut words = words.map(|word| word.trim_matches('"'));
            let first = words.next().unwrap_or_default();
            let of_server =
                matches!(first, "server" | "default-server" | "server-template" | "peer");
            let starts = |word: &str| matches!(word, "external-check" | "insecure-fork-wanted");
            let late = |w: &str| w.contains("quic") || starts(w) || of_server && w == "source";
            first == "source" || starts(first) || words.any(late)
        };
        self.lines().any(|(.., line)| says(&line))
    }

    /// The `bind ... ssl` lines whose TLS sessions no other generation can resume: haproxy makes
    /// new ticket keys at each start. Judged by the text.
    pub fn loses_tickets(&self) -> Vec<Place> {
        let mut by_default = true;
        let mut places = Vec::new();
        for (file, line, text) in self.lines() {
            let mut words = text.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let first = words.next();
            let says = |word: &str| words.clone().any(|one| one == word);
            match first {
                Some("ssl-default-bind-options") => by_default &= !says("no-tls-tickets"),
                Some("bind") if says("ssl") => {
                    let keeps = says("tls-ticket-keys") || says("no-tls-tickets");
                    if !keeps && (by_default || says("tls-tickets")) {
                        places.push(Place { file: file.clone(), line });
                    }
                }
                _ => {}
            }
        }
        places
    }

    /// Whether haproxy needs a `cluster-secret` and has none: it then makes its own at each start,
    /// and the next generation cannot use what one generation has given to QUIC clients.
    pub fn lacks_cluster_secret(&self) -> bool {
        !self.has_cluster_secret && self.bindings.iter().any(Binding::is_quic)
    }

    /// Checks that the configuration uses no descriptors but those of its bindings. Under a
    /// supervisor haproxy inherits no others, and a number in the user's text would name one of
    /// bindonce's.
    ///
    /// # Errors
    /// [`Error::ForeignDescriptor`] for the first other descriptor.
    pub fn self_contained(&self) -> Result<(), Error> {
        let foreign = |left: &LeftAlone| {
            let (place, text, why) =
                (left.place.clone(), left.text.clone(), left.descriptor.clone()?);
            Some(Error::ForeignDescriptor { place, text, why })
        };
        self.left_alone.iter().find_map(foreign).map_or(Ok(()), Err)
    }

    /// Writes the copies into the existing `directory`, readable by their owner alone. Each appears
    /// whole or not at all: haproxy would start on half of one. Gives their paths in the order of
    /// haproxy's `-f`.
    ///
    /// # Errors
    /// The system's error for the first file that could not be written.
    pub fn write_to(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let opened = Directory::open(directory)?;
        let mut paths = Vec::with_capacity(self.files.len());
        for file in &self.files {
            opened.replace_private(file.name.as_ref(), &file.text)?;
            paths.push(directory.join(&file.name));
        }
        Ok(paths)
    }
}

/// Whether the address word of a bind line may name a socket that the kernel shows. A variable may
/// stand for anything.
fn may_stand_for(word: &str, address: &str) -> bool {
    let word = word.trim_matches('"');
    let datagram = |text: &str| text.starts_with("udp") || text.starts_with("quic");
    word.split(',').filter(|piece| !piece.trim_start_matches("quic+").starts_with("fd@")).any(
        |piece| {
            let name = piece.rsplit_once('@').map_or(piece, |(_, name)| name);
            match (address.strip_prefix("unix@"), address.strip_prefix("abns@")) {
                _ if name.is_empty() => false,
                (Some(path), _) => {
                    let is_path = name.contains('/') || piece.starts_with("unix@");
                    piece.contains('$') || is_path && path.contains(name)
                }
                (_, Some(own)) => piece.contains('$') || own == name,
                _ if datagram(piece) != datagram(address) => false,
                _ if name.contains('/') => false,
                _ => {
                    let port = |text: &str| text.rsplit(':').next()?.parse::<u16>().ok();
                    let ports = name.rsplit(':').next().unwrap_or(name);
                    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                    match (first.parse::<u16>(), last.parse::<u16>(), port(address)) {
                        (Ok(first), Ok(last), Some(port)) => (first..=last).contains(&port),
                        _ => name.contains('$'),
                    }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests;
