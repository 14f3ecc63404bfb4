//! `bind`: hands out listeners, and opens those that nobody has yet.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;
use bindonce_core::listener::{ListenSpec, Listener, Options, Wanted};
use bindonce_core::policy::Verb;
use bindonce_core::registry::{MAX_CLAIM, Refusal, State, Want, Wants};
use bindonce_daemon::rpc::{Caller, Reply, unwritten};
use bindonce_wire::call::Decoding;
use bindonce_wire::message::{BindReply, Request};
use bindonce_wire::params::{Bind, Target};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::task::yield_now;

use super::home::Home;
use super::text::{READ_AT_ONCE, invalid};
use crate::answer;
use crate::broker::Broker;
use crate::claims;
use crate::large::Turn;
use crate::listeners::{self, TakenName};

/// Listeners of a reply that are written in one turn, at about a microsecond each.
const ANSWERED_AT_ONCE: usize = 256;

/// Hands out listeners, all or none, with their descriptors. Returns None for a large claim whose
/// turn has not come: many requests may wait for theirs, and nothing built from them is kept until
/// then.
pub(super) async fn bind(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    decoding: Decoding<'_>,
    turn: &mut Turn,
) -> Result<Option<Reply>, RpcError> {
    let wants = read(broker, caller, decoding).await?;
    if wants.count() > ANSWERED_AT_ONCE
        && !turn.has_come(&broker.borrow().answering.large, caller.peer.uid)
    {
        drop(wants);
        broker.borrow().listeners.guard.unsettled.notify_one();
        return Ok(None);
    }
    claim(broker, caller, request, wants).await.map(Some)
}

/// Reads the wanted listeners, and checks that the caller may have them as things are. Reads some
/// elements per turn, and keeps none once it is understood.
async fn read(
    broker: &RefCell<Broker>,
    caller: &Caller,
    mut decoding: Decoding<'_>,
) -> Result<Wants, RpcError> {
    let mut wants = Wants::new(&broker.borrow().answering.spent);
    let mut home = None;
    loop {
        let more = decoding.read(READ_AT_ONCE)?;
        let elements = decoding.take_bind();
        for Bind { target, tentative, change } in elements {
            let mut wanted = wanted(broker, target, change).map_err(|mut error| {
                error.message = format!("params[{}]: {}", wants.len(), error.message);
                error
            })?;
            if let Wanted::Listen(spec) = &mut wanted {
                let home = match &home {
                    Some(home) => home,
                    None => home.insert(Home::of(broker, caller).await?),
                };
                home.place(Arc::make_mut(&mut spec.first))?;
            }
            let mut want = Want { wanted, tentative, change, held: true };
            {
                let broker = broker.borrow();
                if let Wanted::Listen(spec) = &want.wanted {
                    want.held = broker.access.may_claim(caller, spec, change)?;
                    allow_name(&broker, caller, spec)?;
                } else {
                    allow(&broker, caller, &want)?;
                }
            }
            wants.push(want);
            let count = wants.count();
            if count > MAX_CLAIM {
                return Err(answer::refused(&Refusal::TooMany { count, limit: MAX_CLAIM }));
            }
        }
        if !more {
            return Ok(wants);
        }
        yield_now().await;
    }
}

