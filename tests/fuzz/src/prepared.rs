//! What a supervisor keeps of a configuration that it has read, for the next one.

use bindonce_supervisor::rewritten_preparation;

/// Reads such a file. What is accepted is read again as the same when it is written anew.
pub(crate) fn prepared(data: &[u8]) {
    let Ok(text) = rewritten_preparation(data) else { return };
    assert_eq!(rewritten_preparation(&text).expect("what was written is read"), text);
}
