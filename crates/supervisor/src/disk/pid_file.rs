//! The file of haproxy's `pidfile` line. It has the supervisor's pid: that of the process which lives on
//! through all generations, and which takes the signals that haproxy's master would take.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::GenerationId;
use bindonce_sys::aside;

use crate::supervisor::Supervisor;

/// How long a file system may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Writes the file that the configuration of a generation names, unless that has been done.
    pub(crate) fn write_pid_file(&mut self, id: GenerationId) {
        let Some(path) = self.rendering(id).and_then(|rendering| rendering.pid_file.clone()) else {
            return;
        };
        let path: Rc<Path> = path.into();
        if self.starts.pid_file.replace(Rc::clone(&path)).as_deref() == Some(&*path) {
            return;
        }
        let file = PathBuf::from(&*path);
        crate::tasks::spawn(async move {
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
