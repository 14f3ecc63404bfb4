//! The rendered copy: what haproxy is started on, and what it takes to start it.

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
use serde::{Deserialize, Serialize};

use super::binds::NO_DEVICE;
use super::server_state::ServerState;
use super::stats_file::StatsFile;
use super::world::World;
use super::{Error, Place, reader, saved};

/// What the caller adds to the user's configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Supplied<'a> {
    /// The listeners of `--listen NAME=ADDR`, ranges already expanded. Each has a
    /// name. `fd@${NAME}` in the configuration is bound to it, and a bind line
    /// that names the same address takes its name.
    pub listeners: &'a [Listener],
    /// Variables of the caller's own that haproxy needs until the last file is
    /// read: they are kept through a `resetenv` of the user's.
    pub keep: &'a [&'a str],
}

/// One of the files that haproxy is started on, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedFile {
    /// The path as haproxy would have named it from the user's command line.
    #[serde(with = "saved::path")]
    pub user_path: PathBuf,
    /// A file name for the copy, different from those of all other copies.
    pub name: String,
    /// True for a file that has no counterpart: it restores what `default-path
    /// config` would do at the start of the next file, or the environment of a master's worker.
    pub injected: bool,
    /// The text of the copy.
    #[serde(skip)]
    pub text: Vec<u8>,
    /// Where it differs from the user's file, in order.
    pub changes: Vec<Change>,
}

/// A place at which a copy differs from the user's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The bytes of the copy.
    pub range: Range<usize>,
    /// What stands there in the user's file.
    pub was: Box<[u8]>,
}

/// A listener that haproxy gets from the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// What to claim. It has a name only when `--listen` gave one.
    pub listener: Listener,
    /// It is a descriptor that haproxy would have inherited under this number.
    pub inherited: Option<RawFd>,
    /// The variable that carries its descriptor's number.
    pub variable: String,
    /// Where the bind line stands.
    pub place: Place,
    /// Further lines of the section for the same address, each for threads of its
    /// own: they share the socket.
    pub also: Vec<Place>,
    /// The section, as in `frontend web`.
    pub section: String,
    /// The address as haproxy reads it, before variables of addresses.
    pub text: String,
    /// The device that its line names and that is not there: it is bound on every interface.
    #[serde(default)]
    pub device: Option<String>,
}

impl Binding {
    /// Whether it is for QUIC.
    pub fn is_quic(&self) -> bool {
        matches!(self.listener.address, Address::Quic(_))
    }

    /// What stands before the number of its descriptor.
    pub(super) fn prefix(&self) -> &'static str {
        if self.is_quic() { "quic+fd@" } else { "fd@" }
    }
}

/// An address that haproxy still binds itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// Where it stands.
    pub place: Place,
    /// The section, as in `frontend web`.
    pub section: String,
    /// The address as written in the user's file.
    pub text: String,
    /// Why.
    pub reason: Cow<'static, str>,
    /// It is a descriptor that haproxy would have to inherit; why it cannot.
    pub descriptor: Option<String>,
    /// haproxy listens there: false where it passes over the line.
    pub listens: bool,
    /// Where haproxy listens then, as far as the line tells: a `stats socket`, the local peer, a path for datagrams.
    #[serde(default)]
    pub own: Vec<Address>,
    /// The device that is why: it is not there, or was not when haproxy first bound the address.
    pub device: Option<String>,
    /// What haproxy listens on then; for the reading alone.
    #[serde(skip)]
    pub(super) listeners: Vec<Listener>,
}

/// A variable of the environment that the rendered copy reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The bindings whose numbers it holds, by index: one, or a whole range of ports.
    pub bindings: Range<usize>,
    /// True when the value is `fd@3,fd@4,...` instead of one number: a variable for
    /// each port of a long range would make haproxy's start quadratic in it.
    pub list: bool,
}

/// A configuration, ready to start haproxy on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rendering {
    /// The copies, in the order of haproxy's `-f`.
    pub files: Vec<RenderedFile>,
    /// What to claim, in order.
    pub bindings: Vec<Binding>,
    /// What to set, in order.
    pub variables: Vec<Variable>,
    /// Further variables to set, with their values.
    pub constants: Vec<(String, String)>,
    /// What haproxy binds by itself.
    pub left_alone: Vec<LeftAlone>,
    /// What haproxy binds by itself over TCP is bound without SO_REUSEPORT (`noreuseport`, `-dR`): another
    /// generation cannot bind the same.
    pub no_reuse_port: bool,
    /// As what processes haproxy runs.
    #[serde(flatten)]
    pub mode: ProcessMode,
    /// Names of `--listen` that nothing in the configuration uses.
    pub unused: Vec<Name>,
    /// It says `cluster-secret`.
    pub has_cluster_secret: bool,
    /// The server-state files that it loads, the global one first; none if it loads none.
    pub server_states: Vec<ServerState>,
    /// The `stats-file` that it loads.
    pub stats_file: Option<StatsFile>,
}

