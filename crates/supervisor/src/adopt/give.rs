//! What the broker is given of another process.

use std::os::fd::BorrowedFd;

use bindonce::Give;
use bindonce_core::address::Address;
use bindonce_core::listener::Listener;

/// A listener to give to the broker, tentative unless it is a UNIX path.
pub(crate) fn give<'a>(listener: &Listener, fd: BorrowedFd<'a>) -> Give<'a> {
    let give = Give::new(listener.to_string(), fd);
    match listener.address {
        // Closing a tentative UNIX listener would remove its path, which its maker may still use.
        Address::Unix(_) => give,
        _ => give.tentative(),
    }
}
