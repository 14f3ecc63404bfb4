//! The calls of both clients: for each the method, its parameters, and how to read its answer.

use bindonce_wire::params::{Bind, Events, Join, Joining};
use bindonce_wire::result::{
    EventsResult, JoinResult, ListResult, PingResult, ReleaseResult, StatusResult, StoreResult,
};
use serde::Serialize;

use crate::claim::{Claim, Give};
use crate::error::Error;
use crate::lease::Lease;
use crate::session::{Answer, leases, typed};

/// The parameters of calls without parameters.
type Nothing = [(); 0];

/// One call.
#[derive(Debug)]
pub(crate) struct Verb<P, T> {
    pub(crate) method: &'static str,
    pub(crate) params: P,
    /// Whether descriptors come with the answer.
    pub(crate) binds: bool,
    pub(crate) read: fn(Answer) -> Result<T, Error>,
}

impl<P: Serialize, T> Verb<P, T> {
    fn plain(method: &'static str, params: P, read: fn(Answer) -> Result<T, Error>) -> Self {
        Self { method, params, binds: false, read }
    }
}

pub(crate) fn claim(claims: &[Claim]) -> Verb<Vec<&Bind>, Vec<Lease>> {
    let params = claims.iter().map(|claim| &claim.0).collect();
    Verb { method: "bind", params, binds: true, read: leases }
}

pub(crate) fn join(join: &Join) -> Verb<[&Join; 1], ()> {
    Verb::plain("join", [join], |answer| typed::<JoinResult>(answer).map(drop))
}

/// As [`join`], where the broker keeps the order.
pub(crate) fn enter(joining: &Joining) -> Verb<[&Joining; 1], JoinResult> {
    Verb::plain("join", [joining], typed)
}

pub(crate) fn release(listeners: &[impl AsRef<str>]) -> Verb<Vec<&str>, Vec<String>> {
    let params = listeners.iter().map(AsRef::as_ref).collect();
    Verb::plain("release", params, |answer| {
        typed::<ReleaseResult>(answer).map(|result| result.released)
    })
}

pub(crate) fn list() -> Verb<Nothing, ListResult> {
    Verb::plain("list", [], typed)
}

pub(crate) fn status() -> Verb<Nothing, StatusResult> {
    Verb::plain("status", [], typed)
}

pub(crate) fn events(since: u64) -> Verb<[Events; 1], EventsResult> {
    Verb::plain("events", [Events { since, follow: false }], typed)
}

pub(crate) fn ping() -> Verb<Nothing, PingResult> {
    Verb::plain("ping", [], typed)
}

/// One batch of the given listeners; their descriptors go with it.
pub(crate) fn store<'a>(
    part: &'a [Give<'_>],
) -> Verb<Vec<&'a bindonce_wire::params::Give>, Vec<String>> {
    Verb::plain("store", part.iter().map(|give| &give.what).collect(), |answer| {
        let result = typed::<StoreResult>(answer)?;
        Ok(result.listeners.into_iter().map(|listener| listener.name).collect())
    })
}
