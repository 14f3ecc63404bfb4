//! Errors that prevent a report.

/// Why [`crate::examine`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sockets of this network namespace cannot be read.
    #[error("cannot look at the sockets of this system")]
    Look(#[from] bindonce_sys::Error),
    /// No service, listener or program that was seen has this name.
    #[error(
        "{text:?} is neither an address nor a service, a listener or a program that is seen here; run `bindonce doctor` without an argument to examine the whole host"
    )]
    Target {
        /// The target as given.
        text: String,
    },
}
