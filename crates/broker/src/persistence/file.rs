//! The state file beside the control socket: which listeners are held. It is for the broker that
//! follows one that was killed, or one that ended while others used its listeners.
//!
//! Without a service manager that keeps descriptors, this file tells the next broker what to ask
//! back, from whom, and under which names. It is replaced as a whole (written beside it and
//! renamed, mode 0600) at the start and when too much of it is outdated. In between, records are
//! appended, those of one claim in one write, and a reply that hands out a new listener comes after
//! its record. Nothing is synced. The records must outlive this process, and in the kernel's cache
//! they do. After a system crash there is no socket to ask back, and the next broker sees from the
//! boot that the file is stale.
//!
//! If the file cannot be written (a full disk), it is rewritten as a whole with the next change,
//! and retried until it succeeds. Meanwhile `status`, `list`, `doctor` and the metrics say so.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::succession::Record;
use bindonce_daemon::state;
use bindonce_sys::identity;
use bindonce_wire::manifest::{Entry, Manifest};
use bindonce_wire::result::Problem;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::error::Error;

/// Delay before a failed write is retried: the first one, and the longest one.
const AGAIN: Duration = Duration::from_secs(1);
const AT_MOST: Duration = Duration::from_secs(30);

/// Pause between attempts triggered by changes: at least this, and this many times the last one.
const BETWEEN: Duration = Duration::from_millis(50);
const TIMES: u32 = 10;

/// The state file of one broker.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    inner: RefCell<Inner>,
    /// Notified when the file could not be written.
    failing: Notify,
}

#[derive(Debug)]
struct Inner {
    /// None until the first write, and after a failed one.
    file: Option<File>,
    /// The last failure, until the file is written again.
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    error: String,
    /// When a change may retry.
    ready: Instant,
}

/// The state file of the broker on this control socket.
fn path(socket: &Path) -> PathBuf {
    state::with_suffix(socket, ".state")
}

/// State that the previous broker left in the state file.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Listeners that a process may still hold.
    pub(crate) listeners: Vec<Entry>,
    /// Whether the broker ended in order. If so, a listener that no process holds any more need not
    /// be recovered.
    pub(crate) in_order: bool,
    /// Services whose order the broker kept.
    pub(crate) services: Vec<Record>,
    /// Services that the broker had forgotten have no generation number above this.
    pub(crate) floor: u64,
}

/// Reads the state of a broker that did not end in order, or that had something to leave. A file
/// that is no state is moved aside for examination.
///
/// # Errors
/// [`Error::StateFile`] if the file cannot be read. It may well be good, so it stays, and nothing
/// may be written in its place.
pub(crate) fn left(socket: &Path) -> Result<Left, Error> {
    left_at(path(socket))
}

fn left_at(path: PathBuf) -> Result<Left, Error> {
    let manifest = match state::read(&path, state::LARGEST) {
        Ok(None) => return Ok(Left::default()),
        Ok(Some(bytes)) => Manifest::decode(&bytes).map_err(|error| error.to_string()),
        Err(source) if source.raw_os_error().is_some() => {
            return Err(Error::StateFile { path, source });
        }
        // It is no regular file, or too large.
        Err(error) => Err(error.to_string()),
    };
    Ok(match manifest {
        Ok(Manifest { header, listeners, services, .. })
            if header.broker.boot == identity::boot() =>
        {
            Left { listeners, in_order: header.ended, services, floor: header.floor }
        }
        Ok(_) => {
            tracing::info!(path = %path.display(), "the state file is from before the last boot");
            Left::default()
        }
        Err(error) => {
            let moved_to = state::move_aside(&path);
            tracing::error!(
                path = %path.display(), error, moved_to,
                "the state file is damaged: listeners of the previous broker are not recovered"
            );
            Left::default()
        }
    })
}

impl StateFile {
    /// The state file of the broker on this control socket, not yet written.
    pub(crate) fn new(socket: &Path) -> Rc<Self> {
        let inner = Inner { file: None, failed: None };
        let failing = Notify::new();
        Rc::new(Self { path: path(socket), inner: RefCell::new(inner), failing })
    }

    /// Replaces the file. Does not wait for the disk: after a system crash it is stale, see above.
    pub(super) fn rewrite(&self, text: &[u8]) {
        let begun = Instant::now();
        let written = state::replace(&self.path, text);
        let mut inner = self.inner.borrow_mut();
        match written {
            Ok(file) => {
                inner.file = Some(file);
                if inner.failed.take().is_some() {
                    tracing::info!(path = %self.path.display(), "the state file is written again");
                }
            }
            Err(error) => self.failed(&mut inner, &error, begun.elapsed()),
        }
    }

    fn failed(&self, inner: &mut Inner, error: &io::Error, took: Duration) {
        inner.file = None;
        if inner.failed.is_none() {
            tracing::error!(
                path = %self.path.display(), %error, hint = HINT,
                "cannot write the state file: after a crash the newest listeners cannot be \
                 recovered, and those released since are bound again"
            );
        }
        let ready = Instant::now() + BETWEEN.max(took * TIMES);
        inner.failed = Some(Failed { error: error.to_string(), ready });
        self.failing.notify_one();
    }

    /// The problem that keeps the file from being written, if there is one.
    pub(super) fn problem(&self) -> Option<Problem> {
        let inner = self.inner.borrow();
        let error = &inner.failed.as_ref()?.error;
        let path = self.path.display().to_string();
        let message = format!(
            "cannot write the state file {path}: {error}; after a crash the newest listeners are lost, \
             and released ones are bound again"
        );
        Some(Problem::new("state-not-written", path, message, Some(HINT.to_owned())))
    }

    /// Appends records.
    pub(super) fn append(&self, text: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        if let Some(file) = &mut inner.file
            && let Err(error) = file.write_all(text)
        {
            // The file may end with half a record: rewrite it before anything follows.
            self.failed(&mut inner, &error, Duration::ZERO);
        }
    }

    /// If the last write failed: whether a change may retry now.
    pub(super) fn may_try_again(&self) -> Option<bool> {
        let inner = self.inner.borrow();
        inner.failed.as_ref().map(|failed| Instant::now() >= failed.ready)
    }

    /// Removes the file: nothing is held any more.
    pub(crate) fn remove(&self) {
        if let Err(error) = state::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the state file");
        }
    }

    /// Waits until a write fails, then calls `rewrite` at growing intervals until one succeeds.
    pub(crate) async fn retry(&self, mut rewrite: impl FnMut()) {
        self.failing.notified().await;
        let mut pause = AGAIN;
        while self.inner.borrow().failed.is_some() {
            sleep(pause).await;
            pause = (pause * 2).min(AT_MOST);
            if self.inner.borrow().failed.is_some() {
                rewrite();
            }
        }
    }
}

const HINT: &str = "make room, or run the broker as a user that may write there: it is tried again until it can be written";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_was_read_and_is_no_state_is_moved_aside() {
        // Reading this fails with EIO, for root too: nothing is mapped at its beginning.
        let unread = PathBuf::from(format!("/proc/{}/mem", std::process::id()));
        let error = left_at(unread).expect_err("EIO");
        assert!(matches!(error, Error::StateFile { .. }), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("start the broker again")));
        let directory = std::env::temp_dir().join(format!("bindonce-left-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("broker.sock.state");
        assert!(left_at(path.clone()).expect("no file").listeners.is_empty());
        fs::write(&path, "damaged").expect("written");
        assert!(left_at(path.clone()).expect("read").listeners.is_empty());
        assert!(!path.exists());
        fs::remove_dir_all(&directory).expect("removed");
    }
}
