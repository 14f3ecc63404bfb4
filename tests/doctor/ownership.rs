//! Sockets that others could join or that haproxy bound itself, and a limit of the system.

use super::{expect, pids, plain, report, text};
use crate::harness::{Haproxy, Process, Scene, config};

#[test]
fn a_limit_of_descriptors_is_found() {
    let scene = Scene::new();
    let address = scene.address().to_string();
    let program = "import socket, os, resource, sys, time\n\
        host, port = sys.argv[1].split(':')\n\
        s = socket.create_server((host, int(port)))\n\
        resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))\n\
        [os.dup(0) for _ in range(9 - len(os.listdir('/proc/self/fd')) + 1)]\n\
        print('ready', flush=True)\n\
        s.accept()\n";
    let mut process = Process::start(scene.command("python3").args(["-c", program, &address]));
    process.wait_line("ready");
    let found = expect(&scene, "limit");
    assert_eq!(pids(&found), [process.pid()]);
    assert!(text(&found["summary"]).contains("of 10, "), "{found:#}");
}

#[test]
fn a_socket_that_haproxy_binds_itself_is_foreign() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let (address, peer) = (scene.address(), scene.address());
    let peers = format!("peers p\n    peer {} {peer}\n", host_name());
    let file = scene.write("haproxy.cfg", &(config(address, 1) + &peers));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    let found = expect(&scene, "foreign");
    assert_eq!((&found["address"], &found["service"]), (&peer.to_string().into(), &"web".into()));
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").expect("host name").trim().to_owned()
}

#[test]
fn not_exclusive_is_a_note_for_a_plain_haproxy() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let _haproxy = plain(&scene, &program, &file, &[]);
    let report = report(&scene, &[&address.to_string()]);
    let all = report["findings"].as_array().expect("findings");
    let note = all.iter().find(|one| one["kind"] == "not-exclusive" && one["network"].is_null());
    assert_eq!(note.expect("a note")["severity"], "note", "{all:#?}");
}
