//! Claims of listeners, and listeners to give to a broker.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use bindonce_core::name::Name;
use bindonce_wire::params::Bind;

/// A request for listeners. A claim of an address gets the listener that the broker holds for it,
/// or binds the address. A range of ports gives a lease for each port.
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
/// The broker refuses a text that is no claim, and says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(pub(crate) Bind);

impl Claim {
    /// A claim in text form, `[NAME=]ADDR[,OPTION]...`, such as `web=0.0.0.0:80,backlog=4096`,
    /// `:8000-8010`, `unix@/run/app.sock` or `udp4@:53`. A bare name claims a listener that is
    /// already held.
    pub fn listen(text: impl Into<String>) -> Self {
        Self(Bind::listen(text))
    }

    /// The listener that is held under this name; an error if there is none.
    pub fn name(name: &Name) -> Self {
        Self(Bind::name(name.as_str()))
    }

    /// A TCP listener on an address; with port 0 the system chooses the port (see
    /// [`Lease::bound`](crate::Lease::bound)).
    pub fn tcp(address: SocketAddr) -> Self {
        Self(Bind::listen(address.to_string()))
    }

    /// A UDP socket on an address.
    pub fn udp(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { "udp4" } else { "udp6" };
        Self(Bind::listen(format!("{family}@{address}")))
    }

    /// Makes the claim tentative: if it creates the listener, the broker closes the listener again
    /// with its last lease, unless the listener has been confirmed. A claim that is not tentative
    /// confirms it, and so does a user that joins as serving.
    #[must_use]
    pub fn tentative(mut self) -> Self {
        self.0.tentative = true;
        self
    }

    /// Allows a change of options: if the listener is held with other options than this claim has,
    /// the broker changes them on the socket, for every holder, instead of refusing the claim. It
    /// can change the backlog, `transparent`, `freebind`, `blocking`, and the mode, user and group
    /// of a UNIX path. It still refuses options that need another socket (`interface=`, `v6only`).
    #[must_use]
    pub fn changing(mut self) -> Self {
        self.0.change = true;
        self
    }
}

/// A listener that this process holds, to give (back) to a broker with
/// [`Client::store`](crate::Client::store). [`Lease::give`](crate::Lease::give) makes one.
#[derive(Debug, Clone)]
pub struct Give<'a> {
    pub(crate) what: bindonce_wire::params::Give,
    pub(crate) fd: BorrowedFd<'a>,
}

impl<'a> Give<'a> {
    /// A descriptor, and the claim that it comes from: `[NAME=]ADDR[,OPTION]...`.
    pub fn new(listen: impl Into<String>, fd: BorrowedFd<'a>) -> Self {
        Self { what: bindonce_wire::params::Give { listen: listen.into(), tentative: false }, fd }
    }

    /// Makes the listener tentative: if the broker did not hold it before, the broker closes it
    /// with its last lease, unless it has been confirmed.
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
