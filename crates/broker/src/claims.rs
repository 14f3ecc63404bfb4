//! Claims: opens or changes sockets as the registry decides, all of a claim or none. A large claim
//! takes many turns.

use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::registry::{
    ConnectionId, Event, Lease, Neighbour, Opened, Overlap, Refusal, Want, Wants,
};
use bindonce_sys::listen::{self, Accounts};
use bindonce_wire::RpcError;
use tokio::task::yield_now;

use crate::accounts;
use crate::aside::Aside;
use crate::broker::Broker;
use crate::listeners::{self, Denied, Next, Owned, Socket, Unfinished, unlink};

/// Listeners opened in one turn, at about 10 us each.
const OPENED_AT_ONCE: usize = 32;

/// Wanted listeners examined in one turn, at about a microsecond each.
const LOOKED_AT_ONCE: usize = 256;

/// Elements passed over in one turn, where nothing has to be examined.
const PASSED_AT_ONCE: usize = 4096;

/// Sockets opened for a claim that is not complete yet.
struct Opening {
    sockets: Vec<Opened<Socket>>,
    /// User counts reserved for the sockets still to open.
    owned: Vec<Owned>,
    /// The users and groups that the listeners name, looked up.
    accounts: Accounts,
    unfinished: Rc<Unfinished>,
}

impl Opening {
    /// Takes the next socket, or returns why it is not open.
    fn push(
        &mut self,
        broker: &Broker,
        listener: &Arc<Listener>,
        socket: Result<listen::Opened, bindonce_sys::Error>,
    ) -> Result<(), Denied> {
        match socket {
            Ok(socket) => {
                let mut socket = broker.listeners.opened(listener, socket);
                socket.handle.owned = self.owned.pop();
                self.unfinished.add(socket.handle.path.as_ref());
                self.sockets.push(socket);
                Ok(())
            }
            Err(error) => Err(Denied::NotOpened(Arc::clone(listener), error)),
        }
    }

    /// Returns all sockets.
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
    wants: Wants,
) -> Result<Vec<Lease>, Denied> {
    let outcome = claim_unsettled(broker, id, wants, |_, _, _| Ok(())).await;
    settle(broker).await;
    outcome
}

/// Does the work that follows a claim, in as many turns as it needs.
pub(crate) async fn settle(broker: &RefCell<Broker>) {
    while broker.borrow_mut().settle() {
        yield_now().await;
    }
}

