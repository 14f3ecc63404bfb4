//! A server on std's blocking sockets that takes over a listener from whoever
//! has it, and hands it on: no client is ever refused.
//!
//! ```sh
//! bindonce serve &
//! cargo run --example std_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --example std_server -- web=127.0.0.1:8080    # takes over from the first
//! ```
//!
//! The second claims the listener that the first has: the same socket, so
//! connections that wait in its queue are nobody's to lose. It starts to accept,
//! then sends SIGTERM to the first, which stops accepting, finishes what it has
//! accepted, and exits. `tokio_server` does the same with tokio; each takes over from the other.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

#[path = "takeover/mod.rs"]
mod takeover;

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use bindonce::{Accepted, Client, default_socket};
use bindonce_sys::signals::{Signal, SignalFd};

fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: std_server [NAME=]ADDRESS")?;
    // Before the first thread starts, so that none of them gets the signal.
    let stop = SignalFd::new(&[Signal::SIGTERM, Signal::SIGINT])?;

    let mut client = Client::connect(&default_socket())?;
    let lease = client.claim(&[claim.into()])?.pop().ok_or("a claim gives a lease")?;
    println!("pid {} accepts on {}", std::process::id(), lease.bound());
    let acceptor = lease.into_tcp_acceptor()?;
    let older = takeover::join(&client.status()?);
    client.join(&older.join)?;

    // From here on both accept; nobody has to wait for the other.
    let mut connections = Vec::new();
    takeover::retire(&older.pids);
    while let Accepted::Connection(stream, _) = acceptor.accept_or_stop(&stop, None)? {
        connections.retain(|thread: &thread::JoinHandle<()>| !thread.is_finished());
        connections.push(thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("a client left: {error}");
            }
        }));
    }

    // Closes this process's descriptor only: the broker keeps the socket.
    drop(acceptor);
    println!("pid {} finishes {} connections", std::process::id(), connections.len());
    for connection in connections {
        connection.join().map_err(|_| "a connection's thread panicked")?;
    }
    Ok(())
}

/// Reads the head of one HTTP request and answers with this process's pid.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    // A client that says nothing must not hold up the exit.
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !takeover::is_complete(&head) {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    stream.write_all(&takeover::response("std"))
}
