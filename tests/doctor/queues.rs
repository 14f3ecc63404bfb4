//! Listeners that nobody serves, that are paused, or that overflow.

use std::net::TcpStream;

use nix::sys::signal::Signal;

use super::{expect, expect_any, findings, pids, served, text};
use crate::harness::{Process, Scene, eventually, finish, skip};

/// Whether every thread of a process is stopped.
fn all_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    threads.into_iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Whether the kernel tells of sockets that are bound and do not listen (Linux 6.8).
fn tells_of_bound_sockets() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

#[test]
fn a_stopped_haproxy_is_unserved_with_its_queue() {
    let Some((scene, address, haproxy)) = served() else { return };
    haproxy.signal(Signal::SIGSTOP);
    eventually("every thread to stop", || all_stopped(haproxy.pid()).then_some(()));
    let _clients: Vec<_> =
        (0..3).map(|_| TcpStream::connect(address).expect("connecting")).collect();
    let found = expect(&scene, "unserved");
    assert_eq!(found["evidence"]["queue"], 3, "{found:#}");
    assert!(text(&found["summary"]).starts_with("no process accepts: 3 of "), "{found:#}");
    assert_eq!(found["remedy"][0], format!("kill -CONT {}", haproxy.pid()));
    haproxy.signal(Signal::SIGCONT);
    eventually("it to go on", || findings(&scene).is_empty().then_some(()));
}

#[test]
fn a_listener_without_a_service_is_unserved() {
    let (scene, broker) = Scene::with_broker();
    let address = scene.address();
    scene.run("bind", &[&format!("web={address}")]).ok();
    let found = eventually("the finding", || expect_any(&scene, "unserved"));
    assert_eq!((&found["severity"], pids(&found)), (&"warning".into(), vec![broker.pid()]));
    assert!(text(&found["remedy"][0]).contains("bindonce release web"), "{found:#}");
    let _client = TcpStream::connect(address).expect("connecting");
    eventually("a wait of a second", || {
        let found = expect_any(&scene, "unserved")?;
        text(&found["summary"]).contains("1 of").then(|| assert_eq!(found["severity"], "error"))
    });
}

#[test]
fn paused_is_found_and_the_remedy_helps() {
    if !tells_of_bound_sockets() {
        skip("Linux before 6.8 does not tell of sockets that are bound and do not listen");
        return;
    }
    let Some((scene, address, haproxy)) = served() else { return };
    haproxy.signal(Signal::SIGTTOU);
    let found = eventually("the pause", || expect_any(&scene, "paused"));
    assert_eq!(
        (&found["address"], pids(&found)),
        (&address.to_string().into(), vec![haproxy.pid()])
    );
    finish(scene.command("sh").args(["-c", text(&found["remedy"][0])])).ok();
    eventually("it to go on", || findings(&scene).is_empty().then_some(()));
}

/// A server that takes connections far more slowly than they come.
const SLOW: &str = r#"
import socket, sys, time, threading
host, port = sys.argv[1].split(":")
server = socket.socket()
server.bind((host, int(port)))
server.listen(3)
print("ready", flush=True)
def burn():
    while True: pass
threading.Thread(target=burn, daemon=True).start()
import select
poll = select.epoll()
poll.register(server, select.EPOLLIN)
while True:
    poll.poll()
    server.accept()[0].close()
    time.sleep(0.2)
"#;

#[test]
fn overflow_names_the_limit() {
    let scene = Scene::new();
    let address = scene.address();
    let mut command = scene.command("python3");
    let mut server = Process::start(command.args(["-c", SLOW, &address.to_string()]));
    server.wait_line("ready");
    let mut clients = Vec::new();
    let found = eventually("the queue to be full", || {
        for _ in 0..20 {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            );
            let socket = socket.expect("a socket");
            let to = nix::sys::socket::SockaddrStorage::from(address);
            let _ = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to);
            clients.push(socket);
        }
        expect_any(&scene, "overflow")
    });
    assert_eq!(found["address"], address.to_string());
    assert_eq!(found["evidence"]["queue_limit"], 3, "{found:#}");
    assert!(found["evidence"]["drops"].as_u64() > Some(0), "{found:#}");
    assert!(text(&found["summary"]).contains("the backlog given to listen()"), "{found:#}");
}
