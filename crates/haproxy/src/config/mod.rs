//! Reads a user's haproxy configuration and renders the copy that haproxy is started on.
//!
//! The user's files stay as they are. [`Rendering::of`] reads them with haproxy's own rules for
//! words, quotes, variables and conditions, collects the address of every `bind` line, and writes a
//! copy of each file in which a descriptor replaces the address word of such a line and little
//! else. Lines keep their numbers. [`Messages`] puts the user's paths, addresses and quoted lines
//! back into haproxy's messages.
//!
//! Everything here is a function of its arguments: files, environment, host names and haproxy's own
//! answers come through [`World`]; [`System`] is the real one.

mod address;
mod ask;
mod binds;
mod claims;
pub mod command;
mod conditions;
mod default_path;
mod edits;
mod error;
mod expression;
mod files;
mod global;
pub mod keyword;
mod listeners;
mod master_socket;
mod messages;
mod options;
mod own_sockets;
mod paths;
mod pid_file;
mod questions;
mod quoting;
pub mod reader;
mod remembered;
mod render;
mod rendering;
mod reread;
mod saved;
mod sections;
mod server_state;
mod state;
mod stats_file;
mod system;
pub mod templates;
mod unknowns;
mod walk;
mod world;

pub use address::loose_ports;
pub use command::{Command, Master, Role};
pub use error::{Clash, Error, Place};
pub use master_socket::{MasterAddress, MasterSocket};
pub use messages::Messages;
use paths::PathMap;
pub use questions::{Answers, Questions};
pub use rendering::{
    Binding, Change, LeftAlone, ProcessMode, RenderedFile, Rendering, Supplied, Variable,
};
pub use saved::Text;
pub use server_state::ServerState;
pub use stats_file::{Guids, StatsFile};
pub use system::{Descriptors, System};
pub use world::{Environment, Family, World};

/// Connections that the supervisor may have to a generation's admin socket: its own, and a spare for
/// each level of the master CLI.
pub const ADMIN_CONNECTIONS: u64 = 4;
/// How many connections the admin sockets of a haproxy may have together without `stats maxconn`.
/// Source: haproxy configuration manual, "stats maxconn".
pub const STATS_MAXCONN: u64 = 10;
