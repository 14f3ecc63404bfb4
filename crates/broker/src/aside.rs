//! Opens listeners on a thread beside the one that serves. With many listeners the kernel's part
//! takes longest, and two threads do it in half the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_sys::{listen, worker};
use tokio::sync::oneshot;

/// Fewest listeners for which a thread is worth it: it takes as long to start as a dozen sockets
/// take to open.
const MANY: usize = 128;

/// A thread that opens listeners from the last one backwards, while the claim opens them from the
/// first one forwards, until they meet. Dropping it closes what it opened.
pub(crate) struct Aside {
    /// Number of listeners begun, by either side.
    begun: Arc<AtomicUsize>,
    count: usize,
    opened: Option<oneshot::Receiver<Vec<listen::Opened>>>,
    thread: Option<JoinHandle<()>>,
}

impl Aside {
    /// Starts the thread, if there are many listeners and each is nothing but a socket. Also
    /// returns None if no thread can be started.
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
            // The claim reaches the listener that cannot be opened, and finds out why.
            let sockets = mine.map_while(|listener| listen::open(listener).ok()).collect();
            // The claim may have ended meanwhile.
            let _ = send.send(sockets);
        };
        let thread = Some(worker::start("open", work).ok()?);
        Some(Self { begun, count, opened: Some(opened), thread })
    }

    /// Whether the claim opens the next listener, because the thread has not begun it.
    pub(crate) fn leaves_next(&self) -> bool {
        is_next(&self.begun, self.count)
    }

    /// Waits for the thread. Returns the listeners that it opened: the last ones, in order.
    pub(crate) async fn finish(mut self) -> Vec<listen::Opened> {
        let Some(opened) = &mut self.opened else { return Vec::new() };
        let mut sockets = opened.await.unwrap_or_default();
        // The thread has nothing left to close, so its end does not matter.
        drop(self.thread.take());
        sockets.reverse();
        sockets
    }

    /// As [`Self::finish`], but makes the thread begin no more.
    pub(crate) async fn stop(self) -> Vec<listen::Opened> {
        self.begun.store(self.count, Ordering::Relaxed);
        self.finish().await
    }
}

/// Whether not all were begun yet. If so, counts one more as begun.
fn is_next(begun: &AtomicUsize, count: usize) -> bool {
    begun.fetch_add(1, Ordering::Relaxed) < count
}

impl Drop for Aside {
    fn drop(&mut self) {
        // The thread begins no more.
        self.begun.store(self.count, Ordering::Relaxed);
        // Wait until the thread has closed its sockets, so that the next claim can bind them.
        drop(self.opened.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
