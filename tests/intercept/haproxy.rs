//! The net under haproxy when its supervisor is killed: a generation keeps the filter, so each bind(2) that it still makes is asked about. It
//! goes on without a supervisor and under the next one, and nothing ever waits.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Haproxy, Scene, config, eventually, serves, skip};

/// A frontend whose backend has no server, and one that can be its server.
fn without_a_server(scene: &Scene, address: SocketAddr, origin: SocketAddr) -> PathBuf {
    let admin = scene.path("adm.sock");
    let mut text =
        config(origin, 1).replace("maxconn 500", "maxconn 500\n    stats socket @ level admin");
    text = text
        .replace('@', &admin.display().to_string())
        .replace("mode http", "mode http\n    retries 0");
    text += &format!(
        "frontend front\n    bind {address}\n    default_backend servers\nbackend servers\n    balance roundrobin\n"
    );
    scene.write("haproxy.cfg", &text)
}

/// Gives it one whose connections are bound first.
#[track_caller]
fn add_server(scene: &Scene, origin: SocketAddr) {
    for line in [
        format!("add server servers/late {origin} source 127.0.0.1"),
        "set server servers/late state ready".to_owned(),
    ] {
        let mut admin = UnixStream::connect(scene.path("adm.sock")).expect("its admin socket");
        admin.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        writeln!(admin, "{line}").expect("asking");
        let mut said = String::new();
        admin.read_to_string(&mut said).expect("an answer");
        assert!(said.trim().is_empty() || said.contains("registered"), "{line}: {said}");
    }
}

/// A request that waits for its answer.
fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asking");
    stream
}

/// The status line of its answer.
#[track_caller]
fn finish(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.lines().next().unwrap_or_default().to_owned()
}

fn is_answered(address: SocketAddr, code: &str) {
    let status = finish(begin(address));
    assert!(status.contains(code), "{status}, not {code}");
}

/// Whether a thread of it waits in bind(2) now.
fn waits_in_bind(pid: i32) -> Option<()> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut calls = threads.filter_map(|one| fs::read_to_string(one.path().join("syscall")).ok());
    let bind = format!("{} ", nix::libc::SYS_bind);
    calls.any(|call| call.starts_with(&bind)).then_some(())
}

fn is_looked_at(haproxy: &mut Haproxy) -> bool {
    let story = haproxy.supervisor.story();
    let refused = story.contains("cannot be seen here");
    if refused {
        skip("haproxy's bind() cannot be seen: seccomp(2) is refused");
    }
    !refused
}

fn kill_watchdogs(scene: &Scene) {
    for (watchdog, _) in scene.processes().iter().filter(|(_, it)| it.contains("__watchdog")) {
        kill(Pid::from_raw(*watchdog), Signal::SIGKILL).expect("kill");
    }
}

/// A server that is added while it serves has it bind for each connection.
fn binds_for_a_server(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, origin) = (scene.address(), scene.address());
    let file = without_a_server(&scene, address, origin);
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let (_, pid) = haproxy.wait_serving(&scene);
    if !is_looked_at(&mut haproxy) {
        return;
    }
    is_answered(address, " 503 ");
    add_server(&scene, origin);
    is_answered(address, " 200 ");

    // It is asked about: it waits for a supervisor that is stopped, and goes on when that is killed.
    haproxy.supervisor.signal(Signal::SIGSTOP);
    let waits = begin(address);
    eventually("it to wait in bind()", || waits_in_bind(pid));
    haproxy.supervisor.kill();
    assert!(finish(waits).contains(" 200 "));
    is_answered(address, " 200 ");

    let mut haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(haproxy.wait_serving(&scene).1, pid);
    is_answered(address, " 200 ");
    assert!(!haproxy.supervisor.story().contains("ENOSYS"), "{}", haproxy.supervisor.story());

    // With its watchdog nobody is left: it fails, at once, and the next supervisor says what to do.
    kill_watchdogs(&scene);
    haproxy.supervisor.kill();
    is_answered(address, " 503 ");
    serves(origin, 1);
    let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
    haproxy.supervisor.wait_line("bind() fails with ENOSYS, because its supervisor");
    assert_eq!(haproxy.wait_serving(&scene).1, pid);
    is_answered(address, " 503 ");
    haproxy.reload(&scene).ok();
    add_server(&scene, origin);
    is_answered(address, " 200 ");
}

#[test]
fn haproxy_binds_without_its_supervisor() {
    binds_for_a_server(Haproxy::system());
}

#[test]
fn haproxy_3_2_binds_without_its_supervisor() {
    binds_for_a_server(Haproxy::fetched("3.2"));
}

/// Its own master reads its configuration again, and binds its admin socket anew.
#[test]
fn haproxys_own_master_reloads_without_our_supervisor() {
    let programs = Haproxy::with_masters().filter(|program| program.ends_with("3.2/haproxy"));
    for program in programs {
        reloads_by_itself(&program);
    }
}

fn reloads_by_itself(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let admin = scene.path("adm.sock");
    let line = format!("maxconn 500\n    stats socket {}", admin.display());
    let file = scene.write("haproxy.cfg", &config(address, 1).replace("maxconn 500", &line));
    let mut haproxy = Haproxy::start_with(&scene, &["--nested-master"], program, &file);
    let (_, master) = haproxy.wait_serving(&scene);
    if !is_looked_at(&mut haproxy) {
        return;
    }
    let workers =
        || fs::read_to_string(format!("/proc/{master}/task/{master}/children")).expect("workers");
    let reload = || kill(Pid::from_raw(master), Signal::SIGUSR2).expect("the master");
    let other_than = |before: &str| {
        eventually("another worker, alone", || {
            let now = workers();
            (now != before && now.split_whitespace().count() == 1).then_some(now)
        })
    };
    let first = workers();
    haproxy.supervisor.signal(Signal::SIGSTOP);
    reload();
    eventually("it to wait in bind()", || waits_in_bind(master));
    haproxy.supervisor.kill();
    let second = other_than(&first);
    serves(address, 1);
    reload();
    let third = other_than(&second);
    serves(address, 1);
    // The next one replaces it in order.
    let mut haproxy = Haproxy::start_with(&scene, &["--nested-master"], program, &file);
    assert_eq!(haproxy.wait_serving(&scene).1, master);
    assert_eq!(workers(), third);
    reload();
    haproxy.supervisor.wait_line("serving generation=2");
    serves(address, 1);
}
