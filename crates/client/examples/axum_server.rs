//! An axum service with graceful shutdown. Each start takes over from the one before: no client is
//! refused, and no two processes accept at once.
//!
//! ```sh
//! bindonce serve &
//! cargo run --features hyper --example axum_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --features hyper --example axum_server -- web=127.0.0.1:8080    # takes over
//! ```
//!
//! The accept loop takes the place of `axum::serve`, which resets connections when it shuts down:
//! see `bindonce::hyper`.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bindonce::Stopped;
use bindonce::aio::Generation;
use bindonce::hyper::Connections;
use hyper_util::service::TowerToHyperService;

/// How long open connections may take to finish, once a newer generation accepts.
const DRAIN: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: axum_server [NAME=]ADDRESS")?;
    let mut generation = Generation::join(&"example".parse()?).await?;
    let number = generation.number();
    let answer = format!("generation {number}, pid {}\n", std::process::id());
    let answer = async move || ([("x-generation", number.to_string())], answer);
    let app = Router::new().route("/", get(answer));
    let mut connections = Connections::new().on_error(|error| eprintln!("a client left: {error}"));
    loop {
        let lease = generation.claim_one(claim.as_str()).await?;
        let bound = lease.bound().to_owned();
        let acceptor = lease.into_tokio_tcp_acceptor()?;
        let acceptor = acceptor.on_pause(|error| eprintln!("clients wait: {error}"));
        // Returns when the generation before accepts no more.
        generation.ready().await?;
        println!("generation {number} accepts on {bound}");
        loop {
            tokio::select! {
                biased;
                retired = generation.retired() => { retired?; break }
                accepted = acceptor.accept() => {
                    connections.serve(accepted?.0, TowerToHyperService::new(app.clone()));
                }
            }
        }

        // Closes only this process's descriptor. The broker keeps the socket, and the next
        // generation, which waits for `stopped`, accepts from it.
        drop(acceptor);
        match generation.stopped().await? {
            Stopped::Retired => break,
            // The next generation died before it could accept: this one continues to serve.
            Stopped::Recalled => {}
        }
    }
    let cut = generation.drain(connections.finish(DRAIN)).await;
    if cut != 0 {
        eprintln!("{cut} clients were not finished in {DRAIN:?}");
    }
    generation.drained();
    Ok(())
}
