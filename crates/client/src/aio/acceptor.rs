//! Accepting with tokio from a socket that outlives this process.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, unix};
use tokio::time::sleep;

use crate::backoff::{Backoff, Verdict};

/// A listener whose `accept` outlives what a server should: while this process may open no more files, or the
/// kernel has no memory for a connection, it waits 5 ms, then twice as long each time up to a second, and tries
/// again. The clients stay in the queue. [`on_pause`](Self::on_pause) hears of it.
///
/// Any number of tasks may accept from one. Dropping a wait harms nothing.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    backoff: Backoff,
}

impl<L> Acceptor<L> {
    /// Accepts from this listener.
    pub fn new(listener: L) -> Self {
        Self { listener, backoff: Backoff::default() }
    }

    /// Has `tell` called when `accept` begins to wait because of an error, with that error: once, until a connection
    /// has been accepted again.
    #[must_use]
    pub fn on_pause(mut self, tell: impl Fn(&io::Error) + Send + Sync + 'static) -> Self {
        self.backoff.tell(tell);
        self
    }

    /// The listener.
    pub fn get_ref(&self) -> &L {
        &self.listener
    }

    /// The listener itself.
    pub fn into_inner(self) -> L {
        self.listener
    }

    async fn wait<S, A>(
        &self,
        accept: impl AsyncFn(&L) -> io::Result<(S, A)>,
    ) -> io::Result<(S, A)> {
        loop {
            match self.backoff.judge(accept(&self.listener).await) {
                Verdict::Accepted(stream, peer) => return Ok((stream, peer)),
                Verdict::Wait => {}
                Verdict::Pause(pause) => sleep(pause).await,
                Verdict::Failed(error) => return Err(error),
            }
        }
    }
}

impl Acceptor<TcpListener> {
    /// Waits for a connection.
    ///
    /// # Errors
    /// accept(2)'s, which no wait would mend.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.wait(TcpListener::accept).await
    }
}

impl Acceptor<UnixListener> {
    /// Waits for a connection.
    ///
    /// # Errors
    /// accept(2)'s, which no wait would mend.
    pub async fn accept(&self) -> io::Result<(UnixStream, unix::SocketAddr)> {
        self.wait(UnixListener::accept).await
    }
}
