//! A process that is no generation and accepts: while it does, no handover can be proved.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use super::Stage;

/// Takes every connection that waits, probes too, until it is dropped.
pub(crate) struct Stranger {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// One that accepts from the stage's listener.
    #[track_caller]
    pub(crate) fn at(stage: &Stage) -> Self {
        let (_, fds) = stage.scene.wire().bind(&[&stage.address.to_string()]);
        let listeners: Vec<_> = fds.into_iter().map(TcpListener::from).collect();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // One that gets no processor for 5 ms looks like none. Only root may ask for more of it.
            let _ = rustix::process::setpriority_process(None, -20);
            while !told.load(Relaxed) {
                // Descriptors are handed out non-blocking: each look returns at once.
                listeners.iter().for_each(|listener| drop(listener.accept()));
                std::thread::yield_now();
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
