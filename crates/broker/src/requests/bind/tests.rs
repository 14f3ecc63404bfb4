use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::task::{Context, Waker};

use bindonce_core::policy::{Peer, Rule, Who};
use bindonce_daemon::{Journal, rpc};
use bindonce_wire::framing::Text;

use super::super::{join, release};
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
    let rules = vec![rule(7, Verb::Bind, &[], &["secret"]), rule(8, Verb::Use, &["/run/8/*"], &[])];
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

/// Ports of a loopback address that only this process uses.
fn ports(ports: &str) -> String {
    let id = std::process::id();
    format!("127.{}.{}.{}:{ports}", 64 + ((id >> 16) & 63), (id >> 8) & 255, id & 255)
}

const MANY: &str = "21000-21299";

/// A broker, and two callers: root, and one who may do this only to the listener "own", which root
/// has bound, and to many ports.
async fn with_own(verb: Verb, scene: &str) -> (RefCell<Broker>, [Caller; 2]) {
    let place = format!("abns@bindonce-{scene}-{}", std::process::id());
    let rules = vec![rule(0, Verb::Bind, &[], &[]), rule(8, verb, &[&place, &ports(MANY)], &[])];
    let mut broker = broker(rules, Limits::default());
    let [root, other] = [0, 8].map(|uid| caller(&mut broker, uid));
    let broker = RefCell::new(broker);
    listen(&broker, &root, &format!("own={place}")).await.expect("bound");
    (broker, [root, other])
}

async fn listen(
    broker: &RefCell<Broker>,
    caller: &Caller,
    listen: &str,
) -> Result<Reply, RpcError> {
    let request = Request::decode(&REQUEST).expect("a request");
    bind(broker, caller, &request, vec![ask(Target::Listen { listen: listen.to_owned() })]).await
}

/// A large request is read, and its names are looked up, in many turns. A name that stands for
/// nothing in one turn may stand for any listener in a later one.
#[tokio::test(flavor = "current_thread")]
async fn a_name_that_is_bound_while_a_claim_is_planned_is_judged_by_what_it_stands_for() {
    let request = Request::decode(&REQUEST).expect("a request");
    let named = |name: &str| ask(Target::Name { name: name.to_owned() });
    for (scene, is_read) in [("read", false), ("planned", true)] {
        let (broker, [root, uses]) = with_own(Verb::Use, scene).await;
        let mut names: Vec<_> = std::iter::repeat_n("own", 300).map(named).collect();
        names.insert(if is_read { 300 } else { 0 }, named("edge"));
        let mut half = Box::pin(bind(&broker, &uses, &request, names));
        let planned = || broker.borrow().listeners.registry.leases_of(8);
        let mut context = Context::from_waker(Waker::noop());
        let mut turns = 0;
        while turns == 0 || (is_read && planned() == 0) {
            assert!(half.as_mut().poll(&mut context).is_pending() && turns < 100, "{turns} turns");
            turns += 1;
        }
        assert!(planned() < 300, "only half of it");
        let edge = format!("edge=abns@bindonce-{scene}-edge-{}", std::process::id());
        listen(&broker, &root, &edge).await.expect("bound");
        assert_eq!(half.await.expect_err("denied").code, ErrorCode::DENIED);
        assert_eq!(planned(), 0, "nothing of it is left");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_is_bound_while_a_release_is_decided_is_judged_by_what_it_stands_for() {
    bindonce_sys::limits::raise_nofile().expect("descriptors");
    let (broker, [root, releases]) = with_own(Verb::Release, "released").await;
    let range = ports(MANY);
    listen(&broker, &root, &range).await.expect("bound");
    let text = format!(r#"{{"method":"release","params":["{range}","edge"]}}"#).into();
    let named = Request::decode(&text).expect("a request");
    let mut half = Box::pin(release::release(&broker, &releases, &named));
    generations::disconnect(&mut broker.borrow_mut(), root.connection);
    let mut context = Context::from_waker(Waker::noop());
    assert!(half.as_mut().poll(&mut context).is_pending());
    let root = caller(&mut broker.borrow_mut(), 0);
    let edge = format!("edge=abns@bindonce-left-{}", std::process::id());
    listen(&broker, &root, &edge).await.expect("bound");
    assert_eq!(half.await.expect_err("denied").code, ErrorCode::DENIED);
    assert_eq!(broker.borrow().listeners.registry.len(), 302);
}

#[tokio::test(flavor = "current_thread")]
async fn a_rule_gives_the_names_of_a_range_one_by_one() {
    let rules = vec![
        rule(6, Verb::Bind, &[], &["web", "web-21300"]),
        rule(7, Verb::Bind, &[], &["web-*"]),
        rule(8, Verb::Use, &[], &[]),
    ];
    let mut broker = broker(rules, Limits::default());
    let [some, all, uses] = [6, 7, 8].map(|uid| caller(&mut broker, uid));
    let broker = RefCell::new(broker);
    let place = ports("21300-21302");
    let range = format!("web={place}");
    for range in [&format!("web={}", ports("21301-21302")), &range] {
        let denied = listen(&broker, &some, range).await.expect_err("denied");
        assert_eq!(denied.code, ErrorCode::DENIED);
        assert!(denied.message.contains("name a listener web-21301:"), "{denied}");
    }
    let first = format!("web-21300={}", ports("21300"));
    assert!(listen(&broker, &some, &first).await.is_ok());
    assert_eq!(listen(&broker, &all, &range).await.expect("bound").descriptors.len(), 3);
    // A name that a listener has already needs no rule.
    assert_eq!(listen(&broker, &uses, &range).await.expect("held").descriptors.len(), 3);
    let denied = listen(&broker, &uses, &format!("edge={place}")).await.expect_err("denied");
    assert!(denied.message.contains("edge-21300"), "{denied}");
}

/// A client of no service may share a listener with one; it cannot become another one then.
#[tokio::test(flavor = "current_thread")]
async fn nobody_joins_a_service_with_a_listener_that_another_service_uses() {
    let mut broker = broker(Vec::new(), Limits::default());
    let [web, shares] = [0, 0].map(|uid| caller(&mut broker, uid));
    let broker = RefCell::new(broker);
    let joining = |service: &str| {
        let text = format!(r#"{{"service":"{service}","generation":1,"state":"serving"}}"#);
        serde_json::from_str(&text).expect("a generation")
    };
    join::join(&broker, &web, joining("web")).await.expect("joined");
    let place = format!("abns@bindonce-joined-{}", std::process::id());
    for caller in [&web, &shares] {
        listen(&broker, caller, &place).await.expect("bound");
    }
    let refused = join::join(&broker, &shares, joining("edge")).await.expect_err("refused");
    assert_eq!(refused.code, ErrorCode::OVERLAP);
    let label = |caller: &Caller| {
        let broker = broker.borrow();
        let found = broker.listeners.registry.caller(caller.connection);
        found.and_then(|(_, label)| label.map(|label| label.service.to_string()))
    };
    assert_eq!((label(&web), label(&shares)), (Some("web".to_owned()), None));
    assert!(join::join(&broker, &shares, joining("web")).await.is_ok());
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
        let listeners = file::left(&socket).expect("the state").listeners;
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
