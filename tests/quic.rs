//! Listeners for QUIC: one UDP socket over all reloads, which one generation reads at each moment.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{DEADLINE, Haproxy, Process, Scene, config, eventually, finish, skip};

/// The sockets that receive from any peer at this address, by inode (proc_net_udp(5)).
fn bound(address: SocketAddr) -> Vec<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/udp").expect("/proc/net/udp");
    let place = format!("{:08X}:{:04X}", u32::from_ne_bytes([127, 0, 0, 1]), address.port());
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ours = words.get(1) == Some(&place.as_str()) && words.get(2)?.starts_with("00000000:");
        ours.then(|| words.get(9)?.parse().ok())?
    };
    table.lines().filter_map(inode).collect()
}

/// Whether a process reads packets at this address: a QUIC server answers a packet with an unknown
/// version with the versions that it supports (RFC 9000, section 6.1).
fn is_read(address: SocketAddr) -> bool {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
    let mut packet = [0; 1200];
    packet[..15].copy_from_slice(b"\xc0\x1a\x2a\x3a\x4a\x04abcd\x04efgh");
    client.send_to(&packet, address).expect("sending");
    let mut answer = [0; 2048];
    let length = client.recv(&mut answer).unwrap_or(0);
    // A long header, the version 0, and the two connection ids exchanged.
    length > 15 && answer[1..15] == *b"\0\0\0\0\x04efgh\x04abcd"
}

/// How often the socket with this inode is registered in the epoll sets of a process.
fn registrations(pid: i32, inode: u64) -> usize {
    let entry = format!(" ino:{inode:x} ");
    let all = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = all.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.contains(&entry)).count()).sum()
}

fn with_quic(scene: &Scene, address: SocketAddr, tag: u64, more: &str) -> PathBuf {
    let pem = scene.write("test.pem", include_str!("harness/test.pem"));
    let bind = format!("    bind quic4@{address} ssl crt {} alpn h3\n    bind ", pem.display());
    let text = config(address, tag).replacen("    bind ", &bind, 1);
    scene.write("haproxy.cfg", &text.replacen("global\n", &format!("global\n{more}"), 1))
}

/// Each generation reads the same socket, and its predecessor has left the socket when `reload`
/// returns.
#[test]
fn one_socket_for_quic_goes_from_generation_to_generation() {
    for program in ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched) {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let file = with_quic(&scene, address, 1, "    limited-quic\n");
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        let (_, mut pid) = haproxy.wait_serving(&scene);
        eventually("an answer", || is_read(address).then_some(()));
        let inodes = bound(address);
        assert_eq!(inodes.len(), 1, "one socket for all threads");
        for tag in 2..=4 {
            with_quic(&scene, address, tag, "    limited-quic\n");
            // The request keeps the older generation from ending.
            let half = half_a_request(address);
            haproxy.reload(&scene).ok();
            let left = || (registrations(pid, inodes[0]) == 0).then_some(());
            eventually("the older one is woken for it no more", left);
            assert_eq!(bound(address), inodes);
            eventually("an answer of the next", || is_read(address).then_some(()));
            drop(half);
            (_, pid) = haproxy.wait_serving(&scene);
        }
        let list = scene.run("list", &[]).ok();
        assert!(list.contains(&format!("quic4@{address}")), "{list}");
        // The secret that generations share about their clients stays private.
        let secret = scene.path("web.d/cluster-secret");
        assert_eq!(fs::metadata(&secret).expect("the file").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&secret).expect("the secret");
        assert!(!haproxy.supervisor.story().contains(&text), "it is in the log");
    }
}

fn half_a_request(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").expect("writing");
    stream
}

/// The first packet of an HTTP/3 client, recorded once. Its keys come from the connection id in it
/// (RFC 9001, section 5.2), so any haproxy takes it for the beginning of a handshake.
const INITIAL: &[u8] = include_bytes!("harness/initial.bin");

/// haproxy never answers a connection whose handshake ends after it was told to stop. So the older
/// generation is told only when its handshakes are over, or after one second for an unfinished one.
#[test]
fn the_older_generation_finishes_its_handshakes_before_it_stops() {
    for program in ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched) {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let file = with_quic(&scene, address, 1, "    limited-quic\n");
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        haproxy.wait_serving(&scene);
        let timed = || {
            let begun = Instant::now();
            haproxy.reload(&scene).ok();
            begun.elapsed()
        };
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        client.set_read_timeout(Some(DEADLINE)).expect("a limit");
        client.send_to(INITIAL, address).expect("sending");
        client.recv(&mut [0; 2048]).expect("the answer of the server");
        assert!(timed() >= Duration::from_secs(1), "it was told to stop in a handshake");
        eventually("an answer of the next", || is_read(address).then_some(()));
    }
}

/// A haproxy without QUIC refuses the line, and nothing is bound for it.
#[test]
fn without_quic_the_line_is_left_to_haproxy() {
    let Some(program) = Haproxy::system() else { return };
    let built = std::process::Command::new(&program).arg("-vv").output().expect("haproxy -vv");
    if String::from_utf8_lossy(&built.stdout).contains("+QUIC") {
        return skip("this haproxy has QUIC");
    }
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = with_quic(&scene, address, 1, "");
    let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
    haproxy.supervisor.wait_line(&format!("quic4@{address}"));
    assert!(!haproxy.supervisor.wait_exit().success());
    let text = fs::read_to_string(&file).expect("the file");
    let file =
        scene.write("descriptor.cfg", &text.replace(&format!("quic4@{address}"), "quic+fd@${web}"));
    let listen = ["--listen", &format!("web=quic4@{address}")];
    let mut haproxy = Haproxy::begin(&scene, &listen, &program, &file);
    haproxy.supervisor.wait_line("this haproxy takes no descriptor for QUIC");
    assert!(!haproxy.supervisor.wait_exit().success());
    assert_eq!(bound(address), [0; 0]);
}

