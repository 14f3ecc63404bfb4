//! Reads one `bind` line: the addresses in its address word, and the word that replaces it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::Path;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};

use super::address::{self, Context, Problem, Target, Wanted};
use super::listeners::MARK;
use super::options::BindOptions;
use super::quoting::{escape_into, printable, quoted};
use super::reader::{Word, expand};
use super::state::State;
use super::world::{Family, World};
use super::{Error, Place};

/// One address of a line; commas separate them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The text as haproxy reads it, without quotes.
    pub(super) text: Vec<u8>,
    pub(super) part: Part,
}

impl Piece {
    /// The text for a person.
    pub(super) fn shown(&self) -> String {
        match &self.part {
            Part::Supplied { variable, quic } => descriptor(variable, *quic),
            _ => printable(&self.text),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// A listener for the broker.
    Listen(Wanted),
    /// `fd@${NAME}` or `quic+fd@${NAME}`, with a NAME of `--listen`.
    Supplied { variable: String, quic: bool },
    /// `fd@` with the number of a descriptor that haproxy inherits, and its listener.
    Inherited { prefix: String, number: RawFd, listener: Box<Listener> },
    /// `fd@` with another number, or with an unset variable, and why it is not a listener.
    Foreign(String, String),
    /// An address left to haproxy: the reason, and the addresses as far as they are known.
    Alone(&'static str, Vec<Address>),
    /// Left to haproxy because of a device: the reason, and the address as in [`Part::Listen`].
    Unbound(&'static str, Wanted),
}

/// A `bind` or `dgram-bind` line of a section that is still open: later lines of the section can
/// still change it.
#[derive(Debug, Clone)]
pub(super) struct BindLine {
    pub(super) place: Place,
    /// The bytes of the file that the address word was made from.
    pub(super) source: Range<usize>,
    /// The address word as written.
    pub(super) text: String,
    pub(super) pieces: Vec<Piece>,
    pub(super) bind_options: BindOptions,
    /// The missing device of the line's `interface`: the broker binds the addresses without one.
    pub(super) missing: Option<String>,
    /// All words after the address.
    pub(super) options: Vec<Vec<u8>>,
    /// Words before and after the address word that share its bytes.
    before: Vec<Vec<u8>>,
    after: Vec<Vec<u8>>,
    /// Other words with a `${NAME-DEFAULT}`, as bytes of the file, and what they come to. haproxy
    /// reads a line a second time whose words take more than 1 KiB, as a range of many descriptors
    /// does, and has put a NUL in place of the brace (parse_line() of 2.6 to 3.5).
    pub(super) written_out: Vec<(Range<usize>, Vec<u8>)>,
}

/// Why an address with a missing `interface` is left to haproxy. Applies only where two lines would
/// so have the same address. (2.6 to 3.5 warn and continue.)
pub(super) const NO_DEVICE: &str =
    "its interface does not exist: haproxy warns, and listens on every interface";

/// Why such an address stays with haproxy after the interface has appeared.
pub(super) const LATE_DEVICE: &str = "its interface appeared after haproxy had bound the address: haproxy keeps it until the service \
     is stopped and started";

/// Why the addresses of this device are left to haproxy, if they are.
fn why_haproxys(world: &dyn World, device: &str, namespace: Option<&str>) -> Option<&'static str> {
    match (world.has_device(device, namespace), world.is_haproxys_device(device)) {
        (false, _) => Some(NO_DEVICE),
        (true, true) => Some(LATE_DEVICE),
        (true, false) => None,
    }
}

/// Why an address is left to haproxy, if it is.
pub(super) type Reason = Option<&'static str>;

/// The context outside its line that an address depends on.
pub(super) struct Surroundings<'a> {
    pub(super) world: &'a dyn World,
    pub(super) state: &'a State,
    /// Whether haproxy resolves host names with getaddrinfo().
    pub(super) getaddrinfo: bool,
    pub(super) directory: &'a Path,
    pub(super) prefix: &'a [u8],
    /// Missing devices whose addresses the broker binds on every interface.
    pub(super) missing: &'a BTreeSet<String>,
    /// Why an address that not every haproxy version takes is left to haproxy, if it is.
    pub(super) own: Box<dyn Fn(&Wanted) -> Reason + 'a>,
    /// Why haproxy does not listen for QUIC, if it does not.
    pub(super) no_quic: Box<dyn Fn() -> Reason + 'a>,
}

/// The word with which haproxy takes the descriptor in a variable.
pub(super) fn descriptor(variable: &str, quic: bool) -> String {
    let quic = if quic { "quic+" } else { "" };
    format!("{quic}fd@${{{variable}}}")
}

/// Reads the words of a line that begins at `offset` in the file.
pub(super) fn read(
    words: &[Word],
    line: &[u8],
    offset: usize,
    place: Place,
    around: &Surroundings<'_>,
) -> Result<BindLine, Error> {
    let word = &words[1];
    let variable = |name: &[u8]| around.state.get(name).cloned();
    let datagram = words[0].value == b"dgram-bind";
    let mut pieces = Vec::new();
    // haproxy ignores one comma at the end; any other empty item is an error.
    let list = match word.value.strip_suffix(b",") {
        Some(list) if !list.is_empty() => list,
        _ => &word.value,
    };
    for text in list.split(|&byte| byte == b',') {
        let expanded = expand(text, &variable);
        let target = read_address(&expanded, datagram, around);
        let part =
            part(&expanded, target, datagram, around.world).map_err(|problem| match problem {
                Problem::Bad(reason) => {
                    Error::BadAddress { place: place.clone(), word: printable(text), reason }
                }
                Problem::Unresolved { host, source } => {
                    Error::Unresolved { place: place.clone(), host, source }
                }
            })?;
        let instead = match &part {
            Part::Listen(wanted) => {
                (around.own)(wanted).map(|reason| Part::Alone(reason, Vec::new()))
            }
            Part::Supplied { variable, quic: true } => unused(variable.clone(), around),
            Part::Inherited { number, .. } if expanded.starts_with(b"quic+") => {
                unused(number.to_string(), around)
            }
            // A UNIX path is taken whatever the type of its socket.
            Part::Alone(reason, _) if datagram => Some(Part::Alone(reason, own(text, around))),
            _ => None,
        };
        pieces.push(Piece { text: text.to_vec(), part: instead.unwrap_or(part) });
    }
    let mut bind_options = BindOptions::read(words[2..].iter().map(|word| word.value.as_slice()));
    let missing = bind_options.interface.take_if(|device| around.missing.contains(device));
    let namespace = bind_options.namespace.as_deref();
    if let Some(device) = &bind_options.interface
        && let Some(reason) = why_haproxys(around.world, device, namespace)
    {
        for piece in &mut pieces {
            if let Part::Listen(wanted) = &piece.part
                && wanted.first.ip().is_some()
            {
                piece.part = Part::Unbound(reason, wanted.clone());
            }
        }
    }
    let shared = |words: &[Word]| -> Vec<Vec<u8>> {
        words
            .iter()
            .filter(|other| other.source == word.source)
            .map(|word| word.value.clone())
            .collect()
    };
    let is_range = |piece: &Piece| match &piece.part {
        Part::Listen(wanted) => wanted.first.port().is_some_and(|port| port < wanted.last),
        _ => false,
    };
    let mut written_out = Vec::new();
    if pieces.iter().any(is_range) {
        for group in words.chunk_by(|one, other| one.source == other.source) {
            let source = group[0].source.clone();
            let written = &line[source.clone()];
            let has_variable = written.windows(2).any(|two| two == b"${");
            if source != word.source && has_variable && written.contains(&b'-') {
                let text: Vec<_> = group.iter().map(|word| quoted(&word.value)).collect();
                written_out.push((offset + source.start..offset + source.end, text.join(&b' ')));
            }
        }
    }
    Ok(BindLine {
        place,
        source: offset + word.source.start..offset + word.source.end,
        text: printable(&line[word.source.clone()]),
        pieces,
        bind_options,
        missing,
        options: words[2..].iter().map(|word| word.value.clone()).collect(),
        before: shared(&words[..1]),
        after: shared(&words[2..]),
        written_out,
    })
}

/// Reads one address, with variables already expanded.
pub(super) fn read_address(
    expanded: &[u8],
    datagram: bool,
    around: &Surroundings<'_>,
) -> Result<Target, Problem> {
    let resolved = |directory: &Path| around.world.resolved(directory);
    let resolve = |host: &str, family| match (around.getaddrinfo, family) {
        (true, family) => around.world.resolve(host, family),
        // gethostbyname() finds IPv4 addresses only.
        (false, None | Some(Family::V4)) => around.world.resolve(host, Some(Family::V4)),
        (false, Some(Family::V6)) => {
            Err(io::Error::other("without getaddrinfo haproxy finds IPv4 addresses only"))
        }
    };
    let (prefix, directory) = (around.prefix, around.directory);
    let context = Context { datagram, prefix, directory, resolved: &resolved, resolve: &resolve };
    address::read(expanded, &context)
}

/// The addresses of a word that is left to haproxy, as far as they are known.
pub(super) fn own_addresses(word: &[u8], around: &Surroundings<'_>) -> Vec<Address> {
    let list = word.strip_suffix(b",").unwrap_or(word);
    list.split(|&byte| byte == b',').flat_map(|text| own(text, around)).collect()
}

fn own(text: &[u8], around: &Surroundings<'_>) -> Vec<Address> {
    let heads: [(&[u8], &[u8]); 2] = [(b"dgram+", b""), (b"uxdg@", b"unix@")];
    // No claim depends on these variables.
    let marks = around.state.marks();
    let mut text = expand(text, &|name: &[u8]| around.state.get(name).cloned());
    around.state.restore(marks);
    for (head, instead) in heads {
        if let Some(rest) = text.strip_prefix(head) {
            text = [instead, rest].concat();
        }
    }
    match read_address(&text, false, around) {
        Ok(Target::Listen(wanted)) => wanted.addresses().collect(),
        _ => Vec::new(),
    }
}

/// A descriptor for QUIC, where haproxy does not listen for QUIC.
fn unused(descriptor: String, around: &Surroundings<'_>) -> Option<Part> {
    Some(Part::Foreign(descriptor, (around.no_quic)()?.to_owned()))
}

fn part(
    expanded: &[u8],
    target: Result<Target, Problem>,
    datagram: bool,
    world: &dyn World,
) -> Result<Part, Problem> {
    let target = match target {
        Err(_) if expanded.contains(&MARK) => {
            return Err(Problem::Bad(
                "a variable of --listen holds a descriptor: write it as fd@${NAME}".to_owned(),
            ));
        }
        target => target?,
    };
    let (plain, quic) = (expanded.starts_with(b"fd@"), expanded.starts_with(b"quic+fd@"));
    Ok(match target {
        Target::Listen(wanted) => Part::Listen(wanted),
        Target::Alone(reason) => Part::Alone(reason, Vec::new()),
        Target::Descriptor(number) => match &number[..] {
            [MARK, name @ .., MARK] if plain || quic => {
                Part::Supplied { variable: String::from_utf8_lossy(name).into_owned(), quic }
            }
            [.., MARK] => {
                return Err(Problem::Bad(
                    "a listener of --listen is written as fd@${NAME}".to_owned(),
                ));
            }
            _ => {
                let text = String::from_utf8_lossy(&number).into_owned();
                let is_pair = expanded.starts_with(b"sockpair@");
                let parsed = text.parse().ok().filter(|_| !is_pair);
                let found = parsed.map(|number| (number, world.inherited(number)));
                match found {
                    Some((number, Ok(mut listener))) => {
                        let datagrams = datagram || expanded.starts_with(b"quic+");
                        fits(&listener, datagrams)?;
                        if datagram {
                            listener.address = listener.address.as_seen();
                        }
                        // The text before the `@`, such as quic+fd.
                        let head = expanded.len() - text.len() - 1;
                        let prefix = String::from_utf8_lossy(&expanded[..head]).into_owned();
                        Part::Inherited { prefix, number, listener: Box::new(listener) }
                    }
                    other => {
                        let why = other.and_then(|(_, found)| found.err());
                        let why = match why.as_deref() {
                            _ if is_pair => {
                                "the other end of a socket pair belongs to one process, so generations cannot share it"
                            }
                            why => why.unwrap_or("Bad file descriptor"),
                        };
                        let why = format!("cannot use file descriptor '{text}' : {why}");
                        Part::Foreign(text, why)
                    }
                }
            }
        },
    })
}

/// Checks that a line can use a descriptor of this kind.
fn fits(listener: &Listener, datagrams: bool) -> Result<(), Problem> {
    match (!listener.address.listens(), datagrams) {
        (true, false) => Err(Problem::Bad(format!(
            "it is {listener}: a bind line takes a datagram socket as quic+fd@ alone, and dgram-bind as fd@"
        ))),
        (false, true) => {
            Err(Problem::Bad(format!("it is {listener}, which is no datagram socket")))
        }
        _ => Ok(()),
    }
}

impl BindLine {
    /// Whether the line has an address for the broker to open.
    pub(super) fn claims(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| matches!(piece.part, Part::Listen(..) | Part::Inherited { .. }))
    }

    /// Why a descriptor on the line is not a listener, if one is not.
    pub(super) fn foreign(&self) -> Option<String> {
        self.pieces.iter().find_map(|piece| match &piece.part {
            Part::Foreign(_, why) => Some(why.clone()),
            _ => None,
        })
    }

    /// Leaves every address of the line to haproxy, for an admin socket.
    pub(super) fn leave_addresses(&mut self, reason: &'static str) {
        for piece in &mut self.pieces {
            if let Part::Listen(wanted) = &piece.part {
                piece.part = Part::Alone(reason, wanted.addresses().collect());
            }
        }
    }

    /// The listeners of one piece: none, one, or one for each port.
    pub(super) fn listeners(
        &self,
        piece: &Piece,
        defaults: &BindOptions,
        world: &dyn World,
    ) -> Result<Vec<Listener>, Error> {
        let (Part::Listen(wanted) | Part::Unbound(_, wanted)) = &piece.part else {
            return Ok(Vec::new());
        };
        let Wanted { first, last, mptcp } = wanted;
        let mut bind_options = self.bind_options.or(defaults);
        let nowhere = self.missing.is_some() || matches!(piece.part, Part::Unbound(..));
        bind_options.interface.take_if(|_| nowhere);
        if bind_options.interface.is_none() && bind_options.namespace.is_none() {
            bind_options.interface = world.device_of_new_sockets();
        }
        let wildcard = first.ip().is_some_and(|at| at.is_ipv6() && at.ip().is_unspecified());
        if wildcard && !bind_options.v4v6 && !bind_options.v6only {
            // haproxy then takes the system's default.
            bind_options.v6only = world.is_ipv6_only();
        }
        let ports = match first.port() {
            Some(port) => port..=*last,
            None => 0..=0,
        };
        ports
            .map(|port| {
                let address = first.with_port(port);
                let options = Options { mptcp: *mptcp, ..bind_options.on(&address) };
                Listener::new(None, address, options)
                    .map_err(|source| Error::Listener { place: self.place.clone(), source })
            })
            .collect()
    }

    /// The text that replaces the address word. `words`: the words of the pieces that go to the
    /// broker, in order, ready for double quotes.
    pub(super) fn replacement(&self, words: impl IntoIterator<Item = String>) -> Vec<u8> {
        let mut words = words.into_iter();
        let mut address = vec![b'"'];
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 {
                address.push(b',');
            }
            match &piece.part {
                Part::Listen(..) | Part::Inherited { .. } => {
                    address.extend_from_slice(words.next().unwrap_or_default().as_bytes());
                }
                Part::Supplied { variable, quic } => {
                    address.extend_from_slice(descriptor(variable, *quic).as_bytes());
                }
                Part::Foreign(..) | Part::Alone(..) | Part::Unbound(..) => {
                    escape_into(&mut address, &piece.text);
                }
            }
        }
        address.push(b'"');
        let before = self.before.iter().map(|word| quoted(word));
        let after = self.after.iter().map(|word| quoted(word));
        let all: Vec<_> = before.chain([address]).chain(after).collect();
        all.join(&b' ')
    }
}
