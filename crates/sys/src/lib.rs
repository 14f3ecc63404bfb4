//! Every system call of bindonce that needs care.
//!
//! This crate is the only one that may use `unsafe` (capi takes pointers from C), and the only one that
//! knows how Linux spells things: which socket options make an address
//! exclusive, where the accept
//! queue's length can be read, how a process is named without a race. Above it
//! everything is typed: owned descriptors, addresses of `bindonce-core`, and
//! errors that say which call failed on what.
//!
//! From the most to the least important:
//! - [`listen`] creates listeners (`bindonce-fd` passes them between processes);
//! - [`queue`], [`diag`], [`holders`], [`epoll`] and [`ghosts`] tell who holds and who
//!   accepts, from the kernel's own books;
//! - [`guard`], [`options`] and [`identity`] tell what a shared socket is and what others
//!   have done to it; [`hidden`] keeps new connections from one;
//! - [`executable`], [`spawn`], [`shim`], [`tether`], [`inherit`], [`process`], [`tree`] and [`signals`] start and end programs;
//!   [`hold`] stops one at the moment when it says that it is ready, [`intercept`] answers its bind(2) and listen(2);
//! - [`watch`] waits for a descriptor, [`changes`] for files; [`probe`] puts an entry
//!   into an accept queue;
//! - [`silence`] ends connections of another process on which nothing comes;
//! - [`network`] is a network of one's own;
//! - [`terminal`] is the one that a person sits at;
//! - [`directory`] opens where files lie, so that a path leads nowhere else;
//! - [`closing`], [`file`], [`log`], [`subprocess`] and [`worker`] keep what may wait away from the thread that decides;
//! - [`peer`], [`limits`], [`lock`], [`memory`] and [`privileges`]
//!   are what a daemon needs; [`trusted`] tells whether others could replace its files.

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
