//! The Linux system calls of bindonce that need care.
//!
//! All `unsafe` code is here, except for the C pointers of capi and the descriptors of `LISTEN_FDS`
//! in fd. This crate knows the Linux specifics: which socket options make an address exclusive,
//! where to read the length of an accept queue, how to name a process without a race. Crates above
//! it see typed values: owned descriptors, addresses of `bindonce-core`, and errors that say which
//! call failed on what.
//!
//! The modules, most important first:
//! - [`listen`] creates listeners (`bindonce-fd` passes them between processes);
//! - [`queue`], [`diag`], [`holders`], [`epoll`] and [`ghosts`] find out from the kernel who holds
//!   a socket and who accepts on it;
//! - [`guard`], [`options`] and [`identity`] describe a shared socket and detect what other holders
//!   did to it, [`remembered`] puts its options back; [`hidden`] keeps new connections away from a
//!   socket;
//! - [`executable`], [`spawn`], [`shim`], [`tether`], [`inherit`], [`process`], [`tree`] and
//!   [`signals`] start and end programs; [`hold`] stops a program when it signals readiness,
//!   [`intercept`] answers its bind(2) and listen(2);
//! - [`watch`] waits for a descriptor, [`changes`] for files; [`probe`] puts an entry into an
//!   accept queue;
//! - [`silence`] ends idle connections of another process;
//! - [`network`] creates a private network namespace;
//! - [`terminal`] controls the user's terminal;
//! - [`directory`] opens the directory of a file so that nobody can redirect the path;
//! - [`closing`], [`file`], [`log`], [`subprocess`] and [`worker`] keep blocking work off the main
//!   thread;
//! - [`peer`], [`limits`], [`lock`], [`memory`] and [`privileges`] are for daemons; [`trusted`]
//!   checks whether other users could replace a daemon's files.

mod calls;
pub mod changes;
pub mod clock;
pub mod closing;
pub mod diag;
pub mod directory;
pub mod epoll;
pub mod exchange;
pub mod executable;
pub mod file;
mod filter;
pub mod ghosts;
pub mod guard;
pub mod hidden;
pub mod hold;
pub mod holders;
pub mod identity;
pub mod inherit;
pub mod intercept;
pub mod limits;
pub mod listen;
pub mod lock;
pub mod log;
pub mod memory;
pub mod network;
pub mod options;
pub mod patience;
pub mod peer;
pub mod privileges;
pub mod probe;
pub mod process;
pub mod queue;
pub mod remembered;
pub mod shim;
pub mod signals;
pub mod silence;
pub mod spawn;
pub mod subprocess;
pub mod terminal;
pub mod tether;
pub mod tree;
pub mod trusted;
pub mod unreceived;
pub mod watch;
pub mod worker;

mod error;
mod netlink;
mod numbers;
mod path_walk;

pub use error::Error;
pub use nix::errno::Errno;

#[cfg(test)]
mod testing;
