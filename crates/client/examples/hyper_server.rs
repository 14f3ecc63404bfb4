//! A server on tokio and hyper. Each start takes over from the one before: no client is refused,
//! and no two processes accept at once.
//!
//! ```sh
//! bindonce serve &
//! cargo run --features hyper --example hyper_server -- web=127.0.0.1:8080 &
//! curl http://127.0.0.1:8080/
//! cargo run --features hyper --example hyper_server -- web=127.0.0.1:8080    # takes over
//! ```
//!
//! With a PEM file of a certificate and its key after the claim, it speaks TLS.
//!
//! `std_server` and `axum_server` do the same, and each takes over from any other. This one also
//! runs without a broker: by itself, as a systemd service with a socket unit, and under
//! `bindonce run --listen web=127.0.0.1:8080 -- hyper_server web`.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bindonce::Stopped;
use bindonce::aio::Generation;
use bindonce::hyper::Connections;
use hyper::Response;
use hyper::service::service_fn;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long open connections may take to finish, once a newer generation accepts.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let claim =
        arguments.next().ok_or("usage: hyper_server [NAME=]ADDRESS [CERTIFICATE_AND_KEY]")?;
    let tls = arguments.next().map(|file| tls(&file)).transpose()?;
    // Takes passed sockets, else the broker's, else binds its own.
    let mut generation = Generation::join_or_bind(&"example".parse()?).await?;
    // systemd, `bindonce run` and a terminal end the server with this signal.
    let mut sigterm = signal(SignalKind::terminate())?;
    let number = generation.number();
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
                _ = sigterm.recv() => break,
                accepted = acceptor.accept() => {
                    let stream = accepted?.0;
                    let service = service_fn(move |_| async move {
                        let body = format!("generation {number}, pid {}\n", std::process::id());
                        let mut response = Response::new(body);
                        response.headers_mut().insert("x-generation", number.into());
                        Ok::<_, Infallible>(response)
                    });
                    match tls.clone() {
                        None => connections.serve(stream, service),
                        Some(tls) => connections.serve_after(
                            async move { timeout(HANDSHAKE, tls.accept(stream)).await? },
                            service,
                        ),
                    }
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

/// Accepts TLS that carries HTTP/2 or HTTP/1.
fn tls(file: &str) -> Result<TlsAcceptor, Box<dyn Error>> {
    let chain = CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(file)?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
