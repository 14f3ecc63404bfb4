//! Generated configurations, plain and under bindonce, each in its own network namespace: both bind
//! the same addresses, or bindonce says why not. tests/measure/configurations.py generates and
//! compares them.

use std::process::Command;

use crate::harness::{Haproxy, bindonce, root, skip};

/// The number of configurations for each test; together 54. One takes a second, and several seconds
/// on a busy machine.
const COUNT: &str = "9";

fn compare(haproxy: Option<std::path::PathBuf>, seed: &str) {
    let Some(haproxy) = haproxy else { return };
    if !nix::unistd::geteuid().is_root() {
        skip("network namespaces need root");
        return;
    }
    let script = root().join("tests/measure/configurations.py");
    let mut command = Command::new("python3");
    command.arg(script).args(["--count", COUNT, "--seed", seed]).arg(bindonce()).arg(haproxy);
    let told = command.output().expect("python3");
    let said = String::from_utf8_lossy(&told.stdout);
    let complaint = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{said}{complaint}");
    assert!(said.contains("the same addresses"), "none of them listened: {said}");
}

#[test]
fn the_system_s_haproxy_listens_on_the_same_addresses() {
    compare(Haproxy::system(), "1");
}

#[test]
fn the_system_s_haproxy_listens_on_the_same_addresses_of_others() {
    // With masters, which know only after their first start that they are masters.
    compare(Haproxy::system(), "701000");
}

#[test]
fn haproxy_3_0_listens_on_the_same_addresses() {
    compare(Haproxy::fetched("3.0"), "101");
}

#[test]
fn haproxy_3_0_listens_on_the_same_addresses_of_others() {
    compare(Haproxy::fetched("3.0"), "111");
}

#[test]
fn haproxy_3_2_listens_on_the_same_addresses() {
    compare(Haproxy::fetched("3.2"), "201");
}

#[test]
fn haproxy_3_2_listens_on_the_same_addresses_of_others() {
    // With a worker of a master, for which a late `unsetenv` does not count on earlier lines.
    compare(Haproxy::fetched("3.2"), "704135");
}
