//! A UDP server on std's sockets, which waits for datagrams and for its generation at the same
//! time. Each start takes over from the one before; datagrams that come meanwhile wait in the
//! socket.
//!
//! ```sh
//! bindonce serve &
//! cargo run --example udp_server -- echo=udp4@127.0.0.1:5353 &
//! cargo run --example udp_server -- echo=udp4@127.0.0.1:5353    # takes over
//! ```

#![allow(missing_docs)]
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::ErrorKind;
use std::net::UdpSocket;

use bindonce::{Generation, Ready, Stopped, wait_readable_or_stop};

fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: udp_server [NAME=]udp4@ADDRESS")?;
    let mut generation = Generation::join(&"example-udp".parse()?)?;
    let number = generation.number();
    loop {
        let lease = generation.claim_one(claim.as_str())?;
        let bound = lease.bound().to_owned();
        let socket = lease.into_udp_socket()?;
        // Returns when the generation before reads no more.
        generation.ready(None)?;
        println!("generation {number} accepts on {bound}");
        loop {
            match wait_readable_or_stop(&socket, &generation, None)? {
                Ready::Socket => echo(&socket, number),
                Ready::Stop if generation.has_retired()? => break,
                Ready::Stop | Ready::Deadline => {}
            }
        }
        drop(socket);
        match generation.stopped()? {
            Stopped::Retired => break,
            Stopped::Recalled => {}
        }
    }
    generation.drained();
    Ok(())
}

/// Answers one waiting datagram: the number of the generation, and the datagram after it.
fn echo(socket: &UdpSocket, number: u64) {
    let mut datagram = [0; 1500];
    let answered = socket.recv_from(&mut datagram).and_then(|(length, peer)| {
        let mut answer = format!("{number} ").into_bytes();
        answer.extend_from_slice(&datagram[..length]);
        socket.send_to(&answer, peer)
    });
    match answered {
        Ok(_) => {}
        // Another holder of the socket was faster.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        // For example an error from an earlier answer: its client has gone.
        Err(error) => eprintln!("a client left: {error}"),
    }
}
