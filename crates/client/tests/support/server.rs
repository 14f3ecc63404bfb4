//! A server process, each start of which takes over from the one before, and clients that attack
//! it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Broker;
use bindonce_load::Plan;
use bindonce_sys::process::Pidfd;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server that accepts, and is killed if the test ends early.
pub(crate) struct Server {
    child: Child,
    pub(crate) generation: String,
    pub(crate) address: SocketAddr,
    /// The messages to its operator.
    errors: Receiver<String>,
}

impl Server {
    pub(crate) fn start(program: &Path, broker: &Broker) -> Self {
        Self::claiming(program, "web=127.0.0.1:0", broker)
    }

    pub(crate) fn claiming(program: &Path, claim: &str, broker: &Broker) -> Self {
        Self::given(program, &[claim], broker)
    }

    pub(crate) fn given(program: &Path, arguments: &[&str], broker: &Broker) -> Self {
        // With a low limit of open files, which hostile clients reach.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""])
            .arg(program)
            .args(arguments)
            .env("BINDONCE_SOCKET", broker.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo builds the examples before the tests");
        let output = child.stdout.take().expect("piped");
        let said = BufReader::new(child.stderr.take().expect("piped"));
        let (say, errors) = channel();
        thread::spawn(move || {
            said.lines().map_while(Result::ok).for_each(|line| drop(say.send(line)));
        });
        // From here on the server ends with the test.
        let nowhere = SocketAddr::from(([0; 4], 0));
        let mut server = Self { child, generation: String::new(), address: nowhere, errors };
        let mut lines = BufReader::new(output).lines();
        let first = lines.next().expect("it comes to accept").expect("text");
        // generation 7 accepts on 127.0.0.1:40001
        let words: Vec<&str> = first.split(' ').collect();
        assert_eq!(words.len(), 5, "{first}");
        server.address = words[4].trim_start_matches("udp4@").parse().expect("an address");
        server.generation = words[1].to_owned();
        // Further output must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        server
    }

    /// Waits until the server has sent this message to its operator.
    pub(crate) fn says(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.errors.recv_timeout(left).expect("it says so").contains(words) {
                return;
            }
        }
    }

    /// Waits until the server has ended because of its successor.
    pub(crate) fn ends(mut self) {
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

/// Opens a connection and sends half a request.
pub(crate) fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").expect("write");
    stream
}

pub(crate) fn finish(mut stream: TcpStream) -> String {
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

/// More clients than a server has descriptors for.
fn crowd(address: SocketAddr) -> Vec<TcpStream> {
    (0..60).map(|_| TcpStream::connect(address).expect("connect")).collect()
}

/// The message of a server whose table of descriptors is full.
const FULL: &str = "clients wait: Too many open files";

/// Connections of the load in a second.
pub(crate) const RATE: u32 = 1000;

/// Restarts a server under load, and checks what the clients saw.
pub(crate) fn storm(program: &Path, restarts: usize) {
    storm_of(|broker| Server::start(program, broker), restarts, RATE);
}

/// The same for servers that `start` starts, with a load of this rate.
pub(crate) fn storm_of(mut start: impl FnMut(&Broker) -> Server, restarts: usize, rate: u32) {
    let broker = Broker::start();
    let server = start(&broker);
    let plan = Plan { clients: 8, rate: Some(rate), ..Plan::new(server.address) };
    let load = plan.start().expect("load");
    let heard = |generation: &str| load.wait_for_token(generation, PATIENCE);
    let last = restart(server, || start(&broker), restarts, heard);
    let report = load.stop();
    drop(last);
    assert_eq!((report.failed(), report.stale), (0, 0), "{:#}", report.to_json());
    println!("{} connections: 0 failed, 0 stale", report.connections);
}

/// Lets generation after generation take over, each when a client has `heard` the one before. In
/// between, other clients reset their connections, send nothing, and at every fifth restart fill
/// the older generation's table of descriptors. Returns the last server.
pub(crate) fn restart(
    mut server: Server,
    mut start: impl FnMut() -> Server,
    restarts: usize,
    heard: impl Fn(&str) -> bool,
) -> Server {
    let address = server.address;
    for number in 1..=restarts {
        assert!(heard(&server.generation), "generation {} answers nobody", server.generation);
        reset(begin(address));
        // These clients stay until the next generation has taken over.
        let silent = if number % 5 == 0 {
            let silent = crowd(address);
            server.says(FULL);
            silent
        } else {
            vec![TcpStream::connect(address).expect("connect")]
        };
        let new = start();
        assert_eq!(new.address, address, "another socket");
        drop(silent);
        server.ends();
        server = new;
    }
    assert!(heard(&server.generation), "the last answers nobody");
    server
}

/// A server at its limit of open files, with clients that reset, stall and send nothing: it lives,
/// tells its operator, and serves when there is room again. Then another server takes over, and a
/// slow client is finished.
pub(crate) fn survives(program: &Path) {
    survives_of(|broker| Server::start(program, broker));
}

/// The same for servers that `start` starts.
pub(crate) fn survives_of(mut start: impl FnMut(&Broker) -> Server) {
    let broker = Broker::start();
    let server = start(&broker);
    let own = format!("generation {},", server.generation);
    for _ in 0..5 {
        reset(begin(server.address));
    }
    let silent = crowd(server.address);
    server.says(FULL);
    drop(silent);
    assert!(finish(begin(server.address)).contains(&own));
    let slow = begin(server.address);
    // The slow client has been accepted: a later one is answered.
    assert!(finish(begin(server.address)).contains(&own));
    let new = start(&broker);
    assert!(finish(slow).contains(&own));
    server.ends();
    assert!(finish(begin(new.address)).contains(&format!("generation {},", new.generation)));
}
