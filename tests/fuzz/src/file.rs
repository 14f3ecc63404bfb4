//! The broker's own configuration file.

use bindonce_broker::File;

/// Reads a configuration file. An error says something, and every listener that is accepted prints
/// to a text that means the same.
pub(crate) fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<File>() {
        Ok(file) => {
            for wanted in file.listen {
                assert_eq!(wanted.to_string().parse(), Ok(wanted));
            }
            assert!(file.user.is_some() || file.group.is_none() && file.capabilities.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
