//! Counts tests that cannot run here. The tests of other packages include this file by its path.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Reports that a test cannot run here, and why, where `tests/run` counts it. The caller returns
/// right after.
pub(crate) fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    eprint!("skipped: {line}");
    if let Some(list) = std::env::var_os("BINDONCE_TESTS_SKIPPED") {
        let file = OpenOptions::new().append(true).create(true).open(list);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the list of skipped tests");
    }
}
