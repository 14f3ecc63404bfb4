//! The two example servers take over from each other under clients that never
//! pause: no connection is refused, reset or left without an answer.

#![cfg(all(test, feature = "tokio"))]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bindonce_sys::process::Pidfd;
use support::Broker;

/// An example server that is killed if the test ends early.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(example: &str, broker: &Broker) -> Self {
        let mut child = Command::new(examples().join(example))
            .arg("web=127.0.0.1:0")
            .env("BINDONCE_SOCKET", broker.socket())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo builds the examples before the tests");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = output.lines();
        let first = lines.next().expect("a line").expect("text");
        let address = first.rsplit(' ').next().expect("a word").parse().expect("an address");
        // Whatever else it says must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Waits for the end that another server asked for.
    fn ends(mut self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pidfd = Pidfd::open(pid).expect("a child that has not been waited for");
        let deadline = Instant::now() + Duration::from_secs(20);
        assert!(
            bindonce::wait_readable(&pidfd, Some(deadline)).expect("poll"),
            "server {pid} was told to stop and did not"
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

fn ask(address: SocketAddr) -> std::io::Result<String> {
    finish(begin(address)?)
}

fn begin(address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n")?;
    Ok(stream)
}

fn finish(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.rsplit("\r\n").next().unwrap_or_default().trim();
    if body.is_empty() {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(body.to_owned())
    }
}

#[test]
fn servers_take_over_from_each_other_and_no_client_notices() {
    let broker = Broker::start();
    let mut server = Server::start("std_server", &broker);
    let address = server.address;

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let (failed, failures) = mpsc::channel();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered, failed) = (stop.clone(), answered.clone(), failed.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match ask(address) {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => drop(failed.send(error)),
                    }
                }
            })
        })
        .collect();

    for example in ["tokio_server", "std_server", "std_server", "tokio_server", "tokio_server"] {
        let old = server.child.id().to_string();
        // A request that the old server has accepted: it must finish it.
        let mut draining = begin(address).expect("connect");
        // It has certainly accepted it once it has answered one that came later.
        while !ask(address).expect("an answer").ends_with(&old) {}
        let new = Server::start(example, &broker);
        assert_eq!(new.address, address, "another socket");
        let until = Instant::now() + Duration::from_secs(20);
        while !ask(address).expect("an answer").ends_with(&new.child.id().to_string()) {
            assert!(Instant::now() < until, "the new server does not answer");
        }
        draining.flush().expect("flush");
        assert!(finish(draining).expect("the old server drains").ends_with(&old));
        server.ends();
        server = new;
    }

    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("client");
    }
    let failures: Vec<_> = failures.try_iter().collect();
    assert!(failures.is_empty(), "{} failed, the first: {:?}", failures.len(), failures[0]);
    assert!(answered.load(Ordering::Relaxed) > 0);
}
