//! HTTP/3: sockets that split its clients, or take them all, and what is dropped.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{expect, findings, pids, plain, report, text};
use crate::harness::{Haproxy, Process, Scene, config, eventually, finish, skip};

/// A haproxy with QUIC, and a configuration for it that has no other address.
fn quic(scene: &Scene, address: SocketAddr) -> Option<(PathBuf, PathBuf)> {
    let program = Haproxy::fetched("3.2").or_else(|| Haproxy::fetched("3.0"))?;
    let pem = scene.write("test.pem", include_str!("../harness/test.pem"));
    let bind = format!("    bind quic4@{address} ssl crt {} alpn h3\n", pem.display());
    let text = config(address, 1).replace("global\n", "global\n    limited-quic\n");
    let lines = text.lines().map(|line| match line.trim_start().starts_with("bind ") {
        true => bind.clone(),
        false => format!("{line}\n"),
    });
    Some((program, scene.write("haproxy.cfg", &lines.collect::<String>())))
}

/// A process that reads from a UDP socket with these options set, on this address.
fn reader(scene: &Scene, address: SocketAddr, options: &str) -> Process {
    let program = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        for option in sys.argv[3:]: s.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)\n\
        s.bind((sys.argv[1], int(sys.argv[2])))\nprint('ready', flush=True)\n\
        while True: s.recvfrom(2048)\n";
    let mut command = scene.command("python3");
    command.args(["-c", program, &address.ip().to_string(), &address.port().to_string()]);
    let mut process = Process::start(command.args(options.split_ascii_whitespace()));
    process.wait_line("ready");
    process
}

/// The seed case on UDP: one and two processes that missed their signal, and the remedy as it is printed.
#[test]
fn generations_of_plain_haproxy_split_the_clients_of_http3() {
    let scene = Scene::new();
    let address = scene.address();
    let Some((program, file)) = quic(&scene, address) else { return };
    let first = plain(&scene, &program, &file, &[]);
    let second = plain(&scene, &program, &file, &[]);
    let found = expect(&scene, "split");
    assert_eq!(
        (&found["address"], pids(&found)),
        (&format!("udp4@{address}").into(), vec![first.pid()])
    );
    assert!(
        text(&found["summary"]).starts_with("1 of 2 connections, 50 %, go to pid "),
        "{found:#}"
    );
    let third = plain(&scene, &program, &file, &[]);
    let found = expect(&scene, "split");
    assert_eq!(pids(&found), [first.pid(), second.pid()]);
    assert!(
        text(&found["summary"]).starts_with("2 of 3 connections, 67 %, go to pid "),
        "{found:#}"
    );
    assert_eq!(found["evidence"]["newest_pid"], third.pid());
    // One that is bound later and does not share takes everything from all of them.
    if scene.is_isolated() {
        let theirs = reader(&scene, address, "SO_REUSEADDR");
        let found = expect(&scene, "split");
        assert_eq!(
            (pids(&found), &found["evidence"]["takes_all"]),
            (vec![theirs.pid()], &true.into())
        );
        drop(theirs);
    }
    let remedy = text(&expect(&scene, "split")["remedy"][0]).to_owned();
    finish(scene.command("sh").args(["-c", &remedy])).ok();
    eventually("the older to end", || (scene.haproxies().len() == 1).then_some(()));
    assert_eq!(findings(&scene), Vec::<Value>::new());
}

/// Under a broker: nothing while all is well; then a generation that reads although it was replaced, and a
/// socket that somebody has bound beside the listener.
#[test]
fn what_takes_clients_from_the_generation_that_serves_http3_is_named() {
    let scene = Scene::new();
    let address = scene.address();
    let Some((program, file)) = quic(&scene, address) else { return };
    let _broker = scene.broker();
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.reload(&scene).ok();
    let (_, serving) = haproxy.wait_serving(&scene);
    eventually("a healthy host", || findings(&scene).is_empty().then_some(()));
    let said = scene.run("list", &[]).ok();
    assert!(said.contains("K "), "no receive queue: {said}");
    let listed: Value = serde_json::from_str(&scene.run("list", &["--json"]).ok()).expect("JSON");
    let listener = &listed["listeners"][0];
    assert!(listener["receive_queue"].is_u64() && listener["drops"] == 0, "{listed:#}");
    let size = listener["receive_buffer"].as_u64().expect("a buffer");

    // Another haproxy on the same descriptor, as after a signal that was lost.
    let shared = std::fs::read_to_string(&file).expect("the file");
    let shared = shared.replace(&format!("quic4@{address}"), "quic+fd@${web}");
    let shared = scene.write("shared.cfg", &shared);
    let mut command = scene.bindonce("exec");
    command.arg("--listen").arg(format!("web=quic4@{address}")).arg("--").arg(&program);
    let other = Process::start(command.arg("-db").arg("-f").arg(&shared));
    let found = eventually("both to read", || super::expect_any(&scene, "stale"));
    let known = [other.pid(), serving.cast_unsigned()];
    assert!(pids(&found).iter().all(|pid| known.contains(pid)), "{found:#}");
    other.signal(Signal::SIGKILL);
    drop(other);
    eventually("a healthy host", || findings(&scene).is_empty().then_some(()));

    // What is dropped while it does not read, and no more when it does.
    let haproxy_pid = nix::unistd::Pid::from_raw(serving);
    nix::sys::signal::kill(haproxy_pid, Signal::SIGSTOP).expect("stopping it");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    let found = eventually("drops that go on", || {
        for _ in 0..size / 500 {
            client.send_to(&[0; 1200], address).expect("sending");
        }
        let all = report(&scene, &[])["findings"].as_array().expect("findings").clone();
        all.into_iter().find(|one| one["network"].is_null() && one["kind"] == "overflow")
    });
    assert!(text(&found["summary"]).contains("datagrams dropped"), "{found:#}");
    nix::sys::signal::kill(haproxy_pid, Signal::SIGCONT).expect("waking it");

    if !scene.is_isolated() {
        return skip("needs root, for a host of its own");
    }
    let theirs = reader(&scene, address, "SO_REUSEADDR");
    let found = expect(&scene, "split");
    assert_eq!((pids(&found), &found["evidence"]["takes_all"]), (vec![theirs.pid()], &true.into()));
}
