//! The programs under test, and the message when one is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The top directory of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// The `bindonce` under test: the one that BINDONCE_TESTS_BINARY names, else this build's, which is
/// brought up to date first.
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
