//! The file of haproxy's `pidfile` line. It has the supervisor's pid: that of the process which lives on
//! through all generations, and which takes the signals that haproxy's master would take.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_sys::aside;

/// How long a file system may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The file that was written last.
#[derive(Debug, Default)]
pub(crate) struct PidFile(Option<PathBuf>);

impl PidFile {
    /// Writes the file that a configuration names, unless that has been done.
    pub(crate) fn write(&mut self, path: &Path) {
        if self.0.replace(path.to_owned()).as_deref() == Some(path) {
            return;
        }
        let path = path.to_owned();
        crate::tasks::spawn(async move {
            let file = path.clone();
            let written = aside::within(LIMIT, move || write(&file)).await;
            if let Err(error) = written.and_then(|written| written) {
                let path = path.display();
                tracing::error!(%path, "the pidfile could not be written: {error}");
            }
        });
    }
}

/// As haproxy does: the old file is removed, and nothing removes the new one at the end.
fn write(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path)?;
    writeln!(file, "{}", std::process::id())
}
