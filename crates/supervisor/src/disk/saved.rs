//! The state for the next supervisor, as saved in state.json.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use bindonce_daemon::{reexec, state};
use bindonce_sys::intercept::Received;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::generations::drain::SavedDrain;
use crate::generations::since::SavedLately;
use crate::handover::duty::ProcessRef;
use crate::origin::Origin;

/// The highest possible generation number: JSON numbers are exact up to here.
pub(crate) const LAST_ID: u64 = 1 << 53;

/// The state for the next supervisor. Fields may be added: a missing field takes its default and an
/// unknown one is ignored, so that any version reads any other's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Saved {
    /// The id of the next generation.
    pub(crate) next: u64,
    /// Every generation that has not ended.
    pub(crate) generations: Vec<SavedGeneration>,
    /// Names of the listeners that exist because of this service.
    pub(crate) ours: BTreeSet<String>,
    /// Descriptors that this supervisor leaves open for itself when it executes its new binary.
    pub(crate) inherited: Option<Inherited>,
    /// Number of upgrades in place so far.
    pub(crate) upgrades: u64,
    #[serde(flatten)]
    pub(crate) history: SavedHistory,
    /// Inherited listeners, by their descriptor number at that time.
    pub(crate) passed: BTreeMap<i32, String>,
    /// Recent traffic of its generations; only for the next image of this process.
    pub(crate) lately: SavedLately,
    /// The caller that gave another command line than this process's own.
    pub(crate) caller: Option<Origin>,
    /// The last configuration that worked, by its generation.
    pub(crate) worked: Option<u64>,
    /// The hash of the watched files when they were last read for a start.
    pub(crate) watched: Option<u64>,
    /// The supervisor has ended, and so has every generation.
    pub(crate) ended: bool,
}

/// What the master CLI tells clients of this process and its reloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedHistory {
    /// When this process began, in milliseconds since the Unix epoch.
    pub(crate) began: u64,
    /// Number of reloads.
    pub(crate) reloads: u64,
    /// Number of failed reloads since the last success.
    pub(crate) failed_reloads: u64,
    /// The startup messages of the last reload, or of the start.
    pub(crate) startup_logs: String,
}

/// One generation, for the next supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedGeneration {
    pub(crate) id: u64,
    /// Its first process.
    #[serde(flatten)]
    pub(crate) process: ProcessRef,
    /// `starting`, `serving` or `draining`.
    pub(crate) state: String,
    /// The handover to it has begun. If its state is still `starting`, it is waiting to take over,
    /// and the watchdog finishes the handover if the supervisor dies.
    pub(crate) ready: bool,
    /// It runs under haproxy's own master.
    pub(crate) master_worker: bool,
    /// The generation whose configuration it runs.
    pub(crate) configuration: u64,
    /// When it was started, in milliseconds since the Unix epoch.
    pub(crate) since: u64,
    /// Its listeners, as they were claimed.
    pub(crate) listeners: Vec<String>,
    #[serde(flatten)]
    pub(crate) own: SavedOwn,
    /// Number of reloads when it began to serve.
    pub(crate) reloads_before: u64,
    /// How long its start took, in milliseconds.
    pub(crate) start_ms: Option<u64>,
    #[serde(flatten)]
    pub(crate) drain: SavedDrain,
}

/// Sockets that this generation bound itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedOwn {
    /// Devices whose addresses it bound.
    pub(crate) own_devices: BTreeSet<String>,
    /// Lines that haproxy read differently, and for which it has the broker's sockets.
    pub(crate) own_lines: BTreeSet<String>,
}

/// Descriptors that stay open when the supervisor executes its new binary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Inherited {
    /// The process that owns these descriptors, by pid and start time.
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    /// The listening control socket.
    pub(crate) control: i32,
    /// The admin connection of each generation that has one.
    pub(crate) admin: BTreeMap<u64, i32>,
    /// The listening sockets of the master CLI, by the text of `-S`.
    pub(crate) master_cli: BTreeMap<String, i32>,
    /// The admin connections of each generation for clients of the master CLI, by their level.
    pub(crate) spares: BTreeMap<u64, BTreeMap<String, i32>>,
    /// The reading end of each generation's standard error.
    pub(crate) stderr: BTreeMap<u64, i32>,
    /// Descriptors that the service inherited, by their number at that time.
    pub(crate) passed: BTreeMap<i32, i32>,
    /// The descriptor for each generation's bind(2) and listen(2) calls.
    pub(crate) intercept: BTreeMap<u64, i32>,
    /// Received calls that are not answered yet.
    pub(crate) calls: BTreeMap<u64, Vec<Received>>,
    /// The listeners of each generation.
    pub(crate) listeners: BTreeMap<u64, Vec<SavedListener>>,
    /// Descriptors of the listeners, by inode.
    pub(crate) sockets: BTreeMap<u64, i32>,
}

/// A listener of a generation, for an image that may not get it from the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedListener {
    /// As it was claimed.
    pub(crate) listener: String,
    pub(crate) label: String,
    pub(crate) bound: String,
    pub(crate) inode: u64,
}

impl Inherited {
    /// Whether an earlier image of this very process left them.
    pub(crate) fn is_ours(&self) -> bool {
        (self.pid.cast_unsigned(), self.start_time) == reexec::this_process()
    }
}

impl Saved {
    /// Whether nothing suggests that a generation was started after this state: the newest that it
    /// names lives, or there never was one.
    pub(crate) fn may_be_the_last(&self) -> bool {
        match self.generations.iter().max_by_key(|one| one.id) {
            Some(newest) => newest.process.is_there(),
            None => self.ended || self.next <= 1,
        }
    }
}

