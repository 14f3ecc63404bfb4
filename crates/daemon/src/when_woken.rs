//! A future that is polled only when it was woken itself.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Wraps a future of many long-lived parts. A local task set polls such a future in each round,
/// mostly because a task beside it was woken; this spares the polls for which the future itself was
/// not woken.
#[derive(Debug)]
pub struct WhenWoken<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    /// The waker of the task that polls this.
    outer: Mutex<Waker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the waker is read: a poll that comes in between sees the flag.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.outer.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}

impl<F: Future> WhenWoken<F> {
    /// Wraps a future.
    pub fn new(future: F) -> Self {
        let outer = Mutex::new(Waker::noop().clone());
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), outer });
        Self { future: Box::pin(future), waker: Arc::clone(&bell).into(), bell }
    }
}

impl<F: Future> Future for WhenWoken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let outer = &this.bell.outer;
        outer.lock().unwrap_or_else(PoisonError::into_inner).clone_from(context.waker());
        if !this.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_polled_when_it_is_woken_and_at_no_other_time() {
        let (rung, polls) = (Rc::new(Notify::new()), Cell::new(0));
        let waits = async {
            let notified = rung.notified();
            let mut notified = std::pin::pin!(notified);
            std::future::poll_fn(|context| {
                polls.set(polls.get() + 1);
                notified.as_mut().poll(context)
            })
            .await;
        };
        let mut waits = WhenWoken::new(waits);
        let beside = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(polls.get(), 1);
            rung.notify_one();
        };
        tokio::join!(&mut waits, beside);
        assert_eq!(polls.get(), 2);
    }
}
