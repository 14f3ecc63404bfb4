//! What a service keeps on disk, in the directory that [`crate::disk::place`] chooses.
//!
//! Its control socket, the private admin socket and the rendered configuration
//! of each generation, a lock that makes the supervisor the only one, and the
//! state by which the next supervisor finds the generations of this one. All of it
//! is readable by its owner alone.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bindonce_core::generation::GenerationId;
use bindonce_core::name::Name;
use bindonce_daemon::{exclusive, state};
use bindonce_haproxy::names::admin_socket;
use bindonce_sys::intercept::Received;
use bindonce_sys::lock::LockFile;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::disk::fallback::Fallback;
use crate::disk::identity::File;
use crate::disk::place::{self, CONTROL, Place, service_directory};
use crate::error::Error;
use crate::generations::drain::SavedDrain;
use crate::generations::since::SavedLately;
use crate::handover::watchdog::ProcessRef;
use crate::origin::Origin;

/// The socket at which metrics are scraped.
pub(crate) const METRICS: &str = "metrics.sock";

/// The socket at which the next supervisor asks for connections that this one has left.
pub(crate) const KEPT: &str = "kept.sock";

/// Where haproxy's counters are kept.
pub(crate) const COUNTERS: &str = "counters.json";

/// Where the `cluster-secret` is kept.
pub(crate) const CLUSTER_SECRET: &str = "cluster-secret";

const STATE: &str = "state.json";

/// The file that is locked.
const LOCK: &str = "lock";

/// No generation ever has a higher number: as many as a JSON number can tell apart.
pub(crate) const LAST_ID: u64 = 1 << 53;

/// The directory of a service, held by this supervisor alone.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Used while this one takes no files.
    fallback: Fallback,
    /// The state as it was saved last.
    saved: RefCell<Option<Saved>>,
    /// What makes this supervisor the only one, and the file of it.
    lock: RefCell<(LockFile, Option<File>)>,
    /// The control socket, once it is there.
    control: Cell<Option<File>>,
    /// The broker's socket, and the service.
    of: (PathBuf, Name),
    /// It was told that it cannot be made anew.
    pub(super) told: Cell<bool>,
    /// All of it was made anew.
    pub(crate) made_anew: Rc<Notify>,
}

/// What the next supervisor must know. Fields may be added; one that is missing has its default,
/// and one that is not known is passed over, so that any version reads any other's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Saved {
    /// The id that the next generation will have.
    pub(crate) next: u64,
    /// Every generation that has not ended.
    pub(crate) generations: Vec<SavedGeneration>,
    /// Names of the listeners that exist because of this service.
    pub(crate) ours: BTreeSet<String>,
    /// What this supervisor leaves open for itself when it executes its own new binary.
    pub(crate) inherited: Option<Inherited>,
    /// How often it has done so.
    pub(crate) upgrades: u64,
    #[serde(flatten)]
    pub(crate) history: SavedHistory,
    /// Listeners that were inherited, by the number of their descriptor then.
    pub(crate) passed: BTreeMap<i32, String>,
    /// What its generations have done lately; for itself alone.
    pub(crate) lately: SavedLately,
    /// Who has given another command than that of this process.
    pub(crate) caller: Option<Origin>,
    /// The last configuration that had worked, by its generation.
    pub(crate) worked: Option<u64>,
    /// What the files that are watched were when they were last read for a start.
    pub(crate) watched: Option<u64>,
}

/// What clients of the master CLI are told of this process and its reloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedHistory {
    /// When it began, in milliseconds since the Unix epoch.
    pub(crate) began: u64,
    /// How many reloads there were.
    pub(crate) reloads: u64,
    /// How many have failed since the last that succeeded.
    pub(crate) failed_reloads: u64,
    /// What was said at the last of them, or at the start.
    pub(crate) startup_logs: String,
}

