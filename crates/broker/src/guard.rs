//! Looks after the listeners while others share them.
//!
//! Whoever has a descriptor of a listener can end its LISTEN state for everybody.
//! The kernel tells at once ([`bindonce_sys::guard`]), and the listener is made to
//! listen again, some at a time, with a turn for everybody else in between. Who may have done it
//! is asked afterwards ([`crate::inquiry`]), once for all that have fallen meanwhile. A UNIX path
//! whose socket was shut down gets a new socket, since nothing repairs the old one.
//!
//! Options that somebody set on a shared socket hold for all that share it. They are
//! reported and left as they are: a generation that sets them means them.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::registry::{Held, ListenerId};
use bindonce_observe::{Happening, Journal};
use bindonce_sys::guard::{self, Health};
use bindonce_sys::options::{self, Change};
use bindonce_sys::watch::Watch;
use bindonce_sys::{listen, queue};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::closing::LOGGED_ONE_BY_ONE;
use crate::inquiry::Question;
use crate::socket::Socket;
use crate::state::State;

/// How often to try again with a listener that cannot be made to listen now.
const RETRY: Duration = Duration::from_millis(250);

/// The log is told of repairs each time this has passed.
const QUIET: Duration = Duration::from_secs(1);

/// What watches all listeners of one broker.
#[derive(Debug)]
pub(crate) struct Guard {
    kernel: guard::Guard,
    /// Listeners that do not listen and could not be repaired so far.
    broken: RefCell<BTreeSet<ListenerId>>,
    /// Those that were made to listen again, and how often, since the log was told.
    untold: RefCell<BTreeMap<ListenerId, u64>>,
    /// Rung when there is something to tell.
    bell: Notify,
}

impl Guard {
    /// One that watches nothing yet.
    pub(crate) fn new() -> std::io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            kernel: guard::Guard::new()?,
            broken: RefCell::default(),
            untold: RefCell::default(),
            bell: Notify::new(),
        }))
    }

    /// For a listener that is not watched yet.
    pub(crate) fn care(self: &Rc<Self>) -> Care {
        Care {
            guard: Rc::clone(self),
            watched: OnceCell::new(),
            repaired: Cell::new(0),
            noticed: RefCell::default(),
        }
    }
}

/// What is known of one listener that is looked after.
#[derive(Debug)]
pub(crate) struct Care {
    guard: Rc<Guard>,
    /// Which listener it is, and its socket, from when the kernel watches it.
    watched: OnceCell<(ListenerId, Rc<OwnedFd>)>,
    /// How often it was made to listen again.
    repaired: Cell<u64>,
    /// Changed options that the log has been told of.
    noticed: RefCell<Vec<Change>>,
}

impl Care {
    /// Begins to watch the listener, until this is dropped. The kernel tells also of what
    /// has happened before.
    pub(crate) fn begin(&self, id: ListenerId, fd: &Rc<OwnedFd>, address: &Address) {
        if !address.listens() || self.watched.get().is_some() {
            return;
        }
        match self.guard.kernel.add(fd.as_fd(), id.number()) {
            Ok(()) => {
                // It was empty a moment ago.
                let _ = self.watched.set((id, Rc::clone(fd)));
            }
            Err(error) => {
                let hint = guard::is_full(&error).then_some("raise fs.epoll.max_user_watches");
                tracing::warn!(%address, %error, hint, "a listener is not guarded");
            }
        }
    }

    /// How often the listener was made to listen again.
    pub(crate) fn repaired(&self) -> u64 {
        self.repaired.get()
    }
}

impl Drop for Care {
    fn drop(&mut self) {
        if let Some((id, fd)) = self.watched.get() {
            // Others have the socket still, so closing it would not end the registration.
            let _ = self.guard.kernel.remove(fd.as_fd());
            self.guard.broken.borrow_mut().remove(id);
        }
    }
}

/// Keeps every listener listening, for as long as the broker runs.
pub(crate) async fn keep(state: &Rc<RefCell<State>>) {
    tokio::join!(watch(state), report(state));
}

