//! Keeps listeners listening while other processes share them.
//!
//! Any process that has a descriptor of a listener can end its LISTEN state for all. The kernel
//! reports that at once ([`bindonce_sys::guard`]), and the broker makes the listener listen again,
//! one per turn so that other tasks run in between. An inquiry ([`crate::inquiry`]) then looks for
//! the process that may have done it, once for all listeners that fell meanwhile. A UNIX path whose
//! socket was shut down gets a new socket, because the old one cannot be repaired.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::registry::ListenerId;
use bindonce_daemon::Happening;
use bindonce_sys::guard::Health;
use bindonce_sys::listen;
use bindonce_sys::watch::Watch;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::accounts;
use crate::broker::Broker;
use crate::claims;
use crate::inquiry::Question;
use crate::listeners::LOGGED_ONE_BY_ONE;

/// How often to retry a listener that cannot be made to listen now.
const RETRY: Duration = Duration::from_millis(250);

/// Repairs are logged at most this often.
const QUIET: Duration = Duration::from_secs(1);

/// Keeps every listener listening, for as long as the broker runs.
pub(crate) async fn keep(broker: &Rc<RefCell<Broker>>) {
    tokio::join!(watch(broker), replace(broker), report(broker), settle_rest(broker));
}

/// Does the work that replies have left, in as many turns as it needs.
pub(crate) async fn settle_rest(broker: &Rc<RefCell<Broker>>) {
    let guard = Rc::clone(&broker.borrow().listeners.guard);
    loop {
        guard.unsettled.notified().await;
        claims::settle(broker).await;
    }
}

async fn watch(broker: &Rc<RefCell<Broker>>) {
    let guard = Rc::clone(&broker.borrow().listeners.guard);
    let watch = match Watch::new(&guard.kernel) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::error!(%error, "cannot watch listeners: one that leaves LISTEN is not repaired");
            return std::future::pending().await;
        }
    };
    loop {
        let fallen = guard.kernel.fallen().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read which listeners have changed");
            Vec::new()
        });
        for number in &fallen {
            look_after(broker, *number);
            // A process that ends listeners again and again must not delay the other tasks.
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
                look_after(broker, id.number());
                yield_now().await;
            }
        }
    }
}

/// Makes one listener listen again if it does not.
fn look_after(broker: &RefCell<Broker>, number: u64) {
    let broker = broker.borrow();
    let Some((id, held)) = broker.listeners.registry.numbered(number) else { return };
    let inode = held.opened.inode;
    let fd = held.opened.handle.fd.as_fd();
    let backlog = held.listener.options.backlog.unwrap_or(u32::MAX);
    let place = Listener { address: held.opened.bound.clone(), ..Listener::clone(&held.listener) };
    let others = broker.listeners.neighbours(&place);
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
    let guard = &broker.listeners.guard;
    let mut broken = guard.broken.borrow_mut();
    match health.map(|(health, _)| health) {
        Ok(Health::Listening) => {
            broken.remove(&id);
        }
        Ok(Health::Repaired) => {
            broken.remove(&id);
            held.opened.handle.watch.count(id);
        }
        Ok(Health::ShutDown) => {
            // The next attempts to replace it say nothing new.
            if !matches!(held.listener.address, Address::Unix(_)) && !broken.contains(&id) {
                tracing::error!(
                    listener = held.listener.label(),
                    inode,
                    hint = "end the processes that have it, then release it and claim it again",
                    "another process that shares the listener shut it down, and it cannot be repaired: no client can connect"
                );
                let text =
                    format!("{} was shut down and cannot be repaired", held.listener.label());
                broker.reporter.record(Happening::new(Kind::ListenerBroken, text));
            }
            guard.shut_down.borrow_mut().insert(id, inode);
            guard.to_replace.notify_one();
        }
        Err(error) if broken.insert(id) => {
            tracing::error!(
                listener = held.listener.label(), address = %held.opened.bound, inode, %error,
                hint = "find the process that has taken the port (ss -ltnp) and end it: the broker tries again \
                        all the time",
                "listener has left LISTEN and cannot be made to listen again"
            );
            let text = format!("{} has left LISTEN: {error}", held.listener.label());
            broker.reporter.record(Happening::new(Kind::ListenerBroken, text));
        }
        Err(_) => {}
    }
}

/// Replaces sockets that were shut down, one at a time. Repairs do not wait for this, because the
/// user and the group of a path may have to be looked up.
async fn replace(broker: &RefCell<Broker>) {
    let guard = Rc::clone(&broker.borrow().listeners.guard);
    loop {
        let next = guard.shut_down.borrow_mut().pop_first();
        match next {
            Some((id, inode)) => put_another(broker, id, inode).await,
            None => guard.to_replace.notified().await,
        }
        yield_now().await;
    }
}

/// Puts a new socket on a UNIX path whose socket was shut down.
async fn put_another(broker: &RefCell<Broker>, id: ListenerId, inode: u64) {
    let held = {
        let broker = broker.borrow();
        broker.listeners.registry.held(id).map(|held| Arc::clone(&held.listener))
    };
    let Some(listener) = held else { return };
    let accounts = accounts::of([&*listener]).await;
    let replaced = broker.borrow_mut().listeners.replace(id, inode, &accounts);
    let parts = broker.borrow();
    match replaced {
        Ok(Some(new)) => {
            parts.listeners.guard.broken.borrow_mut().remove(&id);
            if let Some(held) = parts.listeners.registry.held(id) {
                tracing::error!(
                    listener = held.listener.label(),
                    was = inode,
                    inode = new,
                    hint = "reload the processes that have the old socket: no client reaches it",
                    "another process that shares the listener shut it down; a new socket has its path"
                );
                held.opened.handle.watch.count(id);
            }
        }
        Ok(None) => {}
        Err(error) => {
            if parts.listeners.guard.broken.borrow_mut().insert(id) {
                tracing::error!(
                    inode, %error, hint = error.hint(),
                    "another process that shares the listener shut it down, and it cannot be replaced"
                );
                let text = format!("a listener was shut down and cannot be replaced: {error}");
                parts.reporter.record(Happening::new(Kind::ListenerBroken, text));
            }
        }
    }
}