/// One generation as the next supervisor must know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedGeneration {
    pub(crate) id: u64,
    /// Its first process.
    #[serde(flatten)]
    pub(crate) process: ProcessRef,
    /// `starting`, `serving` or `draining`.
    pub(crate) state: String,
    /// It has said that it is ready: if it is `starting` all the same, it waits to take over.
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
    /// How many reloads there had been when it began to serve.
    pub(crate) reloads_before: u64,
    /// How long its start took, in milliseconds.
    pub(crate) start_ms: Option<u64>,
    #[serde(flatten)]
    pub(crate) drain: SavedDrain,
}

/// What it has bound by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedOwn {
    /// Devices whose addresses it has.
    pub(crate) own_devices: BTreeSet<String>,
    /// Lines that were read otherwise, and for which it has the broker's sockets.
    pub(crate) own_lines: BTreeSet<String>,
}

/// Descriptors that stay open over an exec of the supervisor by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Inherited {
    /// Whose descriptors these are: the process with this pid and this start time.
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    /// The listening control socket.
    pub(crate) control: i32,
    /// The admin connection of each generation that has one.
    pub(crate) admin: BTreeMap<u64, i32>,
    /// The listening sockets of the master CLI, by what `-S` says.
    pub(crate) master_cli: BTreeMap<String, i32>,
    /// The admin connections of each generation for clients of the master CLI, by their level.
    pub(crate) spares: BTreeMap<u64, BTreeMap<String, i32>>,
    /// The reading end of each generation's standard error.
    pub(crate) stderr: BTreeMap<u64, i32>,
    /// What this service has inherited, by the number of then.
    pub(crate) passed: BTreeMap<i32, i32>,
    /// Where the bind(2) and listen(2) of each generation come from.
    pub(crate) intercept: BTreeMap<u64, i32>,
    /// What of that was received and is not answered.
    pub(crate) calls: BTreeMap<u64, Vec<Received>>,
    /// The listeners of each generation.
    pub(crate) listeners: BTreeMap<u64, Vec<SavedListener>>,
    /// Their descriptors, by inode.
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

impl Saved {
    /// Whether it names no generation, or one that lives.
    pub(crate) fn may_be_the_last(&self) -> bool {
        self.generations.is_empty() || self.generations.iter().any(|one| one.process.is_there())
    }
}

impl Directory {
    /// Opens the directory, making it if need be, and locks it.
    pub(crate) fn open(socket: &Path, service: &Name) -> Result<Self, Error> {
        // It may have been given from the current directory, and a UNIX socket is bound by a whole path.
        let socket = &std::path::absolute(socket)
            .map_err(|why| Error::Directory { path: socket.to_owned(), why })?;
        let beside = service_directory(socket, service);
        let Place { path, untrusted } =
            place::make(socket, service).map_err(|why| Error::Directory { path: beside, why })?;
        let failed = |why| Error::Directory { path: path.clone(), why };
        match untrusted {
            Some(why) if path.parent() == socket.parent() => tracing::warn!(
                path = %path.display(),
                "{why}: other users of this host could replace what this service executes; choose \
                 --socket in a directory of your own, or set XDG_RUNTIME_DIR"
            ),
            Some(why) => {
                tracing::info!(path = %path.display(), "{why}: files of this service lie elsewhere");
            }
            None => {}
        }
        let taken = exclusive::lock(&path.join(LOCK), &path.join(CONTROL)).map_err(failed)?;
        let lock = locked(taken, &path, service)?;
        fs::write(path.join("pid"), format!("{}\n", std::process::id())).map_err(failed)?;
        Ok(Self {
            path,
            fallback: Fallback::default(),
            saved: RefCell::default(),
            lock: RefCell::new(lock),
            control: Cell::default(),
            of: (socket.clone(), service.clone()),
            told: Cell::default(),
            made_anew: Rc::default(),
        })
    }

    /// The control socket was bound, or was there before.
    pub(crate) fn has_control(&self) {
        self.control.set(File::at(&self.file(CONTROL)));
    }

