//! haproxy's command line, as a user gives it to `bindonce run`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use bindonce_haproxy::config::Command;

/// Reads a command line, a word on each line. An error says something.
pub(crate) fn command(data: &[u8]) {
    let words = data.split(|byte| *byte == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    if let Err(error) = Command::parse(words) {
        assert!(!error.to_string().is_empty());
    }
}
