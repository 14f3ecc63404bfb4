//! One request: who asks, whether they may, and what comes of it.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;
use bindonce_core::listener::{Listener, Options, Wanted};
use bindonce_core::policy::{Peer, Verb};
use bindonce_core::registry::{ConnectionId, Refusal, Want};
use bindonce_observe::Follower;
use bindonce_wire::message::{Request, encode_error, encode_result};
use bindonce_wire::params::{Bind, Call, Events, Target};
use bindonce_wire::result::{ListResult, PingResult, ReleaseResult};
use bindonce_wire::{ErrorCode, RpcError};
use serde::Serialize;

use crate::answer;
use crate::claiming;
use crate::connection::Link;
use crate::giving;
use crate::rights::{
    allow, allow_all, allow_claim, allow_name, allow_named, known, problems, visible,
};
use crate::start;
use crate::state::State;
use crate::upgrade;

/// A reply: its text, which ends in a line end, and the descriptors that go with it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) text: Vec<u8>,
    pub(crate) descriptors: Vec<Rc<OwnedFd>>,
}

impl From<Vec<u8>> for Reply {
    fn from(text: Vec<u8>) -> Self {
        Self { text, descriptors: Vec::new() }
    }
}

/// Somebody who asks, as it was when it connected.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Its supplementary groups.
    pub(crate) groups: Rc<[u32]>,
}

/// Answers one frame.
pub(crate) async fn answer(state: &RefCell<State>, link: &Rc<Link>, frame: &[u8]) -> Reply {
    let caller = &link.caller;
    let request = match Request::decode(frame) {
        Ok(request) => request,
        Err(rejected) => return encode_error(&rejected.id, &rejected.error).into(),
    };
    let mut descriptors = Vec::new();
    let done = perform(state, link, &request, &mut descriptors).await;
    let failure = done.as_ref().err().map(|error| error.code);
    state.borrow().counts.borrow_mut().request(&request.method, failure);
    let text = match done {
        Ok(text) => text,
        Err(error) => {
            tracing::debug!(
                method = %request.method, uid = caller.peer.uid, pid = caller.peer.pid,
                code = error.code.0, %error, "request refused"
            );
            encode_error(&request.id, &error)
        }
    };
    Reply { text, descriptors }
}

async fn perform(
    state: &RefCell<State>,
    link: &Rc<Link>,
    request: &Request<'_>,
    descriptors: &mut Vec<Rc<OwnedFd>>,
) -> Result<Vec<u8>, RpcError> {
    let caller = &link.caller;
    match Call::decode(request)? {
        Call::Bind(elements) => {
            recovered(state).await;
            bind(state, caller, request, elements, descriptors).await
        }
        Call::Join(join) => {
            known(state, caller)?;
            let joined = state.borrow_mut().join(caller, join)?;
            let store = state.borrow().store.clone();
            if let Some(store) = store.filter(|_| joined.generation.is_some()) {
                store.settled().await;
            }
            encode(request, &joined)
        }
        Call::Release(names) => {
            recovered(state).await;
            let released = release(state, caller, &names).await?;
            start::bind_rest(state).await;
            encode(request, &ReleaseResult { released })
        }
        Call::List => {
            allow(state, caller, Verb::List, None)?;
            let listeners = answer::list(&state.borrow(), visible(state, caller));
            let mut result = ListResult::new(listeners);
            result.problems = problems(state, caller);
            encode(request, &result)
        }
        Call::Status => {
            allow(state, caller, Verb::List, None)?;
            let mut result = answer::status(&state.borrow(), visible(state, caller));
            result.problems = problems(state, caller);
            encode(request, &result)
        }
        Call::Events(wanted) => events(state, link, request, wanted),
        Call::Ping => {
            known(state, caller)?;
            encode(request, &PingResult::new(answer::VERSION))
        }
        Call::Store(gives) => encode(request, &giving::store(state, link, gives).await?),
        Call::Upgrade => {
            allow(state, caller, Verb::Admin, None)?;
            Err(upgrade::asked(state, link, &request.id).await)
        }
        _ => {
            let message = format!("method {:?} is not served by this broker", request.method);
            Err(RpcError::new(ErrorCode::METHOD_NOT_FOUND, message))
        }
    }
}

/// What has happened; from the reply on the connection may be a follower's.
fn events(
    state: &RefCell<State>,
    link: &Link,
    request: &Request<'_>,
    wanted: Events,
) -> Result<Vec<u8>, RpcError> {
    allow_all(state, &link.caller, Verb::List)?;
    let journal = Rc::clone(&state.borrow().journal);
    let answer = journal.answer(wanted.since, wanted.follow);
    let text = encode(request, &answer)?;
    if wanted.follow {
        let follower = Follower::new(&journal).ok_or_else(Follower::refused)?;
        link.follow(follower, answer.last);
    }
    Ok(text)
}

