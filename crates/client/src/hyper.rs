//! hyper connections that end gracefully: every client that has connected gets its answer.
//!
//! hyper's own `graceful_shutdown`, and `axum::serve` with `with_graceful_shutdown`, end a
//! connection at once if nothing has been read on it yet. Its client, whose request is on the way,
//! gets a reset. Under load that hits a few connections at each restart. [`Connections`] tells a
//! connection to finish only once its first request has come.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::hyper::body::{Body, Incoming};
use ::hyper::service::{Service, service_fn};
use ::hyper::{Request, Response};
use bindonce_core::patience::Patience;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::aio::patience::within;

/// An error of a connection, nearly always caused by its client.
pub type ConnectionError = Box<dyn Error + Send + Sync>;

type Tell = Arc<dyn Fn(ConnectionError) + Send + Sync>;

/// The HTTP connections of one generation: HTTP/1 or HTTP/2, as the client begins.
///
/// ```no_run
/// # use std::convert::Infallible;
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use hyper::{Response, service::service_fn};
///
/// let mut generation = bindonce::aio::Generation::join(&"edge".parse()?).await?;
/// let acceptor = generation.claim_one("web=0.0.0.0:8080").await?.into_tokio_tcp_acceptor()?;
/// generation.ready().await?;
/// let mut connections = bindonce::hyper::Connections::new();
/// let service = service_fn(async |_| Ok::<_, Infallible>(Response::new("hi\n".to_owned())));
/// loop {
///     tokio::select! {
///         retired = generation.retired() => { retired?; break }
///         accepted = acceptor.accept() => connections.serve(accepted?.0, service),
///     }
/// }
/// drop(acceptor);
/// generation.stopped().await?;
/// let cut = generation.drain(connections.finish(std::time::Duration::from_secs(30))).await;
/// # Ok(())
/// # }
/// ```
///
/// With TLS, run the handshake in the connection's task, not in the accept loop:
/// [`serve_after`](Self::serve_after).
pub struct Connections {
    tasks: JoinSet<()>,
    finishing: watch::Sender<bool>,
    server: Builder<TokioExecutor>,
    tell: Tell,
}

