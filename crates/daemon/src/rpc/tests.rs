//! The server with a handler that answers `true`.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as Client;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::policy::Peer;
use bindonce_core::registry::ConnectionId;
use bindonce_wire::message::Request;
use bindonce_wire::{ErrorCode, RpcError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::sending::{Pushed, Sending};
use super::{Admission, Caller, Clients, Excess, Handler, Limits, Link, Reply, Server, encode};
use crate::{Journal, Reporter};

/// Longer than any of these tests takes.
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
    descriptors_unreceived: 0,
};

#[derive(Default)]
struct Yes {
    exempt: bool,
    /// The users that were answered, in order, and how many descriptors each had passed.
    answered: Rc<RefCell<Vec<(u32, usize)>>>,
    /// How many descriptors each reply has.
    gives: usize,
    /// How many bytes the result of each reply has; 0 for `true`.
    long: usize,
}

impl Handler for Yes {
    fn admission(&self, _: &Caller) -> Admission {
        Admission { unknown: !self.exempt, exempt: self.exempt }
    }

    async fn answer(&self, link: &Rc<Link>, request: &Request<'_>) -> Result<Reply, RpcError> {
        let passed = link.take_received().len();
        self.answered.borrow_mut().push((link.caller.peer.uid, passed));
        let descriptor = Rc::new(std::io::stdin().as_fd().try_clone_to_owned().expect("a copy"));
        let descriptors = vec![descriptor; self.gives];
        let mut text = match self.long {
            0 => encode(request, &true)?,
            long => encode(request, &"x".repeat(long))?,
        };
        // The server counts the capacity.
        text.shrink_to_fit();
        Ok(Reply { text, descriptors })
    }

    fn refusal(&self, excess: Excess) -> RpcError {
        RpcError::new(ErrorCode::LIMIT, format!("{excess:?}"))
    }
}

/// Runs a test against a server with these limits.
fn served<T: Future<Output = ()>>(name: &str, limits: Limits, test: impl Fn(PathBuf) -> T) {
    serve(name, limits, true, test);
}

fn serve<T: Future<Output = ()>>(
    name: &str,
    limits: Limits,
    exempt: bool,
    test: impl Fn(PathBuf) -> T,
) {
    run(name, limits, Yes { exempt, ..Yes::default() }, test);
}

