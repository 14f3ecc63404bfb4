//! Whether clients are accepted. Just before this process becomes another binary they are not: they
//! wait in the queues of the control socket and of the master CLI, and the next image serves them.
//! A connection that was accepted would end with this image, and its request be lost.

use std::pin::pin;
use std::rc::Rc;

use tokio::sync::watch;

/// Lets clients in while it is open. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Rc<watch::Sender<bool>>);

impl Default for Gate {
    /// An open gate.
    fn default() -> Self {
        Self(Rc::new(watch::Sender::new(true)))
    }
}

impl Gate {
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn close(&self) {
        self.0.send_replace(false);
    }

    /// Does some work, which stands still while the gate is closed.
    pub(crate) async fn while_open<T>(&self, work: impl Future<Output = T>) -> T {
        let mut state = self.0.subscribe();
        let mut work = pin!(work);
        loop {
            // Cannot fail: the sender lives as long as this gate.
            let _ = state.wait_for(|is_open| *is_open).await;
            tokio::select! {
                biased;
                _ = state.wait_for(|is_open| !*is_open) => {}
                done = &mut work => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn work_stands_still_while_it_is_closed() {
        let gate = Gate::default();
        let mut work = pin!(gate.while_open(async {
            yield_now().await;
            7
        }));
        tokio::select! {
            biased;
            _ = &mut work => panic!("done at once"),
            () = std::future::ready(()) => {}
        }
        gate.close();
        tokio::select! {
            biased;
            _ = &mut work => panic!("done while it is closed"),
            () = yield_now() => {}
        }
        gate.open();
        assert_eq!(work.await, 7);
    }
}
