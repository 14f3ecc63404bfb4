//! Addresses that haproxy, or another program, has bound itself. They are seen at bind(2), or found
//! after each start, and reported once for each address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::event;
use bindonce_sys::{diag, holders, inherit, worker};
use tokio::sync::oneshot;

use crate::context::Context;
use crate::generations::generation::Generation;
use crate::generations::own_addresses;
use crate::message::Message;
use bindonce_haproxy::config::{LeftAlone, Rendering, loose_ports};
use bindonce_haproxy::names::renamed;

/// How long a look at /proc and the kernel's sockets may take.
pub(crate) const LOOKS: Duration = Duration::from_secs(10);

/// Reports to the loop the addresses that a generation listens on without the broker, and those for
/// which no call was seen. The receiver gives the latter for the answer to a reload, if the
/// generation's calls are seen.
pub(crate) fn tell(
    cx: &Context,
    generation: &Generation,
) -> Option<oneshot::Receiver<BTreeSet<String>>> {
    let (id, own) = (generation.id, own(cx, generation));
    let calls = generation.own.calls.clone();
    let (kind, pid) = (cx.settings.kind.clone(), generation.pid());
    let given: BTreeSet<_> = generation.listeners.iter().map(|held| held.inode).collect();
    let cx = cx.clone();
    let (told, answer) = oneshot::channel();
    let answer = calls.is_some().then_some(answer);
    crate::tasks::spawn(async move {
        let own = own.await;
        let mut unseen = BTreeSet::new();
        // The calls seen by now. A socket made meanwhile is in neither set.
        if let Some(seen) = calls.filter(|_| !own.is_empty()).and_then(|calls| calls.all()) {
            let look = move || listening(&kind.processes(pid), &(&given | &seen));
            unseen = worker::within(LOOKS, look).await.unwrap_or_default();
            unseen.retain(|address| own.contains(address));
        }
        // There may be no receiver.
        let _ = told.send(unseen.clone());
        cx.send(Message::Foreign(id, own, unseen));
    });
    answer
}

/// The addresses that a generation listens on without the broker, as seen before each bind(2) or as
/// its processes show. A socket that it has closed again does not count, such as haproxy's tests of
/// kernel features.
pub(crate) fn own(
    cx: &Context,
    generation: &Generation,
) -> impl Future<Output = BTreeSet<String>> + use<> {
    let (seen, look) = (generation.own.seen.clone(), look_at_own(cx, generation));
    let (kind, pid) = (cx.settings.kind.clone(), generation.pid());
    async move {
        let open = match seen {
            Some(seen) if seen.is_empty() => return BTreeSet::new(),
            Some(seen) => {
                worker::within(LOOKS, move || still_open(&kind.processes(pid), seen)).await.ok()
            }
            None => None,
        };
        let told = open.and_then(|open| open.into_values().collect::<Option<_>>());
        match told {
            Some(told) => told,
            // Empty if the kernel did not answer in time, or the runtime ends.
            None => worker::within(LOOKS, look).await.unwrap_or_default(),
        }
    }
}

/// The sockets that the processes have open. All, if their descriptors may not be read.
fn still_open<T>(pids: &[i32], mut sockets: BTreeMap<u64, T>) -> BTreeMap<u64, T> {
    let open: BTreeSet<_> = pids.iter().flat_map(|pid| holders::sockets(*pid)).collect();
    if !open.is_empty() {
        sockets.retain(|inode, _| open.contains(inode));
    }
    sockets
}

/// Gives the function that finds the addresses that a generation listens on without the broker.
fn look_at_own(
    cx: &Context,
    generation: &Generation,
) -> impl FnOnce() -> BTreeSet<String> + Send + use<> {
    let pid = generation.pid();
    let known: BTreeSet<_> = generation.listeners.iter().map(|held| held.inode).collect();
    let has_admin = generation.cli.admin.is_some();
    let kind = cx.settings.kind.clone();
    move || {
        let admin = has_admin.then(|| holders::socket(pid, inherit::FIRST)).flatten();
        // In master-worker mode the worker has them, not the first process.
        listening(&kind.processes(pid), &(&known | &admin.into_iter().collect()))
    }
}

