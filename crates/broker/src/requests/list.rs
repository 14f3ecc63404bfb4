//! `list` and `status`: the listeners, who uses them, and what the broker cannot do.

use std::collections::HashMap;

use bindonce_core::address::Address;
use bindonce_core::listener::Options;
use bindonce_core::policy::Verb;
use bindonce_core::registry::{Generation, Holder, View};
use bindonce_daemon::rpc::Caller;
use bindonce_sys::options::{self, Change};
use bindonce_sys::{diag, queue};
use bindonce_wire::RpcError;
use bindonce_wire::result::{
    BrokerInfo, ChangedOption, GenerationInfo, HolderInfo, ListResult, ListenerInfo, Problem,
    ServiceInfo, StatusResult,
};
use serde_json::{Map, Value};

use crate::answer::wire_state;
use crate::broker::{Broker, VERSION};
use crate::listeners::Socket;
use crate::listeners::changes::changes;

/// Every listener that the caller may see.
pub(super) fn list(broker: &Broker, caller: &Caller) -> Result<ListResult, RpcError> {
    broker.access.allow(caller, Verb::List, None)?;
    let mut result = ListResult::new(listeners(broker, caller));
    result.problems = problems(broker, caller);
    Ok(result)
}

/// What the broker cannot do, for a caller who may see every listener.
fn problems(broker: &Broker, caller: &Caller) -> Vec<Problem> {
    if broker.access.may_see_all(caller) { broker.problems() } else { Vec::new() }
}

/// Every listener, sorted by name, with its queue as the kernel has it now.
///
/// Only those that the caller may see.
fn listeners(broker: &Broker, caller: &Caller) -> Vec<ListenerInfo> {
    let mut views = broker.listeners.registry.list();
    views.retain(|view| broker.access.may_see(caller, &view.held.listener));
    let unix = unix_queues(&views);
    let mut listeners: Vec<ListenerInfo> = views.iter().map(|view| info(view, &unix)).collect();
    listeners.sort_by(|one, other| one.name.cmp(&other.name));
    listeners
}

/// Everything about the broker that the caller may see.
pub(super) fn status(broker: &Broker, caller: &Caller) -> Result<StatusResult, RpcError> {
    broker.access.allow(caller, Verb::List, None)?;
    let registry = &broker.listeners.registry;
    let services = registry.services().into_iter().map(|service| {
        let generations = service.generations.into_iter().map(generation);
        ServiceInfo::new(service.name.to_string(), generations.collect())
    });
    let (since, socket) = (broker.since.to_string(), broker.socket.display().to_string());
    let mut info = BrokerInfo::new(std::process::id(), VERSION, since, socket);
    info.upgrades = broker.upgrade.count();
    info.listeners = registry.len();
    info.connections = registry.connections();
    info.descriptor_limit = broker.listeners.limits.descriptors;
    let mut result = StatusResult::new(info, listeners(broker, caller), services.collect());
    result.problems = problems(broker, caller);
    Ok(result)
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
    info.repaired = opened.handle.watch.repaired();
    info.changed = changes(view.held).iter().map(changed).collect();
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
