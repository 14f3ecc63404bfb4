//! Looks up the users and groups that listeners name (`user=`, `group=`), before a listener is
//! opened.
//!
//! A name service may take long to answer, or never answer. So names are looked up on another
//! thread, all names of a claim with one deadline, and other clients are served meanwhile. Without
//! names nothing here waits.

use bindonce_core::listener::Listener;
use bindonce_sys::listen::Accounts;
use bindonce_wire::manifest::Entry;
use tokio::task::yield_now;

/// Listeners passed over in one turn; few have names.
const PASSED_AT_ONCE: usize = 4096;

/// Records read in one turn, at some microseconds each.
const READ_AT_ONCE: usize = 64;

/// The users and groups of listeners. Opening a listener reports if one of its names has no number.
pub(crate) async fn of<'a>(listeners: impl IntoIterator<Item = &'a Listener>) -> Accounts {
    let mut accounts = Accounts::default();
    for (count, listener) in listeners.into_iter().enumerate() {
        if count % PASSED_AT_ONCE == PASSED_AT_ONCE - 1 {
            yield_now().await;
        }
        accounts.add(&listener.options);
    }
    accounts.find().await;
    accounts
}

/// The users and groups of recorded listeners.
pub(crate) async fn of_records(entries: &[Entry]) -> Accounts {
    let mut accounts = Accounts::default();
    for (count, entry) in entries.iter().enumerate() {
        if count % READ_AT_ONCE == READ_AT_ONCE - 1 {
            yield_now().await;
        }
        if let Ok(listener) = entry.listener() {
            accounts.add(&listener.options);
        }
    }
    accounts.find().await;
    accounts
}
