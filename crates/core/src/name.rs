//! Names that people give to listeners and services.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::shown;

/// The longest name, in bytes.
pub const MAX_LEN: usize = 63;

/// The service that commands of `bindonce` mean without `--name`.
pub const DEFAULT_SERVICE: &str = "haproxy";

/// A name for a listener or a service: `[A-Za-z_][A-Za-z0-9_.-]*`, at most
/// [`MAX_LEN`] bytes. It can stand in a path, in an environment variable (after
/// [`Name::variable`]) and in systemd's colon-separated `LISTEN_FDNAMES`. Made by `parse`:
/// `"edge".parse::<Name>()`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: it starts with a letter or `_`, continues with letters, digits, `_`, `.` \
     or `-`, and has at most 63 bytes"
)]
#[non_exhaustive]
pub struct InvalidName(pub String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the environment variable for this listener: the name itself,
    /// with `_` where a shell or haproxy would not take the character.
    pub fn variable(&self) -> String {
        self.0.replace(['.', '-'], "_")
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.len() <= MAX_LEN && text.starts_with(first) && text.chars().all(rest) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(shown(text)))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// The option with which a command of `bindonce` means the service of this name, after a space.
/// Empty for the service that it means without one.
pub fn service_option(name: &Name) -> String {
    if name.0 == DEFAULT_SERVICE { String::new() } else { format!(" --name {name}") }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_a_variable_and_a_path_can_hold() {
        for good in ["web", "_x", "web-8000", "edge.eu", "A9"] {
            assert_eq!(good.parse::<Name>().expect(good).as_str(), good);
        }
        for bad in ["", "9a", "-a", "a b", "a:b", "a/b", "a=b", "ä", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_names_every_service_but_the_default_one() {
        let option = |name: &str| service_option(&name.parse().expect("name"));
        assert_eq!((option("web"), option("haproxy")), (" --name web".to_owned(), String::new()));
    }

    #[test]
    fn variable_has_no_dot_or_dash() {
        assert_eq!("edge.eu-1".parse::<Name>().expect("name").variable(), "edge_eu_1");
    }
}
