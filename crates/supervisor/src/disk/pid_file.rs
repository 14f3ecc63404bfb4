//! The file of haproxy's `pidfile` line. It has the supervisor's pid: that of the process which lives on
//! through all generations, and which takes the signals that haproxy's master would take.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::directory::Directory;
use bindonce_sys::worker;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a file system may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Between a try that failed and the next: at first, doubling, and in the end.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(60);

/// The file that was written last, or is being written.
#[derive(Debug, Default)]
pub(crate) struct PidFile(Option<Writing>);

#[derive(Debug)]
struct Writing {
    path: PathBuf,
    written: Rc<Cell<bool>>,
    task: AbortHandle,
}

impl PidFile {
    /// Writes the file that a command or its configuration names, unless that has been done; what it returns ends
    /// when it is written: true.
    pub(crate) fn write(&mut self, path: &Path) -> Option<JoinHandle<bool>> {
        match &self.0 {
            Some(known) if known.path == path && !known.has_failed() => return None,
            Some(known) => known.task.abort(),
            None => {}
        }
        let (file, written) = (path.to_owned(), Rc::new(Cell::new(false)));
        let done = Rc::clone(&written);
        let task = crate::tasks::spawn(async move {
            done.set(until_written(&file).await);
            done.get()
        });
        self.0 = Some(Writing { path: path.to_owned(), written, task: task.abort_handle() });
        Some(task)
    }
}

impl Writing {
    /// Nobody tries any more; the next generation that serves does.
    fn has_failed(&self) -> bool {
        self.task.is_finished() && !self.written.get()
    }
}

/// Tries until it is written: true. Not where the file system stalls: each try would leave a thread there.
async fn until_written(path: &Path) -> bool {
    let mut wait = AGAIN;
    loop {
        let file = path.to_owned();
        let written = worker::within(LIMIT, move || write(&file)).await;
        let Err(error) = written.and_then(|written| written) else { return true };
        let path = path.display();
        if error.kind() == io::ErrorKind::TimedOut {
            tracing::error!(%path, "the pidfile could not be written: {error}");
            return false;
        }
        if wait == AGAIN {
            tracing::error!(%path, "the pidfile could not be written, and is tried again: {error}");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_LAST);
    }
}

/// As haproxy does: the old file is removed, and nothing removes the new one at the end.
fn write(path: &Path) -> io::Result<()> {
    let (directory, name) = Directory::of(path)?;
    writeln!(directory.create(name, 0o644)?, "{}", std::process::id())
}