/// As what processes haproxy runs, or would run alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessMode {
    /// It runs as a master with workers of its own.
    pub master_worker: bool,
    /// Alone it would run as a master, by `-W`, `-Ws` or `master-worker`.
    pub is_master: bool,
    /// Alone it would go on in the background, by `-D` or `daemon`, unless it was told to stay.
    pub is_daemon: bool,
    /// It polls without epoll, by `-de` or `noepoll`.
    pub no_epoll: bool,
    /// The file that it would write its pid to: absolute.
    #[serde(with = "saved::optional_path")]
    pub pid_file: Option<PathBuf>,
}

impl Rendering {
    /// The variables to start haproxy with, when the descriptor of `bindings[i]`
    /// will have the number `numbers[i]` in haproxy. Variables whose bindings have
    /// no number are left out.
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

    /// The devices whose addresses haproxy binds by itself because they are not there, or came late.
    pub fn haproxys_devices(&self) -> BTreeSet<String> {
        self.left_alone.iter().filter_map(|left| left.device.clone()).collect()
    }

    /// Of those that are not there, the devices whose addresses the broker can bind on every interface, as haproxy would: all
    /// but those of which two lines come to the same address so, between which haproxy's sockets split the connections. (Where
    /// that overlaps what the broker has, haproxy could not bind it at all.)
    pub(super) fn missing_for_the_broker(&self, world: &dyn World) -> BTreeSet<String> {
        let held: Vec<_> = self.bindings.iter().map(|binding| binding.listener.key()).collect();
        let missing = || self.left_alone.iter().filter(|left| left.reason == NO_DEVICE);
        let keys = missing().flat_map(|left| {
            let whose = (left.device.as_deref(), left.section.as_str());
            left.listeners.iter().map(move |listener| (listener.key(), whose))
        });
        // As keys sort, those of one place are neighbours.
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

    /// Where a line names a device that is not there, so that the broker has bound its address on every interface: the line, its
    /// address, and the device.
    pub fn without_device(&self) -> impl Iterator<Item = (&Place, &str, &str)> {
        let firsts = self.variables.iter().filter_map(|it| self.bindings.get(it.bindings.start));
        firsts.filter_map(|one| Some((&one.place, one.text.as_str(), one.device.as_deref()?)))
    }

    /// The binding that wants this address, as the broker names it where it refuses one.
    pub fn binding_of(&self, address: &str) -> Option<&Binding> {
        self.bindings.iter().find(|binding| binding.listener.address.to_string() == address)
    }

    /// Whether haproxy has something to listen on for certain, before anything of ours is added: an
    /// address that it gets from the broker, or an admin socket of the user's. Else only haproxy knows
    /// (peers, QUIC), and refuses to start where it finds nothing.
    pub fn surely_listens(&self) -> bool {
        !self.bindings.is_empty() || self.has_stats_socket()
    }

    /// Whether haproxy may have something to listen on: where not, it refuses to start.
    pub fn may_listen(&self) -> bool {
        !self.bindings.is_empty() || self.left_alone.iter().any(|left| left.listens)
    }

    /// Whether the user's configuration has an admin socket, which alone is enough for haproxy.
    pub fn has_stats_socket(&self) -> bool {
        self.left_alone.iter().any(|left| left.text.starts_with("stats socket "))
    }

    /// The bind line that may name an address and was not claimed: haproxy takes a branch that was
    /// not taken here, or expands the line in another way.
    pub fn unclaimed_bind(&self, address: &str) -> Option<Place> {
        let names = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let bind = matches!(words.next(), Some("bind" | "dgram-bind"));
            bind && words.next().is_some_and(|word| may_stand_for(word, address))
        };
        let (file, line, _) = self.lines().find(|(.., text)| names(text))?;
        Some(Place { file: file.clone(), line })
    }

    /// The lines of the files, with the path that the user knows and their number.
    fn lines(&self) -> impl Iterator<Item = (&PathBuf, usize, Cow<'_, str>)> {
        self.files.iter().flat_map(|RenderedFile { user_path, text, .. }| {
            let lines = reader::lines(text).map(|line| String::from_utf8_lossy(&text[line]));
            lines.zip(1..).map(move |(line, number)| (user_path, number, line))
        })
    }

    /// Whether the text has a `bind` line at all, also one that was read as not being there.
    pub fn has_bind_line(&self) -> bool {
        let is_bind = |line: &str| line.split_ascii_whitespace().next() == Some("bind");
        self.lines().any(|(.., line)| is_bind(&line))
    }

    /// Whether haproxy, or a program that it starts, may call bind(2) while it serves: for a connection to a server with
    /// `source`, for one of QUIC, in an external check. As far as the text shows it.
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

