//! Claims: sockets are opened or changed as the registry decides, all of a claim or none, and many in many turns.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::registry::{
    ConnectionId, Event, Lease, Neighbour, Opened, Overlap, Refusal, Want,
};
use bindonce_sys::listen;
use bindonce_wire::RpcError;
use tokio::task::yield_now;

use crate::broker::Broker;
use crate::listeners::{self, Denied, Next, Socket, Unfinished, unlink};

/// So many listeners are opened in one turn: some 10 us each.
const OPENED_AT_ONCE: usize = 32;

/// So many wanted listeners are looked at in one turn: about a microsecond each.
const LOOKED_AT_ONCE: usize = 256;

/// Sockets that are opened for a claim, until it has them all.
struct Opening {
    sockets: Vec<Opened<Socket>>,
    unfinished: Rc<Unfinished>,
}

impl Opening {
    fn push(&mut self, socket: Opened<Socket>) {
        self.unfinished.add(socket.handle.path.as_ref());
        self.sockets.push(socket);
    }

    fn take(mut self) -> Vec<Opened<Socket>> {
        let sockets = std::mem::take(&mut self.sockets);
        sockets.iter().for_each(|opened| self.unfinished.remove(opened.handle.path.as_ref()));
        sockets
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        for opened in &self.sockets {
            self.unfinished.remove(opened.handle.path.as_ref());
            unlink(opened.handle.path.as_ref());
        }
    }
}

/// Finds or opens listeners, all or none, for a client that may have them whatever is held.
pub(crate) async fn claim(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    wants: Vec<Want>,
) -> Result<Vec<Lease>, Denied> {
    let outcome = claim_unsettled(broker, id, wants, |_, _| Ok(())).await;
    settle(broker).await;
    outcome
}

/// What follows a claim, in as many turns as it needs.
pub(crate) async fn settle(broker: &RefCell<Broker>) {
    while broker.borrow_mut().settle() {
        yield_now().await;
    }
}

/// Finds or opens listeners, all or none; many in many turns. [`Broker::settle`] must follow. A claim that has waited for another is judged again by `allow`: other
/// listeners are held then.
pub(crate) async fn claim_unsettled(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    wants: Vec<Want>,
    allow: impl Fn(&Broker, &Want) -> Result<(), RpcError>,
) -> Result<Vec<Lease>, Denied> {
    let most = look(broker, id, &wants).await;
    let most = most.map_err(|denied| broker.borrow().listeners.denied(id, denied))?;
    let decided = Rc::clone(&broker.borrow().listeners.decided);
    let mut failure = None;
    let mut event = Event::Claim(id, wants);
    loop {
        let next = broker.borrow_mut().listeners.claim(id, event, most);
        event = match next {
            Next::More => {
                yield_now().await;
                Event::More(id)
            }
            Next::Wait => {
                while !broker.borrow_mut().listeners.retried.remove(&id) {
                    decided.notified().await;
                }
                if let Err(denial) = judge_again(broker, id, &allow).await {
                    // It waits no more.
                    let end = Event::OpenFailed(id, Vec::new());
                    let _ = broker.borrow_mut().listeners.claim(id, end, most);
                    return Err(Denied::NotAllowed(denial));
                }
                Event::Retry(id)
            }
            Next::Open(listeners, overlaps) => match open(broker, id, listeners, &overlaps).await {
                Ok(opened) => Event::Opened(id, opened),
                Err((opened, denied)) => {
                    failure = Some(denied);
                    Event::OpenFailed(id, opened)
                }
            },
            Next::Change(changes) => match broker.borrow().listeners.change(&changes) {
                Ok(backlogs) => Event::Changed(id, backlogs),
                Err(denied) => {
                    failure = Some(denied);
                    Event::ChangeFailed(id)
                }
            },
            Next::Granted(leases) => {
                broker.borrow_mut().claimed(&leases);
                return Ok(leases);
            }
            Next::Denied(Some(Denied::Refused(Refusal::NotHeld(asked)))) => {
                let wanted = Wanted::Listen((*asked).clone().into());
                let created = Want { wanted, tentative: false, change: false, held: false };
                allow(&broker.borrow(), &created).map_err(Denied::NotAllowed)?;
                let refused = Denied::Refused(Refusal::NotHeld(asked));
                return Err(broker.borrow().listeners.denied(id, refused));
            }
            Next::Denied(reason) => {
                let denied = reason.or(failure).unwrap_or(Denied::Abandoned);
                return Err(broker.borrow().listeners.denied(id, denied));
            }
        };
    }
}

/// Whether a claim that has waited is still allowed.
async fn judge_again(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    allow: &impl Fn(&Broker, &Want) -> Result<(), RpcError>,
) -> Result<(), RpcError> {
    for from in (0..).step_by(LOOKED_AT_ONCE) {
        if from != 0 {
            yield_now().await;
        }
        let broker = broker.borrow();
        let waiting = broker.listeners.registry.waiting(id);
        let Some(rest) = waiting.get(from..).filter(|rest| !rest.is_empty()) else { break };
        rest.iter().take(LOOKED_AT_ONCE).try_for_each(|want| allow(&broker, want))?;
    }
    Ok(())
}

/// Looks at the wanted listeners before they are claimed: what no client reaches is bound anew. Gives how many leases the claim comes to
/// at most: those that its connection has already do not count, and are looked for only where that matters.
async fn look(broker: &RefCell<Broker>, id: ConnectionId, wants: &[Want]) -> Result<usize, Denied> {
    let asked = wants.iter().map(Want::count).fold(0, usize::saturating_add);
    let fits = broker.borrow().listeners.room_for_leases(id, asked).is_ok();
    let (mut new, mut looked) = (0, 0);
    for want in wants {
        let rebinds = listeners::may_be_unreachable(want);
        for from in (0..want.count()).step_by(LOOKED_AT_ONCE) {
            if fits && !rebinds {
                break;
            }
            let some = LOOKED_AT_ONCE.min(want.count() - from);
            looked += some;
            if looked > LOOKED_AT_ONCE {
                looked = some;
                yield_now().await;
            }
            let held = &mut broker.borrow_mut().listeners;
            new += held.registry.not_leased(id, want, from, some);
            if rebinds {
                held.rebind_unreachable(want, from, some)?;
            }
        }
    }
    Ok(if fits { asked } else { new })
}

