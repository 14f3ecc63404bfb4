//! haproxy's own counters, carried from the serving generation to the next one if the configuration
//! has a `stats-file` (3.0 and later): the counters of the serving generation are written there.
//! The loop learns what the file contains, and counts that once. Source: haproxy management guide,
//! 9.5, "Stats-file".

use std::io;
use std::path::Path;
use std::time::Duration;

use bindonce_core::generation::GenerationId;
use bindonce_haproxy::config::{Rendering, StatsFile};
use bindonce_haproxy::counters;
use bindonce_sys::directory::Directory;
use bindonce_sys::worker;

use crate::context::Context;
use crate::generations::admin::Admin;
use crate::generations::server_state::{self, DISK};
use crate::message::Message;

/// How long the serving generation may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// A longer file counts as empty: the sums then have its counters twice.
const LONGEST: u64 = 64 << 20;

/// Writes the counters of `serving` to the file, before `id` is started. A failure is logged and
/// the file left as it is: haproxy then begins with what it contains, as in a plain reload.
pub(crate) async fn carry(
    cx: &Context,
    id: GenerationId,
    rendering: &Rendering,
    serving: Option<&Admin>,
) {
    let Some(file) = &rendering.stats_file else { return };
    let path = file.path.display();
    if let Some(serving) = serving {
        match serving.ask(file.command(), ANSWER).await {
            Err(_) => {
                tracing::warn!(%path, "the serving haproxy did not report its counters for the stats-file in time");
            }
            // Not a stats-file if haproxy is older, such as a 2.6 about to be replaced.
            Ok(answer) => match StatsFile::text(&answer).map(str::to_owned) {
                None => {
                    tracing::warn!(%path, "the serving haproxy has no `dump stats-file`, which 3.0 and later have: no counters for the stats-file");
                }
                Some(text) => {
                    if let Err(error) = server_state::write(file.path.clone(), text).await {
                        tracing::warn!(%path, %error, "the stats-file could not be written");
                    }
                }
            },
        }
    }
    let (path, guids) = (file.path.clone(), file.guids.clone());
    let read = worker::within(DISK, move || Ok(counters::preset(&read(&path)?, &guids))).await;
    match read.and_then(std::convert::identity) {
        Ok(preset) => cx.send(Message::Preset(id, preset)),
        // The file is missing the first time. haproxy reports that itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %file.path.display(), %error, "stats-file not read"),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let (directory, name) = Directory::of(path)?;
    Ok(String::from_utf8_lossy(&directory.read(name, LONGEST)?).into_owned())
}
