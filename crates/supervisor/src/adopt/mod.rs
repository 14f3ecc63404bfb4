//! The way in: taking the listening sockets of a program that runs already, haproxy above all,
//! and ending it afterwards with proof.
//!
//! [`Running`] has duplicates of a program's listening sockets, by haproxy's own hand-over
//! ([`exported`]) or straight from the process. Taking them changes nothing for the program: it
//! accepts on, on the same sockets. When something else serves on them, [`retire`] tells it to
//! stop and proves that it has.

mod error;
mod exported;
mod replaced;
mod retire;
mod running;

pub use error::Error;
pub use exported::{Exported, exported};
pub use replaced::Replaced;
pub(crate) use replaced::{ServedNow, end, shut_down};
pub use retire::{Migration, Retired, Served, retire};
pub use running::{Running, Socket, belongs_to, command_of, configured, listening_of, master_of};
