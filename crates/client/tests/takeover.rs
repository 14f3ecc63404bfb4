//! The example servers take over from each other under clients that open a new connection for every
//! request and never pause: none is refused, reset or left without an answer, and no client hears an older
//! generation after a newer one.

#![cfg(all(test, feature = "hyper"))]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use bindonce_load::Plan;
use bindonce_sys::process::Pidfd;
use support::Broker;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often one example takes over from itself.
const RESTARTS: usize = 50;

/// An example server that accepts, and is killed if the test ends early.
struct Server {
    child: Child,
    generation: String,
    address: SocketAddr,
    /// What it says to its operator.
    errors: Receiver<String>,
}

impl Server {
    fn start(example: &str, broker: &Broker) -> Self {
        Self::claiming(example, "web=127.0.0.1:0", broker)
    }

    fn claiming(example: &str, claim: &str, broker: &Broker) -> Self {
        // With a low limit of open files, which hostile clients reach.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n 40; exec \"$0\" \"$1\""])
            .arg(examples().join(example))
            .arg(claim)
            .env("BINDONCE_SOCKET", broker.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo builds the examples before the tests");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = output.lines();
        let first = lines.next().expect("it comes to accept").expect("text");
        // generation 7 accepts on 127.0.0.1:40001
        let words: Vec<&str> = first.split(' ').collect();
        assert_eq!(words.len(), 5, "{first}");
        let address = words[4].trim_start_matches("udp4@").parse().expect("an address");
        let generation = words[1].to_owned();
        // Whatever else it says must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        let said = BufReader::new(child.stderr.take().expect("piped"));
        let (say, errors) = channel();
        thread::spawn(move || {
            said.lines().map_while(Result::ok).for_each(|line| drop(say.send(line)));
        });
        Self { child, generation, address, errors }
    }

    /// Waits until it has said this to its operator.
    fn says(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.errors.recv_timeout(left).expect("it says so").contains(words) {
                return;
            }
        }
    }

    /// Waits for the end that its successor has brought about.
    fn ends(mut self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pidfd = Pidfd::open(pid).expect("a child that has not been waited for");
        let deadline = Instant::now() + PATIENCE;
        assert!(
            bindonce::wait_readable(&pidfd, Some(deadline)).expect("poll"),
            "generation {} was told to retire and has not ended",
            self.generation
        );
        assert!(self.child.wait().expect("wait").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn examples() -> PathBuf {
    let mut path = std::env::current_exe().expect("the test's path");
    path.pop();
    path.pop();
    path.join("examples")
}

/// Half a request, and the answer to it once it is whole.
fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").expect("write");
    stream
}

fn finish(mut stream: TcpStream) -> String {
    stream.write_all(b"Connection: close\r\n\r\n").expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

/// Closes a connection with a reset.
fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    socket2::SockRef::from(&stream).set_linger(linger).expect("a linger time");
    drop(stream);
}

/// Restarts servers under load, each example once after the other, and looks what clients saw.
fn storm(examples: impl IntoIterator<Item = &'static str>) {
    let broker = Broker::start();
    let mut examples = examples.into_iter();
    let mut server = Server::start(examples.next().expect("an example"), &broker);
    let address = server.address;
    let load = Plan { clients: 8, ..Plan::new(address) }.start().expect("load");
    for example in examples {
        assert!(
            load.wait_for_token(&server.generation, PATIENCE),
            "generation {} answers nobody",
            server.generation
        );
        // One leaves with a reset, one stays silent until the next has taken over.
        reset(begin(address));
        let silent = TcpStream::connect(address).expect("connect");
        let new = Server::start(example, &broker);
        assert_eq!(new.address, address, "another socket");
        drop(silent);
        server.ends();
        server = new;
    }
    assert!(load.wait_for_token(&server.generation, PATIENCE), "the last answers nobody");
    let report = load.stop();
    assert_eq!((report.failed(), report.stale), (0, 0), "{:#}", report.to_json());
    println!("{} connections: 0 failed, 0 stale", report.connections);
}

#[test]
fn a_thread_server_restarts_fifty_times() {
    storm(std::iter::repeat_n("std_server", RESTARTS + 1));
}

#[test]
fn a_hyper_server_restarts_fifty_times() {
    storm(std::iter::repeat_n("hyper_server", RESTARTS + 1));
}

#[test]
fn an_axum_service_restarts_fifty_times() {
    storm(std::iter::repeat_n("axum_server", RESTARTS + 1));
}

#[test]
fn each_takes_over_from_any_other_and_finishes_what_it_has() {
    let broker = Broker::start();
    let mut server = Server::start("std_server", &broker);
    for example in
        ["hyper_server", "axum_server", "std_server", "axum_server", "hyper_server", "std_server"]
    {
        // A request that the old server has certainly accepted: it has answered one that came later.
        let draining = begin(server.address);
        let expected = format!("generation {},", server.generation);
        assert!(finish(begin(server.address)).contains(&expected));
        let new = Server::start(example, &broker);
        assert!(finish(begin(new.address)).contains(&format!("generation {},", new.generation)));
        assert!(finish(draining).contains(&expected), "the old server finishes");
        server.ends();
        server = new;
    }
}

/// A server at its limit of open files, with clients that reset, stall and say nothing: it lives, tells its operator,
/// and serves when there is room again; then another takes over, and a slow client is finished.
fn survives(example: &str) {
    let broker = Broker::start();
    let server = Server::start(example, &broker);
    let own = format!("generation {},", server.generation);
    for _ in 0..5 {
        reset(begin(server.address));
    }
    let silent: Vec<_> =
        (0..60).map(|_| TcpStream::connect(server.address).expect("connect")).collect();
    server.says("clients wait: Too many open files");
    drop(silent);
    assert!(finish(begin(server.address)).contains(&own));
    let slow = begin(server.address);
    // It has been accepted: one that came later is answered.
    assert!(finish(begin(server.address)).contains(&own));
    let new = Server::start(example, &broker);
    assert!(finish(slow).contains(&own));
    server.ends();
    assert!(finish(begin(new.address)).contains(&format!("generation {},", new.generation)));
}

#[test]
fn a_thread_server_survives_its_clients() {
    survives("std_server");
}

#[test]
fn a_hyper_server_survives_its_clients() {
    survives("hyper_server");
}

#[test]
fn an_axum_service_survives_its_clients() {
    survives("axum_server");
}

#[test]
fn a_udp_server_restarts_without_losing_a_datagram() {
    let broker = Broker::start();
    let start = || Server::claiming("udp_server", "echo=udp4@127.0.0.1:0", &broker);
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
        for _ in 0..20 {
            let new = start();
            std::mem::replace(&mut server, new).ends();
        }
        stop.store(true, Ordering::Relaxed);
        exchange.join().expect("no datagram is lost")
    });
    println!("{exchanged} datagrams: 0 lost");
}
