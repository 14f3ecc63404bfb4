//! haproxy's own counters, carried from the generation that serves to the next one where the configuration has a `stats-file` (3.0
//! and later): what the one that serves has counted is written there. What the file says is told to the loop, which counts it once.
//! Source: haproxy management guide, 9.5, "Stats-file".

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_core::generation::GenerationId;
use bindonce_haproxy::config::{Rendering, StatsFile};
use bindonce_haproxy::counters;
use bindonce_sys::directory::Directory;
use bindonce_sys::worker;

use crate::context::Context;
use crate::generations::admin::Admin;
use crate::generations::server_state;
use crate::message::Message;

/// How long the generation that serves may take to tell.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the disk may take.
const DISK: Duration = Duration::from_secs(5);
/// A file that is longer counts as empty: the sums then have what it says twice.
const LONGEST: u64 = 64 << 20;

/// Writes the file, if `serving` tells what belongs there, before `id` is started. What cannot be told or written is logged and
/// left as it is: haproxy then begins with what the file says, as in a plain reload.
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
            // As of 2.6, which is about to be replaced by one that has the file.
            Ok(answer) => match StatsFile::text(&answer).map(str::to_owned) {
                None => {
                    tracing::warn!(%path, "the serving haproxy has no `dump stats-file`, which 3.0 and later have: no counters for the stats-file");
                }
                Some(text) => {
                    if let Err(error) = write(file.path.clone(), text).await {
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
        // haproxy says so where it is the first time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %file.path.display(), %error, "stats-file not read"),
    }
}

async fn write(path: PathBuf, text: String) -> io::Result<()> {
    worker::within(DISK, move || server_state::replace(&path, &text)).await?
}

fn read(path: &Path) -> io::Result<String> {
    let (directory, name) = Directory::of(path)?;
    Ok(String::from_utf8_lossy(&directory.read(name, LONGEST)?).into_owned())
}
