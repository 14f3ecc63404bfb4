//! Why a text is not an address, a listener or an option.
//!
//! Every variant quotes the text, shortened so that a hostile request cannot produce a message as
//! long as itself, and says what to write instead.

use crate::name::InvalidName;

/// Why a text is not an address, a listener, or a list of options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The address is missing.
    #[error("an address is missing: write one such as :80, [::]:443 or unix@/run/app.sock")]
    Empty,
    /// An unknown prefix before `@`.
    #[error(
        "{family:?} in {text:?} is not a family of addresses that can be bound here: write ipv4@, \
         ipv6@, unix@, abns@, udp@, udp4@, udp6@, quic@, quic4@ or quic6@"
    )]
    UnknownFamily {
        /// The address as written.
        text: String,
        /// The text before the `@`.
        family: String,
    },
    /// An IP address without a port.
    #[error("{0:?} has no port: write one after a colon, as in 127.0.0.1:80 or [::1]:80")]
    MissingPort(String),
    /// A port that is not a number from 0 to 65535.
    #[error("{port:?} in {text:?} is not a port: a port is a number from 0 to 65535")]
    Port {
        /// The address as written.
        text: String,
        /// The text in place of the port.
        port: String,
    },
    /// A range of ports that is empty or begins at 0.
    #[error("{0:?} is not a range of ports: write the lower port first, and begin at 1 or above")]
    Range(String),
    /// A range where exactly one address is wanted.
    #[error("{0:?} is a range of ports where one address is wanted")]
    RangeHere(String),
    /// The text before the port is not an IP address.
    #[error(
        "{host:?} in {text:?} is not an IP address: host names are not looked up here, write the \
         number"
    )]
    Host {
        /// The address as written.
        text: String,
        /// The text before the port.
        host: String,
    },
    /// `ipv4@` in front of an IPv6 address, or the reverse.
    #[error("{text:?} names {family}, but its address belongs to the other family")]
    WrongFamily {
        /// The address as written.
        text: String,
        /// The family that the prefix names.
        family: &'static str,
    },
    /// A path or abstract name that cannot be bound or written down.
    #[error("{path:?} cannot be the address of a UNIX socket: {why}")]
    Path {
        /// The path or abstract name.
        path: String,
        /// The reason.
        why: &'static str,
    },
    /// A word after a comma that is not an option.
    #[error(
        "{0:?} is not an option of a listener: the options are backlog=N, v6only, v4v6, \
         interface=DEVICE, transparent, freebind, blocking, mptcp, netns=NAME, mode=0660, user=USER and group=GROUP"
    )]
    UnknownOption(String),
    /// An option without its value, with a value it does not take, or given twice.
    #[error("option {option} {problem}")]
    OptionShape {
        /// The name of the option.
        option: &'static str,
        /// The problem: a missing value, an unexpected value, a repetition or a contradiction.
        problem: &'static str,
    },
    /// A value that the option cannot take.
    #[error("{value:?} is not a value of {option}: {why}")]
    OptionValue {
        /// The name of the option.
        option: &'static str,
        /// The value as written.
        value: String,
        /// What a valid value looks like.
        why: &'static str,
    },
    /// An option that does not apply to this kind of address.
    #[error("option {option} has no meaning for {address}: {why}")]
    OptionHere {
        /// The name of the option.
        option: &'static str,
        /// The address that the option was written after.
        address: String,
        /// The addresses that the option is for.
        why: &'static str,
    },
    /// The text before `=` is not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The name of a range leaves no room for `-` and the port.
    #[error("the name {0:?} is too long for a range: each port adds up to 6 bytes of 63")]
    RangeName(String),
}
