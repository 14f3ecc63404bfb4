//! Claim listening sockets from the bindonce broker, which binds every address
//! exactly once and hands the same socket to each new generation of a server.
//!
//! ```no_run
//! # fn main() -> Result<(), bindonce::Error> {
//! let mut client = bindonce::Client::connect(&bindonce::default_socket())?;
//! let leases = client.claim(&["web=0.0.0.0:8080".into()])?;
//! for lease in leases {
//!     println!("{} listens on {}", lease.name(), lease.bound());
//!     let listener = lease.into_tcp_acceptor()?;
//!     // listener.accept(None) ...
//! }
//! // As long as `client` lives, the broker counts this process as a user of the
//! // listener and refuses to release it to anybody else.
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] blocks; with the feature `tokio`, [`aio::Client`] has the same verbs.
//! Both have a deadline on every call, [`DEFAULT_TIMEOUT`] if nothing is said.
//!
//! # What a server must know about a shared socket
//! The descriptors are non-blocking, and that flag belongs to the socket, not
//! to the process: whoever changes it, changes it for every holder. So nothing here
//! changes it. `accept` on a std listener may return `WouldBlock`; use
//! [`Acceptor`], which waits with poll(2), or a runtime like tokio. For the same
//! reason never call shutdown(2) on a listener, and never `set_nonblocking(false)`.
//! Dropping a listener closes this process's descriptor; the socket lives on.

#![forbid(unsafe_code)]

mod acceptor;
#[cfg(feature = "tokio")]
pub mod aio;
mod blocking;
mod claim;
mod error;
mod follow;
mod generation;
mod lease;
mod session;
mod socket;
mod standing;
mod transfer;
mod verbs;

pub use acceptor::{Accepted, Acceptor, wait_readable};
pub use bindonce_core::name::{InvalidName, Name};
pub use bindonce_core::time::Timestamp;
pub use bindonce_wire::event::Event;
pub use bindonce_wire::params::{Join, State};
pub use bindonce_wire::result::{
    BrokerInfo, ChangedOption, EventsResult, GenerationInfo, HolderInfo, ListResult, ListenerInfo,
    PingResult, ServiceInfo, StatusResult,
};
pub use bindonce_wire::{ErrorCode, RpcError};
pub use blocking::Client;
pub use claim::{Claim, Give};
pub use error::Error;
pub use follow::Follower;
pub use generation::Generation;
pub use lease::Lease;
pub use session::{DEFAULT_TIMEOUT, MAX_REPLY};
pub use socket::default_socket;
pub use standing::Stopped;
