//! The service manager's descriptor store, in which every listener outlives this process.
//!
//! Under systemd (FileDescriptorStoreMax=) each listener is in the store from the moment it is
//! opened until it is closed, under an opaque name, beside a memory file with the manifest that
//! describes each. After a crash or a restart the next broker finds them among the descriptors
//! passed to it.
//!
//! The manifest decides. A descriptor goes into the store before its record is written, and is
//! removed after the record of its end. So a kill between the two leaves at worst a descriptor that
//! no client got, and the next broker closes it. A reply that hands out a new listener
//! waits for both ([`Store::settled`]). Nothing else here waits for the manager: what it cannot
//! take yet is queued.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use bindonce_daemon::notify::Notifier;
use bindonce_sys::{Errno, memory};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

/// Name of the control socket, in bindonce.socket and in the store.
pub(super) const CONTROL: &str = "control";

/// How long a reply waits for the manager to take what it must keep. After that the listener is
/// handed out, and stored as soon as the manager reads again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the kernel may lack for a moment: memory, or room for more descriptors under way (unix(7)).
const LACKS: [Errno; 3] = [Errno::ENOBUFS, Errno::ENOMEM, Errno::ETOOMANYREFS];

/// The wait before another attempt then: no event says when there is room.
const AGAIN: Duration = Duration::from_millis(250);

/// Steps for the store, in order.
#[derive(Debug)]
enum Step {
    /// A listener, by its inode.
    Keep(u64, Rc<OwnedFd>),
    /// Another descriptor, under a name of its own.
    KeepAs(&'static str, Rc<OwnedFd>),
    /// Removes whatever has this name.
    Forget(String),
    /// Records for the manifest.
    Write(Vec<u8>),
    /// Replaces the old manifest with a new one.
    Swap { file: File, length: u64, name: String },
}

#[derive(Debug)]
struct Inner {
    notifier: Notifier,
    /// The manifest in use: its file, how much of it is written, and its name.
    manifest: Option<(File, u64, String)>,
    queue: VecDeque<Step>,
    /// Whether the manifest lacks something and must be rewritten.
    damaged: bool,
    pushed: u64,
    done: u64,
}

/// The connection to the descriptor store.
#[derive(Debug)]
pub(crate) struct Store {
    inner: RefCell<Inner>,
    /// Notified when a step waits because the manager could not take it at once.
    waiting: Notify,
    /// Number of steps done.
    done: watch::Sender<u64>,
}

impl Store {
    /// Connects to the manager that started this process; None without one. `previous` is the name
    /// of the manifest already in use, after an upgrade in place.
    pub(crate) fn new(previous: Option<String>) -> io::Result<Option<Rc<Self>>> {
        let Some(notifier) = Notifier::from_env()? else { return Ok(None) };
        let manifest = match previous {
            Some(name) => Some((memory::file("bindonce-manifest")?, 0, name)),
            None => None,
        };
        let inner = Inner {
            notifier,
            manifest,
            queue: VecDeque::new(),
            damaged: false,
            pushed: 0,
            done: 0,
        };
        Ok(Some(Rc::new(Self {
            inner: RefCell::new(inner),
            waiting: Notify::new(),
            done: watch::Sender::new(0),
        })))
    }

    /// A name for a new manifest.
    pub(super) fn new_name() -> String {
        format!("manifest.{}", memory::unique())
    }

    /// The name of the manifest, for the next image of this process.
    pub(crate) fn name(&self) -> Option<String> {
        self.inner.borrow().manifest.as_ref().map(|(_, _, name)| name.clone())
    }

    /// Rewrites the manifest: after a start, and when too much of it is outdated.
    pub(super) fn rewrite(&self, name: String, text: &[u8]) {
        let file = memory::file("bindonce-manifest").and_then(|file| {
            file.write_all_at(text, 0)?;
            Ok(file)
        });
        match file {
            Ok(file) => {
                self.inner.borrow_mut().damaged = false;
                self.push([Step::Swap { file, length: text.len() as u64, name }]);
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the manifest: a crash may lose listeners");
            }
        }
    }

    /// Puts the control socket into the store, so that clients that connect while the broker
    /// restarts wait and are not refused.
    pub(crate) fn keep_control(&self, listener: &UnixListener) -> io::Result<()> {
        let copy = Rc::new(listener.as_fd().try_clone_to_owned()?);
        self.push([Step::Forget(CONTROL.to_owned()), Step::KeepAs(CONTROL, copy)]);
        Ok(())
    }

    /// Removes what has this name.
    pub(crate) fn forget(&self, name: String) {
        self.push([Step::Forget(name)]);
    }

    /// Puts a listener into the store.
    pub(super) fn keep(&self, inode: u64, fd: Rc<OwnedFd>) {
        self.push([Step::Keep(inode, fd)]);
    }

    /// Adds records to the manifest.
    pub(super) fn write(&self, text: Vec<u8>) {
        self.push([Step::Write(text)]);
    }

    /// Removes a listener whose end has been recorded.
    pub(super) fn drop_listener(&self, inode: u64) {
        self.push([Step::Forget(name(inode))]);
    }

    /// Whether the manifest lacks something and must be rewritten.
    pub(super) fn is_damaged(&self) -> bool {
        self.inner.borrow().damaged
    }

    fn push<const N: usize>(&self, steps: [Step; N]) {
        let mut inner = self.inner.borrow_mut();
        inner.pushed += N as u64;
        inner.queue.extend(steps);
        if inner.flush().is_err() {
            self.waiting.notify_one();
        }
        self.done.send_replace(inner.done);
    }

    /// As [`Store::settled`], while no task runs [`Store::run`] yet.
    pub(crate) async fn settle(&self) {
        tokio::select! {
            () = self.settled() => {}
            _ = self.run() => {}
        }
    }

