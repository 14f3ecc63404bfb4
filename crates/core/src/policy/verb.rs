//! The verbs that a rule can allow.

use std::fmt;
use std::str::FromStr;

/// What a client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Bind an address that is not held yet, or change its options; includes [`Verb::Use`].
    Bind,
    /// Receive the descriptor of a held listener.
    Use,
    /// See what is held, and by whom.
    List,
    /// Close a listener.
    Release,
    /// Give the broker a socket that the caller holds.
    Store,
    /// Replace the broker.
    Admin,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Bind, Self::Use, Self::List, Self::Release, Self::Store, Self::Admin];

    /// The word in a rule.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Use => "use",
            Self::List => "list",
            Self::Release => "release",
            Self::Store => "store",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "administer",
            other => other.word(),
        })
    }
}

/// A word that is not a verb.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be allowed: the verbs are bind, use, list, release, store and admin")]
pub struct UnknownVerb(pub String);

impl FromStr for Verb {
    type Err = UnknownVerb;

    fn from_str(text: &str) -> Result<Self, UnknownVerb> {
        let found = Self::ALL.into_iter().find(|verb| verb.word() == text);
        found.ok_or_else(|| UnknownVerb(text.chars().take(120).collect()))
    }
}
