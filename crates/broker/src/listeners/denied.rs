//! Why a claim got nothing.

use std::sync::Arc;

use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::registry::Refusal;
use bindonce_daemon::Happening;
use bindonce_wire::RpcError;

#[derive(Debug)]
pub(crate) enum Denied {
    /// The client has no right to the listener that a name stands for now. The denial is already
    /// recorded.
    NotAllowed(RpcError),
    /// The registry refused the claim.
    Refused(Refusal),
    /// The socket of this listener could not be opened.
    NotOpened(Arc<Listener>, bindonce_sys::Error),
    /// The socket of this listener could not be changed. All sockets are as they were.
    NotChanged(Arc<Listener>, bindonce_sys::Error),
    /// There would be more listeners than the configuration allows.
    TooMany {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        most: usize,
    },
    /// The claim was abandoned without a reason.
    Abandoned,
    /// The sockets would not fit under RLIMIT_NOFILE.
    Limit {
        /// Sockets to be opened.
        need: usize,
        /// Descriptors that are open.
        open: u64,
        /// The limit.
        limit: u64,
    },
}

impl Denied {
    /// The event that records the denial.
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
