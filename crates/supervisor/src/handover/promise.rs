//! What is checked before an older generation is touched for a newer one: that the newer one has a listener to serve on, if
//! any serves now.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::generations::generation::Generation;
use bindonce_haproxy::config::Rendering;

/// What the newest generation leaves of the listeners of the one that serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unserved {
    /// The listeners that it does not have.
    pub(crate) left: Vec<String>,
    /// It has none of them.
    pub(crate) none_kept: bool,
}

/// Compares a generation that is ready with the listeners that serve now: what it leaves of them, or why it must not take
/// over.
pub(crate) fn compare(
    served: Vec<String>,
    generation: &Generation,
    may_be_empty: bool,
) -> Result<Unserved, Error> {
    let has: BTreeSet<_> = generation.listeners.iter().map(|held| &held.label).collect();
    if has.is_empty() && !may_be_empty {
        nobody_would_accept(&served)?;
    }
    let count = served.len();
    let left: Vec<_> = served.into_iter().filter(|label| !has.contains(label)).collect();
    let none_kept = !left.is_empty() && left.len() == count;
    if none_kept {
        tracing::warn!(
            generation = generation.id.0,
            listeners = left.join(" "),
            "the configuration names none of the listeners that served: they will be closed"
        );
    }
    Ok(Unserved { left, none_kept })
}

/// Refuses a configuration on which haproxy would start for its admin socket alone, while others serve. One with a `bind` line
/// that was not claimed is started, since haproxy may read it otherwise and have the broker's socket; [`compare`] finds
/// it without, if it does not.
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
