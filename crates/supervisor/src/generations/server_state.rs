//! The state of servers, carried from the serving generation to the next one: the answer to
//! `show servers state` is written to the files that the configuration loads. Source: haproxy
//! configuration manual, "load-server-state-from-file".

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::generations::admin::Admin;
use bindonce_haproxy::config::{Rendering, ServerState};
use bindonce_sys::directory::Directory;
use bindonce_sys::worker;

/// How long the serving generation may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the disk may take. A file that haproxy's configuration names may be anywhere, also on a
/// network file system whose server is gone.
pub(super) const DISK: Duration = Duration::from_secs(5);

/// Writes the state that `serving` reports to every file that `rendering` loads. A failure is
/// logged and the file left as it is: haproxy then starts from the older state, as in a plain
/// reload.
pub(crate) async fn carry(rendering: &Rendering, serving: &Admin) {
    // Many files in one directory that does not answer delay the start once, not once each.
    let mut stalled = BTreeSet::new();
    for state in &rendering.server_states {
        let (path, directory) = (state.path.display(), state.path.parent());
        if stalled.contains(&directory) {
            tracing::warn!(%path, "the state of the servers is not written: the directory did not answer just now");
            continue;
        }
        let Ok(answer) = serving.ask(state.command(), ANSWER).await else {
            tracing::warn!(%path, "the serving haproxy did not report the state of its servers in time");
            continue;
        };
        let Some(text) = ServerState::text(&answer) else { continue };
        if let Err(error) = write(state.path.clone(), text.to_owned()).await {
            if error.kind() == io::ErrorKind::TimedOut {
                stalled.insert(directory);
            }
            tracing::warn!(%path, %error, "the state of the servers could not be written");
        }
    }
}

/// Replaces a file in one step, beside the loop: a reader sees the old or the new text. The
/// directory may belong to haproxy's user.
///
/// # Errors
/// Those of the system calls, and [`io::ErrorKind::TimedOut`] after [`DISK`]: the write may then
/// still happen, whenever the file system answers.
pub(super) async fn write(path: PathBuf, text: String) -> io::Result<()> {
    worker::within(DISK, move || replace(&path, &text)).await?
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    /// The number of the next write.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (directory, name) = Directory::of(path)?;
    let temporary = temporary(name, NEXT.fetch_add(1, Ordering::Relaxed));
    let end = if text.ends_with('\n') { "" } else { "\n" };
    directory.replace(name, &temporary, 0o600, format!("{text}{end}").as_bytes()).map(drop)
}

/// The name under which a write begins. Each has its own: an abandoned write that goes on later
/// must not rename the half-written file of another.
fn temporary(name: &OsStr, number: u64) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{number}", std::process::id()));
    temporary
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// haproxy's user puts links into its own directory, so root's supervisor would write where
    /// they lead.
    #[test]
    fn the_directory_of_haproxys_user_leads_to_no_other_file() {
        let directory = std::env::temp_dir().join(format!("bindonce-trap-{}", std::process::id()));
        fs::create_dir(&directory).expect("directory");
        let (path, victim) = (directory.join("global"), directory.join("victim"));
        fs::write(&victim, "precious").expect("write");
        // More names than the tests of this process use.
        for number in 0..200 {
            symlink(&victim, directory.join(temporary("global".as_ref(), number))).expect("trap");
        }
        symlink(&victim, &path).expect("trap");
        replace(&path, "1\n# be_id").expect("replace");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
        assert!(fs::symlink_metadata(&path).expect("stat").is_file());
        fs::remove_dir_all(&directory).expect("remove");
    }

    #[test]
    fn replaces_in_one_step_and_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("bindonce-state-{}", std::process::id()));
        fs::create_dir(&directory).expect("directory");
        let path = directory.join("global");
        fs::write(&path, "old").expect("write");
        replace(&path, "1\n# be_id").expect("replace");
        assert_eq!(fs::read_to_string(&path).expect("read"), "1\n# be_id\n");
        assert!(replace(&directory.join("none/x"), "1").is_err());
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
        fs::remove_dir_all(&directory).expect("remove");
    }

    /// A write that was abandoned goes on beside the next one.
    #[test]
    fn two_writes_of_a_file_never_share_what_they_have_half_written() {
        let directory = std::env::temp_dir().join(format!("bindonce-two-{}", std::process::id()));
        fs::create_dir(&directory).expect("directory");
        let path = directory.join("global");
        let texts = ["a", "b"].map(|letter| letter.repeat(100_000));
        std::thread::scope(|scope| {
            for text in &texts {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| replace(path, text).expect("replace")));
            }
        });
        let read = fs::read_to_string(&path).expect("read");
        assert!(texts.iter().any(|text| read.trim_end() == text), "{} bytes", read.len());
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
        fs::remove_dir_all(&directory).expect("remove");
    }
}
