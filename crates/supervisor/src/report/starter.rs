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

/// The same, where another process may accept beside that generation, or where there is no pid file.
const NOT_AS_ASKED: &[u8] = b"not as asked\n";

/// Tells it, when the pid file is written: its caller may read that at once. From then on standard error leads nowhere,
/// as that of a haproxy in the background.
pub(crate) async fn tell(starter: Rc<OwnedFd>, written: Option<JoinHandle<bool>>, alone: bool) {
    let is_written = match written {
        // It is tried on, and the log says so.
        Some(written) => {
            matches!(bindonce_sys::patience::timeout(PID_FILE, written).await, Ok(Ok(true)))
        }
        None => true,
    };
    log::finish(log::LAST_WORDS);
    if let Ok(nowhere) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        // Only a full table of descriptors refuses it, and it needs no new one.
        let _ = nix::unistd::dup2_stderr(&nowhere);
        // The configuration may have come through it.
        let _ = nix::unistd::dup2_stdin(&nowhere);
    }
    if let Ok(copy) = starter.try_clone() {
        // One that is gone misses nothing.
        let _ = std::fs::File::from(copy).write_all(if alone && is_written {
            SERVES
        } else {
            NOT_AS_ASKED
        });
    }
}
