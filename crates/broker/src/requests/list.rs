//! `list` and `status`: the listeners, who uses them, and the broker's problems.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};
use bindonce_core::name::Name;
use bindonce_core::policy::Verb;
use bindonce_core::registry::{Generation, Holder, ListenerId, View};
use bindonce_daemon::rpc::{Caller, encode, unwritten};
use bindonce_sys::options::{self, Change};
use bindonce_sys::{diag, queue};
use bindonce_wire::RpcError;
use bindonce_wire::message::Request;
use bindonce_wire::result::{
    BrokerInfo, ChangedOption, GenerationInfo, HolderInfo, ListenerInfo, Problem, ServiceInfo,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use tokio::task::yield_now;

use crate::broker::{Broker, Endpoint, VERSION};
use crate::large::Turn;
use crate::listeners::Socket;
use crate::listeners::changes::changes;
use crate::problems;

/// Listeners examined in one turn, at about 10 us each.
const IN_A_TURN: usize = 32;

/// A `ListResult` whose listeners are encoded already.
#[derive(Serialize)]
struct Listed {
    listeners: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// A `StatusResult` whose listeners are encoded already.
#[derive(Serialize)]
struct Status {
    broker: BrokerInfo,
    listeners: Vec<Box<RawValue>>,
    services: Vec<ServiceInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// Every listener that the caller may see.
pub(super) async fn list(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    turn: &mut Turn,
) -> Result<Vec<u8>, RpcError> {
    broker.borrow().access.allow(caller, Verb::List, None)?;
    let large = Rc::clone(&broker.borrow().answering.large);
    turn.come(&large, caller.peer.uid).await;
    let listeners = listeners(broker, caller).await?;
    encode(request, &Listed { listeners, problems: problems(broker, caller).await })
}

/// The broker's problems, for a caller who may see every listener.
async fn problems(broker: &RefCell<Broker>, caller: &Caller) -> Vec<Problem> {
    let all = broker.borrow().access.may_see_all(caller);
    if all { problems::all(broker).await } else { Vec::new() }
}

/// Every listener that the caller may see, sorted by name.
async fn listeners(
    broker: &RefCell<Broker>,
    caller: &Caller,
) -> Result<Vec<Box<RawValue>>, RpcError> {
    let mut written = BTreeMap::new();
    let may_see =
        |broker: &Broker, listener: &Arc<Listener>| broker.access.may_see(caller, listener);
    each(broker, usize::MAX, may_see, |id, info| {
        let text = to_raw_value(&info).map_err(|error| unwritten(&error));
        written.insert((info.name, id), text);
    })
    .await;
    written.into_values().collect()
}

/// The first listeners, at most `most`, sorted by name, and the number of listeners beyond them.
pub(crate) async fn first(broker: &RefCell<Broker>, most: usize) -> (Vec<ListenerInfo>, usize) {
    let mut infos = Vec::new();
    each(broker, most, |_, _| true, |_, info| infos.push(info)).await;
    let beyond = broker.borrow().listeners.registry.len().saturating_sub(infos.len());
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    (infos, beyond)
}

/// Calls `tell` for the `wanted` ones among the first `most` listeners, each with its queue as the
/// kernel has it. Many listeners take many turns, and each is described as of its turn; the queues
/// of all UNIX listeners come from one look.
async fn each(
    broker: &RefCell<Broker>,
    mut most: usize,
    wanted: impl Fn(&Broker, &Arc<Listener>) -> bool,
    mut tell: impl FnMut(ListenerId, ListenerInfo),
) {
    let (mut after, mut unix) = (None, None);
    loop {
        {
            let broker = broker.borrow();
            let views = broker.listeners.registry.list_after(after, IN_A_TURN.min(most));
            for view in &views {
                let listener = &view.held.listener;
                if wanted(&broker, listener) {
                    let is_unix = listener.address.ip().is_none();
                    let queues = is_unix.then(|| &*unix.get_or_insert_with(unix_queues));
                    tell(view.id, info(view, queues));
                }
            }
            after = views.last().map(|view| view.id);
            most -= views.len();
            if views.len() < IN_A_TURN || most == 0 {
                return;
            }
        }
        yield_now().await;
    }
}

/// Everything about the broker that the caller may see.
pub(super) async fn status(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    turn: &mut Turn,
) -> Result<Vec<u8>, RpcError> {
    broker.borrow().access.allow(caller, Verb::List, None)?;
    let large = Rc::clone(&broker.borrow().answering.large);
    turn.come(&large, caller.peer.uid).await;
    let all = broker.borrow().access.may_see_all(caller);
    let may_see =
        |broker: &Broker, listener: &Arc<Listener>| all || broker.access.may_see(caller, listener);
    let services = services(broker, may_see).await;
    let listeners = listeners(broker, caller).await?;
    let problems = problems(broker, caller).await;
    let broker = broker.borrow();
    let registry = &broker.listeners.registry;
    let Endpoint { since, socket, .. } = &broker.endpoint;
    let (since, socket) = (since.to_string(), socket.display().to_string());
    let mut info = BrokerInfo::new(std::process::id(), VERSION, since, socket);
    info.upgrades = broker.upgrade.count();
    info.listeners = registry.len();
    info.connections = registry.connections();
    info.descriptor_limit = broker.listeners.limits.descriptors;
    encode(request, &Status { broker: info, listeners, services, problems })
}

/// Every service with a connected generation, sorted by name; each generation with the listeners
/// that `sees` admits. Takes one turn per generation.
pub(crate) async fn services(
    broker: &RefCell<Broker>,
    sees: impl Fn(&Broker, &Arc<Listener>) -> bool,
) -> Vec<ServiceInfo> {
    let mut services: BTreeMap<Name, Vec<GenerationInfo>> = BTreeMap::new();
    let joined = broker.borrow().listeners.registry.joined();
    for connection in joined {
        {
            let broker = broker.borrow();
            let registry = &broker.listeners.registry;
            let told = registry.generation(connection, |listener| sees(&broker, listener));
            if let Some((service, told)) = told {
                services.entry(service.clone()).or_default().push(generation(told));
            }
        }
        yield_now().await;
    }
    let service = |(name, mut generations): (Name, Vec<GenerationInfo>)| {
        generations.sort_by_key(|generation| generation.generation);
        ServiceInfo::new(name.to_string(), generations)
    };
    services.into_iter().map(service).collect()
}

fn generation(generation: Generation) -> GenerationInfo {
    let Generation { generation, pid, state, since, listeners } = generation;
    let mut info = GenerationInfo::new(generation, pid, state, since.to_string());
    info.listeners = listeners;
    info
}

fn info(view: &View<'_, Socket>, unix: Option<&HashMap<u64, u32>>) -> ListenerInfo {
    let opened = &view.held.opened;
    let listener = &view.held.listener;
    let fd = std::os::fd::AsFd::as_fd(&*opened.handle.fd);
    let queue = match listener.address {
        Address::Tcp(_) => queue::accept_queue(fd).ok().map(|queue| queue.len),
        Address::Udp(_) | Address::Quic(_) => None,
        _ => unix.and_then(|unix| unix.get(&opened.inode).copied()),
    };
    let mut info = ListenerInfo::new(
        listener.label(),
        listener.address.to_string(),
        opened.bound.to_string(),
        opened.inode,
        view.held.since.to_string(),
    );
    info.options = set_options(&listener.options);
    info.backlog = Some(opened.backlog).filter(|_| listener.address.listens());
    info.queue = queue;
    if !listener.address.listens()
        && let Ok(buffer) = queue::receive_buffer(fd)
    {
        info.receive_queue = Some(buffer.len);
        info.receive_buffer = Some(buffer.limit);
        info.drops = Some(buffer.drops);
    }
    info.listening = !listener.address.listens() || queue::is_listening(fd);
    info.cookie = opened.cookie;
    info.exclusive = opened.exclusive && options::is_exclusive(fd, &listener.address);
    info.repaired = opened.handle.watch.repaired();
    info.changed = changes(view.held).iter().map(changed).collect();
    info.tentative = view.held.tentative;
    info.holders = view.holders.iter().map(holder).collect();
    info
}

/// The queues of all UNIX listeners by inode, from one read of the kernel's list, because there is
/// no cheap call for a single one.
fn unix_queues() -> HashMap<u64, u32> {
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
    info.state = label.map(|label| label.state);
    info
}

/// The options that were set, each under its own keyword.
fn set_options(options: &Options) -> Map<String, Value> {
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let flag = |set: bool| set.then_some(Value::Bool(true));
    let all = [
        ("backlog", options.backlog.map(Value::from)),
        ("v6only", flag(options.v6only)),
        ("mptcp", flag(options.mptcp)),
        ("interface", text(&options.interface)),
        ("netns", text(&options.netns)),
        ("transparent", flag(options.transparent)),
        ("freebind", flag(options.freebind)),
        ("blocking", flag(options.blocking)),
        ("mode", options.mode.map(|mode| format!("{mode:04o}").into())),
        ("user", text(&options.user)),
        ("group", text(&options.group)),
    ];
    all.into_iter().filter_map(|(word, value)| Some((word.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use bindonce_core::policy::{Peer, Rule, Who};
    use bindonce_core::registry::{Label, State, Want};
    use bindonce_daemon::Journal;
    use bindonce_wire::result::{ListResult, StatusResult};
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::claims;
    use crate::config::Limits;
    use crate::listeners::watch::Guard;

    fn result<T: DeserializeOwned>(reply: &Result<Vec<u8>, RpcError>) -> T {
        let mut reply: Value =
            serde_json::from_slice(reply.as_ref().expect("a reply")).expect("JSON");
        serde_json::from_value(reply["result"].take()).expect("the result")
    }

    /// Who may see some listeners learns neither names nor addresses of others.
    #[tokio::test(flavor = "current_thread")]
    async fn a_generation_is_shown_with_the_listeners_that_the_caller_may_see() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let names = ["shown", "secret"]
            .map(|word| format!("abns@bindonce-list-{word}-{}", std::process::id()));
        let rule = |uid, addresses: &[&String]| Rule {
            who: Who { uid: Some(uid), gid: None },
            allow: vec![Verb::List],
            addresses: addresses.iter().map(|text| text.parse().expect("a pattern")).collect(),
            names: Vec::new(),
            services: Vec::new(),
        };
        broker.configure(vec![rule(7, &[&names[0]]), rule(8, &[])], Limits::default());
        let holder = broker.connect_itself();
        let service = "edge".parse().expect("a name");
        let label = Label { service, generation: 7, pid: 9, state: State::Serving };
        broker.listeners.join(holder, label);
        let callers = [7, 8].map(|uid| {
            let peer = Peer { pid: uid, uid, gid: uid };
            Caller { connection: broker.connect(peer), peer, groups: [].into(), network: None }
        });
        let broker = RefCell::new(broker);
        let want = |name: &String| Want {
            wanted: name.parse().expect("a listener"),
            tentative: false,
            change: false,
            held: false,
        };
        let wants = names.iter().map(want).collect();
        claims::claim(&broker, holder, wants).await.expect("granted");
        let text = r#"{"id":1,"method":"status"}"#.into();
        let request = Request::decode(&text).expect("a request");
        for (caller, seen) in callers.iter().zip([&names[..1], &names[..]]) {
            let told: StatusResult =
                result(&status(&broker, caller, &request, &mut Turn::default()).await);
            assert_eq!(told.services[0].generations[0].listeners, seen);
            assert_eq!(told.listeners.len(), seen.len());
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_list_is_made_in_turns_and_one_at_a_time_for_a_user() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let connection = broker.connect_itself();
        let broker = RefCell::new(broker);
        let count = 2 * IN_A_TURN;
        let name = |number| format!("abns@bindonce-list-{}-{number:03}", std::process::id());
        let want = |number| Want {
            wanted: name(count - 1 - number).parse().expect("a listener"),
            tentative: false,
            change: false,
            held: false,
        };
        let claimed = claims::claim(&broker, connection, (0..count).map(want).collect()).await;
        assert_eq!(claimed.expect("granted").len(), count);
        let peer = Peer { pid: 1, uid: 0, gid: 0 };
        let caller = Caller { connection, peer, groups: [].into(), network: None };
        let text = r#"{"id":1,"method":"list"}"#.into();
        let request = Request::decode(&text).expect("a request");
        let mut context = Context::from_waker(Waker::noop());
        let mut poll =
            |listing: Pin<&mut dyn Future<Output = Result<Vec<u8>, RpcError>>>| -> Poll<_> {
                listing.poll(&mut context)
            };
        let mut looks = Box::pin(listeners(&broker, &caller));
        let turns = std::iter::from_fn(|| {
            looks.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending().then_some(())
        });
        assert_eq!(turns.count(), count / IN_A_TURN, "others have a turn after each part");
        let listing =
            || Box::pin(async { list(&broker, &caller, &request, &mut Turn::default()).await });
        let (mut first, mut second) = (listing(), listing());
        let mut turn = Turn::default();
        let mut third = Box::pin(status(&broker, &caller, &request, &mut turn));
        assert!(poll(first.as_mut()).is_pending());
        for _ in 0..10 * count {
            let waits = poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending();
            assert!(waits, "one at a time for a user");
        }
        let one = first.await;
        let told: ListResult = result(&one);
        let names: Vec<String> = told.listeners.iter().map(|told| told.name.clone()).collect();
        assert_eq!(names, (0..count).map(name).collect::<Vec<_>>());
        assert!(told.listeners.iter().all(|told| told.holders.len() == 1 && told.queue == Some(0)));
        assert_eq!(second.await.expect("the same"), one.expect("a reply"));
        let status: StatusResult = result(&third.await);
        assert_eq!((status.broker.listeners, status.listeners.len()), (count, count));
    }
}
