//! Floor 0 of bindonce: everything that can be decided without the system.
//!
//! Addresses and listeners as typed values, the registry of what is bound and
//! who uses it, the life of generations, and who may do what. Nothing here
//! makes a system call, reads a file or looks at a clock: time and handles come
//! in as values, decisions go out as values, so that the invariants of
//! docs/architecture.md are property-tested without a socket.

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
pub mod policy;
pub mod registry;
pub mod succession;
pub mod text;
pub mod time;
pub mod turns;
