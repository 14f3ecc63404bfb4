//! What a client of a CLI may do (configuration manual, section 5.1, "level").

use std::fmt;

/// What a client of a CLI may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Look at what is not sensitive.
    User,
    /// The default of an admin socket: look at everything, change what is harmless.
    Operator,
    /// Everything.
    Admin,
}

impl Level {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::User];

    /// Reads its name.
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
