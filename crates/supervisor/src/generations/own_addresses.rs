//! Addresses that haproxy binds itself and that two generations cannot have at once: a TCP address
//! under `noreuseport` or `-dR`, an abstract name.
//!
//! A new haproxy that finds such an address in use asks the pid of its `-sf`, the supervisor's, to
//! let go of it. The older generation lets go when it is paused (SIGTTOU), and takes the address
//! back when it is resumed (SIGTTIN), if it is still free. The supervisor pauses it only if that
//! harms nothing else, and if it has such an address at all. The timeline decides when and for how
//! long.

use bindonce_core::address::Address;
use bindonce_core::event;
use bindonce_core::generation::GenerationId;

use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::{LeftAlone, Rendering};

use crate::context::Context;
use crate::generations::generation::Generation;

/// The hint for an address that another generation cannot bind beside this one.
pub(crate) fn unshare(no_reuse_port: bool) -> &'static str {
    match no_reuse_port {
        true => {
            "Remove `noreuseport` and `-dR`, or leave the address to bindonce or to a file: in `peers` with `bind` and `server` \
             lines, as `stats socket` on a path instead of an IP address or an abstract name"
        }
        false => "Put a `stats socket` or `dgram-bind` on a path instead of an abstract name",
    }
}

/// Whether the kernel lets no second process bind this address as haproxy binds it.
pub(crate) fn is_exclusive(address: &str, no_reuse_port: bool) -> bool {
    match address.parse() {
        Ok(Address::Tcp(_)) => no_reuse_port,
        Ok(address) if address.is_abstract() => true,
        _ => false,
    }
}

/// Whether the older generations can let go of an address that a newer one cannot bind, as far as
/// is known. `older` says of each whether it or the newer one binds without SO_REUSEPORT.
pub(crate) fn can_let_go(older: &[(&Generation, bool)], version: Option<Version>) -> bool {
    let has_such = |(generation, no_reuse_port): &(&Generation, bool)| {
        generation.own.bound.iter().any(|address| is_exclusive(address, *no_reuse_port))
    };
    older.iter().any(has_such) && older.iter().all(|(one, _)| cannot_let_go(one, version).is_none())
}

/// Why a generation cannot let go of its own addresses by a pause without harm to the rest.
/// `version` is the version of the binary, used until an admin socket has answered.
pub(crate) fn cannot_let_go(
    generation: &Generation,
    version: Option<Version>,
) -> Option<&'static str> {
    let version = generation.version(version);
    let mut own = generation.own.bound.iter().filter_map(|address| address.parse().ok());
    let mut given = generation.listeners.iter().map(|held| &held.bound);
    if !version.pauses() {
        Some("a pause cannot be undone before haproxy 2.6.12")
    } else if !generation.own.lines.is_empty() {
        Some("it would disconnect a listener that others have, and that it has bound by itself")
    } else if generation.has_master() {
        Some("haproxy's own master cannot be paused")
    } else if given.any(|bound| bound.is_abstract() || matches!(bound, Address::Udp(_))) {
        Some("abstract and UDP listeners cannot be paused and resumed")
    } else if !version.resumes_abstract() && own.any(|address: Address| address.is_abstract()) {
        Some("haproxy before 3.0 does not take an abstract name back")
    } else {
        None
    }
}

/// The hint for a generation that failed because it could not bind an address. `let_go`: the older
/// generations can let go of theirs.
pub(crate) fn address_hint(let_go: bool, no_reuse_port: bool) -> String {
    if let_go {
        return "an address that haproxy binds by itself is taken by another program, since the \
                generation that serves has let go of its own: `ss -ltnp` names it"
            .to_owned();
    }
    format!(
        "an address that haproxy binds by itself is taken, by the generation that serves or by \
         another program. {}",
        unshare(no_reuse_port)
    )
}

/// Warns of lines whose addresses the broker has bound on every interface, because their devices do
/// not exist. haproxy, which gets the sockets, does not know.
pub(crate) fn warn_of_devices(cx: &Context, id: GenerationId, pid: i32, rendering: &Rendering) {
    for (place, address, device) in rendering.without_device() {
        let what = format!(
            "the interface {device} does not exist: it is bound on every interface, as haproxy alone does; a reload \
             binds it there once the interface exists"
        );
        tracing::warn!(generation = id.0, address, %place, "{what}");
        cx.record(
            id,
            Some(pid),
            event::Kind::ListenerBound,
            format!("{address} ({place}): {what}"),
        );
    }
}

/// The hint for a line whose `device` does not exist and whose address haproxy could not bind.
pub(crate) fn device_hint(line: &LeftAlone, device: &str) -> String {
    format!(
        "the interface {device} of {} ({}) does not exist, and another line has the same address on another missing interface. haproxy would \
         bind both itself, on every interface, and cannot while the serving generation has the address: correct the lines, or add \
         the interfaces",
        line.text, line.place
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_generations_cannot_have_is_known() {
        for (address, with_reuse_port, without) in [
            ("127.0.0.1:8081", false, true),
            ("[::]:8081", false, true),
            ("udp@127.0.0.1:443", false, false),
            ("unix@/run/h/admin.sock", false, false),
            ("abns@admin", true, true),
        ] {
            assert_eq!(is_exclusive(address, false), with_reuse_port, "{address}");
            assert_eq!(is_exclusive(address, true), without, "{address}");
        }
    }
}
