//! Requests: each is decoded, its rights are checked, and it is performed. One file per method.

mod bind;
mod home;
mod join;
pub(crate) mod list;
mod release;
mod store;
mod text;

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::policy::Verb;
use bindonce_daemon::rpc::{self, Caller, Link, Reply, encode};
use bindonce_fd::MAX_FDS;
use bindonce_wire::call::{Call, Decoding};
use bindonce_wire::message::Request;
use bindonce_wire::result::{PingResult, ReleaseResult};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::task::yield_now;

use text::READ_AT_ONCE;

use crate::broker::{Broker, VERSION};
use crate::large::Turn;
use crate::upgrade;

/// A request of this many bytes waits for its turn among the large ones of its user before its
/// elements are read, because once read it takes ten times as much memory. If no rule knows the
/// caller, it is not read at all.
const LARGE: usize = 16 * 1024;

/// Answers one request, and counts it.
pub(crate) async fn answer(
    broker: &RefCell<Broker>,
    link: &Rc<Link>,
    request: &Request<'_>,
) -> Result<Reply, RpcError> {
    let mut turn = Turn::default();
    let done = loop {
        match perform(broker, link, request, &mut turn).await {
            Ok(Some(reply)) => break Ok(reply),
            Ok(None) => {
                let large = Rc::clone(&broker.borrow().answering.large);
                turn.come(&large, link.caller.peer.uid).await;
            }
            Err(error) => break Err(error),
        }
    };
    let failure = done.as_ref().err().map(|error| error.code);
    broker.borrow_mut().answering.count(&request.method, failure);
    done
}

/// Answers a request. Returns None if it must wait for its turn among the large ones, and then be
/// performed again.
async fn perform(
    broker: &RefCell<Broker>,
    link: &Rc<Link>,
    request: &Request<'_>,
    turn: &mut Turn,
) -> Result<Option<Reply>, RpcError> {
    let caller = &link.caller;
    let decoding = begin(broker, caller, request, turn).await?;
    // Most calls are boxed: many connections may wait for an answer, and each would have room for
    // the largest.
    if request.method == "bind" {
        recovered(broker).await;
        return bind::bind(broker, caller, request, decoding, turn).await;
    }
    if request.method == "release" {
        drop(decoding);
        recovered(broker).await;
        let released = Box::pin(release::release(broker, caller, request)).await?;
        return encode(request, &ReleaseResult { released }).map(|text| Some(text.into()));
    }
    let text = match Box::pin(read(decoding)).await? {
        Call::Join(joining) => {
            encode(request, &Box::pin(join::join(broker, caller, joining)).await?)
        }
        Call::List => Box::pin(list::list(broker, caller, request, turn)).await,
        Call::Status => Box::pin(list::status(broker, caller, request, turn)).await,
        Call::Events(wanted) => {
            broker.borrow().access.allow_all(caller, Verb::List)?;
            let journal = Rc::clone(&broker.borrow().reporter.journal);
            rpc::events(&journal, link, request, wanted)
        }
        Call::Ping => {
            broker.borrow().access.known(caller)?;
            encode(request, &PingResult::new(VERSION))
        }
        Call::Store(gives) => encode(request, &Box::pin(store::store(broker, link, gives)).await?),
        Call::Upgrade => {
            broker.borrow().access.allow(caller, Verb::Admin, None)?;
            Err(Box::pin(upgrade::request(broker, link, &request.id)).await)
        }
        _ => {
            let message = format!("method {:?} is not served by this broker", request.method);
            Err(RpcError::new(ErrorCode::METHOD_NOT_FOUND, message))
        }
    };
    text.map(|text| Some(Reply::from(text)))
}

/// Begins to read a request; a large one waits for its turn first.
async fn begin<'a>(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &'a Request<'a>,
    turn: &mut Turn,
) -> Result<Decoding<'a>, RpcError> {
    if request.len() >= LARGE {
        broker.borrow().access.known(caller)?;
        let answers = Rc::clone(&broker.borrow().answering.large);
        turn.come(&answers, caller.peer.uid).await;
    }
    Decoding::new(request)
}

/// Reads a request, a large one in turns.
async fn read(mut decoding: Decoding<'_>) -> Result<Call, RpcError> {
    while decoding.read(READ_AT_ONCE)? {
        if decoding.count() > MAX_FDS {
            return Err(store::too_many());
        }
        yield_now().await;
    }
    Ok(decoding.finish())
}

