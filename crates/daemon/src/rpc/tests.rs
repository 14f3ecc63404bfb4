//! The server with a handler that says `true`.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream as Client;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bindonce_wire::message::Request;
use bindonce_wire::{ErrorCode, RpcError};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::{Admission, Caller, Clients, Excess, Handler, Limits, Link, Reply, Server, encode};
use crate::{Journal, Reporter};

/// Longer than any of these takes.
const PATIENCE: Duration = Duration::from_secs(60);

const LIMITS: Limits = Limits {
    accepted: usize::MAX,
    connections: 64,
    connections_per_user: 64,
    connections_without_rights: 1,
    buffered_bytes: 8 << 20,
    request_bytes: 1000,
    request_time: PATIENCE,
    idle_time: PATIENCE,
    descriptors_in_flight: 0,
};

struct Yes {
    exempt: bool,
}

impl Handler for Yes {
    fn admission(&self, _: &Caller) -> Admission {
        Admission { unknown: !self.exempt, exempt: self.exempt }
    }

    async fn answer(&self, _: &Rc<Link>, request: &Request<'_>) -> Result<Reply, RpcError> {
        Ok(encode(request, &true)?.into())
    }

    fn refusal(&self, excess: Excess) -> RpcError {
        RpcError::new(ErrorCode::LIMIT, format!("{excess:?}"))
    }
}

/// Runs a test beside a server with these limits.
fn served<T: Future<Output = ()>>(name: &str, limits: Limits, test: impl Fn(PathBuf) -> T) {
    serve(name, limits, true, test);
}

fn serve<T: Future<Output = ()>>(
    name: &str,
    limits: Limits,
    exempt: bool,
    test: impl Fn(PathBuf) -> T,
) {
    let path = format!("bindonce-rpc-{}-{name}.sock", std::process::id());
    let path = std::env::temp_dir().join(path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tested = runtime.expect("a runtime").block_on(LocalSet::new().run_until(async {
        let listener = UnixListener::bind(&path).expect("a listener");
        let reporter = Reporter::new(Journal::in_memory(None), 0);
        let server = Server::new(Clients::new(limits), reporter, Yes { exempt });
        tokio::select! {
            () = server.accept(&listener) => {}
            tested = timeout(PATIENCE, test(path.clone())) => return tested,
        }
        Ok(())
    }));
    let _ = std::fs::remove_file(&path);
    tested.expect("in time");
}

async fn line(stream: &mut UnixStream) -> Option<Value> {
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line).await.expect("reading");
    (read != 0).then(|| serde_json::from_str(&line).expect("JSON"))
}

/// A request has its time as a whole: bytes that keep coming do not lengthen it.
#[test]
fn a_request_that_comes_in_drops_is_cut_off() {
    let limits = Limits { request_time: Duration::from_millis(200), ..LIMITS };
    served("drops", limits, |path| async move {
        let mut stream = UnixStream::connect(path).await.expect("connect");
        let (mut read, mut write) = stream.split();
        let mut text = String::new();
        let mut reader = BufReader::new(&mut read);
        let drops = async {
            write.write_all(br#"{"id":1,"method":""#).await.expect("the beginning");
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if write.write_all(b"x").await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            read = reader.read_line(&mut text) => drop(read.expect("reading")),
            () = drops => {}
        }
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(reply["error"]["code"], ErrorCode::TIMED_OUT.0, "{reply}");
    });
}

#[test]
fn further_connections_wait_until_one_ends() {
    let limits = Limits { accepted: 1, ..LIMITS };
    served("waits", limits, |path| async move {
        let mut first = UnixStream::connect(&path).await.expect("connect");
        first.write_all(br#"{"id":1,"method":"ping"}"#).await.expect("a request");
        assert_eq!(line(&mut first).await.expect("a reply")["id"], 1);
        let mut second = Client::connect(&path).expect("connect");
        second.write_all(br#"{"id":2,"method":"ping"}"#).expect("a request");
        // Whatever could be answered by now would have been.
        first.write_all(br#"{"id":3,"method":"ping"}"#).await.expect("a request");
        assert_eq!(line(&mut first).await.expect("a reply")["id"], 3);
        second.set_nonblocking(true).expect("non-blocking");
        let early = second.read(&mut [0]).expect_err("nothing yet");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        let mut second = UnixStream::from_std(second).expect("a stream");
        assert_eq!(line(&mut second).await.expect("a reply")["id"], 2);
    });
}

#[test]
fn clients_without_rights_have_few_connections() {
    serve("few", LIMITS, false, |path| async move {
        let mut first = UnixStream::connect(&path).await.expect("connect");
        first.write_all(br#"{"id":1,"method":"ping"}"#).await.expect("a request");
        assert_eq!(line(&mut first).await.expect("a reply")["result"], true);
        let mut second = UnixStream::connect(&path).await.expect("connect");
        let refused = line(&mut second).await.expect("a reply");
        assert_eq!(refused["error"]["code"], ErrorCode::LIMIT.0, "{refused}");
        assert_eq!(line(&mut second).await, None, "closed");
    });
}