    /// Whether the manager has everything that was queued for it.
    pub(super) fn is_settled(&self) -> bool {
        self.inner.borrow().queue.is_empty()
    }

    /// Waits until the manager has everything queued for it at the time of the call.
    pub(crate) async fn settled(&self) {
        let target = self.inner.borrow().pushed;
        let mut done = self.done.subscribe();
        let settled = tokio::time::timeout(PATIENCE, done.wait_for(|done| *done >= target));
        if settled.await.is_err() {
            tracing::warn!(
                "the service manager takes no descriptors now: until it does, a crash would lose \
                 the newest listeners"
            );
        }
    }

    /// Sends queued steps whenever the manager reads, for as long as the broker runs.
    pub(super) async fn run(&self) -> io::Result<()> {
        let copy = self.inner.borrow().notifier.as_fd().try_clone_to_owned()?;
        let socket = UnixDatagram::from_std(copy.into())?;
        loop {
            self.waiting.notified().await;
            while !self.inner.borrow().queue.is_empty() {
                socket.writable().await?;
                let flush = || self.inner.borrow_mut().flush();
                let flushed = socket.try_io(Interest::WRITABLE, flush);
                self.done.send_replace(self.inner.borrow().done);
                // WouldBlock makes the next `writable` wait.
                if flushed.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                    sleep(AGAIN).await;
                }
            }
        }
    }
}

impl Inner {
    /// Performs queued steps. Returns the error if one has to wait, and so those behind it.
    fn flush(&mut self) -> io::Result<()> {
        self.flush_by(Self::perform)
    }

    fn flush_by(
        &mut self,
        mut perform: impl FnMut(&mut Self, &Step) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(step) = self.queue.pop_front() {
            match perform(self, &step) {
                Err(error) if may_pass(&error) => {
                    self.queue.push_front(step);
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%error, ?step, "the descriptor store does not take this");
                    if matches!(step, Step::Write(_)) {
                        // The manifest lacks these records: it is rewritten with the next change.
                        self.damaged = true;
                    }
                }
                Ok(()) => {
                    if let Step::Swap { file, length, name } = step {
                        let old = self.manifest.replace((file, length, name));
                        if let Some((_, _, old)) = old {
                            self.pushed += 1;
                            self.queue.push_front(Step::Forget(old));
                        }
                    }
                }
            }
            self.done += 1;
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Keep(inode, fd) => self.notifier.store(&name(*inode), fd.as_fd()),
            Step::KeepAs(name, fd) => self.notifier.store(name, fd.as_fd()),
            Step::Forget(name) => self.notifier.forget(name),
            Step::Swap { file, name, .. } => self.notifier.store(name, file.as_fd()),
            Step::Write(text) => match &mut self.manifest {
                Some((file, length, _)) => {
                    file.write_all_at(text, *length)?;
                    *length += text.len() as u64;
                    Ok(())
                }
                None => Ok(()),
            },
        }
    }
}

/// Whether a step that failed may succeed later.
fn may_pass(error: &io::Error) -> bool {
    let lacks = |errno| LACKS.contains(&Errno::from_raw(errno));
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error().is_some_and(lacks)
}

/// A listener's name in the store: its inode in base 36. Names are short because all of them come
/// back in one variable, which may have 128 KiB (execve(2), MAX_ARG_STRLEN).
pub(super) fn name(inode: u64) -> String {
    let mut digits = Vec::new();
    let mut rest = inode;
    loop {
        let digit = u32::try_from(rest % 36).unwrap_or(0);
        digits.push(char::from_digit(digit, 36).unwrap_or('0'));
        rest /= 36;
        if rest == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    #[test]
    fn names_are_short_and_unlike() {
        assert_eq!(name(0), "0");
        assert_eq!(name(35), "z");
        assert_eq!(name(36), "10");
        assert_eq!(name(u64::from(u32::MAX)), "1z141z3");
    }

    #[test]
    fn what_the_kernel_cannot_pass_now_is_passed_later_and_recorded_after_that() {
        let path = std::env::temp_dir().join(format!("bindonce-store-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).expect("bind");
        let address = SocketAddr::from_pathname(&path).expect("an address");
        let notifier = Notifier::connect(&address).expect("connect");
        std::fs::remove_file(&path).expect("remove");
        let file = memory::file("bindonce-test").expect("a file");
        let keep = |inode| Step::Keep(inode, Rc::new(manager.try_clone().expect("a copy").into()));
        let mut inner = Inner {
            notifier,
            manifest: Some((file, 0, "manifest.1".to_owned())),
            queue: [keep(7), Step::Write(b"record".to_vec())].into(),
            damaged: false,
            pushed: 2,
            done: 0,
        };
        for errno in LACKS.into_iter().chain([Errno::EAGAIN]) {
            inner.flush_by(|_, _| Err(errno.into())).expect_err("it waits");
            assert_eq!((inner.queue.len(), inner.done), (2, 0), "{errno}");
        }
        inner.flush().expect("it is taken");
        let written = inner.manifest.as_ref().map(|(_, length, _)| *length);
        assert_eq!((inner.queue.len(), inner.done, written), (0, 2, Some(6)));
        let mut buffer = [0; 100];
        let count = manager.recv(&mut buffer).expect("receive");
        assert!(buffer[..count].starts_with(b"FDSTORE=1\nFDNAME=7\n"));
        // What never succeeds holds up nothing.
        inner.queue.push_back(keep(8));
        inner.flush_by(|_, _| Err(Errno::EBADF.into())).expect("it is left out");
        assert!(inner.queue.is_empty());
    }
}
