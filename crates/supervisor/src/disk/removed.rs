//! Repairs the directory of a service whose files are removed while in use, for example by a
//! cleaner of /tmp. The directory is recreated with the same permissions, the lock, the control
//! socket, and the configurations that may be started again. So a haproxy that dies is started
//! again, and the service can be reloaded.
//!
//! A directory that another user or supervisor put in its place is left alone.

use std::io;
use std::time::Duration;

use bindonce_sys::changes::{self, Change, Changes};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::Context;
use crate::control;
use crate::disk::directory::{self, Directory, KEPT};
use crate::disk::place::CONTROL;
use crate::error::Error;
use crate::message::Message;
use crate::supervisor::Supervisor;

/// A removal is complete when nothing has changed for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Or after this long.
const LATEST: Duration = Duration::from_secs(1);
/// The pause before another attempt at a failed repair, and between two looks at a directory that
/// cannot be watched.
const AGAIN: Duration = Duration::from_secs(5);

/// Tells the loop whenever a file is missing in the directory, for as long as the supervisor runs.
pub(crate) async fn watch(cx: Context) {
    let mut told = false;
    loop {
        let removed = match begin(&cx.directory) {
            Ok(Some(changes)) => {
                told = false;
                until_removed(&cx.directory, &changes).await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            if !std::mem::replace(&mut told, true) {
                let (path, limit) = (cx.directory.path().display(), changes::limit(&error));
                tracing::warn!(
                    %path,
                    "the service's directory cannot be watched, and is looked at every 5 s instead: {error}{limit}"
                );
            }
            sleep(AGAIN).await;
            if cx.directory.is_whole() {
                continue;
            }
        }
        let (reply, mended) = oneshot::channel();
        cx.send(Message::Removed(reply));
        if !mended.await.unwrap_or_default() {
            sleep(AGAIN).await;
        }
    }
}

/// Begins to watch the directory: removals from now on are reported. None if it is not there.
fn begin(directory: &Directory) -> io::Result<Option<Changes>> {
    let changes = Changes::new()?;
    match changes.watch(directory.path()) {
        Ok(_) => Ok(Some(changes)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Waits until a file is missing and the removal is complete.
async fn until_removed(directory: &Directory, changes: &Changes) -> io::Result<()> {
    let mut is_watched = true;
    // A removed directory may have been recreated already; the new one must be watched then.
    while is_watched && directory.is_whole() {
        let some = changes.next().await?;
        is_watched = !some.iter().any(|change| matches!(change, Change::Gone(_) | Change::Lost));
    }
    let latest = Instant::now() + LATEST;
    while timeout_at((Instant::now() + QUIET).min(latest), changes.next()).await.is_ok()
        && Instant::now() < latest
    {}
    Ok(())
}

impl Supervisor {
    /// Recreates missing files in the directory. False if that fails.
    pub(crate) fn mend_directory(&mut self) -> bool {
        let directory = &self.cx.directory;
        if directory.is_whole() {
            return true;
        }
        let path = directory.path().display().to_string();
        let failed = |error: &Error| {
            // Logged once, since the attempt is repeated.
            if !directory.failure_logged.replace(true) {
                tracing::error!(
                    path, %error,
                    hint = "free that path and exclude it from cleanup (tmpfiles.d(5), `x`); until then this supervisor answers no \
                            commands, and the next one does not find the running generations",
                    "files of this service were removed, and cannot be made anew"
                );
            }
            false
        };
        if let Err(error) = directory.make_anew() {
            return failed(&error);
        }
        let cx = self.cx.clone();
        let ask = move |command| cx.send(Message::Command(command));
        let begun = (!directory.control_is_there()).then(|| {
            let socket = control::bind(&directory.file(CONTROL))?;
            directory.has_control();
            control::begin(socket, &self.cx.reporter, &self.cx.gate, ask)
        });
        match begun.transpose() {
            Ok(Some(control)) => self.control.replace(control),
            Ok(None) => {}
            Err(error) => return failed(&error),
        }
        directory.failure_logged.set(false);
        self.handover.bind_kept_again(&self.cx.directory.file(KEPT));
        self.starts.write_missing(directory);
        self.cx.journal.write_anew();
        self.cx.directory.made_anew.notify_one();
        if let Err(error) = self.cx.directory.save(self.saved(None)) {
            let what = directory::remedy(self.cx.directory.path(), &error);
            tracing::error!(%error, "the state could not be saved: {what}");
        }
        tracing::warn!(
            path,
            "files of this service were removed, and are there again; exclude this directory from cleanup (tmpfiles.d(5), `x`)"
        );
        true
    }
}