/// The addresses, by line, that the program was reported to have bound itself.
#[derive(Default)]
pub(crate) struct ForeignBinds(BTreeSet<String>);

impl ForeignBinds {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reports what a generation has bound, once for each address. `fixed` is the reason why it
    /// cannot let go of an address that no two generations can have.
    pub(crate) fn tell(
        &mut self,
        cx: &Context,
        generation: &Generation,
        rendering: Option<&Rendering>,
        fixed: Option<&str>,
        unseen: &BTreeSet<String>,
    ) {
        let id = generation.id;
        let left_alone = rendering.map(|rendering| rendering.left_alone.as_slice());
        let no_reuse_port = rendering.is_some_and(|rendering| rendering.no_reuse_port);
        let program = cx.settings.kind.name();
        let mut lines = BTreeSet::new();
        for address in &generation.own.bound {
            let line = left_alone.unwrap_or_default().iter().find(|line| stands_for(line, address));
            let (place, text, reason) = match line {
                Some(line) => (line.place.to_string(), line.text.clone(), line.reason.as_ref()),
                None if left_alone.is_none() => {
                    let reason = "on a descriptor that it was not given";
                    ("its own configuration".to_owned(), address.clone(), reason)
                }
                None => ("no line that bindonce knows".to_owned(), address.clone(), "unknown"),
            };
            if !lines.insert(text.clone()) || self.0.contains(&text) {
                continue;
            }
            let is_path = address.starts_with("unix@");
            let what = if unseen.contains(address) {
                format!(
                    "{program} listens here without a bind() or listen() that could be intercepted, as by io_uring: \
                     it is not the broker's socket, and the next generation binds it by itself too, or fails \
                     (EADDRINUSE); let it bind by system calls, or set sysctl kernel.io_uring_disabled=2"
                )
            } else if is_path {
                format!(
                    "{program} has bound this path by itself ({reason}): the newest generation takes \
                     it over at each reload"
                )
            } else if own_addresses::is_exclusive(address, no_reuse_port) {
                match fixed {
                    None => format!(
                        "{program} has bound this by itself ({reason}), and no two generations can have \
                         it: at a reload the older one lets go of it and is paused for a moment; \
                         connections to it are not protected"
                    ),
                    Some(why) => format!(
                        "{program} has bound this by itself ({reason}), and no two generations can have \
                         it: no reload that keeps it can succeed, since {why}. {}",
                        own_addresses::unshare(no_reuse_port)
                    ),
                }
            } else {
                format!(
                    "{program} has bound this by itself ({reason}): during a reload the old and the \
                     new generation both hold it, and connections to it are not protected"
                )
            };
            match is_path {
                true => tracing::info!(generation = id.0, address = text, place, "{what}"),
                false => tracing::warn!(generation = id.0, address = text, place, "{what}"),
            }
            let text = format!("{text} ({place}): {what}");
            cx.record(id, Some(generation.pid()), event::Kind::ForeignBind, text);
        }
        self.0 = lines;
    }
}

/// The addresses that these processes listen on, except for the sockets in `known`.
pub(crate) fn listening(pids: &[i32], known: &BTreeSet<u64>) -> BTreeSet<String> {
    let held: BTreeSet<_> = pids.iter().flat_map(|pid| holders::sockets(*pid)).collect();
    let others = &held - known;
    if others.is_empty() {
        return BTreeSet::new(); // The kernel's list of all sockets may be long.
    }
    let all = diag::listening().unwrap_or_default().into_iter();
    // A path for datagrams belongs to a configuration line. The names of sockets on which programs
    // receive answers do not.
    let paths = diag::unix_datagrams().unwrap_or_default().into_iter();
    let paths = paths.filter(|socket| matches!(socket.address, Address::Unix(_)));
    all.chain(paths)
        .filter(|socket| others.contains(&socket.inode))
        .map(|socket| socket.address.to_string())
        .collect()
}

