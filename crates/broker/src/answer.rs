//! What the registry says, in the words of the wire.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};
use bindonce_core::name::Name;
use bindonce_core::policy::Denial;
use bindonce_core::registry::{Generation, Held, Holder, Phase, Refusal, View};
use bindonce_sys::options::{self, Change};
use bindonce_sys::{Errno, diag, queue};
use bindonce_wire::message::Id;
use bindonce_wire::params::State as WireState;
use bindonce_wire::result::{
    BrokerInfo, ChangedOption, GenerationInfo, HolderInfo, ListenerInfo, ServiceInfo, StatusResult,
};
use bindonce_wire::{ErrorCode, RpcError, text};
use serde_json::{Map, Value};

use crate::claiming::Denied;
use crate::guard;
use crate::inquiry::{Inquiry, Question};
use crate::socket::Socket;
use crate::state::State;

/// This broker's version, as it tells its clients.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The texts of a listener that never change, written once: one request may ask for thousands,
/// again and again.
#[derive(Debug)]
pub(crate) struct Described {
    /// Its address as asked for.
    pub(crate) address: Box<str>,
    /// The address that it has, if that is another.
    bound: Option<Box<str>>,
    /// What a reply says of it, from the value of `name` on, as long as it has no name.
    reply: Vec<u8>,
    /// Where in that what follows the name begins.
    rest: usize,
}

