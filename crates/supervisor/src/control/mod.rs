//! The service's control socket: `reload`, `retire`, `status`, `events`, `upgrade` and `ping`, in
//! the same protocol as the broker's (docs/protocol.md).

pub(crate) mod requests;
pub(crate) mod retire;
pub(crate) mod signals;
pub mod upgrade;
pub(crate) mod upgrades;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};
use bindonce_daemon::{Follower, Journal, follow};
use bindonce_sys::{listen, peer};
use bindonce_wire::call;
use bindonce_wire::framing::{Frame, Scanner};
use bindonce_wire::message::{self, Id, Request};
use bindonce_wire::params::Events;
use bindonce_wire::{ErrorCode, MAX_REQUEST, RpcError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::error::Error;
use crate::replies;

/// Connections at a time; further ones wait in the accept queue.
const CONNECTIONS: usize = 128;
/// How long a client may take to read a reply, or to finish a request that it began.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after accept(2) has failed for want of descriptors or memory: there is no event for
/// their return.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const METHODS: [&str; 6] = ["reload", "retire", "status", "events", "upgrade", "ping"];

/// What a client wants, and where the answer goes.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Serve the files as they are now; asked for by this process.
    Reload { allow_empty: bool, reply: oneshot::Sender<Answer>, pid: i32 },
    /// End this generation, or the oldest one that drains; asked for by this process.
    Retire(Option<u64>, oneshot::Sender<Answer>, i32),
    /// Tell that the loop goes round, and which generation serves.
    Ping(oneshot::Sender<Answer>),
    /// Tell everything.
    Status(oneshot::Sender<Answer>),
    /// Become the binary that is installed now. Answered only if that fails: else the connection
    /// ends, and the next one is served by the new binary.
    Upgrade(oneshot::Sender<Answer>),
}

/// The result of a method, or its error.
pub(crate) type Answer = Result<serde_json::Value, RpcError>;

/// Binds the socket, 0600 in a directory that is 0700. The caller holds the service's lock, so a
/// socket that is there belongs to a supervisor that is gone.
pub(crate) fn bind(path: &Path) -> Result<OwnedFd, Error> {
    let odd = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let bound = || {
        let address = Address::unix(path.to_str().unwrap_or("\0")).map_err(|e| odd(&e))?;
        let options = Options { mode: Some(0o600), ..Options::default() };
        let listener = Listener::new(None, address, options).map_err(|e| odd(&e))?;
        Ok(listen::open(&listener).map_err(|e| odd(&e))?.fd)
    };
    bound().map_err(Error::system("bind the service's control socket"))
}

