//! The end of a connection, and generations that outlive it because their supervisor was killed
//! before the broker knew that they serve.
//!
//! Such a generation uses its listeners, confirmed or not. They stay until the generation's process
//! ends, which the kernel reports through a pidfd, or until the next supervisor claims them. A
//! process counts as the generation's if it has these very sockets; where its descriptors may not
//! be read, if it was a child of the peer that named it. A pid of another pid namespace passes
//! neither test.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::registry::{ConnectionId, Label, Process};
use bindonce_sys::Errno;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::watch::Watch;
use bindonce_sys::{holders, worker};
use tokio::task::{spawn_local, yield_now};

use crate::broker::Broker;
use crate::generations;
use crate::outlived::Survivor;

/// How long a look at the descriptors of one process may take.
const LOOK: Duration = Duration::from_secs(5);

/// Closes the listeners of generations that outlived their connections, as each generation ends,
/// for as long as the broker runs.
pub(crate) async fn keep(broker: &Rc<RefCell<Broker>>) {
    let outlived = Rc::clone(&broker.borrow().outlived);
    loop {
        for survivor in outlived.take() {
            spawn_local(watch(Rc::clone(broker), survivor));
        }
        outlived.changed().await;
    }
}

/// Waits for the end of a process, which may have ended already.
async fn watch(broker: Rc<RefCell<Broker>>, (process, pidfd): Survivor) {
    let ended = async {
        match pidfd? {
            Some(pidfd) => Watch::new(&pidfd)?.readable().await,
            None => Ok(()),
        }
    };
    if let Err(error) = ended.await {
        let pid = process.pid;
        tracing::warn!(pid, %error, "cannot watch a process: its listeners stay until they are released");
        return;
    }
    broker.borrow().outlived.ended(process);
    while broker.borrow_mut().listeners.ended(process) {
        yield_now().await;
    }
}

/// Ends a connection, in many turns if it has many leases.
pub(crate) async fn disconnect_in_turns(broker: &RefCell<Broker>, id: ConnectionId) {
    generations::left(&mut broker.borrow_mut(), id);
    keep_what_is_used(broker, id).await;
    while broker.borrow_mut().listeners.end_leases(id) {
        yield_now().await;
    }
}

/// Keeps the listeners of a generation that lives on without its connection.
async fn keep_what_is_used(broker: &RefCell<Broker>, id: ConnectionId) {
    let child = broker.borrow().outlived.forget(id);
    let unconfirmed = broker.borrow().listeners.unconfirmed(id);
    let Some((label, inodes)) = unconfirmed else { return };
    let Some(process) = lives(&label, child, inodes.clone()).await else { return };
    tracing::warn!(
        service = %label.service, generation = label.generation, pid = label.pid, count = inodes.len(),
        "a generation outlived a supervisor that had not yet reported it as serving: it keeps its listeners"
    );
    let mut broker = broker.borrow_mut();
    broker.listeners.outlived(id, process, &inodes.into_iter().collect());
    broker.outlived.live_on([process]);
}

/// The process of a generation, if it lives and has one of these sockets.
async fn lives(label: &Label, child: Option<(i32, u64)>, inodes: Vec<u64>) -> Option<Process> {
    let pid = label.pid.cast_signed();
    // Open the pidfd first: the pid cannot come to mean another process during the look.
    let pidfd = match Pidfd::open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return None,
        // This process lacks something (EMFILE). What was seen when it joined must do.
        Err(_) => return child.map(|(_, start)| Process { pid: label.pid, start }),
    };
    if pidfd.has_ended() {
        return None;
    }
    let start = process::start_time(pid).or_else(|| child.map(|(_, start)| start))?;
    let has = worker::within(LOOK, move || holders::holds(pid, &inodes)).await;
    let lives = match has.and_then(std::convert::identity) {
        Ok(has) => has,
        // Its descriptors may not be read.
        Err(_) => child == Some((pid, start)),
    };
    // If it has ended meanwhile, the watch sees that.
    lives.then_some(Process { pid: label.pid, start })
}
