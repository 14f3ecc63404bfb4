//! The floors of docs/architecture.md: a crate depends only on floors below it,
//! and the core on nothing that reaches the system.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::harness::{finish, root};

/// Packages by floor, each with the packages of ours that it may depend on.
const FLOORS: [(&str, &[&str]); 12] = [
    ("bindonce-core", &[]),
    ("bindonce-fd", &[]),
    ("bindonce-wire", &["bindonce-core"]),
    ("bindonce-sys", &["bindonce-core", "bindonce-fd"]),
    ("bindonce", &["bindonce-core", "bindonce-fd", "bindonce-wire"]),
    ("bindonce-capi", &["bindonce"]),
    ("bindonce-daemon", &["bindonce-core", "bindonce-fd", "bindonce-wire", "bindonce-sys"]),
    (
        "bindonce-broker",
        &["bindonce-core", "bindonce-fd", "bindonce-daemon", "bindonce-wire", "bindonce-sys"],
    ),
    ("bindonce-haproxy", &["bindonce-core", "bindonce-sys"]),
    (
        "bindonce-supervisor",
        &[
            "bindonce",
            "bindonce-core",
            "bindonce-fd",
            "bindonce-haproxy",
            "bindonce-daemon",
            "bindonce-sys",
            "bindonce-wire",
        ],
    ),
    ("bindonce-doctor", &["bindonce", "bindonce-core", "bindonce-haproxy", "bindonce-sys"]),
    (
        "bindonce-cli",
        &[
            "bindonce",
            "bindonce-broker",
            "bindonce-core",
            "bindonce-doctor",
            "bindonce-haproxy",
            "bindonce-daemon",
            "bindonce-supervisor",
            "bindonce-sys",
            "bindonce-wire",
        ],
    ),
];

/// Dependencies by which the core could make a system call.
const NOT_IN_CORE: [&str; 6] = ["tokio", "nix", "rustix", "socket2", "libc", "sendfd"];

/// The dependencies of every package of the workspace: name and kind (`null` is a normal one).
fn dependencies() -> BTreeMap<String, Vec<(String, Value)>> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]);
    let metadata: Value =
        serde_json::from_str(&finish(&mut command).ok()).expect("JSON of cargo metadata");
    let package = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
        let dependencies = dependencies.map(|dependency| {
            (dependency["name"].as_str().expect("name").to_owned(), dependency["kind"].clone())
        });
        (package["name"].as_str().expect("name").to_owned(), dependencies.collect())
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

/// Only what a crate is built from counts. Its tests may depend on higher floors: a client is
/// tested against the broker.
#[test]
fn no_arrow_runs_up() {
    let packages = dependencies();
    for (name, allowed) in FLOORS {
        let dependencies = packages.get(name).unwrap_or_else(|| panic!("no package {name}"));
        for (dependency, kind) in dependencies {
            let ours = dependency == "bindonce" || dependency.starts_with("bindonce-");
            assert!(
                kind == "dev" || !ours || allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency} (kind {kind}), which stands no lower: \
                 see the floors in docs/architecture.md"
            );
        }
    }
}

#[test]
fn every_package_has_a_floor() {
    for name in dependencies().keys() {
        let known = FLOORS.iter().any(|(package, _)| package == name);
        // Packages that no other package of ours is built from.
        let above = ["bindonce-fuzz", "bindonce-load", "bindonce-package", "bindonce-tests"];
        assert!(
            known || above.contains(&name.as_str()),
            "{name} stands on no floor: give it one in docs/architecture.md and here"
        );
    }
}

#[test]
fn the_core_cannot_reach_the_system() {
    for (dependency, kind) in &dependencies()["bindonce-core"] {
        assert!(
            !NOT_IN_CORE.contains(&dependency.as_str()),
            "bindonce-core depends on {dependency} (kind {kind}): it makes no system call"
        );
    }
}
