//! The process that put this supervisor into the background. It waits for the first generation to
//! serve.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::log;
use tokio::task::JoinHandle;

/// The environment variable of a supervisor that continues in the background.
pub const BACKGROUND: &str = "BINDONCE_BACKGROUND";

/// The line that the starter reads on success.
pub const SERVES: &[u8] = b"serves\n";

/// How long the starter also waits for the pid file. Later its caller would learn nothing useful.
const PID_FILE: Duration = Duration::from_secs(5);

/// The line where another process may accept beside that generation, or where there is no pid file.
const NOT_AS_ASKED: &[u8] = b"not as asked\n";

/// Tells the starter when the pid file is written, since its caller may read that at once. From
/// then on standard error leads nowhere, as for a haproxy in the background.
pub(crate) async fn tell(starter: Rc<OwnedFd>, written: Option<JoinHandle<bool>>, alone: bool) {
    let is_written = match written {
        // A failed write is retried and logged.
        Some(written) => {
            matches!(bindonce_sys::patience::timeout(PID_FILE, written).await, Ok(Ok(true)))
        }
        None => true,
    };
    log::finish(log::LAST_WORDS);
    if let Ok(nowhere) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        // This fails only with a full descriptor table, and dup2(2) needs no new descriptor.
        let _ = nix::unistd::dup2_stderr(&nowhere);
        // The configuration may have come through standard input.
        let _ = nix::unistd::dup2_stdin(&nowhere);
    }
    if let Ok(copy) = starter.try_clone() {
        // The starter may be gone.
        let _ = std::fs::File::from(copy).write_all(if alone && is_written {
            SERVES
        } else {
            NOT_AS_ASKED
        });
    }
}
