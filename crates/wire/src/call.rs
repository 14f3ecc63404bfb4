//! One call of a broker's method: method and parameters, read from a request.

use crate::elements::Elements;
use crate::error::RpcError;
use crate::framing::AT_ONCE;
use crate::message::Request;
use crate::params::{Bind, Events, Give, Joining, checked};

/// The methods of a broker, in the order in which help lists them.
pub const METHODS: [&str; 9] =
    ["bind", "join", "release", "list", "status", "events", "ping", "store", "upgrade"];

/// One call of a broker's method, with its parameters read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Bind or find listeners, and hand out their descriptors.
    Bind(Vec<Bind>),
    /// Declare which generation of which service this connection is.
    Join(Joining),
    /// Close listeners, given by name or address.
    Release(Vec<String>),
    /// List every listener.
    List,
    /// Report everything about the broker.
    Status,
    /// Report the latest events, and perhaps future ones as they happen.
    Events(Events),
    /// Confirm that the broker is there.
    Ping,
    /// Take listeners that the caller holds; their descriptors come with the request.
    Store(Vec<Give>),
    /// Become the binary that is installed now.
    Upgrade,
}

impl Call {
    /// Reads the method and its parameters.
    pub fn decode(request: &Request<'_>) -> Result<Self, RpcError> {
        let mut decoding = Decoding::new(request)?;
        while decoding.read(usize::MAX)? {}
        Ok(decoding.call)
    }
}

/// A call that is being read. Many elements are read some at a time, so that no step takes long,
/// whatever a client has sent.
#[derive(Debug)]
pub struct Decoding<'a> {
    /// The elements not read yet, of a method that takes many.
    elements: Option<Elements<'a>>,
    call: Call,
}

impl<'a> Decoding<'a> {
    /// Reads the method, and its parameters if it takes none or one element.
    pub fn new(request: &'a Request<'a>) -> Result<Self, RpcError> {
        let (call, many) = match request.method.as_str() {
            "bind" => (Call::Bind(Vec::new()), true),
            "join" => (Call::Join(checked(Elements::of(request)?.only()?)?), false),
            "release" => (Call::Release(Vec::new()), true),
            "list" => (request.no_params().map(|()| Call::List)?, false),
            "status" => (request.no_params().map(|()| Call::Status)?, false),
            "events" => (events(request).map(Call::Events)?, false),
            "ping" => (request.no_params().map(|()| Call::Ping)?, false),
            "store" => (Call::Store(Vec::new()), true),
            "upgrade" => (request.no_params().map(|()| Call::Upgrade)?, false),
            _ => return Err(request.method_not_found(&METHODS)),
        };
        let elements = many.then(|| Elements::of(request)).transpose()?;
        Ok(Self { elements, call })
    }

    /// Reads up to `most` elements, and no more text than is parsed at once. True if there are
    /// more.
    pub fn read(&mut self, most: usize) -> Result<bool, RpcError> {
        let Self { elements: Some(elements), call } = self else { return Ok(false) };
        let enough = elements.left().saturating_sub(AT_ONCE);
        for _ in 0..most {
            if elements.is_empty() {
                return Ok(false);
            }
            if elements.left() < enough {
                break;
            }
            match call {
                Call::Bind(all) => all.push(elements.next()?),
                Call::Release(all) => all.push(elements.next()?),
                Call::Store(all) => all.push(elements.next()?),
                _ => return Ok(false),
            }
        }
        Ok(!elements.is_empty())
    }

    /// Takes the elements read so far from a `bind`; none from another method. An element takes far
    /// more memory than its text.
    pub fn take_bind(&mut self) -> Vec<Bind> {
        match &mut self.call {
            Call::Bind(elements) => std::mem::take(elements),
            _ => Vec::new(),
        }
    }

    /// The same for a `release`.
    pub fn take_release(&mut self) -> Vec<String> {
        match &mut self.call {
            Call::Release(elements) => std::mem::take(elements),
            _ => Vec::new(),
        }
    }

    /// How many elements have been read.
    #[must_use]
    pub fn count(&self) -> usize {
        self.elements.as_ref().map_or(0, Elements::read)
    }

    /// The call, once all of it is read.
    #[must_use]
    pub fn finish(self) -> Call {
        self.call
    }
}

/// Reads the parameters of `events`, which may be left out.
pub fn events(request: &Request<'_>) -> Result<Events, RpcError> {
    match request.no_params() {
        Ok(()) => Ok(Events::default()),
        Err(_) => Elements::of(request)?.only(),
    }
}
