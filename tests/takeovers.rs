//! Servers that link the library take over from each other repeatedly, under load, while the broker
//! is upgraded and killed: no connection fails, and no client gets an answer of an older server
//! after one of a newer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Instant;

use bindonce::{Accepted, Claim, Error, Generation, Stopped, aio};
use bindonce_load::Plan;

use crate::harness::{DEADLINE, Scene, assert_nothing_lost, eventually, listening};

/// The number of takeovers.
const TAKEOVERS: usize = 20;

/// A server in a thread. Every second one uses tokio.
struct Server {
    number: u64,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts a server as a process manager does: again, if there was no broker. Returns it as soon
    /// as it accepts.
    fn start(index: usize, path: PathBuf, address: SocketAddr) -> impl FnOnce() -> Self {
        let (accepts, accepting) = channel();
        let claim = [Claim::listen(format!("web={address}"))];
        let thread = spawn(move || {
            let server = || match index % 2 {
                0 => blocking(&path, &claim, &accepts),
                _ => {
                    let mut builder = tokio::runtime::Builder::new_current_thread();
                    let runtime = builder.enable_all().build().expect("a runtime");
                    runtime.block_on(on_tokio(&path, &claim, &accepts))
                }
            };
            eventually("a broker", || match server() {
                Err(error) if error.is_absence() => None,
                done => Some(done),
            })
            .expect("a good life");
        });
        move || {
            let number = accepting.recv_timeout(DEADLINE).expect("it comes to accept");
            Self { number, thread }
        }
    }
}

fn blocking(path: &Path, claim: &[Claim], accepts: &Sender<u64>) -> Result<(), Error> {
    let mut generation = Generation::join_at(path, &"edge".parse().expect("a name"))?;
    loop {
        let acceptor = generation.claim(claim)?.remove(0).into_tcp_acceptor()?;
        generation.ready(None)?;
        accepts.send(generation.number()).ok();
        loop {
            match acceptor.accept_or_stop(&generation, None).map_err(Error::Io)? {
                Accepted::Connection(stream, _) => answer(stream, generation.number()),
                Accepted::Stopped if generation.has_retired()? => break,
                Accepted::Stopped => {}
            }
        }
        drop(acceptor);
        if generation.stopped()? == Stopped::Retired {
            return Ok(());
        }
    }
}

async fn on_tokio(path: &Path, claim: &[Claim], accepts: &Sender<u64>) -> Result<(), Error> {
    let service = "edge".parse().expect("a name");
    let mut generation = aio::Generation::join_at(path, &service).await?;
    loop {
        let listener = generation.claim(claim).await?.remove(0).into_tokio_tcp_listener()?;
        generation.ready().await?;
        let number = generation.number();
        accepts.send(number).ok();
        loop {
            tokio::select! {
                biased;
                retired = generation.retired() => { retired?; break }
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(Error::Io)?;
                    let stream = stream.into_std().map_err(Error::Io)?;
                    stream.set_nonblocking(false).map_err(Error::Io)?;
                    answer(stream, number);
                }
            }
        }
        drop(listener);
        if generation.stopped().await? == Stopped::Retired {
            return Ok(());
        }
    }
}

/// Answers one request. The load checks whether the client got the answer.
fn answer(mut stream: TcpStream, number: u64) {
    let mut exchange = || -> io::Result<()> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => head.extend_from_slice(&buffer[..count]),
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nX-Generation: {number}\r\nContent-Length: 0\r\n");
        stream.write_all((head + "Connection: close\r\n\r\n").as_bytes())
    };
    exchange().ok();
}

#[test]
fn takeovers_lose_nothing_while_the_broker_is_upgraded_and_killed() {
    let (scene, mut broker) = Scene::with_broker();
    let address = scene.address();
    let mut server = Server::start(0, scene.socket(), address)();
    let inodes = || listening(address).into_iter().map(|socket| socket.inode).collect::<Vec<_>>();
    let before = inodes();
    assert_eq!(before.len(), 1);
    let mut plan = Plan::new(address);
    plan.clients = 8;
    plan.rate = Some(1000);
    let load = plan.start().expect("load");
    for index in 1..=TAKEOVERS {
        assert!(load.wait_for_token(&server.number.to_string(), DEADLINE), "it answers nobody");
        // The fault happens during the takeover, or before it.
        let new = Server::start(index, scene.socket(), address);
        match index % 4 {
            1 => drop(scene.run("upgrade", &[]).ok()),
            3 => {
                broker.kill();
                broker = scene.broker();
            }
            _ => {}
        }
        let new = new();
        assert!(new.number > server.number, "{} after {}", new.number, server.number);
        server.thread.join().expect("its end");
        server = new;
    }
    assert!(load.wait_for_token(&server.number.to_string(), DEADLINE), "the last answers nobody");
    let report = load.stop();
    assert_nothing_lost(&report);
    println!("{report}");
    assert_eq!(inodes(), before, "another socket");
    let status = scene.run("status", &[]).ok();
    assert!(status.contains(&format!("edge/{} pid", server.number)), "{status}");
    // One more, without a successor: the last server ends for it.
    let last = Generation::join_at(&scene.socket(), &"edge".parse().expect("a name"));
    let mut last = last.expect("join");
    last.ready(Some(Instant::now() + DEADLINE)).expect("ready");
    server.thread.join().expect("its end");
}
