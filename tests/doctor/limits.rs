//! Limits that are nearly used up: of a process, and of a network.

use std::net::{TcpListener, TcpStream};

use super::{expect, findings, pids, text};
use crate::harness::{Process, Scene, bindonce, finish, skip};

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
fn local_ports_for_one_destination_are_found_and_the_remedy_helps() {
    let scene = Scene::new();
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    if !scene.is_isolated() || std::fs::write(range, "40000 40019").is_err() {
        skip("needs root, to have few local ports in a network of its own");
        return;
    }
    let server = TcpListener::bind(scene.address()).expect("bind");
    let address = server.local_addr().expect("its address");
    let _clients: Vec<_> =
        (0..18).map(|_| TcpStream::connect(address).expect("connecting")).collect();
    let found = expect(&scene, "limit");
    let summary = format!("18 of 20, 90 %, local ports for connections to {address}");
    assert_eq!(
        (text(&found["summary"]), &found["severity"]),
        (summary.as_str(), &"warning".into())
    );
    // From another network, which finds this one by a process in it: the limit concerns one of two
    // addresses.
    let _resident = Process::start(scene.command("sleep").arg("60"));
    let seen_from_outside = |address: &str| {
        let mut command = scene.command("unshare");
        command.arg("--net").arg(bindonce()).args(["doctor", "--socket"]).arg(scene.socket());
        let said = finish(command.arg(address)).out;
        said.contains("local ports for connections to")
    };
    assert!(seen_from_outside(&address.to_string()));
    assert!(!seen_from_outside("127.0.0.1:59999"));
    let remedy = text(&found["remedy"][0]);
    finish(scene.command("sh").args(["-c", remedy])).ok();
    assert!(findings(&scene).iter().all(|one| one["kind"] != "limit"));
}
