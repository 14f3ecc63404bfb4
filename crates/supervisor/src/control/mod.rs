//! The service's control socket: `reload`, `retire`, `status`, `state`, `events`, `upgrade` and
//! `ping`, in the same protocol as the broker's (docs/protocol-generations.md).

mod draining;
pub(crate) mod ending;
pub(crate) mod gate;
pub(crate) mod leave;
pub(crate) mod requests;
pub(crate) mod retire;
pub(crate) mod signals;
pub mod upgrade;
pub(crate) mod upgrades;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::policy::Peer;
use bindonce_daemon::Reporter;
use bindonce_daemon::rpc::{self, Admission, Caller, Clients, Excess, Limits, Link, Reply, Server};
use bindonce_sys::listen;
use bindonce_wire::call;
use bindonce_wire::message::Request;
use bindonce_wire::{ErrorCode, MAX_REQUEST, RpcError};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::control::gate::Gate;
use crate::error::Error;
use crate::replies::{ENDING, ReloadParams};
use crate::tasks::spawn;

/// Limits for clients without rights. Root and this process's own user are limited only by the
/// accept queue, and may be idle.
const LIMITS: Limits = Limits {
    accepted: 128,
    connections: usize::MAX,
    connections_per_user: usize::MAX,
    connections_without_rights: 16,
    buffered_bytes: 8 << 20,
    request_bytes: MAX_REQUEST,
    request_time: Duration::from_secs(30),
    idle_time: Duration::MAX,
    descriptors_in_flight: 0,
    // The supervisor sends no descriptors.
    descriptors_unreceived: 0,
};

const METHODS: [&str; 8] =
    ["reload", "retire", "status", "state", "events", "upgrade", "ping", "leave"];

/// A client's command, with the channel for the answer.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve the files as they are now. `pid` is the process that asks.
    Reload { how: ReloadParams, reply: oneshot::Sender<Answer>, pid: i32 },
    /// End this generation, or the oldest draining one. The last field is the pid that asks.
    Retire(Option<u64>, oneshot::Sender<Answer>, i32),
    /// Reports that the loop runs, and which generation serves.
    Ping(oneshot::Sender<Answer>),
    /// Reports everything.
    Status(oneshot::Sender<Answer>),
    /// Reports the same at once, without questions to haproxy.
    State(oneshot::Sender<Answer>),
    /// Become the installed binary. Answered only on failure; on success the connection ends, and
    /// the new binary serves the next one.
    Upgrade(oneshot::Sender<Answer>),
    /// Leave the generations that drain to the next supervisor. The last field is the pid that
    /// asks.
    Leave(oneshot::Sender<Answer>, i32),
}

/// The result of a method, or its error.
pub(crate) type Answer = Result<serde_json::Value, RpcError>;

/// The control socket, and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    /// The listening socket, for the next image of this process.
    pub(crate) socket: OwnedFd,
    /// The task that accepts from it.
    accepting: AbortHandle,
    /// The clients of this socket, and of each that it has replaced.
    clients: Vec<Rc<Clients>>,
}

impl Control {
    /// Serves another socket instead; existing connections stay.
    pub(crate) fn replace(&mut self, other: Self) {
        let older = std::mem::replace(self, other);
        older.accepting.abort();
        self.clients.extend(older.clients);
    }

    /// Waits until each reply that is due has been sent, for `patience` at most.
    pub(crate) async fn answered(&self, patience: Duration) {
        let until = Instant::now() + patience;
        for clients in &self.clients {
            clients.calm(until.saturating_duration_since(Instant::now())).await;
        }
    }
}

/// Binds the socket, mode 0600 in a directory of mode 0700. The caller holds the service's lock, so
/// an existing socket belongs to a supervisor that is gone.
pub(crate) fn bind(path: &Path) -> Result<OwnedFd, Error> {
    Ok(listen::open_control(path, 0o600)?.fd)
}

