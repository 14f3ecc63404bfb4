//! Why a connection may not join a service.

use crate::name::Name;

/// Why a connection may not join a service. Connections that joined before are not disturbed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The service has generations of another user.
    #[error("service {service} belongs to uid {uid}: its generation {generation} is pid {pid}")]
    OtherUser {
        /// The service.
        service: Name,
        /// The user that has it.
        uid: u32,
        /// A generation of that user.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// A supervisor orders the generations of this service itself.
    #[error("service {service} is run by a supervisor: its generation {generation} is pid {pid}")]
    Supervised {
        /// The service.
        service: Name,
        /// A generation of it.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// The broker keeps the order of this service, and the caller joins without `handover`.
    #[error(
        "the broker keeps the order of service {service}: its generation {generation} is pid {pid}"
    )]
    Ordered {
        /// The service.
        service: Name,
        /// A generation of it.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// The connection has joined as another generation already.
    #[error("this connection is generation {generation} of service {service} already")]
    Fixed {
        /// The service.
        service: Name,
        /// The generation.
        generation: u64,
    },
    /// No broker gives such a number.
    #[error("no generation of service {service} can have the number {generation}")]
    Number {
        /// The service.
        service: Name,
        /// The number.
        generation: u64,
    },
}

impl Refusal {
    /// What the user can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::OtherUser { .. } => {
                "choose another name for the service, run it as that user, or ask for the right to \
                 administer the broker"
            }
            Self::Supervised { .. } | Self::Ordered { .. } => {
                "two programs cannot share a service: choose another name for one of them"
            }
            Self::Fixed { .. } => "open a connection for each generation",
            Self::Number { .. } => "leave `generation` out: the broker gives the next number",
        }
    }
}
