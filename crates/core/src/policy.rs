//! Who may do what, decided from the credentials that the kernel vouches for
//! (SO_PEERCRED, unix(7)).
//!
//! The rule: root and the user the broker runs as may do everything, everybody
//! else nothing. Every question names its verb and address, so that finer rules
//! change this file alone.

use std::fmt;

use crate::address::Address;

/// Who is at the other end of a connection, as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Process id, 0 where it is not visible from here (another pid namespace).
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} (pid {})", self.uid, self.pid)
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Have an address bound that is not held yet.
    Bind,
    /// Receive the descriptor of a listener that is held.
    Use,
    /// See what is held, and by whom.
    List,
    /// Have a listener closed.
    Release,
    /// Give the broker a socket that the caller holds.
    Store,
    /// Replace or stop the broker.
    Admin,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "bind",
            Self::Use => "use",
            Self::List => "list",
            Self::Release => "release",
            Self::Store => "store",
            Self::Admin => "administer",
        })
    }
}

/// The answer of a [`Policy`].
#[must_use = "a verdict that nobody looks at allows everything"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Refuse, and say this.
    Deny(Denial),
}

impl Verdict {
    /// `Ok` where it allows, for use with `?`.
    pub fn into_result(self) -> Result<(), Denial> {
        match self {
            Self::Allow => Ok(()),
            Self::Deny(denial) => Err(denial),
        }
    }
}

/// Who was refused what, and who would not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{peer} may not {verb} {}: only root and uid {owner} may",
    .address.as_ref().map_or_else(|| "listeners".to_owned(), Address::to_string)
)]
pub struct Denial {
    /// Who asked.
    pub peer: Peer,
    /// What for.
    pub verb: Verb,
    /// Which address, where the question was about one.
    pub address: Option<Address>,
    /// The user the broker runs as.
    pub owner: u32,
}

/// The rules of one broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    owner: u32,
}

impl Policy {
    /// Root and this user may do everything, everybody else nothing.
    pub fn owner_only(uid: u32) -> Self {
        Self { owner: uid }
    }

    /// Whether `peer` may do `verb`, to `address` where one is meant.
    pub fn judge(&self, peer: Peer, verb: Verb, address: Option<&Address>) -> Verdict {
        if peer.uid == 0 || peer.uid == self.owner {
            Verdict::Allow
        } else {
            let address = address.cloned();
            Verdict::Deny(Denial { peer, verb, address, owner: self.owner })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_owner_may_everything_others_nothing() {
        let policy = Policy::owner_only(100);
        let address = ":80".parse().expect("address");
        for verb in [Verb::Bind, Verb::Use, Verb::List, Verb::Release, Verb::Store, Verb::Admin] {
            for (uid, allowed) in [(0, true), (100, true), (1, false), (u32::MAX, false)] {
                let peer = Peer { pid: 7, uid, gid: 0 };
                let verdict = policy.judge(peer, verb, Some(&address));
                assert_eq!(verdict == Verdict::Allow, allowed, "{verb} {uid}");
            }
        }
        let peer = Peer { pid: 7, uid: 5, gid: 0 };
        let denial =
            policy.judge(peer, Verb::Bind, Some(&address)).into_result().expect_err("deny");
        let text = "uid 5 (pid 7) may not bind 0.0.0.0:80: only root and uid 100 may";
        assert_eq!(denial.to_string(), text);
    }
}
