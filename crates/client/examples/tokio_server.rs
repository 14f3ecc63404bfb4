//! A tokio server that takes over a listener from whoever has it, and hands it
//! on: no client is ever refused.
//!
//! ```sh
//! bindonce serve &
//! cargo run --features tokio --example tokio_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --features tokio --example tokio_server -- web=127.0.0.1:8080    # takes over
//! ```
//!
//! The same as `std_server`, and each takes over from the other.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

#[path = "takeover/mod.rs"]
mod takeover;

use std::error::Error;
use std::time::Duration;

use bindonce::{aio::Client, default_socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: tokio_server [NAME=]ADDRESS")?;
    let mut stop = signal(SignalKind::terminate())?;

    let mut client = Client::connect(&default_socket()).await?;
    let lease = client.claim(&[claim.into()]).await?.pop().ok_or("a claim gives a lease")?;
    println!("pid {} accepts on {}", std::process::id(), lease.bound());
    let listener = lease.into_tokio_tcp_listener()?;
    let older = takeover::join(&client.status().await?);
    client.join(&older.join).await?;

    // From here on both accept; nobody has to wait for the other.
    let mut connections = JoinSet::new();
    takeover::retire(&older.pids);
    loop {
        tokio::select! {
            biased;
            _ = stop.recv() => break,
            // Reap what is done, so that the set does not grow for ever.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections.spawn(serve(stream));
            }
        }
    }

    // Closes this process's descriptor only: the broker keeps the socket.
    drop(listener);
    println!("pid {} finishes {} connections", std::process::id(), connections.len());
    connections.join_all().await;
    Ok(())
}

/// Answers one client, which has five seconds to ask.
async fn serve(stream: TcpStream) {
    match tokio::time::timeout(Duration::from_secs(5), answer(stream)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("a client left: {error}"),
        Err(_) => eprintln!("a client said nothing for five seconds"),
    }
}

/// Reads the head of one HTTP request and answers with this process's pid.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !takeover::is_complete(&head) {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(&takeover::response("tokio")).await
}
