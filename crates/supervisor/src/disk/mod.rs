//! The files that a service keeps on disk for the next supervisor, and the files that it watches.

pub(crate) mod directory;
pub(crate) mod fallback;
pub(crate) mod files;
mod identity;
pub(crate) mod pid_file;
pub(crate) mod place;
pub(crate) mod recovery;
pub(crate) mod removed;
pub(crate) mod saved;
pub(crate) mod secret;
pub(crate) mod take_over;
pub(crate) mod unread;