/// Serves clients until the task is aborted; new ones wait while the gate is closed. `ask` passes
/// their commands to the loop.
pub(crate) fn begin(
    socket: OwnedFd,
    reporter: &Rc<Reporter>,
    gate: &Gate,
    ask: impl Fn(Command) + 'static,
) -> Result<Control, Error> {
    let listener = socket
        .try_clone()
        .map(std::os::unix::net::UnixListener::from)
        .and_then(UnixListener::from_std)
        .map_err(Error::system("serve the control socket"))?;
    let clients = Clients::new(LIMITS);
    let handler = Handler { reporter: Rc::clone(reporter), ask };
    let server = Server::new(Rc::clone(&clients), Rc::clone(reporter), handler);
    let gate = gate.clone();
    let accepting = spawn(async move { gate.while_open(server.accept(&listener)).await });
    Ok(Control { socket, accepting: accepting.abort_handle(), clients: vec![clients] })
}

/// Passes requests to the supervisor's loop.
struct Handler<F> {
    reporter: Rc<Reporter>,
    ask: F,
}

impl<F: Fn(Command) + 'static> rpc::Handler for Handler<F> {
    fn admission(&self, caller: &Caller) -> Admission {
        let exempt = self.reporter.is_owner(caller.peer.uid);
        Admission { unknown: !exempt, exempt }
    }

    async fn answer(&self, link: &Rc<Link>, request: &Request<'_>) -> Result<Reply, RpcError> {
        let Peer { pid, uid, .. } = link.caller.peer;
        if !self.reporter.is_owner(uid) {
            return Err(denied(format!("uid {uid} may not control this service")));
        }
        let text = match request.method.as_str() {
            "events" => rpc::events(&self.reporter.journal, link, request, call::events(request)?)?,
            _ => {
                let pid = i32::try_from(pid).unwrap_or_default();
                rpc::encode(request, &perform(request, pid, &self.ask).await?)?
            }
        };
        Ok(text.into())
    }

    /// Only clients without rights have limits.
    fn refusal(&self, excess: Excess) -> RpcError {
        denied(match excess {
            Excess::Connections(_, most) => format!("{most} clients without rights are connected"),
            Excess::Buffered => "clients without rights send too much".to_owned(),
        })
    }
}

fn denied(message: String) -> RpcError {
    RpcError::new(ErrorCode::DENIED, message)
        .with_hint("ask as root, or as the user that runs `bindonce run`")
}

async fn perform(request: &Request<'_>, pid: i32, ask: &impl Fn(Command)) -> Answer {
    let (reply, answer) = oneshot::channel();
    let method = request.method.as_str();
    if !matches!(method, "retire" | "reload") && METHODS.contains(&method) {
        request.no_params()?;
    }
    match method {
        "ping" => ask(Command::Ping(reply)),
        "reload" => ask(Command::Reload { how: how(request)?, reply, pid }),
        "retire" => ask(Command::Retire(generation(request)?, reply, pid)),
        "status" => ask(Command::Status(reply)),
        "state" => ask(Command::State(reply)),
        "upgrade" => ask(Command::Upgrade(reply)),
        "leave" => ask(Command::Leave(reply, pid)),
        _ => return Err(request.method_not_found(&METHODS)),
    }
    let gone = || RpcError::new(ErrorCode::INTERNAL, "the supervisor has ended").with(ENDING, true);
    answer.await.map_err(|_| gone())?
}

/// The parameters of `reload`, all optional.
fn how(request: &Request<'_>) -> Result<ReloadParams, RpcError> {
    match request.no_params() {
        Ok(()) => Ok(ReloadParams::default()),
        Err(_) => request.params(),
    }
}

/// The optional generation of `retire`.
fn generation(request: &Request<'_>) -> Result<Option<u64>, RpcError> {
    match request.params::<Vec<u64>>()?.as_slice() {
        [] => Ok(None),
        [generation] => Ok(Some(*generation)),
        _ => Err(RpcError::new(ErrorCode::INVALID_PARAMS, "`retire` takes one generation at most")
            .with_hint("leave `params` out for the oldest generation that drains")),
    }
}