/// Logs the repairs, with the processes that share the repaired listeners.
async fn report(broker: &RefCell<Broker>) {
    let guard = Rc::clone(&broker.borrow().listeners.guard);
    loop {
        guard.repaired.notified().await;
        let unreported = guard.unreported.take();
        if unreported.is_empty() {
            continue;
        }
        let inquiry = Rc::clone(&broker.borrow().inquiry);
        // A few inodes are enough to find the process.
        let some = unreported
            .keys()
            .take(LOGGED_ONE_BY_ONE)
            .filter_map(|id| Some(broker.borrow().listeners.registry.held(*id)?.opened.inode));
        let some = some.collect();
        let sharing = inquiry.ask(Question::Sharing(some)).await;
        let sharing = sharing.unwrap_or_else(|| "no process that is known".to_owned());
        tell_log(&broker.borrow(), &unreported, &sharing);
        sleep(QUIET).await;
    }
}

fn tell_log(broker: &Broker, unreported: &BTreeMap<ListenerId, u64>, sharing: &str) {
    const HINT: &str = "a process that shares it disconnected it or shut it down (haproxy does on \
                        SIGTTOU with a socket that came by -x): clients that waited in its queue \
                        were reset";
    let times: u64 = unreported.values().sum();
    let held = |id: &ListenerId| broker.listeners.registry.held(*id);
    if unreported.len() > LOGGED_ONE_BY_ONE {
        let (count, first) = (unreported.len(), unreported.keys().find_map(held));
        let first = first.map(|held| held.listener.label());
        let text = "listeners had left LISTEN and were made to listen again";
        tracing::warn!(count, times, first, shared_by = sharing, hint = HINT, "{text}");
        let text = format!("{count} {text}, {times} times; shared by {sharing}");
        broker.reporter.record(Happening::new(Kind::ListenerRepaired, text));
        return;
    }
    for (id, times) in unreported {
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
        broker.reporter.record(Happening::new(Kind::ListenerRepaired, text));
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use bindonce_core::registry::Want;
    use bindonce_daemon::Journal;
    use bindonce_sys::queue::is_listening;
    use rustix::net::Shutdown;

    use super::*;
    use crate::listeners::watch::Guard;
    use crate::problems;

    #[tokio::test(flavor = "current_thread")]
    async fn one_is_repaired_in_a_turn() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let connection = broker.connect_itself();
        let broker = Rc::new(RefCell::new(broker));
        let want = |name| Want {
            wanted: format!("{name}=127.0.0.1:0").parse().expect("a listener"),
            tentative: false,
            change: false,
            held: false,
        };
        let wants = ["a", "b", "c", "d"].map(want).into_iter().collect();
        claims::claim(&broker, connection, wants).await.expect("granted");
        let fds: Vec<_> = broker
            .borrow()
            .listeners
            .registry
            .iter()
            .map(|(_, held)| Rc::clone(&held.opened.handle.fd))
            .collect();
        let fds = &fds;
        fds.iter().for_each(|fd| rustix::net::shutdown(fd, Shutdown::Read).expect("shutdown"));
        let mut watched = std::pin::pin!(watch(&broker));
        let mut turn = || {
            let polled = watched.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Pending);
            fds.iter().filter(|fd| is_listening(fd.as_fd())).count()
        };
        let turns: Vec<usize> = (0..fds.len()).map(|_| turn()).collect();
        assert_eq!(turns, [1, 2, 3, 4]);
    }

    /// The broker's own socket keeps the abstract name from a new one.
    #[tokio::test(flavor = "current_thread")]
    async fn a_listener_that_cannot_be_repaired_is_a_problem_and_is_logged_once() {
        let guard = Guard::new().expect("a guard");
        let socket = "/nonexistent/bindonce.sock".into();
        let mut broker = Broker::new(socket, 0, 1024, guard, Journal::in_memory(None));
        let connection = broker.connect_itself();
        let broker = RefCell::new(broker);
        let name = format!("abns@bindonce-broken-{}", std::process::id());
        let wanted = name.parse().expect("a listener");
        let want = Want { wanted, tentative: false, change: false, held: false };
        claims::claim(&broker, connection, vec![want].into()).await.expect("granted");
        let (id, inode, fd) = {
            let broker = broker.borrow();
            let (id, held) = broker.listeners.registry.iter().next().expect("held");
            (id, held.opened.inode, Rc::clone(&held.opened.handle.fd))
        };
        rustix::net::shutdown(&fd, Shutdown::Read).expect("shutdown");
        for _ in 0..3 {
            look_after(&broker, id.number());
            put_another(&broker, id, inode).await;
        }
        let problems = problems::all(&broker).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((&*problems[0].kind, &problems[0].subject), ("listener-broken", &name));
        let events = broker.borrow().reporter.journal.after(0);
        let told = events.iter().filter(|event| event.kind == Kind::ListenerBroken.word());
        // It was shut down, and it cannot be replaced.
        assert_eq!(told.count(), 2, "{events:?}");
    }
}
