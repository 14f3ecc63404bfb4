//! All listeners of a configuration: the names of their variables, the listeners from `--listen`,
//! and conflicts between two on one address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;

use bindonce_core::address::Address;
use bindonce_core::listener::{Key, Listener};
use bindonce_core::name::Name;

use super::{Error, Place};

/// Marks a variable given by `--listen NAME=ADDR`, which has no value while the configuration is
/// read. Its stand-in value is its name between two of these bytes, which no address contains.
pub(super) const MARK: u8 = 1;

/// The stand-in for the value of a supplied variable.
pub(super) fn mark(variable: &str) -> Vec<u8> {
    [&[MARK], variable.as_bytes(), &[MARK]].concat()
}

/// Names for the variables that carry descriptors. They are made from the address, so that they
/// stay the same from one reload to the next, and each is unique.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// Reserves a name; false if it was taken.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// A name for an address, or for a range of ports that begins with it.
    pub(super) fn of(&mut self, address: &Address, last: Option<u16>) -> String {
        let mut name = String::from("BINDONCE_");
        let text = match address {
            Address::Tcp(at) | Address::Udp(at) | Address::Quic(at) => {
                name.push_str(match address {
                    Address::Udp(_) => "UDP_",
                    Address::Quic(_) => "QUIC_",
                    _ => "",
                });
                match at.ip() {
                    IpAddr::V6(ip) if ip.is_unspecified() => format!("V6_{}", at.port()),
                    IpAddr::V6(ip) => format!("V6_{ip}_{}", at.port()),
                    IpAddr::V4(ip) => format!("{ip}_{}", at.port()),
                }
            }
            Address::Unix(path) => format!("UNIX{path}"),
            Address::Abstract(name) => format!("ABNS_{name}"),
            Address::Unpadded(name) => format!("ABNSZ_{name}"),
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        name.extend(text.chars().map(plain));
        if let Some(last) = last {
            // Writing to a String does not fail.
            let _ = write!(name, "_{last}");
        }
        if self.taken.contains(&name) {
            let free = (2_u32..).map(|n| format!("{name}__{n}"));
            name = free.into_iter().find(|name| !self.taken.contains(name)).unwrap_or(name);
        }
        self.taken.insert(name.clone());
        name
    }
}

/// All listeners so far, to find two on one address.
#[derive(Debug, Default)]
pub(super) struct Occupied {
    /// By port or path, which two conflicting listeners have in common.
    by_place: BTreeMap<String, Vec<(Key, Place, String)>>,
    /// By the number of a foreign descriptor.
    by_number: BTreeMap<String, Place>,
}

impl Occupied {
    /// Adds a foreign descriptor. haproxy accepts two sections on one descriptor, and one of them
    /// gets every connection.
    ///
    /// # Errors
    /// [`Error::Duplicate`] with both places when an earlier line has it.
    pub(super) fn add_foreign(&mut self, number: &str, place: &Place) -> Result<(), Error> {
        match self.by_number.insert(number.to_owned(), place.clone()) {
            Some(first) if !number.is_empty() => Err(Error::Duplicate {
                first,
                first_address: format!("fd@{number}"),
                second: place.clone(),
                second_address: format!("fd@{number}"),
            }),
            _ => Ok(()),
        }
    }

    /// Adds a listener. A wildcard and an address that it covers may coexist: the more specific one
    /// gets the connection, in haproxy alone too.
    ///
    /// # Errors
    /// [`Error::Duplicate`] with both places when an earlier one has the same address.
    pub(super) fn add(&mut self, listener: &Listener, place: &Place) -> Result<(), Error> {
        let key = listener.key();
        let common = match listener.address.port() {
            Some(port) => port.to_string(),
            None => listener.address.to_string(),
        };
        let others = self.by_place.entry(common).or_default();
        if let Some((_, first, address)) =
            others.iter().find(|(other, ..)| *other == key || other.is_same_place(&key))
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
    by_key: HashMap<Key, String>,
    used: BTreeSet<String>,
}

impl Supply {
    /// Indexes the listeners.
    ///
    /// # Errors
    /// [`Error::SameVariable`] when two names make one variable.
    pub(super) fn new(listeners: &[Listener]) -> Result<Self, Error> {
        let mut supply = Self::default();
        for listener in listeners {
            let Some(name) = &listener.name else { continue };
            let variable = name.variable();
            let before = supply.by_variable.insert(variable.clone(), listener.clone());
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

    /// The listener of a variable, which counts as used from now on.
    pub(super) fn take(&mut self, variable: &str) -> Option<Listener> {
        self.used.insert(variable.to_owned());
        self.by_variable.get(variable).cloned()
    }

    /// Gives a listener the name that `--listen` has for its address, and the options that it
    /// lacks.
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
        mine.blocking |= theirs.blocking;
        mine.mode = mine.mode.or(theirs.mode);
        mine.user = mine.user.take().or_else(|| theirs.user.clone());
        mine.group = mine.group.take().or_else(|| theirs.group.clone());
    }

    /// The names that the configuration does not use.
    pub(super) fn unused(&self) -> Vec<Name> {
        self.by_variable
            .iter()
            .filter(|(variable, _)| !self.used.contains(*variable))
            .filter_map(|(_, listener)| listener.name.clone())
            .collect()
    }
}
