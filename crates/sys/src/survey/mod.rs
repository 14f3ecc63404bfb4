//! A look at the whole system: every network namespace that may be entered, and
//! what every process has to do with a set of sockets, in one pass over /proc.
//!
//! Nothing here disturbs what it looks at: it reads, and it stops nobody. It
//! costs about two microseconds for each open descriptor of the system, and
//! memory only for what concerns the sockets that were asked for.

mod descriptors;
mod namespaces;
mod network;
mod processes;
mod sharing;
mod waits;

pub use descriptors::sockets;
pub use namespaces::{Namespace, Namespaces};
pub use network::{Counters, counters, open_files};
pub use processes::{Process, Processes, Registration};
pub use sharing::joinable;

/// The unit of [`Process::started`] and [`Process::used`]: never 0.
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// The entries of a directory of /proc that are numbers; none if it cannot be read.
fn numbered(directory: &std::path::Path) -> Option<Vec<i32>> {
    let entries = std::fs::read_dir(directory).ok()?;
    Some(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
