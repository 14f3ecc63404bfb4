//! The check before an older generation is touched for a newer one: if any generation serves, the
//! newer one must have a listener too.

use std::collections::BTreeSet;
use std::rc::Rc;

use bindonce_core::listener::Key;

use crate::error::Error;
use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;
use bindonce_haproxy::config::Rendering;

/// Listeners of the serving generation that the newest one leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unserved {
    /// Listeners that the newest generation does not have.
    pub(crate) left: Vec<String>,
    /// No client of any of them reaches a listener of the newest generation.
    pub(crate) none_kept: bool,
}

/// Compares a ready generation with the listeners that serve now. Returns the listeners that it
/// leaves.
///
/// # Errors
/// Why the generation must not take over.
pub(crate) fn compare(
    served: &[Rc<HeldListener>],
    generation: &Generation,
    may_be_empty: bool,
) -> Result<Unserved, Error> {
    let has: BTreeSet<_> = generation.listeners.iter().map(|held| &held.label).collect();
    let labels = || served.iter().map(|held| held.label.clone());
    if has.is_empty() && !may_be_empty {
        nobody_would_accept(&labels().collect::<Vec<_>>())?;
    }
    let left: Vec<_> = labels().filter(|label| !has.contains(label)).collect();
    let none_kept = !left.is_empty() && left.len() == served.len() && {
        let all =
            |of: &[Rc<HeldListener>]| of.iter().map(|held| held.listener.key()).collect::<Vec<_>>();
        none_reached(&all(served), &all(&generation.listeners))
    };
    if none_kept {
        tracing::warn!(
            generation = generation.id.0,
            listeners = left.join(" "),
            "the configuration names none of the listeners that served: they will be closed"
        );
    }
    Ok(Unserved { left, none_kept })
}

/// Whether no client of the old listeners reaches a new one. Another address may take over its
/// connections, as `[::]:80` does those of `*:80`.
fn none_reached(served: &[Key], new: &[Key]) -> bool {
    !served.iter().any(|old| new.iter().any(|new| new.overlaps(old)))
}

/// Refuses a configuration with which haproxy would start for its admin socket alone while another
/// generation serves. A configuration with an unclaimed `bind` line is started, since haproxy may
/// read it differently and use the broker's socket; [`compare`] finds out if it does not.
pub(crate) fn keeps_something(rendering: &Rendering, served: &[String]) -> Result<(), Error> {
    let starts_with_nothing = rendering.bindings.is_empty() && rendering.has_stats_socket();
    match starts_with_nothing && !rendering.has_bind_line() {
        true => nobody_would_accept(served),
        false => Ok(()),
    }
}

fn nobody_would_accept(served: &[String]) -> Result<(), Error> {
    match served.is_empty() {
        true => Ok(()),
        false => Err(Error::NothingLeft { served: served.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use bindonce_core::listener::Listener;

    use super::*;

    #[test]
    fn what_clients_reach_is_compared() {
        let keys = |all: &[&str]| -> Vec<Key> {
            all.iter().map(|text| text.parse::<Listener>().expect(text).key()).collect()
        };
        for (served, new, none) in [
            (&[":80"][..], &["[::]:80"][..], false),
            (&[":80"], &["[::]:80,v6only"], true),
            (&[":80", ":81"], &["127.0.0.1:81"], false),
            (&["127.0.0.1:80"], &[":80"], false),
            (&["127.0.0.1:80"], &["127.0.0.2:80", ":81", "udp@:80"], true),
            (&["/run/a", "abns@a"], &["/run/b"], true),
        ] {
            assert_eq!(none_reached(&keys(served), &keys(new)), none, "{served:?} {new:?}");
        }
    }
}
