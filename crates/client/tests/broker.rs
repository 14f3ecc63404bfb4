//! The client against a real broker.

#![cfg(test)]

mod support;

use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bindonce::{Claim, Client, Error, ErrorCode, Generation, Join, Lease, State};
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::{FdFlags, fcntl_getfd};
use support::Broker;

fn client(broker: &Broker) -> Client {
    Client::connect(broker.socket()).expect("connect")
}

fn one(client: &mut Client, claim: impl Into<Claim>) -> Lease {
    let mut leases = client.claim(&[claim.into()]).expect("claim");
    assert_eq!(leases.len(), 1);
    leases.remove(0)
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

#[test]
fn a_tcp_listener_is_shared_and_accepts() {
    let broker = Broker::start();
    let mut first = client(&broker);
    let lease = one(&mut first, "web=127.0.0.1:0");
    assert_eq!((lease.name(), lease.address(), lease.created()), ("web", "127.0.0.1:0", true));
    assert_eq!(fstat(&lease).expect("fstat").st_ino, lease.inode());
    assert_eq!(fcntl_getfd(&lease).expect("flags"), FdFlags::CLOEXEC);
    let bound = lease.bound().to_owned();

    let mut second = client(&broker);
    let again = one(&mut second, "web");
    assert_eq!((again.inode(), again.created()), (lease.inode(), false));

    for lease in [lease, again] {
        let acceptor = lease.into_tcp_acceptor().expect("a TCP listener");
        let flags = fcntl_getfl(acceptor.get_ref().as_fd()).expect("flags");
        assert!(flags.contains(OFlags::NONBLOCK), "the blocking mode was changed");
        let connection = TcpStream::connect(&bound).expect("connect");
        let (_, peer) = acceptor.accept(soon()).expect("accept");
        assert_eq!(peer, connection.local_addr().expect("address"));
    }
}

#[test]
fn every_kind_becomes_what_it_is_and_nothing_else() {
    let broker = Broker::start();
    let mut client = client(&broker);
    let path = broker.socket().with_file_name("app.sock");
    let unix = format!("app=unix@{}", path.display());

    let socket = one(&mut client, "dns=udp4@127.0.0.1:0").into_udp_socket().expect("UDP");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    sender.send_to(b"hello", socket.local_addr().expect("address")).expect("send");
    assert!(bindonce::wait_readable(&socket, soon()).expect("poll"));
    assert_eq!(socket.recv(&mut [0; 16]).expect("receive"), 5);

    let acceptor = one(&mut client, unix.as_str()).into_unix_acceptor().expect("UNIX");
    let _connection = UnixStream::connect(&path).expect("connect");
    acceptor.accept(soon()).expect("accept");

    one(&mut client, "web=[::1]:0").into_tcp_listener().expect("IPv6");
    for (name, wrong) in [
        ("dns", one(&mut client, "dns").into_tcp_listener().expect_err("UDP")),
        ("app", one(&mut client, "app").into_tcp_listener().expect_err("UNIX")),
        ("web", one(&mut client, "web").into_udp_socket().expect_err("TCP")),
        ("web", one(&mut client, "web").into_unix_listener().expect_err("TCP")),
    ] {
        assert!(matches!(&wrong, Error::Kind { name: found, .. } if found == name), "{wrong:?}");
        assert!(wrong.hint().is_some());
    }
}

#[test]
fn a_thousand_claims_are_one_call() {
    let broker = Broker::start();
    let mut client = client(&broker);
    let claims: Vec<Claim> =
        (0..1000).map(|n| Claim::listen(format!("n{n}=127.0.0.1:0"))).collect();
    let leases = client.claim(&claims).expect("claim");
    assert_eq!(leases.len(), 1000);
    for (n, lease) in leases.iter().enumerate() {
        assert_eq!(lease.name(), format!("n{n}"));
        assert_eq!(fstat(lease).expect("fstat").st_ino, lease.inode());
    }
    assert_eq!(client.list().expect("list").listeners.len(), 1000);
}

/// Two ports.
const RANGE: &str = "127.0.0.1:20000-20001";

#[test]
fn a_range_that_is_claimed_as_one_listener_binds_nothing() {
    let broker = Broker::start();
    let mut client = client(&broker);
    let error = client.claim_one(RANGE).expect_err("a range");
    assert!(matches!(error, Error::NotOne { count: 2, .. }), "{error}");
    let service = "edge".parse().expect("a name");
    let mut generation = Generation::join_at(broker.socket(), &service).expect("join");
    let error = generation.claim_one(RANGE).expect_err("a range");
    assert!(matches!(error, Error::NotOne { count: 2, .. }), "{error}");
    assert!(client.list().expect("list").listeners.is_empty());
}

#[test]
fn a_refusal_says_why_and_the_connection_goes_on() {
    let broker = Broker::start();
    let mut first = client(&broker);
    let mut second = client(&broker);
    one(&mut first, "web=127.0.0.1:0");
    one(&mut second, "web");

    let error = first.release(&["web"]).expect_err("the other uses it");
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.code, ErrorCode::IN_USE);
    assert!(error.hint().is_some(), "{error}");
    let error = first.claim(&["nobody".into()]).expect_err("no such name");
    assert_eq!(error.refusal().expect("a refusal").code, ErrorCode::NOT_FOUND);
    let error = first.call("fly", &[0; 0]).expect_err("no such method");
    assert_eq!(error.refusal().expect("a refusal").code, ErrorCode::METHOD_NOT_FOUND);

    assert!(first.ping().expect("ping").pong);
    drop(second);
    // The broker notices in its own time: each call is an event to wait for.
    let deadline = soon();
    let released = loop {
        match first.release(&["web"]) {
            Ok(released) => break released,
            Err(error) => assert!(deadline > Some(Instant::now()), "{error}"),
        }
    };
    assert_eq!(released, ["web"]);
    assert!(first.list().expect("list").listeners.is_empty());
}

