//! One `bind` line: what its address word names, and the word that replaces it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use bindonce_core::address::Address;
use bindonce_core::listener::{Key, Listener};
use bindonce_core::name::Name;

use super::address::{self, Context, Problem, Target};
use super::options::Said;
use super::reader::{Word, escape_into, expand, printable, quoted};
use super::world::{Environment, World};
use super::{Error, Place};

/// A variable given by `--listen NAME=ADDR` has no value while the
/// configuration is read. It stands as its name between two of these, a byte
/// that no address contains.
const MARK: u8 = 1;

/// The stand-in for the value of a supplied variable.
pub(super) fn mark(variable: &str) -> Vec<u8> {
    [&[MARK], variable.as_bytes(), &[MARK]].concat()
}

/// One address of a line, between commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// As haproxy reads the word, without quotes.
    pub(super) text: Vec<u8>,
    pub(super) part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// For the broker: the first address and the last port.
    Listen(Address, u16),
    /// `fd@${NAME}` with a NAME of `--listen`.
    Supplied(String),
    /// haproxy binds it by itself, for this reason.
    Alone(&'static str),
}

/// A `bind` or `dgram-bind` line of a section that is still open: what follows
/// in the section can still change it.
#[derive(Debug, Clone)]
pub(super) struct BindLine {
    pub(super) place: Place,
    /// The bytes of the file that the address word was made from.
    pub(super) source: Range<usize>,
    /// The address word as written.
    pub(super) text: String,
    pub(super) pieces: Vec<Piece>,
    pub(super) said: Said,
    /// Words that share their bytes with the address word: those before and after it.
    before: Vec<Vec<u8>>,
    after: Vec<Vec<u8>>,
}

/// What reading a line takes from outside it.
pub(super) struct Surroundings<'a> {
    pub(super) world: &'a dyn World,
    pub(super) environment: &'a Environment,
    pub(super) directory: &'a Path,
    pub(super) prefix: &'a [u8],
}

/// Reads the words of a line. `offset` is where the line begins in the file.
pub(super) fn read(
    words: &[Word],
    line: &[u8],
    offset: usize,
    place: Place,
    around: &Surroundings<'_>,
) -> Result<BindLine, Error> {
    let word = &words[1];
    let variable = |name: &[u8]| around.environment.get(name).cloned();
    let resolve = |host: &str, family| around.world.resolve(host, family);
    let context = Context {
        datagram: words[0].value == b"dgram-bind",
        prefix: around.prefix,
        directory: around.directory,
        resolve: &resolve,
    };
    let mut pieces = Vec::new();
    for text in word.value.split(|&byte| byte == b',') {
        let expanded = expand(text, &variable);
        // haproxy passes over a comma at the end, but not over one at the beginning.
        if text.is_empty() && !pieces.is_empty() {
            continue;
        }
        let part = part(&expanded, &context).map_err(|problem| match problem {
            Problem::Bad(reason) => Error::BadAddress {
                place: place.clone(),
                word: printable(text),
                reason,
            },
            Problem::Unresolved { host, source } => Error::Unresolved {
                place: place.clone(),
                host,
                source,
            },
        })?;
        pieces.push(Piece {
            text: text.to_vec(),
            part,
        });
    }
    let shared = |words: &[Word]| -> Vec<Vec<u8>> {
        words
            .iter()
            .filter(|other| other.source == word.source)
            .map(|word| word.value.clone())
            .collect()
    };
    Ok(BindLine {
        place,
        source: offset + word.source.start..offset + word.source.end,
        text: printable(&line[word.source.clone()]),
        pieces,
        said: Said::read(words[2..].iter().map(|word| word.value.as_slice())),
        before: shared(&words[..1]),
        after: shared(&words[2..]),
    })
}

fn part(expanded: &[u8], context: &Context<'_>) -> Result<Part, Problem> {
    let target = match address::read(expanded, context) {
        Err(_) if expanded.contains(&MARK) => {
            return Err(Problem::Bad(
                "a variable of --listen holds a descriptor: write it as fd@${NAME}".to_owned(),
            ));
        }
        target => target?,
    };
    Ok(match target {
        Target::Listen(address, last) => Part::Listen(address, last),
        Target::Alone(reason) => Part::Alone(reason),
        Target::Descriptor(number) => match &number[..] {
            [MARK, name @ .., MARK] => Part::Supplied(String::from_utf8_lossy(name).into_owned()),
            b"" => {
                Part::Alone("no --listen gives this descriptor, and no variable of the environment")
            }
            _ => Part::Alone("a descriptor that haproxy inherits already"),
        },
    })
}

impl BindLine {
    /// Whether anything on the line is for the broker to open.
    pub(super) fn claims(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| matches!(piece.part, Part::Listen(..)))
    }

    /// The listeners of one piece: none, one, or one for each port.
    pub(super) fn listeners(&self, piece: &Piece, defaults: &Said) -> Result<Vec<Listener>, Error> {
        let Part::Listen(first, last) = &piece.part else {
            return Ok(Vec::new());
        };
        let said = self.said.or(defaults);
        let ports = match first.port() {
            Some(port) => port..=*last,
            None => 0..=0,
        };
        ports
            .map(|port| {
                let address = first.with_port(port);
                let options = said.on(&address);
                Listener::new(None, address, options).map_err(|source| Error::Listener {
                    place: self.place.clone(),
                    source,
                })
            })
            .collect()
    }

    /// The text that takes the place of the address word; `words` are the words of
    /// the pieces that go to the broker, in order, ready for double quotes.
    pub(super) fn replacement(&self, words: impl IntoIterator<Item = String>) -> Vec<u8> {
        let mut words = words.into_iter();
        let mut address = vec![b'"'];
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 {
                address.push(b',');
            }
            match &piece.part {
                Part::Listen(..) => {
                    address.extend_from_slice(words.next().unwrap_or_default().as_bytes());
                }
                Part::Supplied(name) => {
                    address.extend_from_slice(format!("fd@${{{name}}}").as_bytes());
                }
                Part::Alone(_) => escape_into(&mut address, &piece.text),
            }
        }
        address.push(b'"');
        let before = self.before.iter().map(|word| quoted(word));
        let after = self.after.iter().map(|word| quoted(word));
        let all: Vec<_> = before.chain([address]).chain(after).collect();
        all.join(&b' ')
    }
}

