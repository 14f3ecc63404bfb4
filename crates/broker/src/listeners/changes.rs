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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use bindonce_core::time::Timestamp;
    use bindonce_daemon::Journal;
    use bindonce_sys::{identity, listen};

    use super::*;
    use crate::broker::Broker;
    use crate::listeners::watch::Guard;
    use crate::persistence::restore::Found;

    /// The backlog of an adopted listener, and its changes, each from and to. `recorded`: the one
    /// that an earlier broker gave it.
    fn backlogs(theirs: &TcpListener, recorded: Option<u32>) -> (u32, Vec<(i64, i64)>) {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let identity::Identity { inode, cookie, bound, .. } =
            identity::of(theirs.as_fd()).expect("a socket");
        let fd = theirs.as_fd().try_clone_to_owned().expect("a copy");
        let found = Found {
            listener: format!("web={bound}").parse().expect("a listener"),
            socket: listen::Opened { fd, bound, inode, cookie, path: None, hidden: false },
            exclusive: true,
            since: Timestamp(1),
            tentative: false,
            owner: None,
            outlived: None,
            backlog: recorded,
        };
        broker.listeners.adopt(vec![found], false, None);
        let (_, held) = broker.listeners.registry.iter().next().expect("held");
        let changes = changes(held).into_iter().filter(|change| change.option == "backlog");
        (held.opened.backlog, changes.map(|change| (change.was, change.now)).collect())
    }

    #[test]
    fn the_backlog_that_a_socket_comes_with_is_not_a_change() {
        let theirs = TcpListener::bind("127.0.0.1:0").expect("bound");
        rustix::net::listen(&theirs, 5).expect("listens");
        assert_eq!(backlogs(&theirs, None), (5, Vec::new()));
        assert_eq!(backlogs(&theirs, Some(5)), (5, Vec::new()));
        // A holder has called listen(2) since.
        rustix::net::listen(&theirs, 7).expect("listens");
        assert_eq!(backlogs(&theirs, Some(5)), (5, vec![(5, 7)]));
    }
}
