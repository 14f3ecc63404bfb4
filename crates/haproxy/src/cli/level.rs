//! The rights of a CLI client (configuration manual, section 5.1, "level").

use std::fmt;

/// The rights of a CLI client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Read what is not sensitive.
    User,
    /// The default of an admin socket: read everything, change what is harmless.
    Operator,
    /// Everything.
    Admin,
}

impl Level {
    /// All levels.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::User];

    /// Reads the name of a level.
    pub fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.to_string() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}