    /// Whether the lock and the control socket are there as they were made.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_there(LOCK, self.lock.borrow().1) && self.control_is_there()
    }

    /// The same of the control socket alone.
    pub(crate) fn control_is_there(&self) -> bool {
        self.is_there(CONTROL, self.control.get())
    }

    fn is_there(&self, name: &str, file: Option<File>) -> bool {
        file.is_none() || File::at(&self.file(name)) == file
    }

    /// Makes it anew where it is missing, with its lock.
    ///
    /// # Errors
    /// Also where it belongs to another user or another supervisor now.
    pub(crate) fn make_anew(&self) -> Result<(), Error> {
        let (socket, service) = &self.of;
        let failed = |why| Error::Directory { path: self.path.clone(), why };
        let made = place::make(socket, service).map_err(failed)?;
        if made.path != self.path {
            return Err(failed(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "another user has taken its place",
            )));
        }
        let file = self.lock.borrow().1;
        if !self.is_there(LOCK, file) {
            let taken = LockFile::try_acquire(&self.file(LOCK)).map_err(failed)?;
            self.lock.replace(locked(taken, &self.path, service)?);
        }
        fs::write(self.file("pid"), format!("{}\n", std::process::id())).map_err(failed)?;
        self.saved.take();
        Ok(())
    }

    /// Where a file or a socket of this name is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the admin socket of a generation is.
    pub(crate) fn admin(&self, id: GenerationId) -> PathBuf {
        let name = admin_socket(id.0);
        let fallback = self.fallback.get().map(|path| path.join(&name));
        fallback.filter(|path| path.exists()).unwrap_or_else(|| self.path.join(name))
    }

    /// Where it is to be bound if it cannot be in this directory.
    pub(crate) fn fallback_admin(&self, id: GenerationId) -> io::Result<PathBuf> {
        Ok(self.fallback.make()?.join(admin_socket(id.0)))
    }

    /// Where the rendered configuration of a generation is.
    pub(crate) fn configuration(&self, id: GenerationId) -> PathBuf {
        self.path.join(format!("generation-{id}"))
    }

    /// Makes the directory for a generation's configuration.
    pub(crate) fn make_configuration(&self, id: GenerationId) -> io::Result<PathBuf> {
        self.ours()?;
        Self::make(self.configuration(id))
    }

    /// # Errors
    /// If it is not there any more: what has its place may be another user's.
    pub(crate) fn ours(&self) -> io::Result<()> {
        match self.is_whole() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The same where it cannot be written here.
    pub(crate) fn make_fallback_configuration(&self, id: GenerationId) -> io::Result<PathBuf> {
        Self::make(self.fallback.make()?.join(format!("generation-{id}")))
    }

    fn make(path: PathBuf) -> io::Result<PathBuf> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
        Ok(path)
    }

    /// Removes a generation's admin socket. One that is not there is no error.
    pub(crate) fn remove_admin(&self, id: GenerationId) {
        if let Err(error) = fs::remove_file(self.admin(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(generation = id.0, %error, "admin socket could not be removed");
        }
    }

    /// Every rendered configuration but those in `keep`, for [`remove_all`].
    pub(crate) fn old_configurations(&self, keep: &[GenerationId]) -> io::Result<Vec<PathBuf>> {
        let mut old = Vec::new();
        for directory in self.fallback.get().into_iter().chain([self.path.clone()]) {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.strip_prefix("generation-"));
                if let Some(Ok(id)) = id.map(str::parse)
                    && !keep.contains(&GenerationId(id))
                {
                    old.push(entry.path());
                }
            }
        }
        Ok(old)
    }

    /// Removes the directory in the memory of the system once nothing is in it.
    pub(crate) fn tidy(&self) {
        self.fallback.tidy();
    }

    /// Removes everything that only a running supervisor needs.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.fallback.clear();
        remove_all(&self.old_configurations(&[])?)?;
        for name in [place::CONTROL, METRICS, KEPT, "pid"] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// The state that the last supervisor saved; none is the same as an empty one. What cannot be read
    /// is moved aside, so that it can be examined: None then.
    pub(crate) fn load(&self) -> Option<Saved> {
        let path = self.file(STATE);
        let failed = |why| Error::Directory { path: path.clone(), why };
        let text = state::read(&path, state::LARGEST).map_err(failed);
        let saved = text.and_then(|text| text.map_or(Ok(Saved::default()), |it| parse(&path, &it)));
        saved
            .inspect_err(|error| {
                let moved_to = state::move_aside(&path);
                tracing::error!(moved_to, "{error}; going on with what /proc and the broker tell");
            })
            .ok()
    }

    /// The newest generation whose rendered configuration is here; 0 if none is.
    pub(crate) fn newest_configuration(&self) -> u64 {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| {
            entry.file_name().to_str()?.strip_prefix("generation-")?.parse().ok()
        });
        ids.filter(|id| *id <= LAST_ID).max().unwrap_or_default()
    }

    /// Where all of it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What helps where the state could not be saved.
    pub(crate) fn remedy(&self, error: &io::Error) -> String {
        remedy(&self.file(STATE), error)
    }

    /// Saves the state, in one step: a reader sees the old or the new one. What is saved already is not written again.
    pub(crate) fn save(&self, saved: Saved) -> io::Result<()> {
        if self.saved.borrow().as_ref() == Some(&saved) {
            return Ok(());
        }
        self.ours()?;
        // Not known to be there until it is.
        self.saved.take();
        state::exchange(&self.file(STATE), &serde_json::to_vec(&saved)?)?;
        self.saved.replace(Some(saved));
        Ok(())
    }
}

