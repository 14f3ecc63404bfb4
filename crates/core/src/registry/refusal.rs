//! Why the registry refuses a request: messages that name both sides.

use std::fmt;
use std::sync::Arc;

use super::connection::Holder;
use crate::address::Address;
use crate::listener::Listener;
use crate::name::Name;
use crate::time::Timestamp;

/// A held listener, as a refusal names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBy {
    /// The listener as it was asked for.
    pub listener: Arc<Listener>,
    /// The port that it got, if it asked for any free port.
    pub port: Option<u16>,
    /// Since when it is held.
    pub since: Timestamp,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listener.key().fmt(f)?;
        if let Some(port) = self.port {
            write!(f, " (port {port})")?;
        }
        f.write_str(", held")?;
        if let Some(name) = &self.listener.name {
            write!(f, " as \"{name}\"")?;
        }
        write!(f, " since {}", self.since)
    }
}

/// Why a request was refused. A refused request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The address is held with another value of an option that was asked for.
    #[error("{asked} asks for {option}, but {held}, has {has}")]
    Options {
        /// What was asked for.
        asked: Arc<Listener>,
        /// The option and value asked for.
        option: String,
        /// What the held listener has instead.
        has: String,
        /// The listener that is held.
        held: Box<HeldBy>,
    },
    /// The listener is not held, and the client may only use held ones.
    #[error("{0} is not held, and you may only use held listeners, not create new ones")]
    NotHeld(Arc<Listener>),
    /// Two parts of one request ask for one address with different options.
    #[error(
        "{asked} and {other} in the same request are one address with two settings: {option}, {has}"
    )]
    OptionsInRequest {
        /// What was asked for second.
        asked: Arc<Listener>,
        /// What was asked for first.
        other: Arc<Listener>,
        /// The option and value of the second.
        option: String,
        /// What the first has instead.
        has: String,
    },
    /// The name belongs to another address.
    #[error("the name \"{name}\" cannot stand for {asked}: it is the name of {held}")]
    Name {
        /// The name.
        name: Name,
        /// What was asked for.
        asked: Arc<Listener>,
        /// The listener that has the name.
        held: Box<HeldBy>,
    },
    /// Two parts of one request give one name to two addresses.
    #[error("the name \"{name}\" cannot stand for both {other} and {asked}, in the same request")]
    NameInRequest {
        /// The name.
        name: Name,
        /// What was asked for second.
        asked: Arc<Listener>,
        /// What was asked for first.
        other: Arc<Listener>,
    },
    /// It overlaps a listener of another owner, or is the same address.
    #[error("{asked} overlaps {held}")]
    Overlap {
        /// What was asked for.
        asked: Arc<Listener>,
        /// The listener in its way.
        held: Box<HeldBy>,
    },
    /// A generation of another service uses the listener, and may accept from it.
    #[error(
        "{held}, is used by {holder}: service \"{service}\" may not use it too, because each would answer some of the clients"
    )]
    OtherService {
        /// The service that asks.
        service: Name,
        /// The listener.
        held: Box<HeldBy>,
        /// The generation of the other service.
        holder: Box<Holder>,
    },
    /// Two parts of one request are the same address for the kernel.
    #[error("{asked} overlaps {other}, in the same request")]
    OverlapInRequest {
        /// What was asked for second.
        asked: Arc<Listener>,
        /// What was asked for first.
        other: Arc<Listener>,
    },
    /// No listener has this name or address.
    #[error("no listener is held for {wanted}")]
    NotFound {
        /// The name or address.
        wanted: String,
    },
    /// The listener cannot be released while others use it.
    #[error("{held}, is in use by {}", list(.holders))]
    InUse {
        /// The listener.
        held: Box<HeldBy>,
        /// The other connections that use it.
        holders: Vec<Holder>,
    },
    /// More listeners than one request may ask for.
    #[error("{count} listeners in one request are more than the {limit} that are allowed")]
    TooMany {
        /// How many were asked for.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// More pairs of overlapping listeners than one request may ask for.
    #[error("wildcards and addresses in this request overlap in more than {limit} pairs")]
    TooManyOverlaps {
        /// How many are allowed.
        limit: usize,
    },
    /// The shell gave another number of handles than asked for. All of them were given back.
    #[error("{opened} sockets were opened where {asked} were asked for: this is a bug in bindonce")]
    Miscounted {
        /// How many were asked for.
        asked: usize,
        /// How many came.
        opened: usize,
    },
}

impl Refusal {
    /// The address asked for (for [`Refusal::InUse`] and [`Refusal::OtherService`] the held one),
    /// if the refusal is about one listener.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Options { asked, .. }
            | Self::OptionsInRequest { asked, .. }
            | Self::Name { asked, .. }
            | Self::NameInRequest { asked, .. }
            | Self::Overlap { asked, .. }
            | Self::OverlapInRequest { asked, .. } => Some(&asked.address),
            Self::InUse { held, .. } | Self::OtherService { held, .. } => {
                Some(&held.listener.address)
            }
            Self::NotHeld(asked) => Some(&asked.address),
            Self::NotFound { .. }
            | Self::TooMany { .. }
            | Self::TooManyOverlaps { .. }
            | Self::Miscounted { .. } => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Options { .. } => {
                "leave the option out to share the listener as it is, or release it first \
                 (`bindonce release`) and claim it again"
            }
            Self::OptionsInRequest { .. } => "write the same options in both places",
            Self::Name { .. } => "choose another name, or release that listener first",
            Self::NameInRequest { .. } => "give each address a name of its own",
            // The same address, with another device or another set of families.
            Self::Overlap { asked, held } if asked.address == held.listener.address => {
                "v6only, mptcp and interface= are fixed when a socket is created: a new socket is \
                 needed. Stop the service that uses the old one, release it (`bindonce release`), \
                 and start again"
            }
            Self::Overlap { .. } => {
                "the more specific one would take connections from the other, so only one owner may \
                 have both: ask for both in one request or in one service, or release that \
                 listener first (`bindonce release`)"
            }
            Self::OverlapInRequest { .. } => "drop one of the two: both are the same address",
            Self::OtherService { .. } => {
                "give each service an address of its own, or stop the other one first: as soon as its \
                 generations drain, the address is free for this one. If both are meant to be one service, \
                 use its name (--name)"
            }
            Self::NotHeld(..) => {
                "ask the administrator of the broker for a rule that allows `bind`"
            }
            Self::NotFound { .. } => "`bindonce list` shows what is held",
            Self::InUse { .. } => {
                "stop those processes first; a lease ends when its connection to the broker closes"
            }
            Self::TooMany { .. } => "split the request",
            Self::TooManyOverlaps { .. } => "a wildcard alone serves every address at its port",
            Self::Miscounted { .. } => "please report it with the broker's log",
        }
    }
}

fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "a claim that is being opened".to_owned();
    }
    // Five are enough; a busy listener may have thousands.
    let mut text: Vec<String> = holders.iter().take(5).map(Holder::to_string).collect();
    if holders.len() > text.len() {
        text.push(format!("{} more", holders.len() - text.len()));
    }
    text.join(", ")
}
