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
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//! use std::thread;
//! use std::time::{Duration, Instant};
//!
//! use bindonce::{Accepted, Generation, Stopped};
//!
//! fn serve(mut stream: TcpStream) -> std::io::Result<()> {
//!     stream.set_read_timeout(Some(Duration::from_secs(5)))?;
//!     stream.read(&mut [0; 1024])?;
//!     stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n")
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut generation = Generation::join(&"edge".parse()?)?;
//!     // Read configuration, warm caches ... If any of it fails, just exit: the generation that
//!     // serves is not disturbed.
//!
//!     // Each connection's thread has one end; the other becomes readable when the last has dropped it.
//!     let (finished, connected) = UnixStream::pair()?;
//!     let connected = Arc::new(connected);
//!     loop {
//!         let acceptor = generation.claim_one("web=0.0.0.0:8080")?.into_tcp_acceptor()?;
//!         // Waits until the generation before accepts no more.
//!         generation.ready(None)?;
//!         loop {
//!             match acceptor.accept_or_stop(&generation, None)? {
//!                 Accepted::Connection(stream, _) => {
//!                     let connected = Arc::clone(&connected);
//!                     let thread = thread::Builder::new().spawn(move || {
//!                         // A client that resets its connection is its own affair.
//!                         let _ = serve(stream);
//!                         drop(connected);
//!                     });
//!                     if let Err(error) = thread {
//!                         eprintln!("a client was turned away: {error}");
//!                     }
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
//!     drop(connected);
//!     generation.drain(finished, Some(Instant::now() + Duration::from_secs(30)))?;
//!     generation.drained();
//!     Ok(())
//! }
//! ```
//!
//! Several threads that accept need one signal to stop: let one wait in [`Generation::retired`] and then drop one
//! end of a `UnixStream::pair()`; the others give the other end to [`Acceptor::accept_or_stop`]. Tasks of tokio take
//! a `tokio::sync::watch`.
//!
//! The same for tokio is in the description of `aio::Generation`, and whole servers, also on hyper and axum,
//! (with `bindonce::hyper`), and UDP, are in the [examples]. A broker for trying it out is one command: `bindonce serve`.
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
//! - `hyper` (off): the module `hyper`, with connections of hyper that end without a reset.
//!
//! [examples]: https://github.com/bindonce/bindonce/tree/main/crates/client/examples

#![forbid(unsafe_code)]
// docs.rs shows with it which items need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acceptor;
#[cfg(feature = "tokio")]
pub mod aio;
mod alone;
mod backoff;
mod blocking;
mod claim;
mod error;
mod follow;
mod generation;
#[cfg(feature = "hyper")]
pub mod hyper;
mod lease;
mod membership;
mod session;
mod socket;
mod transfer;
mod verbs;

pub use acceptor::{Accepted, Acceptor, Ready, wait_readable, wait_readable_or_stop};
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
