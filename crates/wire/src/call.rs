//! One call of a broker's method: the method and its parameters, read from a request.

use crate::error::RpcError;
use crate::message::Request;
use crate::params::{Bind, Elements, Events, Give, Joining, One};

/// The methods of a broker, in the order in which help lists them.
pub const METHODS: [&str; 9] =
    ["bind", "join", "release", "list", "status", "events", "ping", "store", "upgrade"];

/// One call of a broker's method, with its parameters read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Bind or find listeners, and hand out their descriptors.
    Bind(Vec<Bind>),
    /// Say which generation of which service this connection is.
    Join(Joining),
    /// Close listeners, given by name or address.
    Release(Vec<String>),
    /// Tell every listener.
    List,
    /// Tell everything about the broker.
    Status,
    /// Tell what happened last, and perhaps what happens from now on.
    Events(Events),
    /// Tell that the broker is there.
    Ping,
    /// Take listeners that the caller holds; their descriptors come with the request.
    Store(Vec<Give>),
    /// Become the binary that is installed now.
    Upgrade,
}

impl Call {
    /// Reads the method and its parameters.
    pub fn decode(request: &Request<'_>) -> Result<Self, RpcError> {
        match request.method.as_str() {
            "bind" => Ok(Self::Bind(request.params::<Elements<Bind>>()?.0)),
            "join" => Ok(Self::Join(request.params::<One<Joining>>()?.0.checked()?)),
            "release" => Ok(Self::Release(request.params::<Elements<String>>()?.0)),
            "list" => request.no_params().map(|()| Self::List),
            "status" => request.no_params().map(|()| Self::Status),
            "events" => events(request).map(Self::Events),
            "ping" => request.no_params().map(|()| Self::Ping),
            "store" => Ok(Self::Store(request.params::<Elements<Give>>()?.0)),
            "upgrade" => request.no_params().map(|()| Self::Upgrade),
            _ => Err(request.method_not_found(&METHODS)),
        }
    }
}

/// Reads the parameters of `events`, which may be left out.
pub fn events(request: &Request<'_>) -> Result<Events, RpcError> {
    match request.no_params() {
        Ok(()) => Ok(Events::default()),
        Err(_) => request.params::<One<Events>>().map(|one| one.0),
    }
}
