//! What a client asks for.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use bindonce_core::name::Name;
use bindonce_wire::params::Bind;

/// One thing to claim. A claim of an address finds the listener that the broker
/// holds for it, or binds it; one range of ports gives a lease for each port.
///
/// ```
/// use bindonce::Claim;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let claims: [Claim; 4] = [
///     "web=0.0.0.0:80,backlog=4096".into(),
///     "unix@/run/app.sock,mode=0660".into(),
///     Claim::tcp("[::1]:8443".parse()?),
///     // Closed again when this process ends, unless it is confirmed.
///     Claim::listen(":8000-8010").tentative(),
/// ];
/// # Ok(())
/// # }
/// ```
/// A text that is no claim is refused by the broker, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(pub(crate) Bind);

impl Claim {
    /// Whatever the one syntax says, `[NAME=]ADDR[,OPTION]...`, as in
    /// `web=0.0.0.0:80,backlog=4096`, `:8000-8010`, `unix@/run/app.sock` or
    /// `udp4@:53`. A bare name means a listener that is held already.
    pub fn listen(text: impl Into<String>) -> Self {
        Self(Bind::listen(text))
    }

    /// The listener that is held under a name; it is an error if there is none.
    pub fn name(name: &Name) -> Self {
        Self(Bind::name(name.as_str()))
    }

    /// A TCP listener on an address; port 0 lets the system choose one ([`Lease::bound`](crate::Lease::bound) tells).
    pub fn tcp(address: SocketAddr) -> Self {
        Self(Bind::listen(address.to_string()))
    }

    /// A UDP socket on an address.
    pub fn udp(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { "udp4" } else { "udp6" };
        Self(Bind::listen(format!("{family}@{address}")))
    }

    /// Should this claim create the listener, then the broker closes it again
    /// when nobody uses it any more, unless it has been confirmed meanwhile: by a
    /// claim that is not tentative, or by a user that has joined as serving.
    #[must_use]
    pub fn tentative(mut self) -> Self {
        self.0.tentative = true;
        self
    }

    /// Should the listener be held with other options than this claim says, then the broker
    /// changes them on the socket, for everybody who has it, instead of refusing: the backlog,
    /// `transparent`, `freebind`, `blocking`, and mode, user and group of a UNIX path. What would need
    /// another socket (`interface=`, `v6only`) is refused all the same.
    #[must_use]
    pub fn changing(mut self) -> Self {
        self.0.change = true;
        self
    }
}

/// A listener that this process holds, to be given (back) to a broker with
/// [`Client::store`](crate::Client::store). [`Lease::give`](crate::Lease::give) makes one.
#[derive(Debug, Clone)]
pub struct Give<'a> {
    pub(crate) what: bindonce_wire::params::Give,
    pub(crate) fd: BorrowedFd<'a>,
}

impl<'a> Give<'a> {
    /// A descriptor, and what it was claimed as: `[NAME=]ADDR[,OPTION]...`.
    pub fn new(listen: impl Into<String>, fd: BorrowedFd<'a>) -> Self {
        Self { what: bindonce_wire::params::Give { listen: listen.into(), tentative: false }, fd }
    }

    /// One that the broker has not held before goes again with its last lease unless it is claimed for good.
    #[must_use]
    pub fn tentative(mut self) -> Self {
        self.what.tentative = true;
        self
    }
}

/// The same as [`Claim::listen`].
impl From<&str> for Claim {
    fn from(text: &str) -> Self {
        Self::listen(text)
    }
}

/// The same as [`Claim::listen`].
impl From<String> for Claim {
    fn from(text: String) -> Self {
        Self::listen(text)
    }
}

/// The same as [`Claim::tcp`].
impl From<SocketAddr> for Claim {
    fn from(address: SocketAddr) -> Self {
        Self::tcp(address)
    }
}