impl Connections {
    /// Connections with hyper's default settings, and a limit of 30 seconds for the head of a
    /// request.
    pub fn new() -> Self {
        let mut server = Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new());
        server.http2().timer(TokioTimer::new());
        Self::with(server)
    }

    /// Connections with other settings of hyper. Without a timer in them there is no time limit.
    pub fn with(server: Builder<TokioExecutor>) -> Self {
        let finishing = watch::Sender::new(false);
        Self { tasks: JoinSet::new(), finishing, server, tell: Arc::new(drop) }
    }

    /// Calls `tell` with each error of a connection.
    #[must_use]
    pub fn on_error(mut self, tell: impl Fn(ConnectionError) + Send + Sync + 'static) -> Self {
        self.tell = Arc::new(tell);
        self
    }

    /// Serves a connection in a task of its own. Call it inside a runtime.
    pub fn serve<I, S, B>(&mut self, stream: I, service: S)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<ConnectionError>>
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
    {
        self.serve_after(async { Ok(stream) }, service);
    }

    /// Serves a connection after its handshake, such as that of TLS, which runs in the connection's
    /// own task: a client that stalls it delays no other. The handshake has no time limit but its
    /// own.
    pub fn serve_after<I, S, B>(
        &mut self,
        handshake: impl Future<Output = io::Result<I>> + Send + 'static,
        service: S,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<ConnectionError>>
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
    {
        // Removes finished tasks, or the set would grow for ever.
        while self.tasks.try_join_next().is_some() {}
        let (server, finishing) = (self.server.clone(), self.finishing.subscribe());
        let tell = Arc::clone(&self.tell);
        self.tasks.spawn(async move {
            let served = match handshake.await {
                Ok(stream) => serve(&server, stream, service, finishing).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = served {
                tell(error);
            }
        });
    }

    /// Lets each connection finish its open requests, or the first one that is yet to come, and
    /// waits until all connections have ended. After `limit` it cuts the rest and returns how many
    /// it cut. In HTTP/1 a connection that waits for another request is closed; in HTTP/2 the
    /// client is told to open no more streams (GOAWAY).
    pub async fn finish(mut self, limit: Duration) -> usize {
        let mut patience = Patience::new(limit);
        self.finishing.send_replace(true);
        while let Ok(Some(_)) = within(&mut patience, self.tasks.join_next()).await {}
        // Those that have ended by the limit, too.
        while self.tasks.try_join_next().is_some() {}
        let cut = self.tasks.len();
        self.tasks.shutdown().await;
        cut
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

async fn serve<I, S, B>(
    server: &Builder<TokioExecutor>,
    stream: I,
    service: S,
    mut finishing: watch::Receiver<bool>,
) -> Result<(), ConnectionError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<ConnectionError>>,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    let asked = Arc::new(Notify::new());
    let notice = Arc::clone(&asked);
    let service = service_fn(move |request| {
        notice.notify_one();
        service.call(request)
    });
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let time_to_finish = async {
        // The sender lives as long as this task.
        let _ = finishing.wait_for(|finishing| *finishing).await;
        asked.notified().await;
    };
    tokio::select! {
        served = connection.as_mut() => return served,
        () = time_to_finish => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ::hyper::client::conn::http2;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::oneshot;

    use super::*;

    /// Longer than any of these tests takes, unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(20);

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(test);
    }

    fn connect(connections: &mut Connections) -> DuplexStream {
        let (client, server) = duplex(4096);
        let service = async |_| Ok::<_, Infallible>(Response::new("hi".to_owned()));
        connections.serve(server, service_fn(service));
        client
    }

    #[test]
    fn who_has_connected_gets_the_answer_and_then_the_end() {
        run(async {
            let mut connections = Connections::new();
            let mut client = connect(&mut connections);
            let mut idle = connect(&mut connections);
            idle.write_all(REQUEST).await.expect("write");
            let mut first = [0; 15];
            idle.read_exact(&mut first).await.expect("an answer");
            let finish = tokio::spawn(connections.finish(PATIENCE));
            // `finish` has begun once the connection that was answered is closed.
            let mut rest = Vec::new();
            idle.read_to_end(&mut rest).await.expect("an end");
            client.write_all(REQUEST).await.expect("write");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("an answer and an end");
            assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hi"), "{answer}");
            assert_eq!(finish.await.expect("finish"), 0);
        });
    }

    #[test]
    fn what_does_not_end_is_cut_and_counted() {
        run(async {
            let mut connections = Connections::new();
            let _silent = connect(&mut connections);
            let (_never, stalled) = oneshot::channel::<DuplexStream>();
            let handshake = async { stalled.await.map_err(io::Error::other) };
            let service = async |_| Ok::<_, Infallible>(Response::new(String::new()));
            connections.serve_after(handshake, service_fn(service));
            assert_eq!(connections.finish(Duration::ZERO).await, 2);
        });
    }

    #[test]
    fn a_stream_of_http2_is_finished() {
        run(async {
            let mut connections = Connections::new();
            let (client, server) = duplex(4096);
            let (asked, heard) = oneshot::channel();
            let (go, wait) = oneshot::channel::<()>();
            let both = std::sync::Mutex::new(Some((asked, wait)));
            connections.serve(
                server,
                service_fn(move |_| {
                    let both = both.lock().expect("lock").take();
                    async move {
                        if let Some((asked, wait)) = both {
                            asked.send(()).expect("the test waits");
                            wait.await.expect("the test says so");
                        }
                        Ok::<_, Infallible>(Response::new("hi".to_owned()))
                    }
                }),
            );
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.expect("h2");
            let connection = tokio::spawn(connection);
            let answer = tokio::spawn(sender.send_request(Request::new(String::new())));
            heard.await.expect("it is asked");
            let finish = tokio::spawn(connections.finish(PATIENCE));
            // The connection is told to finish before its request is answered.
            tokio::task::yield_now().await;
            go.send(()).expect("it waits");
            assert_eq!(answer.await.expect("task").expect("an answer").status(), 200);
            connection.await.expect("task").expect("an orderly end");
            assert_eq!(finish.await.expect("finish"), 0);
        });
    }

    #[test]
    fn errors_are_told() {
        run(async {
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let mut connections = Connections::new().on_error(move |error| {
                let _ = tell.send(error.to_string());
            });
            let mut client = connect(&mut connections);
            client.write_all(b"nonsense\r\n\r\n").await.expect("write");
            let text = told.recv().await.expect("an error");
            assert!(!text.is_empty());
        });
    }
}
