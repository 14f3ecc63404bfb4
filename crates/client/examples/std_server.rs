//! A server with std's sockets and threads. Each start takes over from the one before: no client is
//! refused, and no two processes accept at once.
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
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bindonce::{Accepted, Generation, Stopped};

/// How long open connections may take to finish, once a newer generation accepts.
const DRAIN: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: std_server [NAME=]ADDRESS")?;
    let mut generation = Generation::join(&"example".parse()?)?;
    let response: Arc<[u8]> = answer::response(&generation).into();
    // Each connection's thread has one end. When the last thread drops it, the other end becomes
    // readable.
    let (finished, connected) = UnixStream::pair()?;
    let connected = Arc::new(connected);
    loop {
        let lease = generation.claim_one(claim.as_str())?;
        let bound = lease.bound().to_owned();
        let acceptor = lease.into_tcp_acceptor()?;
        let acceptor = acceptor.on_pause(|error| eprintln!("clients wait: {error}"));
        // Returns when the generation before accepts no more.
        generation.ready(None)?;
        println!("generation {} accepts on {bound}", generation.number());
        loop {
            match acceptor.accept_or_stop(&generation, None)? {
                Accepted::Connection(stream, _) => {
                    let (response, connected) = (Arc::clone(&response), Arc::clone(&connected));
                    let thread = thread::Builder::new().spawn(move || {
                        if let Err(error) = serve(stream, &response) {
                            eprintln!("a client left: {error}");
                        }
                        drop(connected);
                    });
                    if let Err(error) = thread {
                        eprintln!("a client was turned away: {error}");
                    }
                }
                // The broker sent a message, or was lost: `has_retired` finds out.
                Accepted::Stopped if generation.has_retired()? => break,
                Accepted::Stopped => {}
            }
        }

        // Closes only this process's descriptor. The broker keeps the socket, and the next
        // generation, which waits for `stopped`, accepts from it.
        drop(acceptor);
        match generation.stopped()? {
            Stopped::Retired => break,
            // The next generation died before it could accept: this one continues to serve.
            Stopped::Recalled => {}
        }
    }
    drop(connected);
    if !generation.drain(finished, Some(Instant::now() + DRAIN))? {
        eprintln!("some clients were not finished in {DRAIN:?}");
    }
    generation.drained();
    Ok(())
}

/// Reads the head of one HTTP request and answers it.
fn serve(mut stream: TcpStream, response: &[u8]) -> std::io::Result<()> {
    // A silent client must not delay the exit.
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
