//! Options that a client has set on a shared socket. They hold for all who share it, so they are
//! reported. They are not undone, because a generation sets them on purpose.

use std::os::fd::AsFd as _;

use bindonce_core::address::Address;
use bindonce_core::event::Kind;
use bindonce_core::registry::Held;
use bindonce_daemon::{Happening, Reporter};
use bindonce_sys::options::{self, Change};
use bindonce_sys::queue;

use super::socket::Socket;

/// The options of a listener's socket that a client has changed.
pub(crate) fn changes(held: &Held<Socket>) -> Vec<Change> {
    let fd = held.opened.handle.fd.as_fd();
    let mut changes = options::changed(fd, &held.listener);
    // listen(2) sets the backlog for all. Another network namespace may have another kernel limit.
    if matches!(held.listener.address, Address::Tcp(_))
        && held.listener.options.netns.is_none()
        && let Ok(queue) = queue::accept_queue(fd)
        && queue.limit != held.opened.backlog
    {
        let (was, now) = (held.opened.backlog.into(), queue.limit.into());
        changes.push(Change { option: "backlog", was, now });
    }
    changes
}

/// Reports options changed since the last report. `who` is the generation that begins to serve.
pub(crate) fn notice(reporter: &Reporter, held: &Held<Socket>, who: &str) {
    let changes = changes(held);
    let mut noticed = held.opened.handle.watch.noticed.borrow_mut();
    if *noticed != changes {
        let text = |change: &Change| format!("{} {} -> {}", change.option, change.was, change.now);
        let changed: Vec<String> = changes.iter().map(text).collect();
        let changed = changed.join(", ");
        tracing::info!(
            listener = held.listener.label(),
            who,
            changed,
            "options of a shared listener differ from those it was created with"
        );
        let label = held.listener.label();
        let text =
            format!("options of {label} differ from those it was created with ({who}): {changed}");
        reporter.record(Happening::new(Kind::ListenerChanged, text));
        *noticed = changes;
    }
}
