//! The process that has put this supervisor into the background: it waits for the first generation to serve.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::log;
use tokio::task::JoinHandle;

/// The variable of a supervisor that goes on in the background.
pub const BACKGROUND: &str = "BINDONCE_BACKGROUND";

/// What it reads.
pub const SERVES: &[u8] = b"serves\n";

/// How long it waits for the pid file too. Later its caller learns nothing that helps.
const PID_FILE: Duration = Duration::from_secs(5);

/// The same, where another process may accept beside that generation.
const NOT_ALONE: &[u8] = b"not alone\n";

/// Tells it, when the pid file is written: its caller may read that at once. From then on standard error leads nowhere,
/// as that of a haproxy in the background.
pub(crate) async fn tell(starter: Rc<OwnedFd>, written: Option<JoinHandle<()>>, alone: bool) {
    if let Some(written) = written {
        // It is tried on, and the log says so.
        let _ = tokio::time::timeout(PID_FILE, written).await;
    }
    log::finish(log::LAST_WORDS);
    if let Ok(nowhere) = std::fs::File::options().write(true).open("/dev/null") {
        // Only a full table of descriptors refuses it, and it needs no new one.
        let _ = nix::unistd::dup2_stderr(&nowhere);
    }
    if let Ok(copy) = starter.try_clone() {
        // One that is gone misses nothing.
        let _ = std::fs::File::from(copy).write_all(if alone { SERVES } else { NOT_ALONE });
    }
}
