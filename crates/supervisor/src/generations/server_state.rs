//! The state of servers, carried from the generation that serves to the next one: the
//! answer to `show servers state` is written to the files that the configuration loads.
//! Source: haproxy configuration manual, "load-server-state-from-file".

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::generations::admin::Admin;
use bindonce_haproxy::config::{Rendering, ServerState};

/// How long the generation that serves may take to tell.
const ANSWER: Duration = Duration::from_secs(2);

/// Writes every file that `rendering` loads, as `serving` tells it. What cannot be told or written
/// is logged and left as it is: haproxy then starts from the older state, as in a plain reload.
pub(crate) async fn carry(rendering: &Rendering, serving: &Admin) {
    for state in &rendering.server_states {
        let Ok(answer) = serving.ask(state.command(), ANSWER).await else {
            tracing::warn!(path = %state.path.display(), "server state not told in time");
            continue;
        };
        let Some(text) = ServerState::text(&answer) else { continue };
        if let Err(error) = replace(&state.path, text) {
            tracing::warn!(path = %state.path.display(), %error, "server state not written");
        }
    }
}

/// In one step: a reader sees the old or the new text.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut options = fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error tells more than a second one could.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

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
