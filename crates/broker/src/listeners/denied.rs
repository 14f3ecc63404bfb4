//! Why a claim got nothing.

use std::sync::Arc;

use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::registry::Refusal;
use bindonce_daemon::Happening;
use bindonce_wire::RpcError;

/// Why a claim got nothing.
#[derive(Debug)]
pub(crate) enum Denied {
    /// The client has no right to a listener that was made while it waited. The denial is recorded already.
    NotAllowed(RpcError),
    /// The registry refused it.
    Refused(Refusal),
    /// A socket could not be opened; this listener's.
    NotOpened(Arc<Listener>, bindonce_sys::Error),
    /// A socket could not be changed; this listener's. All are as they were.
    NotChanged(Arc<Listener>, bindonce_sys::Error),
    /// There would be more listeners than the configuration allows.
    TooMany {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        most: usize,
    },
    /// It was abandoned, without a reason.
    Abandoned,
    /// The sockets would not fit under RLIMIT_NOFILE.
    Limit {
        /// How many were to be opened.
        need: usize,
        /// How many descriptors are open.
        open: u64,
        /// The limit.
        limit: u64,
    },
}

impl Denied {
    /// The event that records it.
    pub(super) fn happening(&self) -> Happening {
        let (kind, text) = match self {
            Self::NotAllowed(denial) => (Kind::ClaimRefused, denial.to_string()),
            Self::Refused(refusal) => (Kind::ClaimRefused, refusal.to_string()),
            Self::NotOpened(_, error) => (Kind::ClaimRefused, error.to_string()),
            Self::NotChanged(listener, error) => {
                (Kind::ClaimRefused, format!("{} cannot be changed: {error}", listener.label()))
            }
            Self::Abandoned => (Kind::ClaimRefused, "a claim was given up".to_owned()),
            Self::TooMany { limit, most } => {
                (Kind::LimitReached, format!("a claim would pass the limit {limit} = {most}"))
            }
            Self::Limit { need, open, limit } => (
                Kind::LimitReached,
                format!("{need} listeners do not fit: {open} of {limit} descriptors are open"),
            ),
        };
        Happening::new(kind, text)
    }
}
