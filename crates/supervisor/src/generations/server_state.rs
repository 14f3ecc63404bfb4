//! The state of servers, carried from the serving generation to the next one: the answer to
//! `show servers state` is written to the files that the configuration loads. Source: haproxy
//! configuration manual, "load-server-state-from-file".

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::generations::admin::Admin;
use bindonce_haproxy::config::{Rendering, ServerState};
use bindonce_sys::directory::Directory;

/// How long the serving generation may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Writes the state that `serving` reports to every file that `rendering` loads. A failure is
/// logged and the file left as it is: haproxy then starts from the older state, as in a plain
/// reload.
pub(crate) async fn carry(rendering: &Rendering, serving: &Admin) {
    for state in &rendering.server_states {
        let Ok(answer) = serving.ask(state.command(), ANSWER).await else {
            tracing::warn!(path = %state.path.display(), "the serving haproxy did not report the state of its servers in time");
            continue;
        };
        let Some(text) = ServerState::text(&answer) else { continue };
        if let Err(error) = replace(&state.path, text) {
            tracing::warn!(path = %state.path.display(), %error, "the state of the servers could not be written");
        }
    }
}

/// Replaces a file in one step: a reader sees the old or the new text. The directory may belong to
/// haproxy's user.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (directory, name) = Directory::of(path)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let end = if text.ends_with('\n') { "" } else { "\n" };
    directory.replace(name, &temporary, 0o600, format!("{text}{end}").as_bytes()).map(drop)
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
        symlink(&victim, directory.join(format!(".global.{}", std::process::id()))).expect("trap");
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
}
