//! The metrics that both daemons export: the process itself, under the names that all exporters
//! use, and the events of its journal.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bindonce_sys::{limits, process};

use crate::Journal;
use crate::openmetrics::{Family, Page};

const BUILD: Family = Family::info("bindonce_build", "The version of this process.");
const CPU: Family = Family::counter("process_cpu_seconds", "CPU time of this process.");
const RESIDENT: Family =
    Family::gauge("process_resident_memory_bytes", "Memory of this process that is resident.");
const FDS: Family = Family::gauge("process_open_fds", "Open descriptors of this process.");
const MAX_FDS: Family =
    Family::gauge("process_max_fds", "Descriptors that this process may have open.");
const STARTED: Family =
    Family::gauge("process_start_time_seconds", "When this process started, since the Unix epoch.");
const EVENTS: Family = Family::counter("bindonce_events", "What happened, by kind.");

/// Writes the metrics of this process.
pub fn self_metrics(page: &mut Page, version: &str) {
    let pid = i32::try_from(std::process::id()).unwrap_or_default();
    page.family(&BUILD, [([("version", version.to_owned())], 1_u64)]);
    page.single(&CPU, process::own_cpu_time());
    if let Some(bytes) = process::memory(pid) {
        page.single(&RESIDENT, bytes);
    }
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // The directory itself was open while it was read.
    page.single(&FDS, open.saturating_sub(1));
    page.single(&MAX_FDS, limits::nofile().0);
    page.single(&STARTED, started(pid));
}

/// Writes the number of events of each kind since this process began.
pub fn events(page: &mut Page, journal: &Journal) {
    let counts = journal.counts().into_iter();
    page.family(&EVENTS, counts.map(|(kind, count)| ([("kind", kind.word().to_owned())], count)));
}

/// When the process started, computed once: each computation from the clock differs a little.
fn started(pid: i32) -> Duration {
    static KNOWN: OnceLock<Duration> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(process::age(pid).unwrap_or_default())
    })
}
