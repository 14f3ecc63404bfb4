//! The one syntax of addresses, listeners and options.

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options, Wanted};

/// Reads a text as everything that may stand where a listener is asked for. What is accepted
/// prints to a text that is accepted and means the same.
pub(crate) fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse(), Ok(address), "{text:?}");
    }
    if let Ok(options) = text.parse::<Options>() {
        assert_eq!(options.to_string().parse(), Ok(options), "{text:?}");
    }
    let Ok(wanted) = text.parse::<Wanted>() else { return };
    assert_eq!(wanted.to_string().parse(), Ok(wanted.clone()), "{text:?}");
    let Wanted::Listen(spec) = wanted else { return };
    assert_eq!(spec.expand().count(), spec.count(), "{text:?}");
    // The ends of a range stand for the rest of it.
    for listener in spec.expand().take(1).chain(spec.expand().last()) {
        assert_eq!(listener.to_string().parse(), Ok(listener.clone()), "{text:?}");
        // A key tells no name, but for a free port, which has nothing else to tell it by.
        let unnamed = Listener { name: None, ..listener };
        let key = unnamed.key();
        let again: Result<Listener, _> = key.to_string().parse();
        assert_eq!(again.as_ref().map(Listener::key), Ok(key.clone()), "{text:?}");
        assert_eq!(key.overlaps(&key), unnamed.address.port() != Some(0), "{text:?}");
    }
}
