//! Listening sockets that outlive the processes that serve on them. Each start of a server takes
//! over from the one before: no connection is refused, and no two processes accept at once.
//!
//! The **broker**, `bindonce serve`, is a small process that binds every address exactly once. A
//! server **claims** listeners: it gets descriptors of the broker's own sockets, the same sockets
//! at each start. While no process accepts, clients wait in the accept queue.
//!
//! | you have | use |
//! |---|---|
//! | a server that is replaced by a newer start of itself | [`Generation`], or `aio::Generation` for tokio |
//! | a program that only needs a socket | [`Client`], or `aio::Client` |
//! | a tool that shows listeners and events | [`Client::status`], [`Follower`] |
//!
//! # A server that takes over from the previous one
//! Whatever starts your processes (a shell, systemd, a container) starts the new one as usual. The
//! new process joins, does the slow part of its start, reports that it is ready, and begins to
//! accept when the old process has stopped. The old process finishes the connections that it has
//! accepted and ends.
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
//! Several threads that accept need a common signal to stop. One thread waits in
//! [`Generation::retired`] and then drops one end of a `UnixStream::pair()`; the other threads pass
//! the other end to [`Acceptor::accept_or_stop`]. With tokio tasks, use a `tokio::sync::watch`.
//!
//! `aio::Generation` shows the same for tokio. The [examples] are whole servers, also on hyper and
//! axum (with `bindonce::hyper`) and for UDP. To try them, start a broker: `bindonce serve`.
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
//! The sockets are non-blocking. That flag belongs to the socket, not to the process: a change
//! applies to every holder, so this crate never changes it. `accept` on a std listener may return
//! `WouldBlock`: use [`Acceptor`], which waits with poll(2), or a runtime like tokio. For the same
//! reason, never call shutdown(2) or `set_nonblocking(false)` on a listener. Dropping a listener
//! closes this process's descriptor; the socket lives on.
//!
//! # Time, threads, errors
//! Every request to the broker has a deadline: [`DEFAULT_TIMEOUT`], or the timeout that the caller
//! sets. Time in which this process is stopped (SIGSTOP, a frozen container) does not count. This
//! crate starts no thread, and spawns tasks only for `hyper::Connections`; connecting with tokio
//! uses one of the runtime's blocking threads. Nothing here panics, whatever the broker sends.
//! There is one error type, [`Error`]; [`Error::hint`] says what a person can do next.
//!
//! # Features
//! - `tokio` (off): the module `aio`, with the same client and generation as futures, and
//!   conversions of a [`Lease`] into tokio's listeners.
//! - `hyper` (off): the module `hyper`, which ends hyper connections without a reset.
//!
//! [examples]: https://github.com/bindonce/bindonce/tree/main/crates/client/examples

#![forbid(unsafe_code)]
// docs.rs uses it to show which items need a feature.
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