    /// The `bind ... ssl` lines whose TLS sessions no other generation can resume: haproxy makes the keys of their tickets anew at
    /// each start. As far as the text shows it.
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

    /// Whether haproxy needs a `cluster-secret` that it does not have: it makes one of its own at each start, and what one generation
    /// has given to clients of QUIC is then nothing to the next.
    pub fn lacks_cluster_secret(&self) -> bool {
        !self.has_cluster_secret && self.bindings.iter().any(Binding::is_quic)
    }

    /// Checks that the configuration uses no descriptor but those of its bindings.
    /// Under a supervisor haproxy inherits no other, and a number that the user
    /// wrote would name one of ours.
    ///
    /// # Errors
    /// [`Error::ForeignDescriptor`] for the first that it does use.
    pub fn self_contained(&self) -> Result<(), Error> {
        let foreign = |left: &LeftAlone| {
            let (place, text, why) =
                (left.place.clone(), left.text.clone(), left.descriptor.clone()?);
            Some(Error::ForeignDescriptor { place, text, why })
        };
        self.left_alone.iter().find_map(foreign).map_or(Ok(()), Err)
    }

    /// Writes the copies into `directory`, which exists, readable by their owner
    /// alone. Gives their paths in the order of haproxy's `-f`.
    ///
    /// # Errors
    /// What the system says about the first file that could not be written.
    pub fn write_to(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut paths = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let path = directory.join(&file.name);
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&path)?.write_all(&file.text)?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// Whether the address word of a bind line may name a socket that the kernel shows. A variable may be
/// anything.
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
mod tests {
    use super::*;

    #[test]
    fn what_binds_while_it_serves_is_known() {
        for (line, expected) in [
            ("    source 10.0.0.1 usesrc clientip", true),
            ("    server a 10.0.0.2:80 check source 10.0.0.1", true),
            ("    option external-check", true),
            ("insecure-fork-wanted", true),
            ("    bind \"quic+fd@${BINDONCE_443}\" ssl", true),
            ("    balance source", false),
            ("    server source 10.0.0.2:80 # source 10.0.0.1", true),
            ("    # source 10.0.0.1", false),
            ("    bind \"fd@${BINDONCE_80}\"", false),
        ] {
            let file = RenderedFile {
                user_path: "haproxy.cfg".into(),
                name: String::new(),
                injected: false,
                text: line.as_bytes().to_vec(),
                changes: Vec::new(),
            };
            let rendering = Rendering { files: vec![file], ..Rendering::default() };
            assert_eq!(rendering.binds_while_it_serves(), expected, "{line}");
        }
    }

    #[test]
    fn lines_whose_tickets_die_with_a_generation_are_known() {
        let lines = "global\nfrontend a\n bind :1 ssl crt x\n bind :2 ssl crt x tls-ticket-keys k\n \
                     bind :3 ssl crt x no-tls-tickets\n bind :4 # ssl\n bind quic4@:5 ssl crt x\n";
        let of = |text: String| {
            let file = RenderedFile {
                user_path: "haproxy.cfg".into(),
                name: String::new(),
                injected: false,
                text: text.into_bytes(),
                changes: Vec::new(),
            };
            let rendering = Rendering { files: vec![file], ..Rendering::default() };
            rendering.loses_tickets().iter().map(|place| place.line).collect::<Vec<_>>()
        };
        assert_eq!(of(lines.to_owned()), [3, 7]);
        let all = "global\n ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n";
        assert_eq!(of(format!("{all}{lines} bind :8 ssl crt x tls-tickets\n")), [10]);
    }

    #[test]
    fn a_bind_line_may_stand_for_what_it_names() {
        for (word, address, expected) in [
            (":8080", "0.0.0.0:8080", true),
            ("127.0.0.1:8080-8082,:90", "127.0.0.1:8081", true),
            (":8080", "127.0.0.1:8081", false),
            ("\"${HOST}:${PORT}\"", "127.0.0.1:8081", true),
            ("\"${HOST}:90\"", "127.0.0.1:8081", false),
            ("\"${X-127.0.0.1:8081}\"", "127.0.0.1:8081", true),
            ("\"fd@${BINDONCE_127_0_0_1_8081}\"", "127.0.0.1:8081", false),
            ("quic4@:443", "udp4@0.0.0.0:443", true),
            (":443", "udp4@0.0.0.0:443", false),
            ("/run/a.sock", "unix@/run/a.sock.812.tmp", true),
            ("unix@b.sock", "unix@/run/b.sock", true),
            ("abns@name", "abns@name", true),
            (":80", "unix@/run/a", false),
        ] {
            assert_eq!(may_stand_for(word, address), expected, "{word} {address}");
        }
    }
}
