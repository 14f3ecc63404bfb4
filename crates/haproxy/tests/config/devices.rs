//! Bind lines for an interface that is missing, or that appeared after haproxy had bound the
//! address.

use std::collections::BTreeSet;
use std::process::Command as Process;

use bindonce_haproxy::config::{Command, Rendering, Supplied, System};

use super::support::Scratch;

/// The devices whose addresses are left to haproxy, the claimed listeners, and the missing devices
/// of those listeners.
fn read(
    name: &str,
    text: &str,
    held: &[&str],
    haproxys: &[&str],
) -> (BTreeSet<String>, Vec<String>, Vec<String>) {
    let scratch = Scratch::new(name);
    std::fs::write(scratch.0.join("a.cfg"), text).expect("write");
    let directory = scratch.0.to_str().expect("path");
    let command = Command::parse(["haproxy", "-C", directory, "-f", "a.cfg"]).expect("command");
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let mut world = System::new("haproxy".as_ref()).expect("world");
    (world.devices, world.haproxys) = (names(held), names(haproxys));
    let rendering = Rendering::of(&command, Supplied::default(), &world).expect("rendering");
    let claimed = rendering.bindings.iter().map(|binding| binding.listener.to_string()).collect();
    let without = rendering.without_device().map(|(.., device)| device.to_owned()).collect();
    (rendering.haproxys_devices(), claimed, without)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

const TWO: &str = "frontend f\n mode http\n bind quic4@127.0.0.1:443 interface lo\n \
                   bind 127.0.0.1:80 interface lo\n bind 127.0.0.1:81 interface nosuch0\n";

#[test]
fn the_broker_binds_the_address_of_a_device_that_is_not_there_on_every_interface() {
    // A line that is left to haproxy for another reason (QUIC) does not count for its device.
    let both = words(&["127.0.0.1:80,interface=lo", "127.0.0.1:81"]);
    assert_eq!(read("first", TWO, &[], &[]), (BTreeSet::new(), both, words(&["nosuch0"])));
    let text = "frontend f\n bind 127.0.0.1:80 interface nosuch0\n bind 127.0.0.1:81,/run/x interface 'a b'\n\
                frontend g\n bind *:80\n";
    let claimed = words(&["127.0.0.1:80", "127.0.0.1:81", "unix@/run/x", "0.0.0.0:80"]);
    let without = words(&["nosuch0", "a b"]);
    assert_eq!(read("beside", text, &[], &[]), (BTreeSet::new(), claimed, without));
    // The kernel reads 15 bytes of a device name.
    let text = "frontend f\n bind 127.0.0.1:80 interface abcdefghijklmnopq\n";
    let without = words(&["abcdefghijklmno"]);
    assert_eq!(read("long", text, &[], &[]), (BTreeSet::new(), words(&["127.0.0.1:80"]), without));
}

#[test]
fn the_device_of_all_lines_of_a_section_may_not_be_there() {
    let text = "global\n localpeer here\npeers p\n default-bind interface nosuch0\n bind 127.0.0.1:80\n server here\n\
                peers q\n default-bind interface nosuch0\n bind 127.0.0.1:81 interface lo\n server here\n";
    let claimed = words(&["127.0.0.1:80", "127.0.0.1:81,interface=lo"]);
    assert_eq!(read("peers", text, &[], &[]), (BTreeSet::new(), claimed, words(&["nosuch0"])));
}

#[test]
fn what_haproxy_has_bound_before_the_device_came_stays_its_own() {
    let devices = |names: &[&str]| BTreeSet::from_iter(words(names));
    let none = Vec::new;
    assert_eq!(
        read("late", TWO, &[], &["lo", "nosuch0"]),
        (devices(&["lo", "nosuch0"]), none(), none())
    );
    // A held listener is the broker's, whatever else is known about its device.
    let both = words(&["127.0.0.1:80,interface=lo", "127.0.0.1:81"]);
    let without = words(&["nosuch0"]);
    assert_eq!(read("held", TWO, &["lo", "nosuch0"], &["lo"]), (devices(&[]), both, without));
}

/// haproxy alone would have two sockets at one address, and the kernel gives each connection to one
/// of them.
#[test]
fn two_lines_that_come_to_one_address_without_their_devices_stay_haproxys() {
    let text = "frontend f\n bind *:80 interface nosuch0\nfrontend g\n bind *:80 interface nosuch1\n bind *:81 interface nosuch1\n\
                frontend h\n bind *:82 interface nosuch2\n bind *:82 interface nosuch2\n bind *:83 interface lo\n";
    let split = BTreeSet::from_iter(words(&["nosuch0", "nosuch1"]));
    let claimed = words(&["0.0.0.0:82", "0.0.0.0:83,interface=lo"]);
    assert_eq!(read("split", text, &[], &[]), (split, claimed, words(&["nosuch2"])));
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
    // Nothing is known about a missing namespace: the broker reports the error.
    let netns = format!("netns={}", namespace.0);
    let claimed = vec![
        format!("127.0.0.1:80,{netns}"),
        format!("127.0.0.1:81,interface=lo,{netns}"),
        "127.0.0.1:82,interface=nosuch1,netns=no-such".to_owned(),
    ];
    let without = words(&["nosuch0"]);
    assert_eq!(read("namespace", &text, &[], &[]), (BTreeSet::new(), claimed, without));
}
