//! The language of the master CLI (management guide, section 9.4): [`Input`] cuts a client's input
//! into commands, a [`Session`] keeps the state of a connection and decides where each command
//! goes, and [`Order`] is a command for the master itself. The version of the running haproxy
//! decides where versions differ.

mod facts;
mod help;
mod input;
mod order;
mod session;

pub use facts::{Process, Processes};
pub use help::{Wanted, help};
pub use input::{Input, LONGEST_LINE, LONGEST_REQUEST, Next};
pub use order::{Order, denied};
pub use session::{Session, Step, Target};

use super::Version;

/// From this version on `prompt` has modes, and `@@` is known.
const MODES: Version = Version { major: 3, minor: 1, patch: 0 };

/// From this version on the prompt can show a time, and the client can choose the end of a payload.
const TIMED: Version = Version { major: 3, minor: 0, patch: 0 };

/// Whether a refused command ends the connection.
pub fn ends_when_refused(version: Version) -> bool {
    version < TIMED
}

/// Whether this version knows `@@`.
pub fn has_both(version: Version) -> bool {
    version >= MODES
}

/// From this version on showing the processes needs the level of an operator.
const GUARDED: Version = Version { major: 3, minor: 2, patch: 0 };
