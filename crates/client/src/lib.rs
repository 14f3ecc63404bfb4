//! Listening sockets that outlive the process that serves on them, and servers that take over from
//! each other without a refused connection and without two that accept.
//!
//! The sockets are those of the **broker**, `bindonce serve`, a small process that binds every
//! address exactly once. A server **claims** them: it gets descriptors of the broker's own sockets,
//! the same for each start of it. While no process accepts, clients wait in the socket's queue.
//!
//! | you have | take |
//! |---|---|
//! | a server that is replaced by a newer start of itself | [`Generation`], or `aio::Generation` for tokio |
//! | a program that needs a socket, and nobody to take over from | [`Client`], or `aio::Client` |
//! | a look at what is held, and what happens | [`Client::status`], [`Follower`] |
//!
//! # A server that takes over from the one before
//! What starts your processes (a shell, systemd, a container) simply starts the new one. It joins, does
//! whatever takes long in a start, says that it is ready, and begins to accept when the old one
//! has stopped; the old one finishes what it has accepted and ends.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use std::thread::{self, JoinHandle};
//!
//! use bindonce::{Accepted, Generation, Stopped};
//!
//! fn serve(mut stream: TcpStream) -> std::io::Result<()> {
//!     stream.read(&mut [0; 1024])?;
//!     stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n")
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut generation = Generation::join(&"edge".parse()?)?;
//!     // Read configuration, warm caches ... If any of it fails, just exit: the generation that
//!     // serves is not disturbed.
//!     let mut connections = Vec::new();
//!     loop {
//!         let lease = generation.claim(&["web=0.0.0.0:8080".into()])?.remove(0);
//!         let acceptor = lease.into_tcp_acceptor()?;
//!         // Waits until the generation before accepts no more.
//!         generation.ready(None)?;
//!         loop {
//!             match acceptor.accept_or_stop(&generation, None)? {
//!                 Accepted::Connection(stream, _) => {
//!                     connections.retain(|thread: &JoinHandle<_>| !thread.is_finished());
//!                     connections.push(thread::spawn(|| serve(stream)));
//!                 }
//!                 // The broker has said something: that a newer generation is ready?
//!                 Accepted::Stopped if generation.has_retired()? => break,
//!                 Accepted::Stopped => {}
//!             }
//!         }
//!         // Closes this process's descriptor; the socket lives on. At the word that follows the
//!         // newer generation is let in.
//!         drop(acceptor);
//!         match generation.stopped()? {
//!             Stopped::Retired => break,
//!             // The newer one has died before it was let in: serve on.
//!             Stopped::Recalled => {}
//!         }
//!     }
//!     for connection in connections {
//!         connection.join().map_err(|_| "a connection's thread has panicked")??;
//!     }
//!     generation.drained();
//!     Ok(())
//! }
//! ```
//!
//! The same for tokio is in the description of `aio::Generation`, and whole servers, also on hyper and axum,
//! are in the [examples]. A broker for trying it out is one command: `bindonce serve`.
//!
//! # A program that only needs a socket
//!
//! ```no_run
//! # fn main() -> Result<(), bindonce::Error> {
//! let mut client = bindonce::Client::connect(&bindonce::default_socket())?;
//! for lease in client.claim(&["web=0.0.0.0:8080".into(), "dns=udp4@:53".into()])? {
//!     println!("{} is {}", lease.name(), lease.bound());
//! }
//! // As long as `client` lives, the broker counts this process as a user of the
//! // listeners and refuses to release them to anybody else.
//! # Ok(())
//! # }
//! ```
//!
//! # What a server must know about a shared socket
//! The descriptors are non-blocking, and that flag belongs to the socket, not
//! to the process: a change of it changes it for every holder. So nothing here
//! changes it. `accept` on a std listener may return `WouldBlock`; use
//! [`Acceptor`], which waits with poll(2), or a runtime like tokio. For the same
//! reason never call shutdown(2) on a listener, and never `set_nonblocking(false)`.
//! Dropping a listener closes this process's descriptor; the socket lives on.
//!
//! # Time, threads, errors
//! Every call has a deadline: [`DEFAULT_TIMEOUT`], or what the caller says. No thread is started and no
//! task is spawned (except that connecting with tokio borrows one of the runtime's blocking threads). Nothing here panics, whatever
//! the broker sends. There is one error type, [`Error`]; [`Error::hint`] says what a person can do next.
//!
//! # Features
//! - `tokio` (off): the module `aio`, with the same client and generation as futures, and the
//!   conversions of a [`Lease`] into tokio's listeners.
//!
//! [examples]: https://github.com/bindonce/bindonce/tree/main/crates/client/examples

#![forbid(unsafe_code)]
// docs.rs shows with it which items need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acceptor;
#[cfg(feature = "tokio")]
pub mod aio;
mod blocking;
mod claim;
mod error;
mod follow;
mod generation;
mod lease;
mod membership;
mod session;
mod socket;
mod transfer;
mod verbs;

pub use acceptor::{Accepted, Acceptor, wait_readable};
pub use bindonce_core::name::{InvalidName, Name};
pub use bindonce_core::time::Timestamp;
pub use bindonce_wire::event::Event;
pub use bindonce_wire::params::{Join, State};
pub use bindonce_wire::result::{
    BrokerInfo, ChangedOption, EventsResult, GenerationInfo, HolderInfo, ListResult, ListenerInfo,
    PingResult, Problem, ServiceInfo, StatusResult,
};
pub use bindonce_wire::{ErrorCode, RpcError};
pub use blocking::Client;
pub use claim::{Claim, Give};
pub use error::Error;
pub use follow::Follower;
pub use generation::Generation;
pub use lease::Lease;
pub use membership::Stopped;
pub use session::{DEFAULT_TIMEOUT, MAX_REPLY};
pub use socket::default_socket;
