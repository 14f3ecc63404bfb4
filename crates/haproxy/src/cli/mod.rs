//! haproxy's admin CLI (management guide, section 9.3, "Unix Socket commands") and the differences
//! between versions: parses the text of an answer into values. The caller has the connection and
//! sends the commands.

mod descriptors;
mod hard_stop;
mod idle;
mod info;
mod level;
pub mod master;
mod peers;
mod quic;
mod sessions;
mod version;

pub use descriptors::descriptor;
pub use hard_stop::connections_cut;
pub use idle::{idle_connections, show_fds};
pub use info::Info;
pub use level::Level;
pub use peers::sections_that_learn;
pub use quic::Quic;
pub use sessions::{Session, oldest_sessions};
pub use version::Version;

/// The end of every answer in interactive mode (`prompt`).
pub const PROMPT: &str = "\n> ";
