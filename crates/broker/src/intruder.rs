//! Who has an address that could not be bound: for the hint of an error, so
//! everything here is an attempt, and "nobody known" an answer.

use bindonce_core::address::Address;
use bindonce_core::listener::{Key, Listener, Options};
use bindonce_core::text::printable;
use bindonce_sys::{diag, holders, listen, process};

/// The processes that have a socket in the way of `listener`, as `pid 12
/// (nginx)`. Reads all of /proc, so it belongs on a thread that may block.
pub(crate) fn who_has(listener: &Listener) -> Option<String> {
    let sockets = match &listener.options.netns {
        Some(netns) => listen::within_netns(netns, diag::listening).ok()?,
        None => diag::listening(),
    };
    let key = listener.key();
    let mut inodes = Vec::new();
    for socket in sockets.ok()? {
        let netns = listener.options.netns.clone();
        if overlaps(&key, socket.address, socket.interface, socket.v6only, netns) {
            inodes.push(socket.inode);
        }
    }
    let mut pids: Vec<i32> = holders::of(&inodes).iter().map(|holder| holder.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    // A few are enough to go on with.
    let named: Vec<String> = pids.iter().take(5).map(named).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// A process, as `pid 12 (nginx)`.
pub(crate) fn named(pid: &i32) -> String {
    match process::command(*pid).unwrap_or_default().first() {
        Some(command) => format!("pid {pid} ({})", printable(command)),
        None => format!("pid {pid}"),
    }
}

fn overlaps(
    key: &Key,
    address: Address,
    interface: Option<String>,
    v6only: Option<bool>,
    netns: Option<String>,
) -> bool {
    let v6only = v6only.unwrap_or(false);
    let options = Options { v6only, interface, netns, ..Options::default() };
    key.overlaps(&Key::of(&Listener { name: None, address, options }))
}
