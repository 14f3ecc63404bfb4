//! Listeners that are opened on a thread beside the one that serves: of many the kernel's part takes longest, and both
//! halves of it are done at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_sys::{listen, worker};
use tokio::sync::oneshot;

/// A thread takes as long to start as a dozen sockets take to open.
const MANY: usize = 128;

type Outcome = Result<listen::Opened, bindonce_sys::Error>;

/// Listeners that such a thread opens. Dropped, it has closed what it opened.
pub(crate) struct Aside {
    opened: Option<oneshot::Receiver<Vec<Outcome>>>,
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Aside {
    /// Whether half of these may be opened so: many, and nothing but sockets comes of any of them.
    pub(crate) fn is_worth_it(listeners: &[Listener]) -> bool {
        let is_socket = |listener: &Listener| {
            listener.options.netns.is_none() && !matches!(listener.address, Address::Unix(_))
        };
        listeners.len() >= MANY && listeners.iter().all(is_socket)
    }

    /// Begins; None if there is no thread for it.
    pub(crate) fn begin(listeners: &[Listener]) -> Option<Self> {
        let given_up = Arc::new(AtomicBool::new(false));
        let (send, opened) = oneshot::channel();
        let (stop, listeners) = (Arc::clone(&given_up), listeners.to_vec());
        let work = move || {
            let mut sockets = Vec::with_capacity(listeners.len());
            for listener in &listeners {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                sockets.push(listen::open(listener));
                if sockets.last().is_some_and(Result::is_err) {
                    break;
                }
            }
            // The claim may have been given up meanwhile.
            let _ = send.send(sockets);
        };
        let thread = Some(worker::start("open", work).ok()?);
        Some(Self { opened: Some(opened), given_up, thread })
    }

    /// What became of each, in order, up to the first that could not be opened.
    pub(crate) async fn finish(mut self) -> Vec<Outcome> {
        match self.opened.take() {
            // It is sent before the thread ends.
            Some(opened) => opened.await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        // Its sockets are closed when this ends, so that the next claim of the same addresses finds them free.
        drop(self.opened.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
