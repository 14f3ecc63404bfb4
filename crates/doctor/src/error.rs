//! Why there is no report.

/// What [`crate::examine`] could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sockets of this network namespace cannot be read.
    #[error("cannot look at the sockets of this system")]
    Look(#[from] bindonce_sys::Error),
    /// Nothing that was seen has this name.
    #[error(
        "{text:?} is neither an address nor a service, a listener or a program that is seen here; `bindonce doctor` without it looks at everything"
    )]
    Target {
        /// What was asked for.
        text: String,
    },
}