/// Whether a configuration line stands for a socket that the kernel shows. The socket may have the
/// temporary name under which it was bound.
pub(crate) fn stands_for(line: &LeftAlone, address: &str) -> bool {
    let own = match address.parse() {
        Ok(Address::Unix(path)) => {
            Some(Address::Unix(renamed(&path).map_or(path.as_str(), |(path, _)| path).to_owned()))
        }
        own => own.ok(),
    };
    own.is_some_and(|own| line.own.contains(&own)) || names(&line.text, address)
}

/// The same, judged by the text of the line.
fn names(line: &str, address: &str) -> bool {
    let word = line.trim_end().rsplit(' ').next().unwrap_or(line);
    match address.strip_prefix("unix@") {
        // The socket keeps the temporary name under which it was bound.
        Some(path) => {
            let bare = word.strip_prefix("stream+").unwrap_or(word);
            let families = ["unix@", "uxst@", "uxdg@"];
            let bare = families.iter().find_map(|of| bare.strip_prefix(*of)).unwrap_or(bare);
            let whole = renamed(path).map_or(path, |(path, _)| path);
            // `unix-bind prefix` stands before the path of the line.
            let is_relative = !path.starts_with('/');
            path.starts_with(bare) || is_relative && (whole.ends_with(bare) || bare.contains('$'))
        }
        None => {
            word == address
                || word.parse::<Address>().is_ok_and(|word| word.to_string() == address)
                || port(address).is_some_and(|port| has_port(word, port))
        }
    }
}

fn port(address: &str) -> Option<&str> {
    address.rsplit_once(':').map(|(_, port)| port)
}

/// Whether a word ends in this port, or in a range of ports that has it.
fn has_port(word: &str, wanted: &str) -> bool {
    let ports = port(word).and_then(loose_ports).map(|(first, last)| first..=last);
    ports.zip(wanted.parse().ok()).is_some_and(|(ports, wanted)| ports.contains(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_again_is_not_told() {
        let stream = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let pid = std::process::id().cast_signed();
        let inode = holders::socket(pid, std::os::fd::AsRawFd::as_raw_fd(&stream)).expect("it");
        let seen = BTreeMap::from([(inode, "open"), (1, "closed")]);
        assert_eq!(still_open(&[pid], seen.clone()), BTreeMap::from([(inode, "open")]));
        // Nothing is known of a process that is gone or may not be looked at.
        assert_eq!(still_open(&[], seen.clone()), seen);
    }

    #[test]
    fn a_socket_finds_its_line() {
        assert!(names("stats socket /run/h/admin.sock", "unix@/run/h/admin.sock.812.tmp"));
        assert!(names("uxdg@/run/log", "unix@/run/log.812.tmp"));
        // Relative paths in a directory whose own path is too long, as the kernel shows them.
        assert!(names("unix@a.sock", "unix@a.sock.812.tmp"));
        assert!(names("uxst@a.sock", "unix@sub/a.sock.812.tmp"));
        assert!(names("stream+unix@${SOCK}", "unix@a.sock.812.tmp"));
        assert!(!names("unix@a.sock", "unix@b.sock.812.tmp"));
        assert!(!names("unix@a.sock", "unix@/run/other/a.sock.812.tmp"));
        assert!(names("quic4@:443", "udp4@0.0.0.0:443"));
        assert!(names("127.0.0.1:8080-+8081", "127.0.0.1:8081"));
        assert!(!names("127.0.0.1:8080-8081", "127.0.0.1:8082"));
        // As haproxy 2.6 reads them.
        assert!(names(":8080.5", "0.0.0.0:8080") && names(":8080 ", "0.0.0.0:8080"));
        assert!(
            names(":8080-8081-8082", "0.0.0.0:8081") && !names(":8080-8081-8082", "0.0.0.0:8082")
        );
        assert!(names("abnsz@web", "abnsz@web"));
        assert!(!names("abnsz@web", "abns@other"));
        assert!(!names("quic4@:443", "udp4@0.0.0.0:53"));
        assert!(!names("stats socket /run/h/admin.sock", "unix@/run/other"));
    }
}
