//! Stick tables over reloads in quick succession.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::{Haproxy, Scene, config, eventually};

const ENTRIES: usize = 2000;

/// The answer of the serving generation's CLI.
fn ask(scene: &Scene, command: &str) -> String {
    let mut stream = UnixStream::connect(scene.path("cli")).expect("connecting");
    stream.write_all(format!("{command}\n").as_bytes()).expect("a command");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// `peers` names the port of the local one.
fn with_table(
    scene: &Scene,
    address: std::net::SocketAddr,
    tag: u64,
    peer: std::net::SocketAddr,
) -> String {
    let global = format!(
        "global\n    localpeer me\n    stats socket {} level admin\n",
        scene.path("cli").display()
    );
    let table = format!("size {ENTRIES} expire 1h store gpc0 peers mesh");
    let rest = format!(
        "peers mesh\n    peer me {peer}\nbackend t\n    stick-table type string len 16 {table}\n"
    );
    config(address, tag).replacen("global\n", &global, 1) + &rest
}

fn keeps_its_table(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let (address, peer) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &with_table(&scene, address, 1, peer));
    // 2.6 has nothing to learn, and waits 5 seconds for it.
    let haproxy = Haproxy::start_with(&scene, &["--peers-timeout", "20s"], program, &file);
    for first in (0..ENTRIES).step_by(100) {
        let entries = (first..first + 100).map(|key| format!("set table t key k{key} data.gpc0 1"));
        ask(&scene, &entries.collect::<Vec<_>>().join(";"));
    }
    let whole = format!("used:{ENTRIES}");
    assert!(ask(&scene, "show table t").contains(&whole));
    for tag in 2..5 {
        scene.write("haproxy.cfg", &with_table(&scene, address, tag, peer));
        haproxy.reload(&scene).ok();
    }
    eventually("the table to be whole", || {
        ask(&scene, "show table t").contains(&whole).then_some(())
    });
}

#[test]
fn reloads_in_quick_succession_lose_no_entry() {
    Haproxy::all().for_each(|program| keeps_its_table(&program));
}

/// The serving generation was started while another served that has no such table: it waits 5
/// seconds to be taught.
#[test]
fn a_reload_does_not_wait_forever_for_a_table() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, peer) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let arguments = ["--peers-timeout", "10ms"];
    let mut haproxy = Haproxy::start_with(&scene, &arguments, &program, &file);
    scene.write("haproxy.cfg", &with_table(&scene, address, 2, peer));
    eventually("a reload to be begun before the one that serves has learned", || {
        haproxy.reload(&scene).ok();
        let said = "has not learned its stick tables within 10ms (--peers-timeout)";
        haproxy.supervisor.story().contains(said).then_some(())
    });
}
