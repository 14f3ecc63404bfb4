//! Lines for an interface that is not there, or came when haproxy had bound their address.

use std::collections::BTreeSet;
use std::process::Command as Process;

use bindonce_haproxy::config::{Command, Rendering, Supplied, System};

use super::support::Scratch;

/// Reads bind lines for `lo` and for a device that is not there.
fn read(name: &str, held: &[&str], haproxys: &[&str]) -> (BTreeSet<String>, Vec<String>) {
    let text = "frontend f\n mode http\n bind quic4@127.0.0.1:443 interface lo\n bind 127.0.0.1:80 interface lo\n \
                bind 127.0.0.1:81 interface nosuch0\n";
    read_text(name, text, held, haproxys)
}

fn read_text(
    name: &str,
    text: &str,
    held: &[&str],
    haproxys: &[&str],
) -> (BTreeSet<String>, Vec<String>) {
    let scratch = Scratch::new(name);
    std::fs::write(scratch.0.join("a.cfg"), text).expect("write");
    let directory = scratch.0.to_str().expect("path");
    let command = Command::parse(["haproxy", "-C", directory, "-f", "a.cfg"]).expect("command");
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let mut world = System::new("haproxy".as_ref()).expect("world");
    (world.devices, world.haproxys) = (names(held), names(haproxys));
    let rendering = Rendering::of(&command, Supplied::default(), &world).expect("rendering");
    let claimed = rendering.bindings.iter().map(|binding| binding.text.clone()).collect();
    (rendering.haproxys_devices(), claimed)
}

#[test]
fn only_the_addresses_of_a_device_that_was_not_there_stay_haproxys() {
    // A line that is haproxy's own for another reason (QUIC) says nothing of its device.
    let missing = BTreeSet::from(["nosuch0".to_owned()]);
    assert_eq!(read("first", &[], &[]), (missing, vec!["127.0.0.1:80".to_owned()]));
    // It is there by now, and the haproxy that serves has bound its address.
    let both = BTreeSet::from(["lo".to_owned(), "nosuch0".to_owned()]);
    assert_eq!(read("late", &[], &["lo"]), (both, vec![]));
    // What is held is the broker's, whatever else was said of the device.
    let claimed = ["127.0.0.1:80", "127.0.0.1:81"].map(str::to_owned).to_vec();
    assert_eq!(read("held", &["lo", "nosuch0"], &["lo"]), (BTreeSet::new(), claimed));
}

/// haproxy binds with SO_REUSEPORT, and could not bind it beside a socket of the broker's.
#[test]
fn an_address_of_a_missing_device_that_overlaps_the_brokers_is_the_brokers_too() {
    let text = "frontend f\n bind 127.0.0.1:80 interface nosuch0\n bind 127.0.0.1:81 interface nosuch1\n\
                frontend g\n bind *:80\n";
    let claimed = ["127.0.0.1:80", "*:80"].map(str::to_owned).to_vec();
    let missing = BTreeSet::from(["nosuch1".to_owned()]);
    assert_eq!(read_text("beside", text, &[], &[]), (missing, claimed));
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Process::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn a_device_is_looked_for_in_the_network_namespace_of_its_line() {
    let namespace = Namespace(format!("bo-devices-{}", std::process::id()));
    let made = Process::new("ip").args(["netns", "add", &namespace.0]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return super::skip::skip("no network namespace can be made");
    }
    let text = "frontend f\n bind 127.0.0.1:80 interface nosuch0 namespace NAME\n \
                bind 127.0.0.1:81 namespace NAME interface lo\n \
                bind 127.0.0.1:82 interface nosuch1 namespace no-such\n"
        .replace("NAME", &namespace.0);
    let missing = BTreeSet::from(["nosuch0".to_owned()]);
    // Of a namespace that is not there nothing is known: the broker says so.
    let claimed = ["127.0.0.1:81", "127.0.0.1:82"].map(str::to_owned).to_vec();
    assert_eq!(read_text("namespace", &text, &[], &[]), (missing, claimed));
}
