//! Adoption: taking the listening sockets of a program that already runs, haproxy above all, and
//! ending that program afterwards with proof.
//!
//! [`Running`] has duplicates of a program's listening sockets, from haproxy's own handover
//! ([`exported()`]) or straight from the process. The program does not notice, and still accepts on
//! them. When another process serves on them, [`retire()`] tells it to stop and proves that it has.

mod error;
mod exported;
mod give;
mod replaced;
mod retire;
mod running;

pub use error::Error;
pub use exported::{Exported, exported};
pub(crate) use give::give;
pub use replaced::Replaced;
pub(crate) use replaced::{ServedNow, Taken, end, shut_down};
pub use retire::{Migration, Retired, Served, expect_haproxy, retire, would_retire};
pub use running::{
    Running, Socket, belongs_to, command_of, configured, listening_of, master_of, needs_directory,
};
