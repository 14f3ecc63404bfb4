//! Claims of listeners, and listeners to give to a broker.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use bindonce_core::listener::Wanted;
use bindonce_core::name::Name;
use bindonce_fd::MAX_FDS;
use bindonce_wire::params::{Bind, Target};
use bindonce_wire::{ErrorCode, RpcError};

use crate::error::Error;

/// A request for listeners. A claim of an address gets the listener that the broker holds for it,
/// or binds the address. A range of ports gives a lease for each port.
///
/// ```
/// use bindonce::Claim;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let claims: [Claim; 4] = [
///     "web=0.0.0.0:80,backlog=4096".into(),
///     "unix@/run/app.sock,mode=0660".into(),
///     Claim::tcp("[::1]:8443".parse()?),
///     // Closed again when this process ends, unless it is confirmed.
///     Claim::listen(":8000-8010").tentative(),
/// ];
/// # Ok(())
/// # }
/// ```
/// The broker refuses a text that is no claim, and says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(pub(crate) Bind);

impl Claim {
    /// A claim in text form, `[NAME=]ADDR[,OPTION]...`, such as `web=0.0.0.0:80,backlog=4096`,
    /// `:8000-8010`, `unix@/run/app.sock` or `udp4@:53`. A bare name claims a listener that is
    /// already held.
    pub fn listen(text: impl Into<String>) -> Self {
        Self(Bind::listen(text))
    }

    /// The listener that is held under this name; an error if there is none.
    pub fn name(name: &Name) -> Self {
        Self(Bind::name(name.as_str()))
    }

    /// A TCP listener on an address; with port 0 the system chooses the port (see
    /// [`Lease::bound`](crate::Lease::bound)).
    pub fn tcp(address: SocketAddr) -> Self {
        Self(Bind::listen(address.to_string()))
    }

    /// A UDP socket on an address.
    pub fn udp(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { "udp4" } else { "udp6" };
        Self(Bind::listen(format!("{family}@{address}")))
    }

    /// Makes the claim tentative: if it creates the listener, the broker closes the listener again
    /// with its last lease, unless the listener has been confirmed. A claim that is not tentative
    /// confirms it, and so does a user that joins as serving.
    #[must_use]
    pub fn tentative(mut self) -> Self {
        self.0.tentative = true;
        self
    }

    /// Allows a change of options: if the listener is held with other options than this claim has,
    /// the broker changes them on the socket, for every holder, instead of refusing the claim. It
    /// can change the backlog, `transparent`, `freebind`, `blocking`, and the mode, user and group
    /// of a UNIX path. It still refuses options that need another socket (`interface=`, `v6only`).
    #[must_use]
    pub fn changing(mut self) -> Self {
        self.0.change = true;
        self
    }

    /// How many listeners the claim gives: one for each port of a range, else one. A text that is
    /// no claim counts as one; the broker refuses it.
    pub fn count(&self) -> usize {
        let Target::Listen { listen } = &self.0.target else { return 1 };
        match listen.parse::<Wanted>() {
            Ok(Wanted::Listen(spec)) => spec.count(),
            Ok(Wanted::Named(_)) | Err(_) => 1,
        }
    }

    /// A claim that gives one listener.
    pub(crate) fn of_one(claim: impl Into<Self>) -> Result<Self, Error> {
        let claim = claim.into();
        match claim.count() {
            1 => Ok(claim),
            count => Err(Error::NotOne { count }),
        }
    }
}

/// A listener that this process holds, to give (back) to a broker with
/// [`Client::store`](crate::Client::store). [`Lease::give`](crate::Lease::give) makes one.
#[derive(Debug, Clone)]
pub struct Give<'a> {
    pub(crate) what: bindonce_wire::params::Give,
    pub(crate) fd: BorrowedFd<'a>,
}

impl<'a> Give<'a> {
    /// A descriptor, and the claim that it comes from: `[NAME=]ADDR[,OPTION]...`.
    pub fn new(listen: impl Into<String>, fd: BorrowedFd<'a>) -> Self {
        Self { what: bindonce_wire::params::Give { listen: listen.into(), tentative: false }, fd }
    }

    /// Makes the listener tentative: if the broker did not hold it before, the broker closes it
    /// with its last lease, unless it has been confirmed.
    #[must_use]
    pub fn tentative(mut self) -> Self {
        self.what.tentative = true;
        self
    }
}

