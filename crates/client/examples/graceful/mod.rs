//! Connections of hyper that end as a retired generation must end them: whoever has connected gets
//! the answer.
//!
//! hyper's `graceful_shutdown` ends a connection at once on which nothing has been read, and so does
//! `axum::serve` with its `with_graceful_shutdown`: the client, whose request is on its way, gets
//! a reset. Under load that is a few connections at each restart. So here a connection is told to
//! finish once its first request has come; a client that sends none is bounded by hyper's own
//! time limit for the head of a request.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// The connections of one generation. Used on one thread, within a [`tokio::task::LocalSet`].
pub(crate) struct Connections {
    tasks: JoinSet<()>,
    finishing: watch::Sender<bool>,
}

impl Connections {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), finishing: watch::Sender::new(false) }
    }

    /// Begins to serve one.
    pub(crate) fn serve<S, B>(&mut self, stream: TcpStream, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + 'static,
        B: Body<Data: Send, Error: std::error::Error + Send + Sync> + 'static,
    {
        // Reap what is done, so that the set does not grow for ever.
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn_local(serve(stream, service, self.finishing.subscribe()));
    }

    /// Finishes what has been asked, and ends.
    pub(crate) async fn finish(self) {
        self.finishing.send_replace(true);
        self.tasks.join_all().await;
    }
}

async fn serve<S, B>(stream: TcpStream, service: S, mut finishing: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + 'static,
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + 'static,
{
    let asked = Rc::new(Notify::new());
    let notice = Rc::clone(&asked);
    let service = service_fn(move |request| {
        notice.notify_one();
        service.call(request)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new());
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let time_to_finish = async {
        drop(finishing.wait_for(|finishing| *finishing).await);
        asked.notified().await;
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = time_to_finish => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        eprintln!("a client left: {error}");
    }
}
