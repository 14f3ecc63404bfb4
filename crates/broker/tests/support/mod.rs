//! A broker in a thread of the test, and a client that works on raw bytes.

#![allow(missing_docs, dead_code)]

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bindonce_broker::{Config, Error};
use bindonce_wire::framing::{Frame, Scanner};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Tests count the descriptors of the process, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) struct Scene {
    pub(crate) directory: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("bindonce-broker-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("directory");
        Self { directory, _alone: alone }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn config(&self) -> Config {
        Config::new(self.path("run/broker.sock"))
    }

    /// Starts a broker and waits until it answers.
    pub(crate) fn start(&self, config: Config) -> Broker {
        let socket = config.socket.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || run(config, stopped));
        let broker = Broker { socket, stop: Some(stop), thread: Some(thread) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&broker.socket).is_err() {
            assert!(Instant::now() < deadline, "the broker does not answer");
            std::thread::yield_now();
        }
        broker
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Runs a broker in this thread until `stopped` fires.
pub(crate) fn run(config: Config, stopped: oneshot::Receiver<()>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(bindonce_broker::run(config, async {
        let _ = stopped.await;
    }))
}

pub(crate) struct Broker {
    pub(crate) socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Broker {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// Number of descriptors that the process has open, once the broker has seen all but `clients`
    /// clients end.
    pub(crate) fn descriptors(&self, clients: usize) -> usize {
        let mut client = self.client();
        let deadline = Instant::now() + Duration::from_secs(10);
        while client.call("status", &json!([]))["result"]["broker"]["connections"] != clients + 1 {
            assert!(Instant::now() < deadline, "connections do not end");
        }
        // Both ends of this client's connection do not count.
        open_descriptors() - 2
    }

    pub(crate) fn stop(mut self) {
        self.end().expect("an orderly end");
    }

    fn end(&mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match self.thread.take() {
            Some(thread) => thread.join().expect("the broker's thread"),
            None => Ok(()),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    scanner: Scanner,
    rest: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Number of descriptors in each message that carried some.
    pub(crate) batches: Vec<usize>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        Self {
            stream,
            scanner: Scanner::new(1 << 26),
            rest: Vec::new(),
            descriptors: Vec::new(),
            batches: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    /// Sends bytes, with `count` descriptors on the first one.
    pub(crate) fn bring(&mut self, bytes: &[u8], count: usize) {
        let file = std::fs::File::open("/dev/null").expect("open");
        let sent = bindonce_fd::send(&self.stream, bytes, &vec![file.as_fd(); count]);
        assert_eq!(sent.expect("send"), bytes.len());
    }

    fn receive(&mut self) -> usize {
        let mut buffer = vec![0; 1 << 16];
        let mut received = Vec::new();
        let count = bindonce_fd::recv(self.stream.as_fd(), &mut buffer, &mut received)
            .expect("receive in time");
        if !received.is_empty() {
            self.batches.push(received.len());
        }
        self.descriptors.append(&mut received);
        self.rest.extend_from_slice(&buffer[..count]);
        count
    }

    /// The next reply, or None at the end of the stream.
    pub(crate) fn reply(&mut self) -> Option<Value> {
        loop {
            let mut input = &self.rest[..];
            let frame = self.scanner.next(&mut input);
            self.rest = input.to_vec();
            match frame {
                Some(Frame::Request(text)) => {
                    return Some(serde_json::from_slice(&text).expect("reply"));
                }
                Some(other) => unreachable!("{other:?}"),
                None if self.receive() == 0 => return None,
                None => {}
            }
        }
    }

    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.send(request.to_string().as_bytes());
        self.reply().expect("a reply")
    }

    /// Binds. Returns the entries of the reply and the descriptors.
    pub(crate) fn bind(&mut self, listen: &[&str]) -> (Vec<Value>, Vec<OwnedFd>) {
        let elements: Vec<Value> = listen.iter().map(|text| json!({"listen": text})).collect();
        let reply = self.call("bind", &Value::Array(elements));
        let listeners = reply["result"]["listeners"].as_array().expect("listeners").clone();
        while self.descriptors.len() < listeners.len() {
            assert_ne!(self.receive(), 0);
        }
        (listeners, std::mem::take(&mut self.descriptors))
    }

    pub(crate) fn refused(&mut self, method: &str, params: &Value) -> (i64, String, Value) {
        let mut reply = self.call(method, params);
        let error = reply["error"].take();
        let message = error["message"].as_str().expect("a message").to_owned();
        (error["code"].as_i64().expect("a code"), message, error["data"].clone())
    }
}

pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Waits until no broker thread is looking for holders.
pub(crate) fn wait_for_threads() {
    let looks = || {
        let tasks = fs::read_dir("/proc/self/task").expect("/proc").flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.into_iter().any(|name| name.trim() == "inquiry")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while looks() {
        assert!(Instant::now() < deadline, "a look for the holder of an address does not end");
        std::thread::yield_now();
    }
}

/// Waits until the process has as many descriptors open as before.
pub(crate) fn assert_descriptors(expected: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let open = open_descriptors();
        if open == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{open} descriptors are open, {expected} were: {:?}",
            fs::read_dir("/proc/self/fd")
                .expect("/proc")
                .flatten()
                .map(|fd| fs::read_link(fd.path()))
                .collect::<Vec<_>>()
        );
        std::thread::yield_now();
    }
}
