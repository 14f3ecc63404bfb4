//! At the end of a section, turns its bind lines into listeners to claim, variables to set, and
//! words to write.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use bindonce_core::address::Address;
use bindonce_core::listener::{Key, Listener};

use super::binds::{BindLine, Part, Piece, descriptor};
use super::listeners::{Names, Occupied, Supply};
use super::options::BindOptions;
use super::rendering::{Binding, LeftAlone, Supplied, Variable};
use super::sections::{Kind, Section};
use super::unknowns::Unknowns;
use super::world::World;
use super::{Error, Place};

/// Number of ports in one list variable: at most 10 bytes each, within the kernel's 128 KiB for one
/// string of the environment.
const PORTS_PER_VARIABLE: usize = 8192;

/// A range of bytes and its replacement.
type Replaced = (Range<usize>, Vec<u8>);

/// Addresses of one section, by first key and last port.
type Earlier = HashMap<(Key, u16), Bound>;

/// The key with a mapped IPv4 address made plain: `[::ffff:10.0.0.1]:80` is `10.0.0.1:80` to the
/// kernel.
fn as_the_kernel_has_it(listener: &Listener) -> Key {
    match listener.address {
        Address::Tcp(at) => {
            let at = SocketAddr::new(at.ip().to_canonical(), at.port());
            Listener { address: Address::Tcp(at), ..listener.clone() }.key()
        }
        _ => listener.key(),
    }
}

/// The sockets of an earlier line of the section.
struct Bound {
    /// The word that replaces the line's address.
    word: String,
    bindings: Range<usize>,
    /// The words after the address on that line.
    options: Vec<Vec<u8>>,
    /// Whether the line is for some threads only.
    threads: bool,
}

/// The position of an address in the configuration.
#[derive(Clone, Copy)]
struct Written<'a> {
    section: &'a Section,
    line: &'a BindLine,
    piece: &'a Piece,
}

impl Written<'_> {
    fn left(self, reason: &'static str) -> LeftAlone {
        left_alone(self.section, &self.line.place, self.piece.shown(), reason)
    }
}

/// An address that haproxy binds itself, or not at all, with no further details.
pub(super) fn left_alone(
    section: &Section,
    place: &Place,
    text: String,
    reason: &'static str,
) -> LeftAlone {
    LeftAlone {
        place: place.clone(),
        section: section.label.clone(),
        text,
        reason: reason.into(),
        descriptor: None,
        listens: section.kind != Kind::Defaults,
        own: Vec::new(),
        device: None,
        listeners: Vec::new(),
    }
}

/// The listeners to claim, and the addresses left to haproxy.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) supply: Supply,
    names: Names,
    occupied: Occupied,
    pub(super) bindings: Vec<Binding>,
    pub(super) variables: Vec<Variable>,
    pub(super) left_alone: Vec<LeftAlone>,
    /// The missing device that the current line names.
    device: Option<String>,
}

impl Claims {
    pub(super) fn new(supplied: &Supplied<'_>) -> Result<Self, Error> {
        let supply = Supply::new(supplied.listeners)?;
        let mut names = Names::default();
        for variable in supply.variables().chain(supplied.keep.iter().copied()) {
            names.reserve(variable);
        }
        Ok(Self { supply, names, ..Self::default() })
    }