/// Opens listeners, some in a turn. All, or those before the first that is not open, and why.
#[allow(clippy::type_complexity)] // What was opened, and why the rest was not.
async fn open(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    listeners: Vec<Listener>,
    overlaps: &[Overlap],
) -> Result<Vec<Opened<Socket>>, (Vec<Opened<Socket>>, Denied)> {
    let owned = broker.borrow().listeners.reserve(id, listeners.len());
    let mut owned = owned.map_err(|denied| (Vec::new(), denied))?;
    let many = listeners.len() > OPENED_AT_ONCE;
    let mut places: Vec<Option<usize>> = vec![None; listeners.len()];
    // One after the other, each freed in its turn: a copy of all would be a long step.
    let mut order: Box<dyn Iterator<Item = (usize, Listener)>> =
        Box::new(listeners.into_iter().enumerate());
    if !overlaps.is_empty() {
        // The most general first, and what it overlaps beside it.
        let mut sorted: Vec<(usize, Listener)> = order.collect();
        sorted.sort_by_key(|(_, listener)| listener.key().specificity());
        order = Box::new(sorted.into_iter());
    }
    let unfinished = Rc::clone(&broker.borrow().listeners.unfinished);
    let mut opened = Opening { sockets: Vec::with_capacity(places.len()), unfinished };
    let mut failure = None;
    for (count, (index, listener)) in order.enumerate() {
        if count != 0 && count % OPENED_AT_ONCE == 0 {
            yield_now().await;
        }
        let held = &broker.borrow().listeners;
        let from = overlaps.partition_point(|overlap| overlap.new < index);
        let others = overlaps[from..].iter().take_while(|overlap| overlap.new == index);
        let fds: Vec<BorrowedFd<'_>> = others
            .filter_map(|overlap| match overlap.other {
                Neighbour::New(other) => Some(&opened.sockets[places[other]?].handle.fd),
                Neighbour::Held(id) => Some(&held.registry.held(id)?.opened.handle.fd),
            })
            .map(|fd| fd.as_fd())
            .collect();
        let socket = if fds.is_empty() {
            listen::open(&listener)
        } else {
            listen::open_beside(&listener, &fds)
        };
        match socket {
            Ok(socket) => {
                let mut socket = held.opened(&listener, socket);
                socket.handle.owned = owned.pop();
                places[index] = Some(opened.sockets.len());
                opened.push(socket);
            }
            Err(error) => {
                failure = Some(Denied::NotOpened(Box::new(listener), error));
                break;
            }
        }
    }
    if many {
        // To hand out so many is a turn of its own.
        yield_now().await;
    }
    let sockets = opened.take();
    if overlaps.is_empty() {
        // In the order of the listeners already, and none behind a hole.
        return match failure {
            None => Ok(sockets),
            Some(denied) => Err((sockets, denied)),
        };
    }
    let mut sockets: Vec<_> = sockets.into_iter().map(Some).collect();
    let mut in_order = places.into_iter().map(|place| sockets[place?].take());
    let before: Vec<_> = in_order.by_ref().map_while(std::convert::identity).collect();
    match failure {
        None => Ok(before),
        Some(denied) => {
            // Behind a hole nothing has its place.
            in_order.flatten().for_each(|opened| unlink(opened.handle.path.as_ref()));
            Err((before, denied))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::task::{Context, Poll, Waker};

    use bindonce_daemon::Journal;

    use super::*;
    use crate::generations;
    use crate::listeners::watch::Guard;
    use crate::upgrade;

    /// A claim of more UNIX paths than are opened in one turn ends with its client, or with this image of the broker.
    #[tokio::test(flavor = "current_thread")]
    async fn a_claim_that_ends_half_way_leaves_no_file() {
        let directory = std::env::temp_dir().join(format!("bindonce-half-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let clients = [(); 2].map(|()| broker.connect_itself());
        let unfinished = Rc::clone(&broker.listeners.unfinished);
        let broker = RefCell::new(broker);
        let wants = || -> Vec<Want> {
            let path = |number| format!("{}/{number}", directory.display());
            let want = |number| Want {
                wanted: path(number).parse().expect("a path"),
                tentative: false,
                change: false,
                held: false,
            };
            (0..=OPENED_AT_ONCE).map(want).collect()
        };
        let files = || fs::read_dir(&directory).expect("the directory").count();
        let mut context = Context::from_waker(Waker::noop());
        for (client, exec) in clients.into_iter().zip([false, true]) {
            let mut half = Box::pin(claim(&broker, client, wants()));
            assert!(matches!(half.as_mut().poll(&mut context), Poll::Pending));
            let written = unfinished.written();
            assert_eq!((written.len(), files()), (OPENED_AT_ONCE, OPENED_AT_ONCE));
            if exec {
                // Nothing of this image runs after an exec, and the next one has what is written.
                std::mem::forget(half);
                upgrade::remove(written);
            } else {
                drop(half);
                assert!(unfinished.written().is_empty());
                // As the end of its connection does.
                generations::disconnect(&mut broker.borrow_mut(), client);
            }
            assert_eq!(files(), 0, "exec: {exec}");
        }
        fs::remove_dir(&directory).expect("it is empty");
    }
}
