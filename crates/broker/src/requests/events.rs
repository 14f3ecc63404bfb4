//! `events`: what has happened.

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::policy::Verb;
use bindonce_daemon::Follower;
use bindonce_wire::RpcError;
use bindonce_wire::message::Request;
use bindonce_wire::params::Events;

use super::text::encode;
use crate::broker::Broker;
use crate::clients::Link;

/// What has happened; from the reply on the connection may be a follower's.
pub(super) fn events(
    broker: &RefCell<Broker>,
    link: &Link,
    request: &Request<'_>,
    wanted: Events,
) -> Result<Vec<u8>, RpcError> {
    broker.borrow().access.allow_all(&link.caller, Verb::List)?;
    let journal = Rc::clone(&broker.borrow().reporter.journal);
    let answer = journal.answer(wanted.since, wanted.follow);
    let text = encode(request, &answer)?;
    if wanted.follow {
        let follower = Follower::new(&journal).ok_or_else(Follower::refused)?;
        link.follow(follower, answer.last);
    }
    Ok(text)
}
