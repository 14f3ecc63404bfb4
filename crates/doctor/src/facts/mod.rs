//! The facts about a host, as plain values: the survey collects them, and the diagnosis and the
//! text read them. Each fact is declared here once; `doctor --json` serialises these types.
//!
//! [`Look`] is one look at the host; [`Process`] decides whether a process accepts from a socket;
//! [`Details`] is collected only when a finding needs it.

mod answers;
mod details;
mod look;
mod process;

pub use answers::{Answered, Answers};
pub(crate) use details::{Connections, Details, Questions};
pub(crate) use look::percent;
pub(crate) use look::{Broker, Gauge, Look, Mode, Network, Ports, Socket, Unseen};
pub(crate) use process::{Accepting, Activity, Process, Registration, Usage};