    /// Claims the bind lines of a complete section and gives the replacements for their bytes.
    /// `unix`: the options of `unix-bind`.
    pub(super) fn section(
        &mut self,
        section: &Section,
        unix: &BindOptions,
        world: &dyn World,
        unknowns: &Unknowns<'_>,
    ) -> Result<Vec<Replaced>, Error> {
        let idle = section.idle();
        for own in &section.own {
            let reason = idle.map_or_else(|| own.reason.clone(), Into::into);
            self.left_alone.push(LeftAlone { reason, listens: idle.is_none(), ..own.clone() });
        }
        let mut defaults = section.defaults(unix);
        // A missing device counts here as on a line that names it itself.
        let namespace = defaults.namespace.clone();
        let lost = defaults.interface.take_if(|name| !world.has_device(name, namespace.as_deref()));
        let mut earlier = Earlier::new();
        let mut edits = Vec::new();
        for line in &section.lines {
            if let Some(reason) = idle {
                let left = left_alone(section, &line.place, line.text.clone(), reason);
                self.left_alone.push(LeftAlone { listens: false, ..left });
                continue;
            }
            let listeners = |piece: &Piece| {
                let mut listeners = line.listeners(piece, &defaults, world)?;
                for listener in &mut listeners {
                    // Before 3.0 haproxy ignores `namespace` for an abstract name.
                    let elsewhere = listener.options.netns.is_some();
                    let name = listener.address.is_abstract();
                    if elsewhere && name && !unknowns.holds(b"version_atleast(3.0)") {
                        listener.options.netns = None;
                    }
                }
                Ok(listeners)
            };
            let own = line.bind_options.interface.is_some();
            self.device = line.missing.clone().or_else(|| lost.clone().filter(|_| !own));
            let words = self.bind_line(line, section, &mut earlier, &listeners)?;
            if line.claims() {
                edits.push((line.source.clone(), line.replacement(words)));
                edits.extend(line.written_out.iter().cloned());
            }
        }
        Ok(edits)
    }

    /// Claims one line and gives the words for its claimed addresses.
    fn bind_line(
        &mut self,
        line: &BindLine,
        section: &Section,
        earlier: &mut Earlier,
        listeners: &dyn Fn(&Piece) -> Result<Vec<Listener>, Error>,
    ) -> Result<Vec<String>, Error> {
        let mut words = Vec::new();
        for piece in &line.pieces {
            let written = Written { section, line, piece };
            match &piece.part {
                Part::Alone(reason, own) => {
                    self.left_alone.push(LeftAlone { own: own.clone(), ..written.left(reason) });
                }
                Part::Unbound(reason, ..) => self.left_alone.push(LeftAlone {
                    device: line.bind_options.interface.clone(),
                    listeners: listeners(piece)?,
                    ..written.left(reason)
                }),
                Part::Foreign(number, why) => self.foreign(number, why, written)?,
                Part::Inherited { prefix, number, listener } => {
                    let key = (listener.key(), 0);
                    if self.shares(&key, line, earlier) {
                        words.extend(earlier.get(&key).map(|bound| bound.word.clone()));
                        continue;
                    }
                    let first = self.bindings.len();
                    let listener = listener.as_ref().clone();
                    let variable = self.names.of(&listener.address, None);
                    self.claim(vec![listener], &variable, false, written)?;
                    if let Some(binding) = self.bindings.last_mut() {
                        binding.inherited = Some(*number);
                    }
                    let word = format!("{prefix}@${{{variable}}}");
                    earlier.insert(key, self.bound(word.clone(), first, line));
                    words.push(word);
                }
                Part::Supplied { variable, quic } => {
                    let Some(listener) = self.supply.take(variable) else { continue };
                    let is_quic = matches!(listener.address, Address::Quic(_));
                    if *quic != is_quic {
                        return Err(Error::BadAddress {
                            place: line.place.clone(),
                            word: piece.shown(),
                            reason: match quic {
                                // A descriptor of another kind cannot serve QUIC: the address has
                                // to change.
                                true => format!(
                                    "{listener} is not for QUIC: give quic4@ADDR or quic6@ADDR for {variable}"
                                ),
                                false => {
                                    format!("write {} for {listener}", descriptor(variable, true))
                                }
                            },
                        });
                    }
                    let key = (listener.key(), 0);
                    if self.shares(&key, line, earlier) {
                        continue;
                    }
                    let first = self.bindings.len();
                    self.claim(vec![listener], variable, false, written)?;
                    earlier.insert(key, self.bound(String::new(), first, line));
                }
                Part::Listen(wanted) => {
                    let mut listeners = listeners(piece)?;
                    listeners.iter_mut().for_each(|listener| self.supply.name(listener));
                    let key = (as_the_kernel_has_it(&listeners[0]), wanted.last);
                    if self.shares(&key, line, earlier) {
                        words.extend(earlier.get(&key).map(|bound| bound.word.clone()));
                        continue;
                    }
                    let first = self.bindings.len();
                    let word = self.claim_piece(listeners, written)?;
                    earlier.insert(key, self.bound(word.clone(), first, line));
                    words.push(word);
                }
            }
        }
        Ok(words)
    }

