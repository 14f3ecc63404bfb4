//! Looks up the users and groups that listeners name (`user=`, `group=`), before a listener is
//! opened.
//!
//! A name service may take long to answer, or never answer. So names are looked up on another
//! thread, all names of a claim with one deadline, and other clients are served meanwhile. Without
//! names nothing here waits.

use std::borrow::Borrow;

use bindonce_core::listener::Listener;
use bindonce_sys::listen::Accounts;
use tokio::task::yield_now;

/// Listeners looked at in one turn; a recorded one takes some microseconds.
const LOOKED_AT_ONCE: usize = 256;

/// The users and groups of listeners. Opening a listener reports if one of its names has no number.
pub(crate) async fn of(listeners: impl IntoIterator<Item: Borrow<Listener>>) -> Accounts {
    let mut accounts = Accounts::default();
    for (count, listener) in listeners.into_iter().enumerate() {
        if count % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1 {
            yield_now().await;
        }
        accounts.add(&listener.borrow().options);
    }
    accounts.find().await;
    accounts
}