fn run<T: Future<Output = ()>>(
    name: &str,
    limits: Limits,
    handler: Yes,
    test: impl FnOnce(PathBuf) -> T,
) {
    let path = format!("bindonce-rpc-{}-{name}.sock", std::process::id());
    let path = std::env::temp_dir().join(path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tested = runtime.expect("a runtime").block_on(LocalSet::new().run_until(async {
        let listener = UnixListener::bind(&path).expect("a listener");
        let reporter = Reporter::new(Journal::in_memory(None), 0);
        let server = Server::new(Clients::new(limits), reporter, handler);
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

/// The deadline is that of the whole request: bytes that keep coming do not extend it.
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

/// The server and its client run in one thread: while it sleeps, both are stopped.
#[test]
fn a_request_that_was_begun_before_a_stop_may_be_finished_after_it() {
    let limits = Limits { request_time: Duration::from_secs(1), ..LIMITS };
    served("stopped", limits, |path| async move {
        let mut begun = UnixStream::connect(&path).await.expect("connect");
        begun.write_all(br#"{"id":1,"#).await.expect("the beginning");
        // The reply to a later request shows that the beginning was read.
        let mut other = UnixStream::connect(&path).await.expect("connect");
        other.write_all(br#"{"id":2,"method":"ping"}"#).await.expect("a request");
        assert_eq!(line(&mut other).await.expect("a reply")["id"], 2);
        std::thread::sleep(limits.request_time + Duration::from_millis(200));
        // The server looks at its clock before the rest comes.
        tokio::time::sleep(Duration::from_millis(10)).await;
        begun.write_all(br#""method":"ping"}"#).await.expect("the rest");
        assert_eq!(line(&mut begun).await.expect("a reply")["id"], 1);
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
        // The reply to this request shows that any other that could be answered would have been.
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

#[test]
fn a_request_waits_for_one_of_each_other_user_however_many_those_have_sent() {
    const TOGETHER: &str = r#"{"id":1,"method":"ping"}{"id":2,"method":"ping"}"#;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answered = runtime.expect("a runtime").block_on(LocalSet::new().run_until(async {
        let path =
            std::env::temp_dir().join(format!("bindonce-rpc-{}-turns.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a listener");
        let _ = std::fs::remove_file(&path);
        let reporter = Reporter::new(Journal::in_memory(None), 0);
        let clients = Clients::new(LIMITS);
        let handler = Yes::default();
        let answered = Rc::clone(&handler.answered);
        let server = Server::new(Rc::clone(&clients), reporter, handler);
        let mut peers = Vec::new();
        // The last connection is that of the other user.
        for (number, uid) in [7; 50].into_iter().chain([8]).enumerate() {
            let (mut peer, stream) = Client::pair().expect("a pair");
            peer.write_all(TOGETHER.as_bytes()).expect("two requests");
            stream.set_nonblocking(true).expect("non-blocking");
            let stream = UnixStream::from_std(stream).expect("a stream");
            let peer_of = Peer { pid: 1, uid, gid: uid };
            let connection = ConnectionId(number as u64);
            let caller = Caller { connection, peer: peer_of, groups: [].into(), network: None };
            let admission = Admission { unknown: false, exempt: false };
            server.attend(clients.enter(stream, caller, admission, &[]), None);
            peers.push(peer);
        }
        let all = async {
            while answered.borrow().len() < 2 * peers.len() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = Rc::clone(&server).accept(&listener) => {}
            done = timeout(PATIENCE, all) => done.expect("in time"),
        }
        answered.take()
    }));
    let places = (0..answered.len()).filter(|place| answered[*place].0 == 8).collect::<Vec<_>>();
    assert!(places.len() == 2 && places[0] <= 2 && places[1] == places[0] + 2, "{places:?}");
}

#[test]
fn a_user_has_a_part_of_the_descriptors_that_may_wait() {
    let answered = Rc::new(RefCell::new(Vec::new()));
    let handler = || Yes { exempt: true, answered: Rc::clone(&answered), ..Yes::default() };
    let limits = Limits { descriptors_in_flight: 4, ..LIMITS };
    run("passed", limits, handler(), |path| async move {
        let mut stream = UnixStream::connect(path).await.expect("connect");
        let passed = std::io::stdin();
        let some = [passed.as_fd(); 3];
        for count in [2, 3] {
            let text = br#"{"id":1,"method":"ping"}"#;
            bindonce_fd::send(&stream, text, &some[..count]).expect("sent");
            line(&mut stream).await.expect("a reply");
        }
    });
    let passed: Vec<usize> = answered.borrow().iter().map(|(_, passed)| *passed).collect();
    assert_eq!(passed, [2, 0]);
}

#[test]
fn many_descriptors_are_sent_in_many_turns() {
    bindonce_sys::limits::raise_nofile().expect("descriptors");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let clients = Clients::new(Limits { descriptors_unreceived: 1 << 17, ..LIMITS });
        let (_peer, stream) = UnixStream::pair().expect("a pair");
        let peer = Peer { pid: 1, uid: 7, gid: 7 };
        let caller = Caller { connection: ConnectionId(1), peer, groups: [].into(), network: None };
        let admission = Admission { unknown: false, exempt: false };
        let link = clients.enter(stream, caller, admission, &[]);
        let descriptor = Rc::new(std::io::stdin().as_fd().try_clone_to_owned().expect("a copy"));
        let descriptors = vec![descriptor; 5 * bindonce_fd::MAX_FDS];
        let mut sending = Sending::new(Reply { text: b"true\n".to_vec(), descriptors });
        link.stream.writable().await.expect("writable");
        let pushed = sending.push(&link);
        assert!(matches!(pushed, Ok(Pushed::Part)), "{pushed:?}");
        assert_eq!(link.unreceived(), 4 * bindonce_fd::MAX_FDS);
        assert!(matches!(sending.push(&link), Ok(Pushed::Whole)));
    });
}

#[test]
fn what_is_not_received_counts_until_it_is() {
    const PING: &[u8] = br#"{"id":1,"method":"ping"}"#;
    let limits = Limits { request_time: Duration::from_millis(300), ..LIMITS };
    let handler = Yes { exempt: true, gives: 253, ..Yes::default() };
    run("unreceived", limits, handler, |path| async move {
        let connect = async || UnixStream::connect(&path).await.expect("connect");
        // The user is refused more at once, and what `first` was sent counts even after it was cut
        // off.
        let mut first = connect().await;
        first.write_all(PING).await.expect("a request");
        first.write_all(b"}").await.expect("no request");
        let mut refused = connect().await;
        refused.write_all(PING).await.expect("a request");
        let reply = line(&mut refused).await.expect("a reply");
        assert_eq!(reply["error"]["code"], ErrorCode::LIMIT.0, "{reply}");
        assert_eq!(line(&mut refused).await, None, "cut off");
        // As soon as `first` goes away, the next client has its reply.
        drop(first);
        let mut last = connect().await;
        last.write_all(PING).await.expect("a request");
        let (mut text, mut descriptors) = (vec![0; 100], Vec::new());
        while descriptors.len() < 253 {
            last.readable().await.expect("readable");
            let mut receive = || Ok(bindonce_fd::recv(last.as_fd(), &mut text, &mut descriptors)?);
            match last.try_io(tokio::io::Interest::READABLE, &mut receive) {
                Ok(count) => assert_ne!(count, 0, "the end"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    });
}

/// The bytes of a reply for which no connection has room.
const LONG: usize = 8 << 20;

/// Asks for such a reply, and waits until the server hangs up, without reading any of it.
async fn hung_up(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).await.expect("connect");
    stream.write_all(br#"{"id":1,"method":"ping"}"#).await.expect("a request");
    let mut ended = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    while poll(&mut ended, PollTimeout::ZERO).expect("poll") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stream
}

#[test]
fn whoever_does_not_read_its_reply_is_cut_off() {
    let limits = Limits { request_time: Duration::from_millis(100), ..LIMITS };
    let handler = Yes { exempt: true, long: LONG, ..Yes::default() };
    run("unread", limits, handler, |path| async move {
        let mut stream = hung_up(&path).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        assert!(!text.is_empty() && text.len() < LONG, "{} bytes", text.len());
    });
}

/// The second of two long replies to a user is one too many at once, for any user, even root and
/// the daemon's own.
#[test]
fn replies_that_are_not_read_are_kept_up_to_a_limit() {
    one_of_two("kept", 3 * LONG, false);
    one_of_two("kept-of-root", LONG, true);
}

fn one_of_two(name: &str, buffered_bytes: usize, exempt: bool) {
    let limits = Limits { buffered_bytes, connections_without_rights: 2, ..LIMITS };
    run(name, limits, Yes { long: LONG, exempt, ..Yes::default() }, |path| async move {
        let mut first = UnixStream::connect(&path).await.expect("connect");
        first.write_all(br#"{"id":1,"method":"ping"}"#).await.expect("a request");
        first.readable().await.expect("the beginning of the reply");
        hung_up(&path).await;
        let mut text = vec![0; LONG];
        first.read_exact(&mut text).await.expect("all of the first one");
    });
}
