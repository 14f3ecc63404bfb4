//! A real broker in a thread of the test, on a socket in a directory of its own.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use tokio::sync::oneshot;

/// A broker that ends, and whose directory goes, when it is dropped.
pub(crate) struct Broker {
    directory: PathBuf,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts one; its socket is there when this returns.
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("bindonce-client-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).expect("a new directory");
        let socket = directory.join("bindonce.sock");
        // The broker renames its socket into place when it listens.
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
        inotify::add_watch(&watch, &directory, inotify::WatchFlags::MOVED_TO).expect("watch");
        let config = bindonce_broker::Config::new(&socket);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime.block_on(bindonce_broker::run(config, shutdown)).expect("broker");
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut events = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&watch, &mut events);
        while !socket.exists() {
            assert!(bindonce::wait_readable(&watch, Some(deadline)).expect("poll"), "no broker");
            events.next().expect("an event");
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
