//! A client's connection to the master CLI, and the state that all clients share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bindonce_haproxy::cli::master::Input;
use bindonce_haproxy::config::MasterSocket;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, oneshot};

use super::ask::{Ask, Reloaded, Seen};
use crate::context::Context;
use crate::control::gate::Gate;
use crate::message::Message;

/// How long a client may take to read what is sent.
const WRITE: Duration = Duration::from_secs(30);

/// How many connections to generations may be open for clients at once. It leaves some of the ten
/// that a haproxy has by default.
const TO_GENERATIONS: usize = 6;

/// How long a command waits for such a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How long nothing must have moved on such a connection before it is closed for another client.
const STILL: Duration = Duration::from_secs(1);

/// How long an unused connection to a generation stays open.
const READY: Duration = Duration::from_secs(2);

/// How long a refused client's further input is read, so that it sees the reason.
const DISCARD: Duration = Duration::from_secs(2);

/// The state that all clients share.
#[derive(Clone)]
pub(super) struct Hub {
    cx: Context,
    to_generations: Rc<Semaphore>,
    /// Notified when a client waits for one of these, and as long as it waits.
    wanted: Rc<Notify>,
    /// How many clients wait for one.
    waiting: Rc<Cell<usize>>,
    /// A connection opened before it is needed, with the admin socket it leads to.
    ready: Rc<RefCell<Option<(PathBuf, UnixStream)>>>,
}

impl Hub {
    pub(super) fn new(cx: Context) -> Self {
        let to_generations = Rc::new(Semaphore::new(TO_GENERATIONS));
        Self {
            cx,
            to_generations,
            wanted: Rc::default(),
            waiting: Rc::default(),
            ready: Rc::default(),
        }
    }

    /// The right to open a connection to a generation; None if there is none in time.
    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(permit) = self.to_generations.try_acquire() {
            return Some(permit);
        }
        let _waits = Waits::begin(&self.waiting);
        let permit = async {
            let mut permit = pin!(self.to_generations.acquire());
            loop {
                // One notification may stand for several clients, so each repeats it.
                self.wanted.notify_one();
                if let Ok(permit) = tokio::time::timeout(STILL, &mut permit).await {
                    return permit.ok();
                }
            }
        };
        bindonce_sys::patience::timeout(CONNECT, permit).await.ok()?
    }

    /// Waits until a connection on which nothing moves from now on is needed for another client.
    pub(super) async fn is_needed(&self) {
        tokio::time::sleep(STILL).await;
        loop {
            self.wanted.notified().await;
            // The client that gave this notification may have its connection by now.
            if self.waiting.get() > 0 {
                return;
            }
        }
    }

    pub(super) fn gate(&self) -> Gate {
        self.cx.gate.clone()
    }

    /// A connection to this admin socket.
    pub(super) async fn connect(&self, socket: &Path) -> io::Result<UnixStream> {
        let ready = self.ready.take().filter(|(at, stream)| {
            let open = || {
                stream.try_read(&mut [0; 1]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
            };
            at == socket && open()
        });
        match ready {
            Some((_, stream)) => Ok(stream),
            None => UnixStream::connect(socket).await,
        }
    }

    /// Opens the next connection to a generation, for a short time: after one client has asked it,
    /// others may follow.
    pub(super) fn prepare(&self, socket: PathBuf) {
        let hub = self.clone();
        crate::tasks::spawn(async move {
            if hub.ready.borrow().is_none()
                && let Ok(stream) = UnixStream::connect(&socket).await
            {
                hub.ready.replace(Some((socket, stream)));
                tokio::time::sleep(READY).await;
                hub.forget();
            }
        });
    }

    /// Closes the connection that was opened in advance: it would keep alive a generation that
    /// should end.
    pub(super) fn forget(&self) {
        self.ready.take();
    }

    /// Asks the loop for its state.
    pub(super) async fn look(&self) -> io::Result<Seen> {
        self.ask(Ask::Look).await
    }

    /// The same, after the first start has ended: that generation may answer its own clients a
    /// moment earlier.
    pub(super) async fn begun(&self) -> io::Result<Seen> {
        self.ask(Ask::Begun).await
    }

    /// The answer to `show env`: a master's environment.
    pub(super) fn environment(&self, name: Option<&str>) -> String {
        let sockets = MasterSocket::variable_of(&self.cx.settings.master_cli);
        let own = [(MasterSocket::VARIABLE, sockets), ("HAPROXY_MWORKER", "1".to_owned())];
        let all = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        let all = all.chain(own.map(|(name, value)| (name.to_owned(), value)));
        let all: BTreeMap<String, String> = all.collect();
        let shown = all.iter().filter(|(of, _)| name.is_none_or(|name| *of == name));
        let text: String = shown.map(|(name, value)| format!("{name}={value}\n")).collect();
        if text.is_empty() { "Variable not found\n".to_owned() } else { text }
    }

    pub(super) async fn reload(&self, hard: bool, pid: Option<i32>) -> io::Result<Reloaded> {
        self.ask(|reply| Ask::Reload { hard, pid, reply }).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        self.cx.send(Message::Master(ask(reply)));
        answer.await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A client that waits, also one whose task is ended meanwhile.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The client's connection.
pub(super) struct Client<S> {
    pub(super) stream: S,
    pub(super) input: Input,
    /// The client has closed its sending side.
    pub(super) ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) async fn say(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let written = bindonce_sys::patience::timeout(WRITE, self.stream.write_all(text)).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Sends a last text and ends the conversation.
    pub(super) async fn end(&mut self, text: &[u8]) -> io::Result<Goes> {
        self.say(text).await?;
        Ok(Goes::Ends)
    }

    /// Receives more input, for `limit` at most.
    pub(super) async fn receive(&mut self, limit: Duration) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let read = bindonce_sys::patience::timeout(limit, self.stream.read(&mut bytes)).await;
        let read = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        self.ended = read == 0;
        self.input.push(&bytes[..read]);
        Ok(())
    }

    /// Refuses input that is too long, and reads on for a moment: closing a connection with unread
    /// input resets it, and the client would not see the reason.
    pub(super) async fn refuse(&mut self, text: &str) -> io::Result<()> {
        self.input.clear();
        self.say(text.as_bytes()).await?;
        self.stream.shutdown().await?;
        let mut bytes = vec![0; 16 * 1024];
        let discard = async { while matches!(self.stream.read(&mut bytes).await, Ok(1..)) {} };
        let _ = bindonce_sys::patience::timeout(DISCARD, discard).await;
        Ok(())
    }
}

/// Whether the conversation continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    On,
    Ends,
}
