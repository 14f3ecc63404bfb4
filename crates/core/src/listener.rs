//! What a listener is: a name, an address and the options of its socket.

use crate::address::Address;
use crate::name::Name;

/// Socket options that a person may write after the address. `None` and
/// `false` mean "not said": the broker's default applies to a new listener, and
/// any value matches a listener that is already held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Length of the accept queue; the default is the system's somaxconn.
    pub backlog: Option<u32>,
    /// IPv6 only (`v6only`), or both families (`v4v6`, the default) on an IPv6 wildcard.
    pub v6only: bool,
    /// Bind to this network device (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// Accept for addresses that are not local (IP_TRANSPARENT).
    pub transparent: bool,
    /// Bind an address that does not exist yet (IP_FREEBIND).
    pub freebind: bool,
    /// Network namespace by its name under /run/netns.
    pub netns: Option<String>,
    /// Permission bits of a UNIX path, as in `mode=0660`.
    pub mode: Option<u32>,
    /// Owner of a UNIX path, a name or a number.
    pub user: Option<String>,
    /// Group of a UNIX path, a name or a number.
    pub group: Option<String>,
}

/// One listener as asked for: exactly one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    /// The name that was given, if any.
    pub name: Option<Name>,
    /// Where it listens.
    pub address: Address,
    /// How its socket is set up.
    pub options: Options,
}

/// What a person writes: `[NAME=]ADDR[,OPT]...`, where ADDR may be a range of
/// ports and so stand for many listeners.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenSpec {
    /// The listener at the first port of the range.
    pub first: Listener,
    /// The last port of a range; equal to the first port, or 0, where there is none.
    pub last_port: u16,
}
