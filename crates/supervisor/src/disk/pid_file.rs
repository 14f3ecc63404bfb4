//! The file of haproxy's `pidfile` line. It has the supervisor's pid, since this process outlives
//! all generations and takes the signals that haproxy's master would take.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_sys::directory::Directory;
use bindonce_sys::worker;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a file system may take.
const LIMIT: Duration = Duration::from_secs(5);
/// A pid with its newline is shorter than this; a longer file is no pid file of ours.
const LONGEST: u64 = 64;
/// The pause between a failed attempt and the next: the first, which doubles, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(60);

/// The file that was written last or is being written.
#[derive(Debug, Default)]
pub(crate) struct PidFile(Option<Writing>);

#[derive(Debug)]
struct Writing {
    path: PathBuf,
    task: AbortHandle,
}

impl PidFile {
    /// Writes the pid file that a command or its configuration names, unless it already has this
    /// pid. The returned task ends with true when the file has it. None while an earlier attempt
    /// continues.
    pub(crate) fn write(&mut self, path: &Path) -> Option<JoinHandle<bool>> {
        match &self.0 {
            Some(known) if known.path == path && !known.task.is_finished() => return None,
            Some(known) => known.task.abort(),
            None => {}
        }
        let file = path.to_owned();
        let task = crate::tasks::spawn(async move { until_written(&file).await });
        self.0 = Some(Writing { path: path.to_owned(), task: task.abort_handle() });
        Some(task)
    }
}

/// Retries until the file is written: true. Gives up when the file system stalls, because each
/// attempt would leave a thread there.
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

/// As haproxy does: the old file is removed, or emptied where it cannot be, and the new one stays at
/// the end. A file that has this pid already is left alone, so that a reader always finds it.
fn write(path: &Path) -> io::Result<()> {
    let (directory, name) = Directory::of(path)?;
    let text = format!("{}\n", std::process::id());
    // An unreadable file is replaced.
    if directory.read(name, LONGEST).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    directory.rewrite(name, 0o644)?.write_all(text.as_bytes())
}