/// Listeners on their way back to a broker, part by part. The broker takes all of a part or none. A
/// refused part is halved until the listener at fault is alone, so that the broker gets all others.
#[derive(Debug)]
pub(crate) struct GivingBack<'l, 'fd> {
    /// The parts that are not given yet, the next one last.
    parts: Vec<&'l [Give<'fd>]>,
    /// The refusals of single listeners.
    pub(crate) refused: Vec<RpcError>,
}

impl<'l, 'fd> GivingBack<'l, 'fd> {
    pub(crate) fn new(listeners: &'l [Give<'fd>]) -> Self {
        Self { parts: listeners.chunks(MAX_FDS).rev().collect(), refused: Vec::new() }
    }

    /// What to give next, in one request.
    pub(crate) fn next_part(&mut self) -> Option<&'l [Give<'fd>]> {
        self.parts.pop()
    }

    /// Takes the answer for a part.
    pub(crate) fn answered<T>(
        &mut self,
        part: &'l [Give<'fd>],
        answer: Result<T, Error>,
    ) -> Result<(), Error> {
        match answer {
            Err(Error::Refused(refusal)) if is_for_good(&refusal) => {
                if part.len() > 1 {
                    let (first, rest) = part.split_at(part.len() / 2);
                    self.parts.extend([rest, first]);
                } else {
                    self.refused.push(refusal);
                }
                Ok(())
            }
            answer => answer.map(drop),
        }
    }
}

/// Whether a refusal is about what a listener is: another try would not change it.
fn is_for_good(refusal: &RpcError) -> bool {
    matches!(refusal.code, ErrorCode::CONFLICT | ErrorCode::OVERLAP)
}

/// The same as [`Claim::listen`].
impl From<&str> for Claim {
    fn from(text: &str) -> Self {
        Self::listen(text)
    }
}

/// The same as [`Claim::listen`].
impl From<String> for Claim {
    fn from(text: String) -> Self {
        Self::listen(text)
    }
}

/// The same as [`Claim::tcp`].
impl From<SocketAddr> for Claim {
    fn from(address: SocketAddr) -> Self {
        Self::tcp(address)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_claim_of_one_listener_is_no_range() {
        for (text, count) in [
            (":8000-8010", 11),
            ("web=127.0.0.1:80-81,backlog=16", 2),
            ("web=:80,backlog=16", 1),
            ("unix@/run/a-9", 1),
            ("web-8000", 1),
            ("no claim", 1),
        ] {
            assert_eq!(Claim::from(text).count(), count, "{text}");
            assert_eq!(Claim::of_one(text).is_ok(), count == 1, "{text}");
        }
    }

    /// Gives back 600 listeners to a broker that has this answer for each; which it then has, and
    /// what was refused.
    fn given_back(
        answer: impl Fn(&str) -> Result<(), ErrorCode>,
    ) -> Result<(Vec<String>, usize), Error> {
        let file = std::fs::File::open("/dev/null").expect("a file");
        let gives: Vec<_> = (0..600).map(|n| Give::new(format!("n{n}"), file.as_fd())).collect();
        let mut giving = GivingBack::new(&gives);
        let mut has = Vec::new();
        while let Some(part) = giving.next_part() {
            assert!(part.len() <= MAX_FDS);
            let listens = part.iter().map(|give| give.what.listen.as_str());
            let refusal = listens.clone().find_map(|listen| answer(listen).err());
            let refusal = refusal.map(|code| Error::Refused(RpcError::new(code, "refused")));
            if refusal.is_none() {
                has.extend(listens.map(str::to_owned));
            }
            giving.answered(part, refusal.map_or(Ok(()), Err))?;
        }
        Ok((has, giving.refused.len()))
    }

    #[test]
    fn a_listener_that_is_refused_keeps_no_other_from_the_broker() {
        let astray = ["n0", "n77", "n78", "n599"];
        let (has, refused) =
            given_back(
                |listen| {
                    if astray.contains(&listen) { Err(ErrorCode::CONFLICT) } else { Ok(()) }
                },
            )
            .expect("given back");
        let all = (0..600).map(|n| format!("n{n}"));
        let others: Vec<_> = all.filter(|listen| !astray.contains(&listen.as_str())).collect();
        assert_eq!((has, refused), (others, astray.len()));
        // A limit may be raised: then all of them are given again.
        let limit =
            given_back(|listen| if listen == "n300" { Err(ErrorCode::LIMIT) } else { Ok(()) });
        let refusal = limit.expect_err("refused");
        assert_eq!(refusal.refusal().map(|it| it.code), Some(ErrorCode::LIMIT));
    }
}
