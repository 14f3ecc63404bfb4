//! The addresses that haproxy binds itself, as far as its lines show: a `stats socket`, the address
//! of the local peer, a UNIX socket for datagrams. A path has one socket at a time, so two lines
//! with the same path are refused, and so is an address that conflicts with a listener of the
//! broker's.

use std::collections::BTreeMap;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};

use super::error::Clash;
use super::rendering::{Binding, LeftAlone};
use super::{Error, Place};

/// Whether an address of haproxy's own overlaps one of these listeners.
pub(super) fn overlaps(own: &Address, bindings: &[Binding]) -> bool {
    in_the_way(own, bindings).is_some()
}

fn in_the_way<'a>(own: &Address, bindings: &'a [Binding]) -> Option<&'a Binding> {
    let key = Listener::new(None, own.clone(), Options::default()).ok()?.key();
    bindings.iter().find(|binding| binding.listener.key().overlaps(&key))
}

/// Checks that haproxy can bind its own addresses beside the broker's and beside each other.
///
/// # Errors
/// [`Error::SamePath`] with both lines, ordered by the `number` of the file and by line;
/// [`Error::Beside`] with the broker's line first.
pub(super) fn check(
    bindings: &[Binding],
    left_alone: &[LeftAlone],
    number: impl Fn(&Place) -> usize,
) -> Result<(), Error> {
    let mut at: BTreeMap<&Address, (&Place, &str)> = BTreeMap::new();
    for binding in bindings.iter().filter(|binding| binding.listener.address.port().is_none()) {
        at.insert(&binding.listener.address, (&binding.place, &binding.text));
    }
    for left in left_alone.iter().filter(|left| left.listens) {
        for own in &left.own {
            let one = (&left.place, left.text.as_str());
            if own.port().is_some() {
                let Some(binding) = in_the_way(own, bindings) else { continue };
                return Err(Error::Beside(Box::new(Clash {
                    first: binding.place.clone(),
                    first_text: binding.text.clone(),
                    second: left.place.clone(),
                    second_text: left.text.clone(),
                    about: left.reason.to_string(),
                })));
            }
            let Some(other) = at.insert(own, one) else { continue };
            let order = |(place, _): (&Place, &str)| (number(place), place.line);
            let (first, second) =
                if order(other) <= order(one) { (other, one) } else { (one, other) };
            return Err(Error::SamePath(Box::new(Clash {
                first: first.0.clone(),
                first_text: first.1.to_owned(),
                second: second.0.clone(),
                second_text: second.1.to_owned(),
                about: own.to_string(),
            })));
        }
    }
    Ok(())
}