/// Waits until the broker has what it can have back of the one before.
async fn recovered(state: &RefCell<State>) {
    let gate = Rc::clone(&state.borrow().gate);
    gate.pass().await;
}

async fn bind(
    state: &RefCell<State>,
    caller: &Caller,
    request: &Request<'_>,
    elements: Vec<Bind>,
    descriptors: &mut Vec<Rc<OwnedFd>>,
) -> Result<Vec<u8>, RpcError> {
    let mut wants = Vec::with_capacity(elements.len());
    for (index, element) in elements.into_iter().enumerate() {
        let Bind { target, tentative, change } = element;
        let wanted = wanted(state, target, change).map_err(|mut error| {
            error.message = format!("params[{index}]: {}", error.message);
            error
        })?;
        match &wanted {
            Wanted::Named(name) => allow_named(state, caller, Verb::Use, name)?,
            Wanted::Listen(spec) => {
                allow_claim(state, caller, spec, change)?;
                allow_name(state, caller, spec)?;
            }
        }
        wants.push(Want { wanted, tentative, change });
    }
    let leases = match claiming::claim_unsettled(state, caller.connection, wants).await {
        Ok(leases) => leases,
        Err(failure) => return Err(answer::claim_failed(state, failure).await),
    };
    if leases.iter().any(|lease| lease.created) {
        let store = state.borrow().store.clone();
        if let Some(store) = store {
            state.borrow_mut().settle();
            store.settled().await;
        }
    }
    let state = state.borrow();
    descriptors.reserve_exact(leases.len());
    let listeners = leases.iter().filter_map(|lease| {
        let held = state.registry.held(lease.listener)?;
        descriptors.push(Rc::clone(&held.opened.handle.fd));
        Some((held, lease.created))
    });
    answer::bound(&request.id, listeners).map_err(|error| unwritten(&error))
}

/// What an element of `bind` asks for.
fn wanted(state: &RefCell<State>, target: Target, change: bool) -> Result<Wanted, RpcError> {
    match target {
        Target::Listen { listen } => listen.parse().map_err(|error| invalid(&error)),
        Target::Name { name } => {
            let name = name.parse().map_err(|error| invalid(&Invalid::Name(error)))?;
            Ok(Wanted::Named(name))
        }
        Target::Tcp { address, port, backlog } => {
            let at = SocketAddr::new(ip(&address)?, port);
            let options = Options { backlog, ..Options::default() };
            let listener = Listener::new(None, Address::Tcp(at), options);
            let mut listener = listener.map_err(|error| invalid(&error))?;
            // Its clients always say one, and multibinder heeds it when it binds.
            if !change && state.borrow().registry.by_key(&listener).is_some() {
                listener.options.backlog = None;
            }
            Ok(Wanted::Listen(listener.into()))
        }
    }
}

/// The address that multibinder's client names. Names of hosts are not looked up: that takes as
/// long as a name server likes, and who answers would decide what is bound.
fn ip(address: &str) -> Result<IpAddr, RpcError> {
    let bare = address.strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
    match bare.unwrap_or(address) {
        "" | "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        text => text.parse().map_err(|_| {
            let shown: String = address.chars().take(120).collect();
            let message =
                format!("{shown:?} is no IP address, and names of hosts are not looked up");
            RpcError::new(ErrorCode::INVALID_PARAMS, message)
                .with_hint("give the address as a number, such as 127.0.0.1 or ::1")
        }),
    }
}

async fn release(
    state: &RefCell<State>,
    caller: &Caller,
    names: &[String],
) -> Result<Vec<String>, RpcError> {
    let mut wanted = Vec::with_capacity(names.len());
    for name in names {
        let name: Wanted = name.parse().map_err(|error| invalid(&error))?;
        match &name {
            Wanted::Named(name) => allow_named(state, caller, Verb::Release, name)?,
            Wanted::Listen(spec) => allow(state, caller, Verb::Release, Some(spec))?,
        }
        wanted.push(name);
    }
    let mut released = state.borrow_mut().release(caller.connection, wanted.clone());
    // A holder that has hung up may not have been heard yet: give every task
    // whose connection has something to say a turn before refusing.
    for _ in 0..2 {
        if !matches!(released, Err(Refusal::InUse { .. })) {
            break;
        }
        tokio::task::yield_now().await;
        released = state.borrow_mut().release(caller.connection, wanted.clone());
    }
    released.map_err(|refusal| answer::refused(&refusal))
}

fn encode<T: Serialize>(request: &Request<'_>, result: &T) -> Result<Vec<u8>, RpcError> {
    encode_result(&request.id, result).map_err(|error| unwritten(&error))
}

fn unwritten(error: &serde_json::Error) -> RpcError {
    RpcError::new(ErrorCode::INTERNAL, format!("cannot write the reply: {error}"))
}

/// A text that is no listener.
pub(crate) fn invalid(error: &Invalid) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
        .with_hint("an address reads [NAME=]ADDR[,OPTION]..., as in web=0.0.0.0:80,backlog=4096")
}