/// The state that the last supervisor saved at `path`; a missing file counts as an empty state.
/// None if it cannot be understood: the file is then moved aside for examination.
///
/// # Errors
/// If the file cannot be read. It may well be good, so it stays, and nothing may be saved over it.
pub(crate) fn load(path: &Path) -> Result<Option<Saved>, Error> {
    let text = match state::read(path, state::LARGEST) {
        Err(why) if why.raw_os_error().is_some() => return Err(Error::state(path, why)),
        // The file is no regular one, or too large.
        Err(why) => Err(Error::Directory { path: path.to_owned(), why }),
        Ok(text) => Ok(text),
    };
    let saved = text.and_then(|text| text.map_or(Ok(Saved::default()), |text| parse(path, &text)));
    let damaged = |error: &Error| {
        let moved_to = state::move_aside(path);
        tracing::error!(moved_to, "{error}; continuing with what /proc and the broker report");
    };
    Ok(saved.inspect_err(damaged).ok())
}

/// Reads a saved state that is at `path`.
pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Saved, Error> {
    let failed = |why| Error::Directory { path: path.to_owned(), why };
    let saved: Saved = serde_json::from_slice(text).map_err(|error| failed(error.into()))?;
    // A supervisor never writes numbers or times above the limit.
    let numbers = saved.generations.iter().flat_map(|g| [g.id, g.configuration, g.since]);
    match numbers.chain([saved.next]).find(|number| *number > LAST_ID) {
        Some(number) => Err(failed(io::Error::other(format!("{number} cannot be in it")))),
        None => Ok(saved),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_was_read_and_is_no_state_is_moved_aside() {
        let directory = std::env::temp_dir().join(format!("bindonce-load-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("state.json");
        let files = || fs::read_dir(&directory).expect("the directory").count();
        assert_eq!(load(&path).expect("no file"), Some(Saved::default()));
        fs::write(&path, r#"{"next": 7}"#).expect("written");
        let good = Saved { next: 7, ..Saved::default() };
        assert_eq!(load(&path).expect("read"), Some(good));
        if !nix::unistd::geteuid().is_root() {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).expect("its mode");
            assert!(matches!(load(&path), Err(Error::State { .. })));
            assert!(path.exists());
        }
        // Reading this fails with EIO, for root too: nothing is mapped at its beginning.
        let unread = format!("/proc/{}/mem", std::process::id());
        let error = load(Path::new(&unread)).expect_err("EIO");
        assert!(matches!(error, Error::State { .. }), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("start the service again")));
        assert_eq!(files(), 1);
        fs::remove_file(&path).expect("removed");
        for damage in ["", "{\"next\": 7", "{\"next\": 18446744073709551615}"] {
            fs::write(&path, damage).expect("written");
            assert_eq!(load(&path).expect("read"), None, "{damage}");
            assert!(!path.exists(), "{damage}");
        }
        let path = directory.join("directory.json");
        fs::create_dir(&path).expect("a directory in its place");
        assert_eq!(load(&path).expect("looked at"), None);
        assert!(!path.exists());
        fs::remove_dir_all(&directory).expect("removed");
    }

    /// The supervisor may have died before it could save the generation that it had started.
    #[test]
    fn a_state_whose_newest_generation_is_gone_may_not_be_the_last() {
        let living = ProcessRef::of(std::process::id().cast_signed()).expect("this process");
        let ended = ProcessRef { start_time: living.start_time + 1, ..living };
        for (next, generations, expected) in [
            (0, vec![], true),
            (1, vec![], true),
            (2, vec![], false),
            (3, vec![(1, ended), (2, living)], true),
            (3, vec![(2, living), (1, ended)], true),
            (3, vec![(1, living), (2, ended)], false),
        ] {
            let named =
                |(id, process)| SavedGeneration { id, process, ..SavedGeneration::default() };
            let generations = generations.into_iter().map(named).collect();
            let saved = Saved { next, generations, ..Saved::default() };
            assert_eq!(saved.may_be_the_last(), expected, "{saved:?}");
        }
        let ended = Saved { next: 2, ended: true, ..Saved::default() };
        assert!(ended.may_be_the_last());
    }

    /// All members are on one level, as the first version wrote them.
    #[test]
    fn any_version_reads_the_state_of_another() {
        let text = r#"{"next": 4, "ours": ["web"], "inherited": null, "upgrades": 1, "began": 1760000000000, "reloads": 7,
            "failed_reloads": 2, "startup_logs": "said", "passed": {"3": "127.0.0.1:80"},
            "lately": {"all": [], "draining": []}, "caller": null, "worked": 2, "watched": 99,
            "ended": false, "generations": [{"id": 3, "pid": 4711, "start_time": 123, "state": "draining", "ready": true,
            "master_worker": true, "configuration": 2, "since": 1760000000001, "listeners": ["127.0.0.1:80"],
            "own_devices": ["eth9"], "own_lines": ["a"], "reloads_before": 5, "start_ms": 12, "drain_idle_ms": 5000,
            "drain_timeout_ms": 60000, "counted": {"requests": 8, "bytes": 9}, "told": 11, "after": {"requests": 1, "bytes": 2},
            "idle_closed": 6}]}"#;
        let saved = parse(Path::new("state.json"), text.as_bytes()).expect("a state");
        let generation = &saved.generations[0];
        assert_eq!(generation.process, ProcessRef { pid: 4711, start_time: 123 });
        assert_eq!((saved.history.reloads, saved.history.failed_reloads), (7, 2));
        let written = serde_json::to_value(&saved).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
        // A missing field takes its default; an unknown one is ignored.
        let saved =
            parse(Path::new("state.json"), br#"{"next": 2, "later": [1]}"#).expect("a state");
        assert_eq!(saved, Saved { next: 2, ..Saved::default() });
    }
}
