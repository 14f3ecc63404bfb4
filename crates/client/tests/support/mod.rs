//! A real broker in a thread of the test, on a socket in a directory of its own.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// A broker. When it is dropped, the broker ends and its directory is removed.
pub(crate) struct Broker {
    directory: PathBuf,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker, which answers when this returns.
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("bindonce-client-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).expect("a new directory");
        let socket = directory.join("bindonce.sock");
        let config = bindonce_broker::Config::new(&socket);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime.block_on(bindonce_broker::run(config, shutdown)).expect("broker");
        });
        // The path exists a moment before the broker listens.
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "no broker");
            thread::sleep(Duration::from_millis(5));
        }
        Self { directory, socket, stop: Some(stop), thread: Some(thread) }
    }

    /// The path of its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the broker ended well");
        }
        std::fs::remove_dir_all(&self.directory).expect("the directory goes");
    }
}