/// Finds or opens listeners, all or none; many take many turns. [`Broker::settle`] must follow.
/// `allow` judges these listeners of an element with a name in the step that looks the name up: it
/// may have come to another listener since the request was read.
pub(crate) async fn claim_unsettled(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    wants: Wants,
    allow: impl Fn(&Broker, &Want, Range<usize>) -> Result<(), RpcError>,
) -> Result<Vec<Lease>, Denied> {
    let most = look(broker, id, &wants).await;
    let most = most.map_err(|denied| broker.borrow().listeners.denied(id, denied))?;
    let decided = broker.borrow().listeners.waiting.bell();
    let mut failure = None;
    let mut event = Event::Claim(id, wants);
    loop {
        if let Err(denial) = judge(broker, &event, &allow) {
            let is_begun = matches!(event, Event::More(_));
            // The claim gives up what it has, or no longer waits.
            event = Event::OpenFailed(id, Vec::new());
            if !is_begun {
                let _ = broker.borrow_mut().listeners.claim(id, event, most);
                return Err(Denied::NotAllowed(denial));
            }
            failure = Some(Denied::NotAllowed(denial));
        }
        let next = broker.borrow_mut().listeners.claim(id, event, most);
        event = match next {
            Next::More => {
                yield_now().await;
                Event::More(id)
            }
            Next::Wait => {
                while !broker.borrow_mut().listeners.waiting.take(id) {
                    decided.notified().await;
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
            Next::Change(changes) => {
                let mut accounts = broker.borrow().listeners.new_owners(&changes);
                accounts.find().await;
                match broker.borrow().listeners.change(&changes, &accounts) {
                    Ok(backlogs) => Event::Changed(id, backlogs),
                    Err(denied) => {
                        failure = Some(denied);
                        Event::ChangeFailed(id)
                    }
                }
            }
            Next::Granted(leases) => {
                broker.borrow_mut().claimed(&leases);
                return Ok(leases);
            }
            Next::Denied(Some(Denied::Refused(Refusal::NotHeld(asked)))) => {
                let wanted = Wanted::Listen((*asked).clone().into());
                let created = Want { wanted, tentative: false, change: false, held: false };
                allow(&broker.borrow(), &created, 0..1).map_err(Denied::NotAllowed)?;
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

/// Whether the client may have what the names that this step looks up stand for now.
fn judge(
    broker: &RefCell<Broker>,
    event: &Event<Socket>,
    allow: &impl Fn(&Broker, &Want, Range<usize>) -> Result<(), RpcError>,
) -> Result<(), RpcError> {
    let broker = broker.borrow();
    let mut named = broker.listeners.registry.named_in(event);
    named.try_for_each(|(want, some)| allow(&broker, want, some))
}

/// Examines the wanted listeners before they are claimed, and rebinds those that no client reaches.
/// Returns how many leases the claim adds at most. Leases that the connection already has do not
/// count; they are looked up only where that matters.
async fn look(broker: &RefCell<Broker>, id: ConnectionId, wants: &Wants) -> Result<usize, Denied> {
    let asked = wants.count();
    let fits = broker.borrow().listeners.room_for_leases(id, asked).is_ok();
    let (mut new, mut looked) = (0, 0);
    for (place, want) in wants.iter().enumerate() {
        if place % PASSED_AT_ONCE == PASSED_AT_ONCE - 1 {
            yield_now().await;
        }
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
            new += broker.borrow().listeners.registry.not_leased(id, want, from, some);
            if rebinds {
                let unreached = broker.borrow().listeners.unreached(want, from, some);
                for inode in unreached {
                    rebind(broker, inode).await?;
                    yield_now().await;
                }
            }
        }
    }
    Ok(if fits { asked } else { new })
}

/// Rebinds a listener that no client reaches, by its inode.
async fn rebind(broker: &RefCell<Broker>, inode: u64) -> Result<(), Denied> {
    let held = {
        let broker = broker.borrow();
        broker.listeners.registry.by_inode(inode).map(|(_, held)| Arc::clone(&held.listener))
    };
    let Some(listener) = held else { return Ok(()) };
    let accounts = accounts::of([&*listener]).await;
    broker.borrow_mut().listeners.rebind(inode, &accounts)
}

/// The sockets opened before the first failure, and the reason for the failure.
type Unopened = (Vec<Opened<Socket>>, Denied);

/// Opens listeners, some per turn. On failure, returns the sockets opened before it and the reason.
async fn open(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    listeners: Vec<Arc<Listener>>,
    overlaps: &[Overlap],
) -> Result<Vec<Opened<Socket>>, Unopened> {
    let owned = broker.borrow().listeners.reserve(id, listeners.len());
    let owned = owned.map_err(|denied| (Vec::new(), denied))?;
    let unfinished = Rc::clone(&broker.borrow().listeners.unfinished);
    let accounts = accounts::of(listeners.iter().map(Arc::as_ref)).await;
    let sockets = Vec::with_capacity(listeners.len());
    let opening = Opening { sockets, owned, accounts, unfinished };
    if overlaps.is_empty() {
        open_each(broker, listeners, opening).await
    } else {
        open_beside_others(broker, id, listeners, overlaps, opening).await
    }
}

/// Opens listeners in order.
async fn open_each(
    broker: &RefCell<Broker>,
    listeners: Vec<Arc<Listener>>,
    mut opening: Opening,
) -> Result<Vec<Opened<Socket>>, Unopened> {
    let opened = open_all(broker, listeners, &mut opening).await;
    let sockets = opening.take();
    match opened {
        Ok(()) => Ok(sockets),
        Err(denied) => Err((sockets, denied)),
    }
}

/// As [`open_each`], but opens the last of many on another thread.
async fn open_all(
    broker: &RefCell<Broker>,
    listeners: Vec<Arc<Listener>>,
    opening: &mut Opening,
) -> Result<(), Denied> {
    let aside = Aside::begin(&listeners);
    let is_left = || aside.as_ref().is_none_or(Aside::leaves_next);
    let mut rest = listeners.into_iter();
    let first = std::iter::from_fn(|| if is_left() { rest.next() } else { None });
    let opened = open_in_turns(broker, first, opening).await;
    let Some(aside) = aside else { return opened };
    if opened.is_err() {
        let mut last = aside.stop().await;
        while !last.is_empty() {
            last.truncate(last.len().saturating_sub(OPENED_AT_ONCE));
            yield_now().await;
        }
        return opened;
    }
    let last = aside.finish().await;
    // The thread opens fewer than it began if one of them cannot be opened.
    let between = rest.len().saturating_sub(last.len());
    open_in_turns(broker, rest.by_ref().take(between), opening).await?;
    for (count, (listener, socket)) in rest.zip(last).enumerate() {
        if count % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1 {
            yield_now().await;
        }
        opening.push(&broker.borrow(), &listener, Ok(socket))?;
    }
    Ok(())
}

async fn open_in_turns(
    broker: &RefCell<Broker>,
    listeners: impl IntoIterator<Item = Arc<Listener>>,
    opening: &mut Opening,
) -> Result<(), Denied> {
    // Each listener is freed in its own turn.
    for (count, listener) in listeners.into_iter().enumerate() {
        if count != 0 && count % OPENED_AT_ONCE == 0 {
            yield_now().await;
        }
        let socket = listen::open_with(&listener, &opening.accounts);
        opening.push(&broker.borrow(), &listener, socket)?;
    }
    Ok(())
}

/// Opens listeners some of which overlap others: the most general first, and each beside the
/// sockets that it overlaps. A generation that starts while an older one serves claims tentatively.
/// Its new listener is [hidden](bindonce_sys::hidden) where it would take connections from a held
/// one, because those would be reset if the start failed.
async fn open_beside_others(
    broker: &RefCell<Broker>,
    id: ConnectionId,
    listeners: Vec<Arc<Listener>>,
    overlaps: &[Overlap],
    mut opening: Opening,
) -> Result<Vec<Opened<Socket>>, Unopened> {
    let mut places: Vec<Option<usize>> = vec![None; listeners.len()];
    let mut sorted: Vec<(usize, Arc<Listener>)> = listeners.into_iter().enumerate().collect();
    sorted.sort_by_key(|(_, listener)| listener.key().specificity());
    let succeeds = broker.borrow().listeners.registry.is_to_succeed(id);
    let mut failure = None;
    for (count, (index, listener)) in sorted.into_iter().enumerate() {
        if count != 0 && count % OPENED_AT_ONCE == 0 {
            yield_now().await;
        }
        let broker = broker.borrow();
        let from = overlaps.partition_point(|overlap| overlap.new < index);
        let others = overlaps[from..].iter().take_while(|overlap| overlap.new == index);
        let held = |id| broker.listeners.registry.held(id);
        let takes = |overlap: &Overlap| match overlap.other {
            Neighbour::Held(id) => {
                held(id).is_some_and(|it| listener.key().takes_from(&it.listener.key()))
            }
            Neighbour::New(_) => false,
        };
        let hide = succeeds && others.clone().any(|overlap| overlap.tentative && takes(overlap));
        let fds: Vec<BorrowedFd<'_>> = others
            .filter_map(|overlap| match overlap.other {
                Neighbour::New(other) => Some(&opening.sockets[places[other]?].handle.fd),
                Neighbour::Held(id) => Some(&held(id)?.opened.handle.fd),
            })
            .map(|fd| fd.as_fd())
            .collect();
        let socket = if fds.is_empty() {
            listen::open_with(&listener, &opening.accounts)
        } else {
            listen::open_beside(&listener, &fds, hide)
        };
        places[index] = Some(opening.sockets.len());
        if let Err(denied) = opening.push(&broker, &listener, socket) {
            places[index] = None;
            failure = Some(denied);
            break;
        }
    }
    let mut sockets: Vec<_> = opening.take().into_iter().map(Some).collect();
    let mut in_order = places.into_iter().map(|place| sockets[place?].take());
    let before: Vec<_> = in_order.by_ref().map_while(std::convert::identity).collect();
    match failure {
        None => Ok(before),
        Some(denied) => {
            // Sockets behind the gap have no place in the result.
            in_order.flatten().for_each(|opened| unlink(opened.handle.path.as_ref()));
            Err((before, denied))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::task::{Context, Poll, Waker};

    use bindonce_daemon::Journal;

    use super::*;
    use crate::generations;
    use crate::listeners::watch::Guard;
    use crate::upgrade;

    /// A claim of more UNIX paths than one turn opens ends with its client, or with this image of
    /// the broker.
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
        let wants = || -> Wants {
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
                // Nothing of this image runs after an exec; the next image gets `written`.
                std::mem::forget(half);
                upgrade::remove(written);
            } else {
                drop(half);
                assert!(unfinished.written().is_empty());
                // The end of the connection does this.
                generations::disconnect(&mut broker.borrow_mut(), client);
            }
            assert_eq!(files(), 0, "exec: {exec}");
        }
        fs::remove_dir(&directory).expect("it is empty");
    }

    /// The second half of many is opened on another thread.
    #[tokio::test(flavor = "current_thread")]
    async fn a_large_claim_that_fails_or_ends_half_way_leaves_all_its_addresses_free() {
        bindonce_sys::limits::raise_nofile().expect("descriptors");
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 4096, guard, Journal::in_memory(None));
        let clients = [(); 4].map(|()| broker.connect_itself());
        let broker = RefCell::new(broker);
        let count = 300;
        // A port that is free on all of these addresses, and stays free.
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its address").port();
        let place = |number: usize| format!("127.78.{}.{}:{port}", number / 250, number % 250 + 1);
        let wants = || -> Wants {
            let want = |number| Want {
                wanted: place(number).parse().expect("an address"),
                tentative: false,
                change: false,
                held: false,
            };
            (0..count).map(want).collect()
        };
        for (client, occupied) in clients.into_iter().zip([0, count / 2, count - 1]) {
            let occupant = TcpListener::bind(place(occupied)).expect("bound");
            let refused = claim(&broker, client, wants()).await;
            let Err(Denied::NotOpened(listener, _)) = refused else { panic!("{occupied}") };
            assert_eq!(listener.address.to_string(), place(occupied));
            drop(occupant);
            let mut half = Box::pin(claim(&broker, client, wants()));
            let mut context = Context::from_waker(Waker::noop());
            assert!(matches!(half.as_mut().poll(&mut context), Poll::Pending));
            drop(half);
            generations::disconnect(&mut broker.borrow_mut(), client);
        }
        let bound = claim(&broker, clients[3], wants()).await;
        assert_eq!(bound.map_err(|_| "refused").expect("bound").len(), count);
    }
}
