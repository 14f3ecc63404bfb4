//! A server on std's blocking sockets and threads, of which each start takes over from the one
//! before: no client is refused, and never do two of them accept.
//!
//! ```sh
//! bindonce serve &
//! cargo run --example std_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --example std_server -- web=127.0.0.1:8080    # takes over from the first, which ends
//! ```
//!
//! `hyper_server` and `axum_server` do the same with tokio; each takes over from any other.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

#[path = "answer/mod.rs"]
mod answer;

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bindonce::{Accepted, Claim, Generation, Stopped};

fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: std_server [NAME=]ADDRESS")?;
    let claim = [Claim::from(claim)];
    let mut generation = Generation::join(&"example".parse()?)?;
    let response: Arc<[u8]> = answer::response(&generation).into();
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let lease = generation.claim(&claim)?.pop().ok_or("a claim gives a lease")?;
        let bound = lease.bound().to_owned();
        let acceptor = lease.into_tcp_acceptor()?;
        // Returns when the one before accepts no more.
        generation.ready(None)?;
        println!("generation {} accepts on {bound}", generation.number());
        loop {
            match acceptor.accept_or_stop(&generation, None)? {
                Accepted::Connection(stream, _) => {
                    let response = Arc::clone(&response);
                    connections.retain(|thread| !thread.is_finished());
                    connections.push(thread::spawn(move || {
                        if let Err(error) = serve(stream, &response) {
                            eprintln!("a client left: {error}");
                        }
                    }));
                }
                // The broker has said something, or was lost: this hears it.
                Accepted::Stopped if generation.has_retired()? => break,
                Accepted::Stopped => {}
            }
        }

        // Closes this process's descriptor only: the broker keeps the socket, and the next generation,
        // which waits for this word, accepts from it.
        drop(acceptor);
        match generation.stopped()? {
            Stopped::Retired => break,
            // The next one has died before it was let in: this one serves on.
            Stopped::Recalled => {}
        }
    }
    for connection in connections {
        connection.join().map_err(|_| "a connection's thread panicked")?;
    }
    generation.drained();
    Ok(())
}

/// Reads the head of one HTTP request and answers it.
fn serve(mut stream: TcpStream, response: &[u8]) -> std::io::Result<()> {
    // A client that says nothing must not hold up the exit.
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !answer::is_complete(&head) {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    stream.write_all(response)
}
