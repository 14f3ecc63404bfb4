//! The order in which connections are served: fair by user, then by connection.
//!
//! All work for a client happens in steps of its connection's task: a step is one poll, from one
//! wait to the next. Each step takes a turn ([`bindonce_core::turns`]), and between two turns the
//! kernel is asked which connections are ready. So a request is served after at most one step of
//! each other user, however many connections that user has; and a task that has much to do yields
//! (`yield_now`) to bound the wait of others. The first step after the kernel was asked, while no
//! task waits, is taken at once.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bindonce_core::turns;
use tokio::sync::Notify;
use tokio::task::yield_now;

thread_local! {
    /// How often this thread's runtime has waited for the kernel.
    static WAITED: Cell<u64> = const { Cell::new(0) };
}

/// A runtime for one daemon on this thread, which notes when the kernel was asked what is ready.
/// Without that, each step costs one more round of the runtime.
pub fn runtime() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().on_thread_unpark(|| WAITED.set(WAITED.get().wrapping_add(1)));
    builder
}

/// The turns of one server.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: RefCell<turns::Turns<Rc<Ticket>>>,
    /// A task has its turn.
    taken: Cell<bool>,
    /// A turn has ended since the kernel was asked what is ready.
    ended: Cell<bool>,
    /// The value of [`WAITED`] when the last turn ended.
    ended_at: Cell<u64>,
    /// Notified when a task waits or a turn has ended.
    changed: Notify,
}

#[derive(Debug)]
struct Ticket {
    stage: Cell<Stage>,
    waker: RefCell<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The task has nothing to do.
    Idle,
    /// The task waits for its turn.
    Waiting,
    /// The task has its turn.
    Granted,
    /// The task no longer exists.
    Gone,
}

impl Turns {
    /// Gives turns, one at a time, for as long as the server runs. Runs as a task of its own, so
    /// tasks that became ready before it queue before it gives the next turn.
    pub(super) async fn give(&self) {
        loop {
            self.changed.notified().await;
            if self.taken.get() {
                continue;
            }
            if self.ended.take() && !self.kernel_was_asked() && !self.is_idle() {
                // Connections that became ready meanwhile queue before the next turn is given.
                yield_now().await;
            }
            while let Some(ticket) = self.next() {
                if ticket.stage.get() == Stage::Waiting {
                    self.taken.set(true);
                    ticket.stage.set(Stage::Granted);
                    ticket.waker.borrow().wake_by_ref();
                    break;
                }
            }
        }
    }

    /// Whether the runtime has waited for the kernel since the last turn ended.
    fn kernel_was_asked(&self) -> bool {
        self.ended_at.get() != WAITED.get()
    }

    /// Takes a turn at once, if no other task is due before.
    fn take(&self, user: u32) -> bool {
        let free = self.is_idle() && self.kernel_was_asked();
        if free {
            self.taken.set(true);
            self.waiting.borrow_mut().take(user);
        }
        free
    }

    fn next(&self) -> Option<Rc<Ticket>> {
        self.waiting.borrow_mut().give()
    }

    /// Whether no task waits for a turn or has one.
    pub(super) fn is_idle(&self) -> bool {
        !self.taken.get() && self.waiting.borrow().is_empty()
    }

    /// Wraps a task, so each of its steps takes a turn of this user.
    pub(super) fn paced<F: Future>(self: &Rc<Self>, user: u32, task: F) -> Paced<F> {
        let waker = RefCell::new(Waker::noop().clone());
        let ticket = Rc::new(Ticket { stage: Cell::new(Stage::Idle), waker });
        Paced { task: Box::pin(task), turn: Place { turns: Rc::clone(self), user, ticket } }
    }
}

/// A task that takes turns.
pub(super) struct Paced<F> {
    task: Pin<Box<F>>,
    turn: Place,
}

struct Place {
    turns: Rc<Turns>,
    user: u32,
    ticket: Rc<Ticket>,
}