/// Names for the variables that carry descriptors: made from the address, so that
/// they stay the same from one reload to the next, and each used once.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// Keeps a name from being used.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// A name for an address, or for a range of ports that begins with it.
    pub(super) fn of(&mut self, address: &Address, last: Option<u16>) -> String {
        let mut name = String::from("BINDONCE_");
        let text = match address {
            Address::Tcp(at) | Address::Udp(at) => {
                if matches!(address, Address::Udp(_)) {
                    name.push_str("UDP_");
                }
                match at.ip() {
                    std::net::IpAddr::V6(ip) if ip.is_unspecified() => format!("V6_{}", at.port()),
                    ip => format!("{ip}_{}", at.port()),
                }
            }
            Address::Unix(path) => format!("UNIX{path}"),
            Address::Abstract(name) => format!("ABNS_{name}"),
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        name.extend(text.chars().map(plain));
        if let Some(last) = last {
            // Writing to a String does not fail.
            let _ = write!(name, "_{last}");
        }
        if self.taken.contains(&name) {
            let free = (2_u32..).map(|n| format!("{name}__{n}"));
            name = free
                .into_iter()
                .find(|name| !self.taken.contains(name))
                .unwrap_or(name);
        }
        self.taken.insert(name.clone());
        name
    }
}

/// All listeners so far, to find two that meet on one address.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// By what two listeners have in common when they meet: port or path.
    by_place: BTreeMap<String, Vec<(Key, Place, String)>>,
}

impl Met {
    /// Adds a listener.
    ///
    /// # Errors
    /// [`Error::Duplicate`] with both places when an earlier one has the address.
    pub(super) fn add(&mut self, listener: &Listener, place: &Place) -> Result<(), Error> {
        let key = listener.key();
        let common = match listener.address.port() {
            Some(port) => port.to_string(),
            None => listener.address.to_string(),
        };
        let others = self.by_place.entry(common).or_default();
        if let Some((_, first, address)) = others
            .iter()
            .find(|(other, ..)| *other == key || other.overlaps(&key))
        {
            return Err(Error::Duplicate {
                first: first.clone(),
                first_address: address.clone(),
                second: place.clone(),
                second_address: key.to_string(),
            });
        }
        let text = key.to_string();
        others.push((key, place.clone(), text));
        Ok(())
    }
}

/// The listeners of `--listen`, by variable and by address.
#[derive(Debug, Default)]
pub(super) struct Supply {
    by_variable: BTreeMap<String, Listener>,
    by_key: std::collections::HashMap<Key, String>,
    used: BTreeSet<String>,
}

impl Supply {
    /// Indexes them.
    ///
    /// # Errors
    /// [`Error::SameVariable`] when two names make one variable.
    pub(super) fn new(listeners: &[Listener]) -> Result<Self, Error> {
        let mut supply = Self::default();
        for listener in listeners {
            let Some(name) = &listener.name else { continue };
            let variable = name.variable();
            let before = supply
                .by_variable
                .insert(variable.clone(), listener.clone());
            if let Some(first) = before.and_then(|before| before.name) {
                return Err(Error::SameVariable {
                    first: first.to_string(),
                    second: name.to_string(),
                    variable,
                });
            }
            supply.by_key.insert(listener.key(), variable);
        }
        Ok(supply)
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.by_variable.keys().map(String::as_str)
    }

    /// The listener of a variable, which is used from now on.
    pub(super) fn take(&mut self, variable: &str) -> Option<Listener> {
        self.used.insert(variable.to_owned());
        self.by_variable.get(variable).cloned()
    }

    /// Gives a listener the name that `--listen` has for its address, and what
    /// options that one has in addition.
    pub(super) fn name(&mut self, listener: &mut Listener) {
        let Some(variable) = self.by_key.get(&listener.key()) else {
            return;
        };
        let Some(given) = self.by_variable.get(variable) else {
            return;
        };
        self.used.insert(variable.clone());
        listener.name.clone_from(&given.name);
        let (mine, theirs) = (&mut listener.options, &given.options);
        mine.backlog = mine.backlog.or(theirs.backlog);
        mine.transparent |= theirs.transparent;
        mine.freebind |= theirs.freebind;
        mine.mode = mine.mode.or(theirs.mode);
        mine.user = mine.user.take().or_else(|| theirs.user.clone());
        mine.group = mine.group.take().or_else(|| theirs.group.clone());
    }

    /// The names that nothing has used.
    pub(super) fn unused(&self) -> Vec<Name> {
        self.by_variable
            .iter()
            .filter(|(variable, _)| !self.used.contains(*variable))
            .filter_map(|(_, listener)| listener.name.clone())
            .collect()
    }
}