/// A plain haproxy's QUIC socket is taken over, and outlives every process that has it: the haproxy
/// that bound it, the images of broker and supervisor, and a killed broker.
#[test]
fn a_socket_for_quic_is_adopted_upgraded_and_restored() {
    for program in ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched) {
        let Some(scene) = Scene::isolated("needs root, to take sockets of a process") else {
            return;
        };
        let mut broker = scene.broker();
        let address = scene.address();
        let file = with_quic(&scene, address, 1, "    limited-quic\n");
        let plain = Process::start(scene.command(&program).arg("-db").arg("-f").arg(&file));
        eventually("an answer", || is_read(address).then_some(()));
        let inodes = bound(address);
        let pid = plain.pid().to_string();
        let mut adopt = scene.bindonce("adopt");
        adopt.args(["--pid", &pid, "--"]).arg(&program).arg("-f").arg(&file);
        let said = finish(&mut adopt).ok();
        assert!(said.contains(&format!("quic4@{address}")), "{said}");
        let haproxy = Haproxy::start(&scene, &program, &file);
        scene.run("adopt", &["--pid", &pid, "--retire"]).ok();
        scene.run("upgrade", &[]).ok();
        scene.run("upgrade", &["--name", "web"]).ok();
        haproxy.reload(&scene).ok();
        broker.kill();
        let _broker = scene.broker();
        let back = || scene.run("list", &[]).out.matches(" serving").count() == 2;
        eventually("the supervisor to be back", || back().then_some(()));
        haproxy.reload(&scene).ok();
        assert_eq!(bound(address), inodes);
        eventually("an answer", || is_read(address).then_some(()));
    }
}

/// A refused configuration leaves nothing bound; a late line of the file also applies to earlier
/// lines.
#[test]
fn what_is_wrong_with_a_line_for_quic_is_said_and_binds_nothing() {
    let Some(program) = Haproxy::fetched("3.0").or_else(|| Haproxy::fetched("3.2")) else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let refused = |arguments: &[&str], text: &str| {
        let file = scene.write("wrong.cfg", text);
        let mut haproxy = Haproxy::begin(&scene, arguments, &program, &file);
        assert!(!haproxy.supervisor.wait_exit().success());
        haproxy.supervisor.story()
    };
    let file = with_quic(&scene, address, 1, "    limited-quic\n");
    let good = fs::read_to_string(&file).expect("the file");
    // The holder has SO_REUSEADDR, so binding beside it would succeed.
    let theirs = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
    let theirs = theirs.expect("a socket");
    theirs.set_reuse_address(true).expect("SO_REUSEADDR");
    theirs.bind(&address.into()).expect("binding it");
    let said = refused(&[], &good);
    assert!(
        said.contains("EADDRINUSE") && said.contains(&std::process::id().to_string()),
        "{said}"
    );
    drop(theirs);
    let said = refused(&[], &good.replace("test.pem", "none.pem"));
    assert!(said.contains("none.pem"), "{said}");
    let said = refused(
        &["--listen", &format!("web=udp@{address}")],
        &good.replace(&format!("quic4@{address}"), "quic+fd@${web}"),
    );
    assert!(said.contains("is not for QUIC: give quic4@ADDR or quic6@ADDR for web"), "{said}");
    let descriptor = good.replace(&format!("quic4@{address}"), "quic+fd@${web}");
    let web = format!("web=quic4@{address}");
    // Anywhere in the file, here after the line.
    let said = refused(&["--listen", &web], &format!("{descriptor}global\n    no-quic\n"));
    assert!(said.contains("has switched QUIC off; write the address itself"), "{said}");
    assert_eq!(bound(address), [0; 0]);

    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.wait_serving(&scene);
    assert_eq!(bound(address).len(), 1);
    scene.write("haproxy.cfg", &format!("{good}global\n    no-quic\n"));
    haproxy.reload(&scene).ok();
    eventually("its release", || bound(address).is_empty().then_some(()));
}

/// A haproxy that gave up root and serves QUIC on a port that only root may bind reports it, and
/// doctor finds it.
#[test]
fn connections_that_stay_on_the_listener_are_told() {
    let Some(program) = Haproxy::fetched("3.2").or_else(|| Haproxy::fetched("3.0")) else { return };
    let Some(scene) = Scene::isolated("needs root, to give it up") else { return };
    let _broker = scene.broker();
    let address = SocketAddr::from(([127, 0, 0, 1], 443));
    let nobody = "    limited-quic\n    uid 65534\n";
    let file = with_quic(&scene, address, 1, nobody);
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.supervisor.wait_line("HTTP/3 connections stay on the listener");
    let fallback = || {
        let report = finish(scene.bindonce("doctor").args(["--json", &format!("udp@{address}")]));
        let report: Value = serde_json::from_str(&report.out).expect("JSON");
        let found = report["findings"].as_array().expect("findings").clone();
        found.into_iter().find(|one| one["kind"] == "fallback" && one["network"].is_null())
    };
    let (_, pid) = haproxy.wait_serving(&scene);
    assert_eq!(fallback().expect("a finding")["pids"], serde_json::json!([pid]));
    with_quic(&scene, address, 2, &format!("{nobody}    setcap cap_net_bind_service\n"));
    haproxy.reload(&scene).ok();
    eventually("an answer", || is_read(address).then_some(()));
    assert_eq!(fallback(), None);
    haproxy.supervisor.signal(Signal::SIGTERM);
}
