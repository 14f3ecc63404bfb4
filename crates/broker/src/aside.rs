//! Listeners that are opened on a thread beside the one that serves: of many the kernel's part takes longest, and two
//! threads do it in half the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_sys::{listen, worker};
use tokio::sync::oneshot;

/// A thread takes as long to start as a dozen sockets take to open.
const MANY: usize = 128;

/// A thread that opens listeners from the last one on, while the claim opens them from the first one on, until they meet.
/// Dropped, it has closed what it opened.
pub(crate) struct Aside {
    /// How many were begun, by either.
    begun: Arc<AtomicUsize>,
    count: usize,
    opened: Option<oneshot::Receiver<Vec<listen::Opened>>>,
    thread: Option<JoinHandle<()>>,
}

impl Aside {
    /// Begins, if these are many and nothing but sockets comes of any of them; None too if there is no thread for it.
    pub(crate) fn begin(listeners: &[Arc<Listener>]) -> Option<Self> {
        let is_socket = |listener: &Arc<Listener>| {
            listener.options.netns.is_none() && !matches!(listener.address, Address::Unix(_))
        };
        if listeners.len() < MANY || !listeners.iter().all(is_socket) {
            return None;
        }
        let (count, begun) = (listeners.len(), Arc::new(AtomicUsize::new(0)));
        let (send, opened) = oneshot::channel();
        let (listeners, either) = (listeners.to_vec(), Arc::clone(&begun));
        let work = move || {
            let mine = listeners.iter().rev().take_while(|_| is_next(&either, count));
            // The claim comes to one that cannot be opened, and finds out why.
            let sockets = mine.map_while(|listener| listen::open(listener).ok()).collect();
            // The claim may have been given up meanwhile.
            let _ = send.send(sockets);
        };
        let thread = Some(worker::start("open", work).ok()?);
        Some(Self { begun, count, opened: Some(opened), thread })
    }

    /// Whether the claim opens the next one: the thread has not begun it.
    pub(crate) fn leaves_next(&self) -> bool {
        is_next(&self.begun, self.count)
    }

    /// What the thread has opened: the last listeners, in their order.
    pub(crate) async fn finish(mut self) -> Vec<listen::Opened> {
        let Some(opened) = &mut self.opened else { return Vec::new() };
        let mut sockets = opened.await.unwrap_or_default();
        // It has nothing to close any more: nobody waits for its end.
        drop(self.thread.take());
        sockets.reverse();
        sockets
    }

    /// The same where no more are needed.
    pub(crate) async fn stop(self) -> Vec<listen::Opened> {
        self.begun.store(self.count, Ordering::Relaxed);
        self.finish().await
    }
}

/// Whether fewer than all were begun; if so, one more is.
fn is_next(begun: &AtomicUsize, count: usize) -> bool {
    begun.fetch_add(1, Ordering::Relaxed) < count
}

impl Drop for Aside {
    fn drop(&mut self) {
        // It begins no more.
        self.begun.store(self.count, Ordering::Relaxed);
        // Its sockets are closed when this ends, so that the next claim of the same addresses finds them free.
        drop(self.opened.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
