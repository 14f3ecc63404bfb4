//! An axum service with graceful shutdown, of which each start takes over from the one before: no
//! client is refused, and never do two of them accept.
//!
//! ```sh
//! bindonce serve &
//! cargo run --features tokio --example axum_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --features tokio --example axum_server -- web=127.0.0.1:8080    # takes over
//! ```
//!
//! The accept loop is our own and not `axum::serve`, because that resets connections when it shuts
//! down: see `graceful`.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

#[path = "graceful/mod.rs"]
mod graceful;

use std::error::Error;

use axum::Router;
use axum::routing::get;
use bindonce::aio::Generation;
use bindonce::{Claim, Stopped};
use hyper_util::service::TowerToHyperService;
use tokio::task::LocalSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    LocalSet::new().run_until(run()).await
}

async fn run() -> Result<(), Box<dyn Error>> {
    let claim = std::env::args().nth(1).ok_or("usage: axum_server [NAME=]ADDRESS")?;
    let claim = [Claim::from(claim)];
    let mut generation = Generation::join(&"example".parse()?).await?;
    let number = generation.number();
    let answer = format!("generation {number}, pid {}\n", std::process::id());
    let answer = async move || ([("x-generation", number.to_string())], answer);
    let app = Router::new().route("/", get(answer));
    let mut connections = graceful::Connections::new();
    loop {
        let lease = generation.claim(&claim).await?.pop().ok_or("a claim gives a lease")?;
        let bound = lease.bound().to_owned();
        let listener = lease.into_tokio_tcp_listener()?;
        // Returns when the one before accepts no more.
        generation.ready().await?;
        println!("generation {number} accepts on {bound}");
        loop {
            tokio::select! {
                biased;
                retired = generation.retired() => { retired?; break }
                accepted = listener.accept() => {
                    connections.serve(accepted?.0, TowerToHyperService::new(app.clone()));
                }
            }
        }

        // Closes this process's descriptor only: the broker keeps the socket, and the next generation,
        // which waits for this word, accepts from it.
        drop(listener);
        match generation.stopped().await? {
            Stopped::Retired => break,
            // The next one has died before it was let in: this one serves on.
            Stopped::Recalled => {}
        }
    }
    generation.drain(connections.finish()).await;
    generation.drained();
    Ok(())
}
