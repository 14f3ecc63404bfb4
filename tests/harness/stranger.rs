//! A process that is no generation but accepts: while it does, no handover can be proved.

use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};

use super::Stage;

/// Interval at which it checks whether to stop, in milliseconds.
const LOOK: u8 = 20;

/// Takes every waiting connection, probes too, until it is dropped.
pub(crate) struct Stranger {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// Starts a stranger that accepts from the stage's listener.
    #[track_caller]
    pub(crate) fn at(stage: &Stage) -> Self {
        let (_, fds) = stage.scene.wire().bind(&[&stage.address.to_string()]);
        let listeners: Vec<_> = fds.into_iter().map(TcpListener::from).collect();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // A stranger that gets no processor for 5 ms looks like none. Only root may ask for
            // priority, and a nice value has no effect against other sessions (sched(7),
            // autogroups).
            let thread = rustix::thread::gettid().to_string();
            let _ = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).output();
            while !told.load(Relaxed) {
                let mut waiting: Vec<_> = listeners
                    .iter()
                    .map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN))
                    .collect();
                let _ = poll(&mut waiting, LOOK);
                // Descriptors are handed out non-blocking: each accept returns at once.
                listeners.iter().for_each(|listener| drop(listener.accept()));
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