/// Serves clients until the task is ended.
pub(crate) async fn serve(
    listener: UnixListener,
    journal: Rc<Journal>,
    ask: impl Fn(Ask) + 'static,
) {
    let ask = Rc::new(ask);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (ask, journal) = (Rc::clone(&ask), Rc::clone(&journal));
                crate::tasks::spawn(async move {
                    if let Err(error) = converse(stream, &journal, &*ask).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket: accept failed");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn converse(
    mut stream: UnixStream,
    journal: &Rc<Journal>,
    ask: &impl Fn(Ask),
) -> std::io::Result<()> {
    let peer = peer::credentials(stream.as_fd())?;
    let allowed = peer.uid == 0 || peer.uid == nix::unistd::getuid().as_raw();
    let mut scanner = Scanner::new(MAX_REQUEST);
    let mut buffer = vec![0; 4096];
    loop {
        let read = stream.read(&mut buffer);
        let read = if scanner.in_progress() {
            tokio::time::timeout(PATIENCE, read).await.map_err(std::io::Error::from)??
        } else {
            read.await?
        };
        if read == 0 {
            return Ok(());
        }
        let mut rest = buffer.get(..read).unwrap_or_default();
        while let Some(frame) = scanner.next(&mut rest) {
            let mut following = None;
            let last_word = frame.ends_connection();
            let reply = match frame {
                Frame::Request(_) if !allowed => {
                    let text = format!("uid {} may not control this service", peer.uid);
                    let error = RpcError::new(ErrorCode::DENIED, text)
                        .with_hint("ask as root, or as the user that runs `bindonce run`");
                    message::encode_error(&Id::Null, &error)
                }
                Frame::Request(request) => {
                    let asked = Asked { pid: peer.pid, journal, following: &mut following };
                    answer(&request, asked, ask).await
                }
                bad => message::encode_error(&Id::Null, &bad.refusal(MAX_REQUEST)),
            };
            let write = stream.write_all(&reply);
            tokio::time::timeout(PATIENCE, write).await.map_err(std::io::Error::from)??;
            if last_word {
                return Ok(());
            }
            if let Some((follower, last)) = following {
                return follow(&follower, last, &stream, PATIENCE).await;
            }
        }
    }
}

/// Who asks, and what is known without asking the supervisor.
struct Asked<'a> {
    pid: i32,
    journal: &'a Rc<Journal>,
    /// Set where the connection is a follower's from now on, with what it has been told of.
    following: &'a mut Option<(Follower, u64)>,
}

async fn answer(text: &[u8], mut asked: Asked<'_>, ask: &impl Fn(Ask)) -> Vec<u8> {
    let request = match Request::decode(text) {
        Ok(request) => request,
        Err(rejected) => return message::encode_error(&rejected.id, &rejected.error),
    };
    let outcome = match request.method.as_str() {
        "events" => events(&request, &mut asked),
        _ => perform(&request, asked.pid, ask).await,
    };
    let encoded = outcome.and_then(|value| {
        message::encode_result(&request.id, &value)
            .map_err(|error| RpcError::new(ErrorCode::INTERNAL, error.to_string()))
    });
    encoded.unwrap_or_else(|error| message::encode_error(&request.id, &error))
}

fn events(request: &Request<'_>, asked: &mut Asked<'_>) -> Answer {
    let Events { since, follow } = call::events(request)?;
    let events = asked.journal.answer(since, follow);
    if follow {
        let follower = Follower::new(asked.journal).ok_or_else(Follower::refused)?;
        *asked.following = Some((follower, events.last));
    }
    replies::result(&events)
}

async fn perform(request: &Request<'_>, pid: i32, ask: &impl Fn(Ask)) -> Answer {
    let (reply, answer) = oneshot::channel();
    let method = request.method.as_str();
    if !matches!(method, "retire" | "reload") && METHODS.contains(&method) {
        request.no_params()?;
    }
    match method {
        "ping" => ask(Ask::Ping(reply)),
        "reload" => ask(Ask::Reload { allow_empty: allow_empty(request)?, reply, pid }),
        "retire" => ask(Ask::Retire(generation(request)?, reply, pid)),
        "status" => ask(Ask::Status(reply)),
        "upgrade" => ask(Ask::Upgrade(reply)),
        _ => return Err(request.method_not_found(&METHODS)),
    }
    let gone = || RpcError::new(ErrorCode::INTERNAL, "the supervisor has ended");
    answer.await.map_err(|_| gone())?
}

/// The one member of `reload`'s parameters: whether nothing may be left to listen on.
fn allow_empty(request: &Request<'_>) -> Result<bool, RpcError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        allow_empty: bool,
    }
    match request.no_params() {
        Ok(()) => Ok(false),
        Err(_) => Ok(request.params::<Wanted>()?.allow_empty),
    }
}

/// The one parameter of `retire`: a generation, or none.
fn generation(request: &Request<'_>) -> Result<Option<u64>, RpcError> {
    match request.params::<Vec<u64>>()?.as_slice() {
        [] => Ok(None),
        [generation] => Ok(Some(*generation)),
        _ => Err(RpcError::new(ErrorCode::INVALID_PARAMS, "`retire` takes one generation at most")
            .with_hint("leave `params` out for the oldest generation that drains")),
    }
}