/// Claims the allowed listeners and builds the reply.
async fn claim(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    wants: Wants,
) -> Result<Reply, RpcError> {
    let taken = take_back_names(&mut broker.borrow_mut(), caller, &wants);
    let allow = |broker: &Broker, want: &Want| allow(broker, caller, want);
    let claimed = claims::claim_unsettled(broker, caller.connection, wants, allow).await;
    let leases = match claimed {
        Ok(leases) => {
            taken.iter().for_each(|name| broker.borrow().listeners.tell_taken(name));
            leases
        }
        Err(failure) => {
            taken.into_iter().for_each(|name| broker.borrow_mut().listeners.give_back(name));
            // Other tasks run during the inquiry.
            claims::settle(broker).await;
            let inquiry = Rc::clone(&broker.borrow().inquiry);
            return Err(answer::claim_failed(&inquiry, failure).await);
        }
    };
    let ledger = Rc::clone(&broker.borrow().persistence.ledger);
    if ledger.store().is_some() && leases.iter().any(|lease| lease.created) {
        claims::settle(broker).await;
        ledger.settled().await;
    }
    let mut descriptors = Vec::with_capacity(leases.len());
    let reply = BindReply::new(&request.id, leases.len());
    let mut reply = reply.map_err(|error| unwritten(&error))?;
    for some in leases.chunks(ANSWERED_AT_ONCE) {
        if leases.len() > ANSWERED_AT_ONCE {
            yield_now().await;
        }
        let registry = &broker.borrow().listeners.registry;
        let label = registry.caller(caller.connection).and_then(|(_, label)| label);
        let drains = label.is_some_and(|label| label.state == State::Draining);
        for lease in some {
            let Some(held) = registry.held(lease.listener) else { continue };
            let fd = &held.opened.handle.fd;
            // A handover may have left the listener hidden: its supervisor died, or its generation
            // is ready but may not show the listener itself. A generation that drains does not
            // accept from it.
            let asks = lease.first || held.opened.handle.hidden.get();
            if asks && !lease.created && !drains {
                listeners::show(held);
            }
            descriptors.push(Rc::clone(fd));
            let told = answer::push(&mut reply, held, lease.created);
            told.map_err(|error| unwritten(&error))?;
        }
    }
    Ok(Reply { text: reply.finish(), descriptors })
}

/// Whether the caller may have these listeners under these names. A listener that has the name
/// already keeps it.
fn allow(broker: &Broker, caller: &Caller, want: &Want) -> Result<(), RpcError> {
    let Broker { access, listeners, .. } = broker;
    let registry = &listeners.registry;
    match &want.wanted {
        Wanted::Named(name) => {
            let held = registry.by_name(name);
            let spec = held.map(|held| ListenSpec::from(held.listener.clone()));
            access.allow(caller, Verb::Use, spec.as_ref())
        }
        Wanted::Listen(spec) => {
            let verb = if want.held { Verb::Use } else { Verb::Bind };
            access.allow(caller, verb, Some(spec))?;
            allow_name(broker, caller, spec)
        }
    }
}

/// Root and the broker's user get back every name that they ask for.
fn take_back_names(broker: &mut Broker, caller: &Caller, wants: &Wants) -> Vec<TakenName> {
    let mut taken = Vec::new();
    if !broker.access.owns_names(caller) {
        return taken;
    }
    for want in wants.iter() {
        let Wanted::Listen(spec) = &want.wanted else { continue };
        if spec.first.name.is_some() {
            let all = spec.expand_from(0);
            taken.extend(all.filter_map(|it| broker.listeners.take_back(&it)));
        }
    }
    taken
}

/// Whether the caller may give a listener the name in its request.
pub(super) fn allow_name(
    broker: &Broker,
    caller: &Caller,
    spec: &ListenSpec,
) -> Result<(), RpcError> {
    let Some(name) = &spec.first.name else { return Ok(()) };
    if broker.access.may_name(caller, name) {
        return Ok(());
    }
    let held = broker.listeners.registry.by_key(&spec.first);
    if held.is_some_and(|held| held.listener.name.as_ref() == Some(name)) {
        return Ok(());
    }
    broker.access.allow_name(caller, name)
}

/// Parses an element of `bind`.
fn wanted(broker: &RefCell<Broker>, target: Target, change: bool) -> Result<Wanted, RpcError> {
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
            // multibinder's clients always give a backlog, and multibinder heeds it when it binds.
            if !change && broker.borrow().listeners.registry.by_key(&listener).is_some() {
                listener.options.backlog = None;
            }
            Ok(Wanted::Listen(listener.into()))
        }
    }
}