#[test]
fn a_connection_that_joined_is_shown_as_that_generation() {
    let broker = Broker::start();
    let mut server = client(&broker);
    one(&mut server, "web=127.0.0.1:0");
    let service = "example".parse().expect("name");
    let join = Join::new(service, 7, Some(std::process::id()), State::Serving);
    server.join(&join).expect("join");

    let mut observer = client(&broker);
    let status = observer.status().expect("status");
    assert_eq!(status.services[0].name, "example");
    let generation = &status.services[0].generations[0];
    assert_eq!((generation.generation, generation.state), (7, State::Serving));
    assert_eq!(generation.listeners, ["web"]);
    drop(server);
    // The broker notices in its own time: each call is an event to wait for.
    let deadline = soon();
    while !observer.status().expect("status").services.is_empty() {
        assert!(deadline > Some(Instant::now()), "a connection that is gone is still shown");
    }
}

#[test]
fn a_tentative_listener_goes_with_its_last_user() {
    let broker = Broker::start();
    let mut first = client(&broker);
    one(&mut first, Claim::listen("try=127.0.0.1:0").tentative());
    drop(first);
    let mut observer = client(&broker);
    let deadline = soon();
    while !observer.list().expect("list").listeners.is_empty() {
        assert!(deadline > Some(Instant::now()), "a tentative listener stays");
    }
}

#[test]
fn no_broker_is_an_error_that_tells_what_to_do() {
    let error = Client::connect("/nonexistent/bindonce.sock".as_ref()).expect_err("nothing");
    assert!(error.to_string().contains("/nonexistent/bindonce.sock"));
    assert!(error.hint().expect("hint").contains("bindonce serve"));
}

#[cfg(feature = "tokio")]
#[test]
fn the_tokio_client_has_the_same_verbs() {
    let broker = Broker::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
    runtime.block_on(async {
        let mut client = bindonce::aio::Client::connect(broker.socket()).await.expect("connect");
        let error = client.claim_one(RANGE).await.expect_err("a range");
        assert!(matches!(error, Error::NotOne { count: 2, .. }), "{error}");
        assert!(client.list().await.expect("list").listeners.is_empty());
        let lease = client.claim(&["web=127.0.0.1:0".into()]).await.expect("claim").remove(0);
        let bound = lease.bound().to_owned();
        let listener = lease.into_tokio_tcp_listener().expect("a TCP listener");
        let connect = tokio::net::TcpStream::connect(bound);
        let (accepted, connected) = tokio::join!(listener.accept(), connect);
        assert_eq!(accepted.expect("accept").1, connected.expect("c").local_addr().expect("a"));
        let path = broker.socket().with_file_name("app.sock");
        let wanted = [format!("app=unix@{}", path.display()), "dns=udp4@127.0.0.1:0".to_owned()];
        let wanted: Vec<_> = wanted.iter().map(|text| text.as_str().into()).collect();
        let mut leases = client.claim(&wanted).await.expect("claim").into_iter();
        let (app, dns) = (leases.next().expect("a path"), leases.next().expect("UDP"));
        let bound = dns.bound().to_owned();
        let (app, dns) = (app.into_tokio_unix_listener(), dns.into_tokio_udp_socket());
        let (app, dns) = (app.expect("a UNIX listener"), dns.expect("a UDP socket"));
        let (accepted, _connected) =
            tokio::join!(app.accept(), tokio::net::UnixStream::connect(&path));
        accepted.expect("accept");
        let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a peer");
        peer.send_to(b"asked", bound.trim_start_matches("udp4@")).await.expect("send");
        let mut text = [0; 16];
        assert_eq!(dns.recv_from(&mut text).await.expect("receive").0, 5);
        assert_eq!(client.release(&["app", "dns"]).await.expect("release"), ["app", "dns"]);
        assert_eq!(client.list().await.expect("list").listeners[0].name, "web");
        assert_eq!(client.release(&["web"]).await.expect("release"), ["web"]);
        assert!(client.status().await.expect("status").listeners.is_empty());
        assert!(client.ping().await.expect("ping").pong);

        // A call that is dropped before its reply leaves the connection half-way.
        drop(Box::pin(client.ping()));
        assert!(client.ping().await.expect("a call that never began").pong);
        let (ours, _silent) = UnixStream::pair().expect("pair");
        let mut client = bindonce::aio::Client::from_stream(ours).expect("client");
        let mut call = Box::pin(client.ping());
        assert!(poll_once(&mut call).await.is_none());
        drop(call);
        assert!(matches!(client.ping().await, Err(Error::Interrupted)));

        let watcher = bindonce::aio::Client::connect(broker.socket()).await.expect("connect");
        drop(broker);
        tokio::time::timeout(Duration::from_secs(10), watcher.closed()).await.expect("closed");
    });
}

/// Polls a future once; gives its output if it was ready.
#[cfg(feature = "tokio")]
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
