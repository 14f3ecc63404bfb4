//! The values and decisions of [bindonce](https://github.com/bindonce/bindonce): which address is
//! bound, who uses it, and which generation of a service accepts. Pure: no system call, no file, no
//! clock.
//!
//! bindonce is a broker for listening sockets on Linux. It binds each address once and hands the
//! same socket to each start of a server, so a restart refuses no client. **To write such a server,
//! use the crate [`bindonce`](https://docs.rs/bindonce)**: it has the types of this crate that it
//! needs. Use this crate to read or check listeners as the broker does, or to write a broker, a
//! test or a tool beside it.
//!
//! | you want | look at |
//! |---|---|
//! | to read `web=0.0.0.0:80,backlog=4096` | [`listener::ListenSpec`], [`address::Address`] |
//! | to know whether two addresses overlap | [`listener::Key`], by [`listener::Listener::key`] |
//! | to decide what is bound, and for whom | [`registry::Registry`] |
//! | to decide who may have a listener | [`policy`] |
//! | the order of a service's generations | [`succession`], [`generation`] |
//!
//! # Example
//! The registry decides and its caller performs the actions. Time and sockets are values: here a
//! socket is a number.
//!
//! ```
//! use bindonce_core::listener::{ListenSpec, Wanted};
//! use bindonce_core::policy::Peer;
//! use bindonce_core::registry::{Action, ConnectionId, Event, Opened, Registry, Want};
//! use bindonce_core::time::Timestamp;
//!
//! let spec: ListenSpec = "web=0.0.0.0:80,backlog=4096".parse()?;
//! let want = Want { wanted: Wanted::Listen(spec), tentative: false, change: false, held: false };
//!
//! let mut registry: Registry<u32> = Registry::default();
//! let (one, two, now) = (ConnectionId(1), ConnectionId(2), Timestamp(0));
//! let peer = Peer { pid: 40, uid: 0, gid: 0 };
//! registry.on(now, Event::Connected(one, peer));
//! registry.on(now, Event::Connected(two, peer));
//!
//! // Nobody has the address yet: it is to be opened.
//! let actions = registry.on(now, Event::Claim(one, vec![want.clone()].into()));
//! let [Action::Open(_, listeners, _)] = &actions[..] else { panic!("{actions:?}") };
//! let opened = Opened {
//!     handle: 7,
//!     bound: listeners[0].address.clone(),
//!     inode: 4711,
//!     cookie: 1,
//!     backlog: 4096,
//!     exclusive: true,
//! };
//! let actions = registry.on(now, Event::Opened(one, vec![opened]));
//! assert!(matches!(actions[..], [Action::Grant(..)]));
//!
//! // The second client gets the same listener, and nothing is opened.
//! let actions = registry.on(now, Event::Claim(two, vec![want].into()));
//! assert!(matches!(actions[..], [Action::Grant(..)]));
//! assert_eq!(registry.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This is floor 0 of bindonce (docs/architecture.md): nothing here touches the system, so its
//! invariants are property-tested without a socket.

#![forbid(unsafe_code)]

pub mod address;
pub mod adoption;
pub mod budget;
pub mod duration;
pub mod error;
pub mod event;
pub mod generation;
pub mod history;
pub mod intercept;
mod key;
pub mod listener;
pub mod name;
mod options;
pub mod patience;
pub mod policy;
pub mod registry;
mod serial;
pub mod succession;
pub mod text;
pub mod time;
pub mod turns;