async fn watch(state: &Rc<RefCell<State>>) {
    let guard = Rc::clone(&state.borrow().guard);
    let watch = match Watch::new(&guard.kernel) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::error!(%error, "cannot watch listeners: those that leave LISTEN stay so");
            return std::future::pending().await;
        }
    };
    loop {
        let fallen = guard.kernel.fallen().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read which listeners have changed");
            Vec::new()
        });
        for number in &fallen {
            look_after(state, *number);
            // Whoever ends them again and again keeps nobody else from its turn.
            yield_now().await;
        }
        if !fallen.is_empty() {
            continue;
        }
        if guard.broken.borrow().is_empty() {
            // Fails only while the runtime ends.
            let _ = watch.readable().await;
        } else if timeout(RETRY, watch.readable()).await.is_err() {
            let broken: Vec<ListenerId> = guard.broken.borrow().iter().copied().collect();
            for id in broken {
                look_after(state, id.number());
                yield_now().await;
            }
        }
    }
}

/// Makes one listener listen again if it does not.
fn look_after(state: &Rc<RefCell<State>>, number: u64) {
    let (id, inode, health) = {
        let state = state.borrow();
        let Some((id, held)) = state.registry.numbered(number) else { return };
        let inode = held.opened.inode;
        let fd = held.opened.handle.fd.as_fd();
        let backlog = held.listener.options.backlog.unwrap_or(u32::MAX);
        let place = Listener { address: held.opened.bound.clone(), ..held.listener.clone() };
        let others = state.neighbours(&place);
        let others: Vec<_> = others.iter().map(|fd| fd.as_fd()).collect();
        let health = listen::repair_beside(fd, &place, backlog, &others);
        if let Ok((Health::Repaired, false)) = &health {
            tracing::warn!(
                listener = held.listener.label(),
                inode,
                hint = "restart what uses it when you can: CAP_NET_ADMIN would have avoided it",
                "other processes of this user could join the listener since it was made to listen \
                 again"
            );
        }
        let health = health.map(|(health, _)| health);
        let mut broken = state.guard.broken.borrow_mut();
        match &health {
            Ok(Health::Listening) => {
                broken.remove(&id);
            }
            Ok(Health::Repaired) => {
                broken.remove(&id);
                held.opened.handle.care.count(id);
            }
            Ok(Health::ShutDown) if !matches!(held.listener.address, Address::Unix(_)) => {
                tracing::error!(
                    listener = held.listener.label(),
                    inode,
                    hint = "end those who have it, then release it and claim it again",
                    "listener was shut down by somebody who shares it, for good: nobody can connect"
                );
                let text = format!("{} was shut down for good", held.listener.label());
                state.journal.record(Happening::new(Kind::ListenerBroken, text));
            }
            Ok(Health::ShutDown) => {}
            Err(error) if broken.insert(id) => {
                tracing::error!(
                    listener = held.listener.label(), address = %held.opened.bound, inode, %error,
                    hint = "find who has taken the port (ss -ltnp) and end it: it is tried again \
                            all the time",
                    "listener has left LISTEN and cannot be made to listen again"
                );
                let text = format!("{} has left LISTEN: {error}", held.listener.label());
                state.journal.record(Happening::new(Kind::ListenerBroken, text));
            }
            Err(_) => {}
        }
        (id, inode, health)
    };
    match health {
        Ok(Health::ShutDown) => put_another(state, id, inode),
        Ok(Health::Listening | Health::Repaired) | Err(_) => {}
    }
}

/// Puts a new socket on a UNIX path whose socket was shut down.
fn put_another(state: &Rc<RefCell<State>>, id: ListenerId, inode: u64) {
    let replaced = state.borrow_mut().replace(inode);
    let state_ref = state.borrow();
    match replaced {
        Ok(Some(new)) => {
            state_ref.guard.broken.borrow_mut().remove(&id);
            if let Some(held) = state_ref.registry.held(id) {
                tracing::error!(
                    listener = held.listener.label(),
                    was = inode,
                    inode = new,
                    hint = "reload those who have it: they hear nothing on the old socket",
                    "listener was shut down by somebody who shares it; a new socket has its path"
                );
                held.opened.handle.care.count(id);
            }
        }
        Ok(None) => {}
        Err(error) => {
            if state_ref.guard.broken.borrow_mut().insert(id) {
                tracing::error!(
                    inode, %error, hint = error.hint(),
                    "listener was shut down by somebody who shares it and cannot be replaced"
                );
                let text = format!("a listener was shut down and cannot be replaced: {error}");
                state_ref.journal.record(Happening::new(Kind::ListenerBroken, text));
            }
        }
    }
}

