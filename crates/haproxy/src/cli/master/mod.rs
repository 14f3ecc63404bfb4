//! The master CLI's language (management guide, section 9.4): what a client sends is cut into commands ([`Input`]), a [`Session`]
//! keeps what holds for its connection and says where each command goes, and [`Order`] is what the master itself is asked
//! for. Versions differ, and that of the haproxy that is run decides.

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

/// From here on `prompt` has modes, and `@@` is known.
const MODES: Version = Version { major: 3, minor: 1, patch: 0 };

/// From here on the prompt can show a time, and a payload can end with a word of the client's.
const TIMED: Version = Version { major: 3, minor: 0, patch: 0 };

/// Whether a command that is refused ends the connection.
pub fn ends_when_refused(version: Version) -> bool {
    version < TIMED
}

/// Whether `@@` is known.
pub fn has_both(version: Version) -> bool {
    version >= MODES
}

/// From here on what shows the processes needs the level of an operator.
const GUARDED: Version = Version { major: 3, minor: 2, patch: 0 };
