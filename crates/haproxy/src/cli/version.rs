//! haproxy's version, as far as its behaviour depends on it.

use std::fmt;

/// Major, minor and patch level; a development version counts as patch level 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 3 of 3.2.26.
    pub major: u32,
    /// 2 of 3.2.26.
    pub minor: u32,
    /// 26 of 3.2.26.
    pub patch: u32,
}

/// From this version on SIGTTOU pauses a listener that came as `fd@`, and SIGTTIN resumes it.
/// Before, SIGTTOU stops the listener for good, or disconnects the shared socket.
const PAUSES: Version = Version { major: 2, minor: 6, patch: 12 };

/// From this version on that holds for UNIX listeners too: 2.6.12 reports that it has paused them
/// and continues to accept (tried with 2.6.12, 3.0.11 and 3.2.26).
const PAUSES_UNIX: Version = Version { major: 3, minor: 0, patch: 0 };

/// From this version on haproxy binds an abstract name again after a pause has released it.
const RESUMES_ABSTRACT: Version = Version { major: 3, minor: 0, patch: 0 };

impl Version {
    /// Reads the numbers at the front of `2.6.12-1+deb12u4` or `3.5-dev5`; a missing number is 0.
    pub fn read(text: &str) -> Self {
        let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or("");
        let mut numbers = numbers.split('.').map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { major: next(), minor: next(), patch: next() }
    }

    /// Reads the output of `haproxy -v`.
    pub fn of_banner(text: &str) -> Self {
        // `HAProxy version 2.6.12-1+deb12u4 2026/10/17`; before 2.0 the first word was `HA-Proxy`.
        Self::read(text.split_whitespace().nth(2).unwrap_or_default())
    }

    /// Whether SIGTTOU pauses this version without harm.
    pub fn pauses(self) -> bool {
        self >= PAUSES
    }

    /// Whether haproxy binds its own abstract names again on SIGTTIN.
    pub fn resumes_abstract(self) -> bool {
        self >= RESUMES_ABSTRACT
    }

    /// Whether SIGTTOU pauses UNIX listeners of this version.
    pub fn pauses_unix(self) -> bool {
        self >= PAUSES_UNIX
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_binary_prints() {
        let expected = Version { major: 2, minor: 6, patch: 12 };
        for name in ["HAProxy", "HA-Proxy"] {
            let text =
                format!("{name} version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n");
            assert_eq!(Version::of_banner(&text), expected);
        }
        assert_eq!(Version::of_banner(""), Version::default());
    }

    #[test]
    fn knows_which_versions_pause() {
        for (text, pauses) in [
            ("2.6.12-1+deb12u4", true),
            ("2.6.11", false),
            ("2.8.0", true),
            ("3.5-dev5-abc", true),
            ("2.4.0", false),
            ("1.8.0", false),
            ("", false),
            ("garbage", false),
        ] {
            assert_eq!(Version::read(text).pauses(), pauses, "{text}");
            let unix = pauses && Version::read(text).major >= 3;
            assert_eq!(Version::read(text).pauses_unix(), unix, "{text}");
        }
    }
}
