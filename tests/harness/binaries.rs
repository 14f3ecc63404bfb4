//! The programs under test, and what is said when one cannot be had.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The top directory of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// The `bindonce` under test: the one that BINDONCE_TESTS_BINARY names, else the
/// one of this build, which is brought up to date first.
pub(crate) fn bindonce() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("BINDONCE_TESTS_BINARY") {
            return PathBuf::from(path);
        }
        let this = std::env::current_exe().expect("the path of the test binary");
        let directory = this.parent().and_then(Path::parent);
        let directory = directory.expect("target/PROFILE/deps/TEST");
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(root()).args(["build", "--quiet", "--package", "bindonce-cli"]);
        build.arg("--target-dir").arg(directory.parent().expect("target"));
        if directory.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success(), "bindonce does not build");
        directory.join("bindonce")
    })
}

/// Says that a test cannot run here and why, where `tests/run` counts it. The
/// caller returns right after.
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
