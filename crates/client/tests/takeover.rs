//! The example servers take over from each other under clients that open a new connection for every
//! request and never pause. No client is refused, reset or left without an answer, and none hears
//! an older generation after a newer one.

#![cfg(all(test, feature = "hyper"))]

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/tls.rs"]
mod tls;

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use server::{PATIENCE, Server, begin, finish, restart, storm, survives};
use support::Broker;

fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("the test's path");
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

#[test]
fn a_thread_server_restarts_fifty_times() {
    storm(&example("std_server"), 50);
}

#[test]
fn a_hyper_server_restarts_fifty_times() {
    storm(&example("hyper_server"), 50);
}

/// The certificate of the tests, with its key.
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/harness/test.pem");

#[test]
fn a_hyper_server_with_tls_restarts_fifty_times() {
    let broker = Broker::start();
    let start =
        || Server::given(&example("hyper_server"), &["web=127.0.0.1:0", CERTIFICATE], &broker);
    let server = start();
    let clients = tls::Clients::start(4, server.address, CERTIFICATE);
    let last = restart(server, start, 50, |generation| clients.heard(generation));
    let seen = clients.stop();
    drop(last);
    assert!(seen.failed.is_empty() && seen.stale == 0, "{seen:#?}");
    println!("{} connections with TLS: 0 failed, 0 stale", seen.answers);
}

#[test]
fn an_axum_service_restarts_fifty_times() {
    storm(&example("axum_server"), 50);
}

#[test]
fn each_takes_over_from_any_other_and_finishes_what_it_has() {
    let broker = Broker::start();
    let mut server = Server::start(&example("std_server"), &broker);
    for name in
        ["hyper_server", "axum_server", "std_server", "axum_server", "hyper_server", "std_server"]
    {
        // The old server has certainly accepted this request: it has answered a later one.
        let draining = begin(server.address);
        let expected = format!("generation {},", server.generation);
        assert!(finish(begin(server.address)).contains(&expected));
        let new = Server::start(&example(name), &broker);
        assert!(finish(begin(new.address)).contains(&format!("generation {},", new.generation)));
        assert!(finish(draining).contains(&expected), "the old server finishes");
        server.ends();
        server = new;
    }
}

#[test]
fn a_thread_server_survives_its_clients() {
    survives(&example("std_server"));
}

#[test]
fn a_hyper_server_survives_its_clients() {
    survives(&example("hyper_server"));
}

#[test]
fn an_axum_service_survives_its_clients() {
    survives(&example("axum_server"));
}

#[test]
fn a_udp_server_restarts_without_losing_a_datagram() {
    let broker = Broker::start();
    let start = || Server::claiming(&example("udp_server"), "echo=udp4@127.0.0.1:0", &broker);
    let mut server = start();
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.connect(server.address).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let stop = AtomicBool::new(false);
    let exchanged = thread::scope(|scope| {
        let exchange = scope.spawn(|| {
            let (mut count, mut newest, mut answer) = (0_u64, 0, [0; 64]);
            while !stop.load(Ordering::Relaxed) {
                client.send(count.to_string().as_bytes()).expect("send");
                let length = client.recv(&mut answer).expect("an answer");
                let answer = std::str::from_utf8(&answer[..length]).expect("text");
                let (generation, echo) = answer.split_once(' ').expect("two words");
                assert_eq!(echo, count.to_string());
                let generation: u64 = generation.parse().expect("a number");
                assert!(newest <= generation, "{generation} after {newest}");
                (count, newest) = (count + 1, generation);
            }
            count
        });
        for _ in 0..50 {
            let new = start();
            std::mem::replace(&mut server, new).ends();
        }
        stop.store(true, Ordering::Relaxed);
        exchange.join().expect("no datagram is lost")
    });
    println!("{exchanged} datagrams: 0 lost");
}
