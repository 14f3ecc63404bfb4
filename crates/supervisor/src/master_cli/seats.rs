//! Limits the number of clients: when all seats are taken, an idle client loses its seat to the
//! next one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The number of clients at once; haproxy's master allows 10.
const SEATS: usize = 64;

/// The seats of all clients.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: RefCell<Vec<Rc<Seat>>>,
    left: Notify,
}

/// The seat of one client.
#[derive(Debug)]
pub(super) struct Seat {
    /// Since when the client is idle; none while it is being answered.
    idle: Cell<Option<Instant>>,
    task: RefCell<Option<AbortHandle>>,
}

/// A taken seat; dropping it frees the seat.
pub(super) struct Taken {
    seats: Rc<Seats>,
    seat: Rc<Seat>,
}

impl Seats {
    /// Waits until a seat is free. If none is, the client that has been idle longest loses its
    /// seat.
    pub(super) async fn free(&self) {
        loop {
            let left = self.left.notified();
            if self.taken.borrow().len() < SEATS {
                return;
            }
            self.end_the_idlest();
            left.await;
        }
    }

    fn end_the_idlest(&self) {
        let taken = self.taken.borrow();
        let idle = taken.iter().filter_map(|seat| Some((seat.idle.get()?, seat)));
        if let Some((_, seat)) = idle.min_by_key(|(since, _)| *since)
            && let Some(task) = &*seat.task.borrow()
        {
            task.abort();
        }
    }

    /// Takes a seat.
    pub(super) fn take(self: &Rc<Self>) -> Taken {
        let seat =
            Rc::new(Seat { idle: Cell::new(Some(Instant::now())), task: RefCell::default() });
        self.taken.borrow_mut().push(Rc::clone(&seat));
        Taken { seats: Rc::clone(self), seat }
    }
}

impl Taken {
    /// The task that serves this client.
    pub(super) fn served_by(seat: &Rc<Seat>, task: AbortHandle) {
        seat.task.replace(Some(task));
    }

    pub(super) fn seat(&self) -> Rc<Seat> {
        Rc::clone(&self.seat)
    }

    /// Marks the client as idle, or as being answered.
    pub(super) fn set_idle(&self, idle: bool) {
        self.seat.idle.set(idle.then(Instant::now));
        if idle {
            // If all clients were busy, this one can lose its seat now.
            self.seats.left.notify_one();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.taken.borrow_mut().retain(|seat| !Rc::ptr_eq(seat, &self.seat));
        self.seats.left.notify_one();
    }
}