/// Parses the address that multibinder's client names. Host names are not looked up: that takes as
/// long as a name server likes, and its answer would decide what is bound.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::LazyLock;
    use std::task::{Context, Waker};

    use bindonce_core::policy::{Peer, Rule, Who};
    use bindonce_daemon::{Journal, rpc};
    use bindonce_wire::framing::Text;

    use super::super::release;
    use super::bind as bind_in_turn;
    use super::*;
    use crate::config::Limits;
    use crate::handler::Handler;
    use crate::listeners::watch::Guard;
    use crate::persistence::file::{self, StateFile};
    use crate::{generations, guard, parting};

    /// A broker that runs as root.
    fn broker(rules: Vec<Rule>, limits: Limits) -> Broker {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 4096, guard, Journal::in_memory(None));
        broker.configure(rules, limits);
        broker
    }

    fn caller(broker: &mut Broker, uid: u32) -> Caller {
        let peer = Peer { pid: uid, uid, gid: uid };
        Caller { connection: broker.connect(peer), peer, groups: [].into(), network: None }
    }

    fn rule(uid: u32, allow: Verb, addresses: &[&str], names: &[&str]) -> Rule {
        Rule {
            who: Who { uid: Some(uid), gid: None },
            allow: vec![allow],
            addresses: addresses.iter().map(|text| text.parse().expect("a pattern")).collect(),
            names: names.iter().map(|text| text.parse().expect("names")).collect(),
            services: Vec::new(),
        }
    }

    fn ask(target: Target) -> Bind {
        Bind { target, tentative: false, change: false }
    }

    /// More listeners than are opened in one turn, with names that only this process uses. The
    /// first has a name.
    fn hundred(scene: &str, first: &str) -> Vec<Bind> {
        many(100, scene, first)
    }

    fn many(count: usize, scene: &str, first: &str) -> Vec<Bind> {
        let id = std::process::id();
        let names = (0..count).map(|number| format!("abns@bindonce-{scene}-{id}-{number}"));
        let listen = |(at, name)| if at == 0 { format!("{first}{name}") } else { name };
        names.enumerate().map(listen).map(|listen| ask(Target::Listen { listen })).collect()
    }

    async fn bind(
        broker: &RefCell<Broker>,
        caller: &Caller,
        request: &Request<'_>,
        elements: Vec<Bind>,
    ) -> Result<Reply, RpcError> {
        let mut turn = Turn::default();
        let large = Rc::clone(&broker.borrow().answering.large);
        let elements = serde_json::to_string(&elements).expect("JSON");
        let text = format!(r#"{{"method":"bind","params":{elements}}}"#);
        let text = text.into();
        let asked = Request::decode(&text).expect("a request");
        loop {
            let decoding = Decoding::new(&asked)?;
            match bind_in_turn(broker, caller, request, decoding, &mut turn).await? {
                Some(reply) => return Ok(reply),
                None => turn.come(&large, caller.peer.uid).await,
            }
        }
    }

    static REQUEST: LazyLock<Text> =
        LazyLock::new(|| r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":[]}"#.into());

    #[tokio::test(flavor = "current_thread")]
    async fn the_leases_of_a_user_have_a_limit() {
        let limits = Limits { leases_per_user: 150, ..Limits::default() };
        let rules = vec![rule(7, Verb::Bind, &[], &[]), rule(0, Verb::Bind, &[], &[])];
        let mut broker = broker(rules, limits);
        let [one, other, root] = [7, 7, 0].map(|uid| caller(&mut broker, uid));
        let broker = RefCell::new(broker);
        let request = Request::decode(&REQUEST).expect("a request");
        let claim = |caller| {
            let (broker, request) = (&broker, &request);
            async move { bind(broker, caller, request, hundred("leases", "")).await }
        };
        assert_eq!(claim(&one).await.expect("bound").descriptors.len(), 100);
        let refused = claim(&other).await.expect_err("too many");
        assert!(refused.message.contains("`leases_per_user`"), "{}", refused.message);
        assert_eq!(refused.code, ErrorCode::LIMIT);
        // Existing leases count once, and other users have leases of their own.
        assert!(claim(&one).await.is_ok());
        assert!(claim(&root).await.is_ok());
        generations::disconnect(&mut broker.borrow_mut(), one.connection);
        assert!(claim(&other).await.is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_claim_that_has_waited_is_judged_by_what_is_held_then() {
        let rules =
            vec![rule(7, Verb::Bind, &[], &["secret"]), rule(8, Verb::Use, &["/run/8/*"], &[])];
        let mut broker = broker(rules, Limits::default());
        let [binds, uses] = [7, 8].map(|uid| caller(&mut broker, uid));
        let broker = RefCell::new(broker);
        let request = Request::decode(&REQUEST).expect("a request");
        let named = vec![ask(Target::Name { name: "secret".to_owned() })];
        let (bound, used) = tokio::join!(
            bind(&broker, &binds, &request, hundred("judged", "secret=")),
            bind(&broker, &uses, &request, named)
        );
        assert_eq!(bound.expect("bound").descriptors.len(), 100);
        assert_eq!(used.expect_err("denied").code, ErrorCode::DENIED);
        // Nothing of the claim waits any more.
        assert!(broker.borrow().listeners.registry.waiting(uses.connection).is_none());
        assert!(!broker.borrow().listeners.registry.is_used(uses.connection));
    }

    /// A listener that was left out would not be repaired.
    #[tokio::test(flavor = "current_thread")]
    async fn all_that_a_reply_leaves_is_watched_in_the_turns_behind_it() {
        bindonce_sys::limits::raise_nofile().expect("descriptors");
        let request = Request::decode(&REQUEST).expect("a request");
        let mut broker = broker(vec![rule(0, Verb::Bind, &[], &[])], Limits::default());
        let caller = caller(&mut broker, 0);
        let broker = Rc::new(RefCell::new(broker));
        let count = 1024;
        let bound = bind(&broker, &caller, &request, many(count, "watched", "")).await;
        assert_eq!(bound.expect("bound").descriptors.len(), count);
        rpc::Handler::replied(&Handler(Rc::clone(&broker)));
        let turns = async {
            for _ in 0..8 {
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = guard::settle_rest(&broker) => {}
            () = turns => {}
        }
        assert!(!broker.borrow_mut().settle(), "some are not watched");
    }

    /// Changes made meanwhile are in the records, too.
    #[tokio::test(flavor = "current_thread")]
    async fn records_are_written_anew_in_many_turns() {
        bindonce_sys::limits::raise_nofile().expect("descriptors");
        let directory = std::env::temp_dir().join(format!("bindonce-anew-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let socket = directory.join("bindonce.sock");
        let rules = vec![rule(0, Verb::Bind, &[], &[]), rule(0, Verb::Release, &[], &[])];
        let mut broker = broker(rules, Limits::default());
        broker.persistence.ledger.keep_in_file(StateFile::new(&socket));
        broker.rewrite();
        let caller = caller(&mut broker, 0);
        let broker = RefCell::new(broker);
        let request = Request::decode(&REQUEST).expect("a request");
        let bound = bind(&broker, &caller, &request, many(1024, "anew", "first=")).await;
        assert_eq!(bound.expect("bound").descriptors.len(), 1024);
        while broker.borrow_mut().settle() {}
        let written = || {
            let listeners = file::left(&socket).listeners;
            listeners.into_iter().map(|entry| entry.listen).collect::<BTreeSet<_>>()
        };
        let mut held = written();
        assert_eq!(held.len(), 1024);
        broker.borrow().persistence.ledger.begin();
        // The first listener is already in the new records.
        assert!(broker.borrow_mut().settle());
        let text = r#"{"method":"release","params":["first"]}"#.into();
        let named = Request::decode(&text).expect("a request");
        let released = release::release(&broker, &caller, &named).await;
        assert_eq!(released, Ok(vec!["first".to_owned()]));
        held.retain(|listen| !listen.starts_with("first="));
        let later = bind(&broker, &caller, &request, many(1, "later", "later=")).await;
        assert!(later.is_ok());
        held.extend(written().into_iter().filter(|listen| listen.starts_with("later=")));
        assert_eq!((held.len(), written()), (1024, held.clone()));
        let mut turns = 1;
        while broker.borrow_mut().settle() {
            turns += 1;
        }
        assert!(turns >= 4, "{turns}");
        assert_eq!(written(), held);
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    /// A decoded request takes far more memory than its text.
    #[tokio::test(flavor = "current_thread")]
    async fn one_large_claim_of_a_user_is_answered_at_a_time() {
        let rules = vec![rule(7, Verb::Bind, &[], &[]), rule(8, Verb::Bind, &[], &[])];
        bindonce_sys::limits::raise_nofile().expect("descriptors");
        let mut broker = broker(rules, Limits::default());
        let [one, same, other] = [7, 7, 8].map(|uid| caller(&mut broker, uid));
        let broker = RefCell::new(broker);
        let request = Request::decode(&REQUEST).expect("a request");
        let large = |caller, scene| Box::pin(bind(&broker, caller, &request, many(300, scene, "")));
        let mut first = large(&one, "first");
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..4 {
            assert!(first.as_mut().poll(&mut context).is_pending());
        }
        let mut second = large(&same, "second");
        for _ in 0..100 {
            assert!(second.as_mut().poll(&mut context).is_pending());
        }
        assert!(large(&other, "other").await.is_ok());
        assert!(first.await.is_ok() && second.await.is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_may_only_use_creates_nothing_and_ranges_without_end_cost_nothing() {
        let rules = vec![rule(7, Verb::Bind, &[], &[]), rule(8, Verb::Use, &[], &[])];
        bindonce_sys::limits::raise_nofile().expect("descriptors");
        let limits = Limits { leases_per_user: 1100, ..Limits::default() };
        let mut broker = broker(rules, limits);
        let [binds, uses] = [7, 8].map(|uid| caller(&mut broker, uid));
        let broker = RefCell::new(broker);
        let request = Request::decode(&REQUEST).expect("a request");
        let count = 1024;
        let all = || many(count, "used", "");
        assert!(bind(&broker, &binds, &request, all()).await.is_ok());
        // Some elements in each turn; and again, where existing leases have to be looked up.
        for _ in 0..2 {
            let mut used = Box::pin(bind(&broker, &uses, &request, all()));
            let mut context = Context::from_waker(Waker::noop());
            let mut turns = 1;
            while used.as_mut().poll(&mut context).is_pending() {
                turns += 1;
            }
            assert!(turns > 2 * count / READ_AT_ONCE, "{turns} turns");
        }
        // The leases end in turns as well.
        let mut ends = Box::pin(parting::disconnect_in_turns(&broker, uses.connection));
        let mut context = Context::from_waker(Waker::noop());
        assert!(ends.as_mut().poll(&mut context).is_pending());
        ends.await;
        let uses = caller(&mut broker.borrow_mut(), 8);
        let more = all().into_iter().chain(many(1, "not-held", "")).collect();
        let denied = bind(&broker, &uses, &request, more).await.expect_err("denied");
        assert_eq!(denied.code, ErrorCode::DENIED);
        assert!(denied.message.contains("may not bind abns@bindonce-not-held"), "{denied}");
        let range = || ask(Target::Listen { listen: "127.0.0.1:1-60000".to_owned() });
        for caller in [&binds, &uses] {
            let ranges = std::iter::repeat_with(range).take(1000).collect();
            let refused = bind(&broker, caller, &request, ranges).await.expect_err("too many");
            assert!(refused.message.contains("150000"), "{refused}");
        }
    }
}