impl Described {
    /// Of a socket that is bound as the listener says.
    pub(crate) fn new(listener: &Listener, bound: &Address, inode: u64) -> Self {
        let address = listener.address.text().into_boxed_str();
        let bound = (*bound != listener.address).then(|| bound.text().into_boxed_str());
        let mut reply = Vec::with_capacity(3 * address.len() + 48);
        if listener.options.is_empty() {
            text::string(&mut reply, &address);
        } else {
            text::string(&mut reply, &Listener { name: None, ..listener.clone() }.label());
        }
        let rest = reply.len();
        reply.extend_from_slice(br#","address":"#);
        text::string(&mut reply, &address);
        reply.extend_from_slice(br#","bound":"#);
        text::string(&mut reply, bound.as_deref().unwrap_or(&address));
        reply.extend_from_slice(br#","inode":"#);
        text::number(&mut reply, inode);
        Self { address, bound, reply, rest }
    }

    /// The address that it has.
    pub(crate) fn bound(&self) -> &str {
        self.bound.as_deref().unwrap_or(&self.address)
    }

    fn write(&self, reply: &mut Vec<u8>, name: Option<&Name>) {
        match name {
            Some(name) => {
                text::string(reply, name.as_str());
                reply.extend_from_slice(&self.reply[self.rest..]);
            }
            None => reply.extend_from_slice(&self.reply),
        }
    }
}

/// The reply to `bind`: what [`encode_result`] makes of a [`BindResult`] with these listeners.
///
/// [`encode_result`]: bindonce_wire::message::encode_result
/// [`BindResult`]: bindonce_wire::result::BindResult
pub(crate) fn bound<'a>(
    id: &Id,
    listeners: impl Iterator<Item = (&'a Held<Socket>, bool)>,
) -> serde_json::Result<Vec<u8>> {
    let mut text = br#"{"jsonrpc":"2.0","id":"#.to_vec();
    serde_json::to_writer(&mut text, id)?;
    text.extend_from_slice(br#","result":{"listeners":["#);
    for (index, (held, created)) in listeners.enumerate() {
        text.extend_from_slice(if index == 0 { &br#"{"name":"#[..] } else { br#",{"name":"# });
        held.opened.handle.described.write(&mut text, held.listener.name.as_ref());
        let created: &[u8] = if created { br#","created":true}"# } else { br#","created":false}"# };
        text.extend_from_slice(created);
    }
    text.extend_from_slice(b"]}}\n");
    Ok(text)
}

/// Every listener, sorted by name, with its queue as the kernel has it now.
///
/// Only those that the caller may see.
pub(crate) fn list(state: &State, may_see: impl Fn(&Listener) -> bool) -> Vec<ListenerInfo> {
    let mut views = state.registry.list();
    views.retain(|view| may_see(&view.held.listener));
    let unix = unix_queues(&views);
    let mut listeners: Vec<ListenerInfo> = views.iter().map(|view| info(view, &unix)).collect();
    listeners.sort_by(|one, other| one.name.cmp(&other.name));
    listeners
}

/// Everything about the broker.
pub(crate) fn status(state: &State, may_see: impl Fn(&Listener) -> bool) -> StatusResult {
    let services = state.registry.services().into_iter().map(|service| {
        let generations = service.generations.into_iter().map(generation);
        ServiceInfo::new(service.name.to_string(), generations.collect())
    });
    let (since, socket) = (state.since.to_string(), state.socket.display().to_string());
    let mut broker = BrokerInfo::new(std::process::id(), VERSION, since, socket);
    broker.upgrades = state.upgrade.count();
    broker.listeners = state.registry.len();
    broker.connections = state.registry.connections();
    broker.descriptor_limit = state.descriptor_limit;
    StatusResult::new(broker, list(state, may_see), services.collect())
}

fn generation(generation: Generation) -> GenerationInfo {
    let Generation { generation, pid, phase, since, listeners } = generation;
    let mut info = GenerationInfo::new(generation, pid, wire_state(phase), since.to_string());
    info.listeners = listeners;
    info
}

fn info(view: &View<'_, Socket>, unix: &HashMap<u64, u32>) -> ListenerInfo {
    let opened = &view.held.opened;
    let listener = &view.held.listener;
    let fd = std::os::fd::AsFd::as_fd(&*opened.handle.fd);
    let queue = match listener.address {
        Address::Tcp(_) => queue::accept_queue(fd).ok().map(|queue| queue.len),
        Address::Udp(_) => None,
        Address::Unix(_) | Address::Abstract(_) => unix.get(&opened.inode).copied(),
    };
    let mut info = ListenerInfo::new(
        listener.label(),
        listener.address.to_string(),
        opened.bound.to_string(),
        opened.inode,
        view.held.since.to_string(),
    );
    info.options = said(&listener.options);
    info.backlog = Some(opened.backlog).filter(|_| listener.address.listens());
    info.queue = queue;
    info.listening = !listener.address.listens() || queue::is_listening(fd);
    info.cookie = opened.cookie;
    info.exclusive = opened.exclusive && options::is_exclusive(fd);
    info.repaired = opened.handle.care.repaired();
    info.changed = guard::changes(view.held).iter().map(changed).collect();
    info.tentative = view.held.tentative;
    info.holders = view.holders.iter().map(holder).collect();
    info
}

/// The queues of all UNIX listeners by inode, from one look at the kernel's
/// books, which have no cheap call for a single one.
fn unix_queues(views: &[View<'_, Socket>]) -> HashMap<u64, u32> {
    if views.iter().all(|view| view.held.listener.address.ip().is_some()) {
        return HashMap::new();
    }
    let sockets = diag::unix().unwrap_or_default();
    sockets.into_iter().map(|socket| (socket.inode, socket.queue.len)).collect()
}

fn changed(change: &Change) -> ChangedOption {
    ChangedOption::new(change.option, change.was, change.now)
}

fn holder(holder: &Holder) -> HolderInfo {
    let label = holder.label.as_ref();
    let mut info = HolderInfo::new(holder.pid(), holder.peer.uid, holder.since.to_string());
    info.service = label.map(|label| label.service.to_string());
    info.generation = label.map(|label| label.generation);
    info.state = label.map(|label| wire_state(label.phase));
    info
}

/// The options that were said, each under its own word.
fn said(options: &Options) -> Map<String, Value> {
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let flag = |said: bool| said.then_some(Value::Bool(true));
    let said = [
        ("backlog", options.backlog.map(Value::from)),
        ("v6only", flag(options.v6only)),
        ("interface", text(&options.interface)),
        ("netns", text(&options.netns)),
        ("transparent", flag(options.transparent)),
        ("freebind", flag(options.freebind)),
        ("blocking", flag(options.blocking)),
        ("mode", options.mode.map(|mode| format!("{mode:04o}").into())),
        ("user", text(&options.user)),
        ("group", text(&options.group)),
    ];
    said.into_iter().filter_map(|(word, value)| Some((word.to_owned(), value?))).collect()
}

/// A phase of the registry, as the wire has it.
pub(crate) fn wire_state(phase: Phase) -> WireState {
    match phase {
        Phase::Starting => WireState::Starting,
        Phase::Serving => WireState::Serving,
        Phase::Draining => WireState::Draining,
    }
}

/// A state of the wire, as the registry has it.
pub(crate) fn phase(state: WireState) -> Phase {
    match state {
        WireState::Starting => Phase::Starting,
        WireState::Serving => Phase::Serving,
        WireState::Draining => Phase::Draining,
    }
}

/// The registry refused.
pub(crate) fn refused(refusal: &Refusal) -> RpcError {
    let code = match refusal {
        Refusal::Options { .. }
        | Refusal::OptionsInRequest { .. }
        | Refusal::Name { .. }
        | Refusal::NameInRequest { .. } => ErrorCode::CONFLICT,
        Refusal::Overlap { .. } | Refusal::OverlapInRequest { .. } => ErrorCode::OVERLAP,
        Refusal::NotFound { .. } => ErrorCode::NOT_FOUND,
        Refusal::InUse { .. } => ErrorCode::IN_USE,
        Refusal::TooMany { .. } => ErrorCode::LIMIT,
        _ => ErrorCode::INTERNAL,
    };
    let mut error = RpcError::new(code, refusal.to_string()).with_hint(refusal.hint());
    if let Some(address) = refusal.address() {
        error = error.with("address", address.to_string());
    }
    match refusal {
        Refusal::InUse { holders, .. } => {
            let pids: Vec<u32> = holders.iter().map(Holder::pid).collect();
            error.with("pids", pids)
        }
        _ => error,
    }
}

/// The policy refused.
pub(crate) fn denied(denial: &Denial) -> RpcError {
    let mut error = RpcError::new(ErrorCode::DENIED, denial.to_string());
    if let Some(spec) = &denial.subject {
        error = error.with("address", spec.first.address.to_string());
    }
    error.with_hint(if denial.owner.is_some() {
        "run the command as one of these users, or add a rule to the broker's configuration"
    } else {
        "ask whoever runs the broker for a rule; its log says which one is needed"
    })
}

/// A claim got nothing. If another process has the address, the error says which, if that is
/// known in time.
pub(crate) async fn claim_failed(state: &RefCell<State>, failure: Denied) -> RpcError {
    match failure {
        Denied::Refused(refusal) => refused(&refusal),
        Denied::Limit { need, open, limit } => limit_reached(need, open, limit),
        Denied::TooMany { limit, most } => {
            let message = format!(
                "more than the {most} listeners that the broker's limit `{limit}` allows; nothing was \
                 bound"
            );
            RpcError::new(ErrorCode::LIMIT, message).with("limit", most).with_hint(format!(
                "release some, or raise {limit} in [limits] of its configuration"
            ))
        }
        Denied::Abandoned => RpcError::new(ErrorCode::INTERNAL, "the claim was given up"),
        Denied::NotOpened(listener, error) => {
            let inquiry = Rc::clone(&state.borrow().inquiry);
            not_opened(&inquiry, listener, error).await
        }
        Denied::NotChanged(listener, error) => not_changed(&listener, &error),
    }
}

async fn not_opened(
    inquiry: &Inquiry,
    listener: Box<Listener>,
    error: bindonce_sys::Error,
) -> RpcError {
    if error.is_descriptor_limit() {
        let answer = RpcError::new(ErrorCode::LIMIT, error.to_string());
        return answer.with("address", listener.address.to_string()).with_hint(raise_limit());
    }
    let errno = error.errno();
    let mut answer = RpcError::new(ErrorCode::BIND_FAILED, error.to_string())
        .with("address", listener.address.to_string());
    if let Some(errno) = errno {
        answer = answer.with("errno", errno);
    }
    let mut hint = error.hint();
    if errno == Some(Errno::EADDRINUSE as i32)
        && let Some(who) = inquiry.ask(Question::InTheWay(listener)).await
    {
        answer.message = format!("{}, held by {who}", answer.message);
        hint = Some(
            "stop that process, or have it started through bindonce so that it shares the \
             listener"
                .to_owned(),
        );
    }
    match hint {
        Some(hint) => answer.with_hint(hint),
        None => answer,
    }
}

fn not_changed(listener: &Listener, error: &bindonce_sys::Error) -> RpcError {
    let message =
        format!("the options of {} cannot be changed in place: {error}", listener.label());
    let mut answer = RpcError::new(ErrorCode::BIND_FAILED, message)
        .with("address", listener.address.to_string())
        .with_hint(error.hint().unwrap_or_else(|| {
            "a new socket is needed: stop the service that uses this one, release it (`bindonce \
             release`), and start again"
                .to_owned()
        }));
    if let Some(errno) = error.errno() {
        answer = answer.with("errno", errno);
    }
    answer
}

fn limit_reached(need: usize, open: u64, limit: u64) -> RpcError {
    let message = format!(
        "{need} new listeners need {need} descriptors, but the broker has {open} open of the \
         {limit} that RLIMIT_NOFILE allows it; nothing was bound"
    );
    RpcError::new(ErrorCode::LIMIT, message)
        .with("limit", limit)
        .with("open", open)
        .with("need", need)
        .with_hint(raise_limit())
}

/// How to raise the limit that the broker has already raised as far as it may.
fn raise_limit() -> &'static str {
    "raise the hard limit of the broker and start it again: LimitNOFILE= in its systemd unit, \
     `ulimit -Hn` in the shell that starts it, --ulimit nofile= for a container"
}