/// The lock that makes this supervisor the only one, with the file of it.
fn locked(
    taken: Option<LockFile>,
    path: &Path,
    service: &Name,
) -> Result<(LockFile, Option<File>), Error> {
    if let Some(lock) = taken {
        return Ok((lock, File::at(&path.join(LOCK))));
    }
    let pid = fs::read_to_string(path.join("pid")).unwrap_or_default();
    let pid = pid.trim().parse().ok();
    Err(Error::AlreadySupervised { service: service.clone(), pid })
}

/// What helps where this file could not be written.
pub(crate) fn remedy(file: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let directory = file.parent().unwrap_or(file).display();
            format!(
                "{directory} was removed while this supervisor uses it, and is made anew where that is possible; keep what cleans up away from \
                 there (tmpfiles.d(5), `x`)"
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "have this user write in the run directory".to_owned()
        }
        _ => "free space in the run directory".to_owned(),
    }
}

/// Removes directories with all that is in them. One that is gone is no error. On a disk this may wait for it.
pub(crate) fn remove_all(directories: &[PathBuf]) -> io::Result<()> {
    directories.iter().try_for_each(|directory| match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    })
}

/// Reads a saved state that is at `path`.
pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Saved, Error> {
    let failed = |why| Error::Directory { path: path.to_owned(), why };
    let saved: Saved = serde_json::from_slice(text).map_err(|error| failed(error.into()))?;
    // Times and numbers that cannot be were not written by a supervisor.
    let numbers = saved.generations.iter().flat_map(|g| [g.id, g.configuration, g.since]);
    match numbers.chain([saved.next]).find(|number| *number > LAST_ID) {
        Some(number) => Err(failed(io::Error::other(format!("{number} cannot be in it")))),
        None => Ok(saved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All members are on one level, as the first version wrote them.
    #[test]
    fn any_version_reads_the_state_of_another() {
        let text = r#"{"next": 4, "ours": ["web"], "inherited": null, "upgrades": 1, "began": 1760000000000, "reloads": 7,
            "failed_reloads": 2, "startup_logs": "said", "passed": {"3": "127.0.0.1:80"},
            "lately": {"all": [], "draining": []}, "caller": null, "worked": 2, "watched": 99,
            "generations": [{"id": 3, "pid": 4711, "start_time": 123, "state": "draining", "ready": true,
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
        // What is not known yet has its default, and what is not known any more is passed over.
        let saved =
            parse(Path::new("state.json"), br#"{"next": 2, "later": [1]}"#).expect("a state");
        assert_eq!(saved, Saved { next: 2, ..Saved::default() });
    }
}