    fn bound(&self, word: String, first: usize, line: &BindLine) -> Bound {
        let bindings = first..self.bindings.len();
        Bound { word, bindings, options: line.options.clone(), threads: line.bind_options.threads }
    }

    /// Whether this line shares the sockets of an earlier line, which are then recorded for this
    /// line too. Lines of a section on one address share one socket, which haproxy duplicates for
    /// them (seen with 2.6.12, 3.0 and 3.2), if they are for different threads, or if their options
    /// are equal and so any of them may take a connection.
    fn shares(&mut self, key: &(Key, u16), line: &BindLine, earlier: &Earlier) -> bool {
        let same = |bound: &&Bound| {
            line.bind_options.threads && bound.threads || line.options == bound.options
        };
        let Some(Bound { bindings, .. }) = earlier.get(key).filter(same) else {
            return false;
        };
        for binding in &mut self.bindings[bindings.clone()] {
            binding.also.push(line.place.clone());
        }
        true
    }

    fn foreign(&mut self, number: &str, why: &str, written: Written<'_>) -> Result<(), Error> {
        let Written { section, line, piece } = written;
        let earlier = section.lines.iter().take_while(|other| other.place != line.place);
        let names = |piece: &Piece| matches!(&piece.part, Part::Foreign(n, _) if n == number);
        let has_it =
            |other: &BindLine| other.options == line.options && other.pieces.iter().any(names);
        let mut before = line.pieces.iter().take_while(|other| !std::ptr::eq(*other, piece));
        let twice = before.any(names);
        // Lines may share a descriptor under the conditions of `shares`.
        if !line.bind_options.threads && !twice && !earlier.into_iter().any(has_it) {
            self.occupied.add_foreign(number, &line.place)?;
        }
        let reason = if number.is_empty() {
            "neither --listen nor the environment gives this descriptor"
        } else {
            "a descriptor from outside; only haproxy knows its address"
        };
        let descriptor = Some(why.to_owned());
        self.left_alone.push(LeftAlone { descriptor, ..written.left(reason) });
        Ok(())
    }

    /// Claims the listeners of one address and gives the word that replaces it.
    fn claim_piece(
        &mut self,
        listeners: Vec<Listener>,
        written: Written<'_>,
    ) -> Result<String, Error> {
        if listeners.len() == 1 {
            let variable = self.names.of(&listeners[0].address, None);
            let word = descriptor(&variable, matches!(listeners[0].address, Address::Quic(_)));
            self.claim(listeners, &variable, false, written)?;
            return Ok(word);
        }
        let mut lists = Vec::new();
        for part in listeners.chunks(PORTS_PER_VARIABLE) {
            let last = part.last().and_then(|last| last.address.port());
            let variable = self.names.of(&part[0].address, last);
            lists.push(format!("${{{variable}}}"));
            self.claim(part.to_vec(), &variable, true, written)?;
        }
        Ok(lists.join(","))
    }

    /// Adds the listeners of one variable.
    fn claim(
        &mut self,
        listeners: Vec<Listener>,
        variable: &str,
        list: bool,
        Written { section, line, piece }: Written<'_>,
    ) -> Result<(), Error> {
        let first = self.bindings.len();
        for listener in listeners {
            self.occupied.add(&listener, &line.place)?;
            self.bindings.push(Binding {
                device: self.device.clone().filter(|_| listener.address.ip().is_some()),
                listener,
                inherited: None,
                variable: variable.to_owned(),
                place: line.place.clone(),
                also: Vec::new(),
                section: section.label.clone(),
                text: piece.shown(),
            });
        }
        self.variables.push(Variable {
            name: variable.to_owned(),
            bindings: first..self.bindings.len(),
            list,
        });
        Ok(())
    }
}