/// Waits until the broker has recovered what it can from its predecessor.
async fn recovered(broker: &RefCell<Broker>) {
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    gate.pass().await;
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use bindonce_core::policy::{Peer, Rule, Who};
    use bindonce_daemon::Journal;

    use super::*;
    use crate::config::Limits;
    use crate::listeners::watch::Guard;

    /// A broker with a rule for user 7, a client of that user, and one of another user.
    fn broker() -> (RefCell<Broker>, [Caller; 2]) {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 4096, guard, Journal::in_memory(None));
        let who = Who { uid: Some(7), gid: None };
        let allow = vec![Verb::Bind, Verb::Use, Verb::Release];
        let (addresses, services) = Default::default();
        let names = vec!["web".parse().expect("names")];
        let rule = Rule { who, allow, addresses, names, services };
        broker.configure(vec![rule], Limits::default());
        let callers = [7, 8].map(|uid| {
            let peer = Peer { pid: uid, uid, gid: uid };
            Caller { connection: broker.connect(peer), peer, groups: [].into(), network: None }
        });
        (RefCell::new(broker), callers)
    }

    /// Otherwise one client could make all others wait while a mebibyte is read, and fill the
    /// memory with the result.
    #[tokio::test(flavor = "current_thread")]
    async fn the_names_of_a_release_are_read_in_turns_and_not_kept() {
        let (broker, [known, _]) = broker();
        let listen = format!("web=abns@bindonce-release-{}", std::process::id());
        let text = format!(r#"{{"method":"bind","params":[{{"listen":"{listen}"}}]}}"#).into();
        let request = Request::decode(&text).expect("a request");
        let decoding = Decoding::new(&request).expect("a call");
        let bound = bind::bind(&broker, &known, &request, decoding, &mut Turn::default()).await;
        assert!(bound.is_ok_and(|reply| reply.is_some()));
        let count = 20 * READ_AT_ONCE;
        let release = |names: &str| format!(r#"{{"method":"release","params":[{names}]}}"#);
        let web = vec![r#""web""#; count].join(",");
        let text = release(&format!(r#"{web},"other""#)).into();
        let request = Request::decode(&text).expect("a request");
        let refused = release::release(&broker, &known, &request).await;
        assert_eq!(refused.expect_err("one is not held").code, ErrorCode::NOT_FOUND);
        let text = release(&web).into();
        let request = Request::decode(&text).expect("a request");
        let mut releasing = Box::pin(release::release(&broker, &known, &request));
        let mut context = Context::from_waker(Waker::noop());
        let mut turns = 1;
        let released = loop {
            match releasing.as_mut().poll(&mut context) {
                Poll::Pending => turns += 1,
                Poll::Ready(released) => break released,
            }
        };
        assert_eq!((turns, released), (20, Ok(vec!["web".to_owned()])));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_large_request_is_read_only_for_a_caller_with_rights() {
        let (broker, [known, unknown]) = broker();
        // Without rights, not even an element of the wrong kind is noticed.
        let text = format!(r#"{{"method":"join","params":["{}"]}}"#, "x".repeat(LARGE)).into();
        let request = Request::decode(&text).expect("a request");
        let wrong = begin(&broker, &known, &request, &mut Turn::default()).await;
        assert_eq!(wrong.expect_err("no generation").code, ErrorCode::INVALID_PARAMS);
        let denied = begin(&broker, &unknown, &request, &mut Turn::default()).await;
        assert_eq!(denied.expect_err("no right").code, ErrorCode::DENIED);
    }

    /// Decoded elements take ten times as much memory.
    #[tokio::test(flavor = "current_thread")]
    async fn a_store_of_more_than_can_come_is_refused_where_that_is_known() {
        let elements = vec![r#"{"listen":"127.0.0.1:80"}"#; 10_000].join(",");
        let text = format!(r#"{{"method":"store","params":[{elements},{{}}]}}"#).into();
        let request = Request::decode(&text).expect("a request");
        let refused = read(Decoding::new(&request).expect("a call")).await.expect_err("too many");
        assert!(refused.message.ends_with("more than 253 listeners"), "{refused}");
    }
}