impl Place {
    /// Ends the turn, if the task has it.
    fn end(&self, stage: Stage) {
        if self.ticket.stage.replace(stage) == Stage::Granted {
            let turns = &self.turns;
            turns.taken.set(false);
            turns.ended.set(true);
            turns.ended_at.set(WAITED.get());
            if !turns.is_idle() {
                turns.changed.notify_one();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end(Stage::Gone);
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let Place { turns, user, ticket } = &this.turn;
        if ticket.stage.get() == Stage::Idle && turns.take(*user) {
            ticket.stage.set(Stage::Granted);
        }
        match ticket.stage.get() {
            Stage::Granted => {
                let step = this.task.as_mut().poll(context);
                this.turn.end(Stage::Idle);
                step
            }
            Stage::Waiting | Stage::Gone => {
                ticket.waker.borrow_mut().clone_from(context.waker());
                Poll::Pending
            }
            Stage::Idle => {
                ticket.stage.set(Stage::Waiting);
                ticket.waker.borrow_mut().clone_from(context.waker());
                turns.waiting.borrow_mut().enter(*user, Rc::clone(ticket));
                turns.changed.notify_one();
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as Peer;

    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;

    /// Runs tasks, each with a user and its number of steps, and returns the users in the order of
    /// their steps. `late` is the user of a task that waits for a byte, which comes within a step
    /// of another task.
    fn order(tasks: &[(u32, usize)], late: Option<u32>) -> Vec<u32> {
        let runtime = runtime().build();
        let served = Rc::new(RefCell::new(Vec::new()));
        let (mut peer, waits) = Peer::pair().expect("a pair of sockets");
        runtime.expect("a runtime").block_on(async {
            let turns = Rc::new(Turns::default());
            let set = LocalSet::new();
            let giving = Rc::clone(&turns);
            set.spawn_local(async move { giving.give().await });
            let mut handles = Vec::new();
            if let Some(user) = late {
                waits.set_nonblocking(true).expect("non-blocking");
                let (waits, served) = (UnixStream::from_std(waits), Rc::clone(&served));
                let waits = waits.expect("a stream");
                handles.push(set.spawn_local(turns.paced(user, async move {
                    waits.readable().await.expect("readable");
                    served.borrow_mut().push(user);
                })));
                // The late task has started, and waits.
                set.run_until(async {
                    while !turns.is_idle() {
                        yield_now().await;
                    }
                })
                .await;
            }
            for (user, steps) in tasks.iter().copied() {
                let served = Rc::clone(&served);
                let mut peer = peer.try_clone().expect("a copy");
                handles.push(set.spawn_local(turns.paced(user, async move {
                    for _ in 0..steps {
                        served.borrow_mut().push(user);
                        if served.borrow().len() == 1 {
                            peer.write_all(b"x").expect("a byte");
                        }
                        yield_now().await;
                    }
                })));
            }
            set.run_until(async {
                for handle in handles {
                    handle.await.expect("a task");
                }
            })
            .await;
        });
        let _ = peer.flush();
        served.take()
    }

    #[test]
    fn users_take_turns_however_many_connections_each_has() {
        let tasks: Vec<(u32, usize)> = (0..500).map(|_| (7, 2)).chain([(8, 3)]).collect();
        let served = order(&tasks, None);
        assert_eq!(served.len(), 1003);
        let places: Vec<usize> = (0..served.len()).filter(|place| served[*place] == 8).collect();
        assert!(
            places[0] <= 1 && places[1] <= places[0] + 2 && places[2] <= places[1] + 2,
            "{places:?}"
        );
    }

    #[test]
    fn whoever_becomes_ready_in_a_turn_of_another_user_is_next() {
        let tasks = [(7, 1); 500];
        let served = order(&tasks, Some(8));
        assert!(served.iter().position(|user| *user == 8) <= Some(2), "{:?}", &served[..9]);
        // Of the same user, the tasks that waited before are first.
        let served = order(&[(7, 1); 5], Some(7));
        assert_eq!(served.len(), 6);
    }

    /// A task that becomes ready while no task waits takes its turn in the same round; tasks that
    /// follow in that round wait for the next.
    #[test]
    fn the_first_step_after_the_kernel_was_asked_is_taken_at_once() {
        runtime().build().expect("a runtime").block_on(LocalSet::new().run_until(async {
            let turns = Rc::new(Turns::default());
            let mut context = Context::from_waker(Waker::noop());
            let mut first = turns.paced(7, async { yield_now().await });
            // The runtime has not waited for the kernel yet.
            assert!(Pin::new(&mut first).poll(&mut context).is_pending());
            assert!(!turns.is_idle());
            drop(first);
            assert_eq!(turns.next().map(|ticket| ticket.stage.get()), Some(Stage::Gone));
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let [mut other, mut third] = [7, 8].map(|user| turns.paced(user, async {}));
            let mut second = turns.paced(7, async { yield_now().await });
            assert!(Pin::new(&mut second).poll(&mut context).is_pending());
            assert!(turns.is_idle(), "its step is over");
            assert!(Pin::new(&mut other).poll(&mut context).is_pending());
            assert!(Pin::new(&mut third).poll(&mut context).is_pending());
            let place = |ticket: &Rc<Ticket>| {
                [&other, &third].iter().position(|task| Rc::ptr_eq(&task.turn.ticket, ticket))
            };
            // The user that had the turn before comes last.
            assert_eq!(turns.next().as_ref().map(place), Some(Some(1)));
            assert_eq!(turns.next().as_ref().map(place), Some(Some(0)));
        }));
    }

    #[test]
    fn a_task_that_is_dropped_in_its_turn_or_before_it_holds_up_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(LocalSet::new().run_until(async {
            let turns = Rc::new(Turns::default());
            let giving = Rc::clone(&turns);
            tokio::task::spawn_local(async move { giving.give().await });
            let waits = tokio::task::spawn_local(turns.paced(7, std::future::pending::<()>()));
            let panics = tokio::task::spawn_local(turns.paced(7, async { panic!("on purpose") }));
            let last = tokio::task::spawn_local(turns.paced(7, async {}));
            yield_now().await;
            waits.abort();
            assert!(panics.await.is_err_and(|error| error.is_panic()));
            last.await.expect("served");
            assert!(turns.is_idle());
        }));
    }
}