impl Care {
    fn count(&self, id: ListenerId) {
        self.repaired.set(self.repaired.get() + 1);
        *self.guard.untold.borrow_mut().entry(id).or_default() += 1;
        self.guard.bell.notify_one();
    }
}

/// Tells the log of repairs, and who shares those listeners.
async fn report(state: &RefCell<State>) {
    let guard = Rc::clone(&state.borrow().guard);
    loop {
        guard.bell.notified().await;
        let untold = guard.untold.take();
        if untold.is_empty() {
            continue;
        }
        let inquiry = Rc::clone(&state.borrow().inquiry);
        // A few are enough to find out who it is.
        let some = untold
            .keys()
            .take(LOGGED_ONE_BY_ONE)
            .filter_map(|id| Some(state.borrow().registry.held(*id)?.opened.inode));
        let some = some.collect();
        let sharing = inquiry.ask(Question::Sharing(some)).await;
        let sharing = sharing.unwrap_or_else(|| "nobody who is known".to_owned());
        tell(&state.borrow(), &untold, &sharing);
        sleep(QUIET).await;
    }
}

fn tell(state: &State, untold: &BTreeMap<ListenerId, u64>, sharing: &str) {
    const HINT: &str = "one of those who share it disconnected it or shut it down (haproxy does on \
                        SIGTTOU with a socket that came by -x): clients that waited in its queue \
                        were reset";
    let times: u64 = untold.values().sum();
    let held = |id: &ListenerId| state.registry.held(*id);
    if untold.len() > LOGGED_ONE_BY_ONE {
        let (count, first) = (untold.len(), untold.keys().find_map(held));
        let first = first.map(|held| held.listener.label());
        let text = "listeners had left LISTEN and were made to listen again";
        tracing::warn!(count, times, first, shared_by = sharing, hint = HINT, "{text}");
        let text = format!("{count} {text}, {times} times; shared by {sharing}");
        state.journal.record(Happening::new(Kind::ListenerRepaired, text));
        return;
    }
    for (id, times) in untold {
        let Some(held) = held(id) else { continue };
        let (label, inode) = (held.listener.label(), held.opened.inode);
        tracing::warn!(
            listener = label, address = %held.opened.bound, inode, times,
            shared_by = sharing, hint = HINT,
            "listener had left LISTEN and was made to listen again"
        );
        let text = format!(
            "{label} had left LISTEN and was made to listen again, {times} times; shared by {sharing}"
        );
        state.journal.record(Happening::new(Kind::ListenerRepaired, text));
    }
}

/// What of a listener's socket somebody has changed.
pub(crate) fn changes(held: &Held<Socket>) -> Vec<Change> {
    let fd = held.opened.handle.fd.as_fd();
    let mut changes = options::changed(fd, &held.listener);
    // Whoever calls listen(2) sets the backlog for all. In another network namespace the
    // kernel's own limit may be another.
    if matches!(held.listener.address, Address::Tcp(_))
        && held.listener.options.netns.is_none()
        && let Ok(queue) = queue::accept_queue(fd)
        && queue.limit != held.opened.backlog
    {
        let (was, now) = (held.opened.backlog.into(), queue.limit.into());
        changes.push(Change { option: "backlog", was, now });
    }
    changes
}

/// Tells the log what has changed of a listener since the last time; `who` is the
/// generation that just began to serve.
pub(crate) fn notice(journal: &Journal, held: &Held<Socket>, who: &str) {
    let changes = changes(held);
    let mut noticed = held.opened.handle.care.noticed.borrow_mut();
    if *noticed != changes {
        let text = |change: &Change| format!("{} {} -> {}", change.option, change.was, change.now);
        let changed: Vec<String> = changes.iter().map(text).collect();
        let changed = changed.join(", ");
        tracing::info!(
            listener = held.listener.label(),
            who,
            changed,
            "options of a shared listener are not as it was made"
        );
        let label = held.listener.label();
        let text = format!("options of {label} are not as it was made ({who}): {changed}");
        journal.record(Happening::new(Kind::ListenerChanged, text));
        *noticed = changes;
    }
}
