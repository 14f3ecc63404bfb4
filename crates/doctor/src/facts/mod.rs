//! What was seen of a host, as plain values: the survey makes them, the diagnosis and the text
//! read them, and nothing else says the same again. What `doctor --json` shows is serialised
//! from here.
//!
//! [`Look`] is one look at the host; [`Process`] answers whether a process accepts from a
//! socket; [`Details`] is what is asked for only once a finding needs it.

mod answers;
mod details;
mod look;
mod process;

pub use answers::{Answered, Answers};
pub(crate) use details::{Connections, Details, Questions};
pub(crate) use look::percent;
pub(crate) use look::{Broker, Gauge, Look, Mode, Network, Ports, Socket, Unseen};
pub(crate) use process::{Accepting, Activity, Process, Registration, Usage};
