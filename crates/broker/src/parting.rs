//! The end of a connection, and generations that outlive it: a supervisor was killed before the broker knew that its
//! generation serves.
//!
//! What such a generation has is in use, confirmed or not. It stays while the process of the generation lives, which the kernel
//! tells by a pidfd, or until the next supervisor claims it. That process is one that has these very sockets; where its
//! descriptors may not be read, one that was a child of the peer that named it: a pid of another pid namespace is neither.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::registry::{ConnectionId, Label};
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::watch::Watch;
use bindonce_sys::{holders, worker};
use tokio::task::{spawn_local, yield_now};

use crate::broker::Broker;
use crate::generations;

/// How long a look at the descriptors of one process may take.
const LOOK: Duration = Duration::from_secs(5);

/// Closes what generations had that outlived their connections, as each of them ends, for as long as the broker runs.
pub(crate) async fn keep(broker: &Rc<RefCell<Broker>>) {
    let outlived = Rc::clone(&broker.borrow().outlived);
    loop {
        for (connection, process) in outlived.take() {
            spawn_local(watch(Rc::clone(broker), connection, process));
        }
        outlived.changed().await;
    }
}

async fn watch(broker: Rc<RefCell<Broker>>, connection: ConnectionId, process: Pidfd) {
    let ended = match Watch::new(&process) {
        Ok(watch) => watch.readable().await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        let pid = process.pid();
        tracing::warn!(pid, %error, "cannot watch a process: what it has stays until it is released");
        return;
    }
    while broker.borrow_mut().listeners.ended(connection) {
        yield_now().await;
    }
}

/// Ends a connection; one that has many leases in many turns.
pub(crate) async fn disconnect_in_turns(broker: &RefCell<Broker>, id: ConnectionId) {
    generations::left(&mut broker.borrow_mut(), id);
    keep_what_is_used(broker, id).await;
    while broker.borrow_mut().listeners.end_leases(id) {
        yield_now().await;
    }
}

/// What a generation has that lives on without its connection stays.
async fn keep_what_is_used(broker: &RefCell<Broker>, id: ConnectionId) {
    let child = broker.borrow().outlived.forget(id);
    let unconfirmed = broker.borrow().listeners.unconfirmed(id);
    let Some((label, inodes)) = unconfirmed else { return };
    let Some(process) = lives(&label, child, inodes.clone()).await else { return };
    tracing::warn!(
        service = %label.service, generation = label.generation, pid = label.pid, count = inodes.len(),
        "a generation has outlived its supervisor, which had not said that it serves: its listeners stay with it"
    );
    let mut broker = broker.borrow_mut();
    broker.listeners.outlived(id, &inodes.into_iter().collect());
    broker.outlived.lives_on(id, process);
}

/// The process of a generation, if it lives and has one of these sockets.
async fn lives(label: &Label, child: Option<(i32, u64)>, inodes: Vec<u64>) -> Option<Pidfd> {
    let pid = label.pid.cast_signed();
    // Opened first: what it names cannot change under the look.
    let process = Pidfd::open(pid).ok().filter(|process| !process.has_ended())?;
    let has = worker::within(LOOK, move || holders::holds(pid, &inodes)).await;
    let lives = match has.and_then(std::convert::identity) {
        Ok(has) => has,
        // It may not be asked.
        Err(_) => {
            child.is_some_and(|child| process::start_time(pid).map(|at| (pid, at)) == Some(child))
        }
    };
    lives.then_some(process)
}
