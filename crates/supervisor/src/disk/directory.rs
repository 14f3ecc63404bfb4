//! The directory of a service, at the path that [`crate::disk::place`] chooses.
//!
//! It holds the control socket, the private admin socket and rendered configuration of each
//! generation, a lock that allows only one supervisor, and the state by which the next supervisor
//! finds the generations of this one. Only its owner can read it.

use std::cell::{Cell, RefCell};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bindonce_core::generation::GenerationId;
use bindonce_core::name::Name;
use bindonce_daemon::{exclusive, state};
use bindonce_haproxy::names::admin_socket;
use bindonce_sys::lock::LockFile;
use tokio::sync::Notify;

use crate::disk::fallback::Fallback;
use crate::disk::identity::File;
use crate::disk::place::{self, CONTROL, Place, service_directory};
use crate::disk::saved::{self, LAST_ID, Saved};
use crate::error::Error;

/// The socket at which metrics are scraped.
pub(crate) const METRICS: &str = "metrics.sock";

/// The socket at which the next supervisor asks for the descriptors that this one's watchdog keeps.
pub(crate) const KEPT: &str = "kept.sock";

/// The file with haproxy's counters.
pub(crate) const COUNTERS: &str = "counters.json";

/// The file with the `cluster-secret`.
pub(crate) const CLUSTER_SECRET: &str = "cluster-secret";

pub(crate) const STATE: &str = "state.json";

/// The lock file.
const LOCK: &str = "lock";

/// The directory of a service, held by this supervisor alone.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The directory for files while this one takes none.
    fallback: Fallback,
    /// The state that was saved last.
    saved: RefCell<Option<Saved>>,
    /// The lock that makes this supervisor the only one, and the identity of its file.
    lock: RefCell<(LockFile, Option<File>)>,
    /// The identity of the control socket, once it exists.
    control: Cell<Option<File>>,
    /// The broker's socket, and the service.
    of: (PathBuf, Name),
    /// Whether the failure to recreate the directory was logged.
    pub(super) failure_logged: Cell<bool>,
    /// Notified when the directory was recreated.
    pub(crate) made_anew: Rc<Notify>,
}

impl Directory {
    /// Opens the directory, creates it if necessary, and locks it.
    pub(crate) fn open(socket: &Path, service: &Name) -> Result<Self, Error> {
        // The path may be relative to the current directory, and a UNIX socket is bound by an
        // absolute path.
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
            failure_logged: Cell::default(),
            made_anew: Rc::default(),
        })
    }

    /// Notes the control socket, which was just bound or existed before.
    pub(crate) fn has_control(&self) {
        self.control.set(File::at(&self.file(CONTROL)));
    }

    /// Whether the lock and the control socket are still the files that this supervisor made.
    pub(crate) fn is_whole(&self) -> bool {
        self.has_lock() && self.control_is_there()
    }

    /// Whether no other supervisor can have taken the directory's place.
    fn has_lock(&self) -> bool {
        self.is_there(LOCK, self.lock.borrow().1)
    }

    /// The same for the control socket alone.
    pub(crate) fn control_is_there(&self) -> bool {
        self.is_there(CONTROL, self.control.get())
    }

    fn is_there(&self, name: &str, file: Option<File>) -> bool {
        file.is_none() || File::at(&self.file(name)) == file
    }

    /// Recreates the missing parts of the directory, with its lock.
    ///
    /// # Errors
    /// Also if another user or another supervisor owns it now.
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

    /// The path of a file or socket with this name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path of a generation's admin socket.
    pub(crate) fn admin(&self, id: GenerationId) -> PathBuf {
        let name = admin_socket(id.0);
        let fallback = self.fallback.get().map(|path| path.join(&name));
        fallback.filter(|path| path.exists()).unwrap_or_else(|| self.path.join(name))
    }

    /// The path for the admin socket if it cannot be bound in this directory.
    pub(crate) fn fallback_admin(&self, id: GenerationId) -> io::Result<PathBuf> {
        Ok(self.fallback.make(&self.path)?.join(admin_socket(id.0)))
    }

    /// The path of a generation's rendered configuration.
    pub(crate) fn configuration(&self, id: GenerationId) -> PathBuf {
        self.path.join(format!("generation-{id}"))
    }

    /// Creates the directory for a generation's configuration.
    pub(crate) fn make_configuration(&self, id: GenerationId) -> io::Result<PathBuf> {
        self.ours()?;
        Self::make(self.configuration(id))
    }

    /// Checks that the directory is still ours.
    ///
    /// # Errors
    /// If it is no longer there: another user may own what has its place.
    pub(crate) fn ours(&self) -> io::Result<()> {
        match self.is_whole() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether the directory of a configuration is in this directory, or in the fallback directory
    /// that this process made.
    pub(crate) fn holds(&self, configuration: &Path) -> bool {
        configuration.parent().is_some_and(|parent| {
            parent == self.path || self.fallback.get().is_some_and(|made| parent == made)
        })
    }

    /// As [`Directory::make_configuration`], where that directory takes no configuration.
    pub(crate) fn make_fallback_configuration(&self, id: GenerationId) -> io::Result<PathBuf> {
        Self::make(self.fallback.make(&self.path)?.join(format!("generation-{id}")))
    }

    fn make(path: PathBuf) -> io::Result<PathBuf> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
        Ok(path)
    }

    /// Removes a generation's admin socket. A missing socket is no error, and another supervisor's
    /// stays.
    pub(crate) fn remove_admin(&self, id: GenerationId) {
        let path = self.admin(id);
        if path.parent() == Some(self.path.as_path()) && !self.has_lock() {
            return;
        }
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(generation = id.0, %error, "admin socket could not be removed");
        }
    }

    /// Every rendered configuration of this supervisor except those in `keep`, for [`remove_all`].
    pub(crate) fn old_configurations(&self, keep: &[GenerationId]) -> io::Result<Vec<PathBuf>> {
        let mut old = Vec::new();
        let own = self.has_lock().then(|| self.path.clone());
        for directory in self.fallback.get().into_iter().chain(own) {
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

    /// Removes the fallback directory once it is empty.
    pub(crate) fn tidy(&self) {
        self.fallback.tidy();
    }

    /// Removes everything that only a running supervisor needs, unless another one has taken the
    /// directory's place.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.fallback.clear();
        if !self.has_lock() {
            return Ok(());
        }
        remove_all(&self.old_configurations(&[])?)?;
        for name in [place::CONTROL, METRICS, KEPT, "pid"] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// The state that the last supervisor saved, by [`saved::load`].
    pub(crate) fn load(&self) -> Result<Option<Saved>, Error> {
        saved::load(&self.file(STATE))
    }

    /// The newest generation whose rendered configuration is here; 0 if there is none.
    pub(crate) fn newest_configuration(&self) -> u64 {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| {
            entry.file_name().to_str()?.strip_prefix("generation-")?.parse().ok()
        });
        ids.filter(|id| *id <= LAST_ID).max().unwrap_or_default()
    }

    /// The path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The remedy for a state that could not be saved.
    pub(crate) fn remedy(&self, error: &io::Error) -> String {
        remedy(&self.file(STATE), error)
    }

    /// Saves the state atomically: a reader sees the old or the new one. An unchanged state is not
    /// written again.
    pub(crate) fn save(&self, saved: Saved) -> io::Result<()> {
        if self.saved.borrow().as_ref() == Some(&saved) {
            return Ok(());
        }
        self.ours()?;
        // The saved state is unknown until the write succeeds.
        self.saved.take();
        state::exchange(&self.file(STATE), &serde_json::to_vec(&saved)?)?;
        self.saved.replace(Some(saved));
        Ok(())
    }
}

/// The lock, with the identity of its file.
///
/// # Errors
/// If another supervisor has it.
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

/// The remedy for a file that could not be written.
pub(crate) fn remedy(file: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let directory = file.parent().unwrap_or(file).display();
            format!(
                "{directory} was removed while in use, and is recreated if possible; exclude it from cleanup \
                 (tmpfiles.d(5), `x`)"
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "have this user write in the run directory".to_owned()
        }
        _ => "free space in the run directory".to_owned(),
    }
}

/// Removes directories with their contents. A missing directory is no error. May block on a disk.
pub(crate) fn remove_all(directories: &[PathBuf]) -> io::Result<()> {
    directories.iter().try_for_each(|directory| match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_supervisor_has_in_its_place_stays() {
        let beside = std::env::temp_dir().join(format!("bindonce-place-{}", std::process::id()));
        let open = || {
            let service = "web".parse().expect("a name");
            Directory::open(&beside.join("broker.sock"), &service).expect("a directory")
        };
        let first = open();
        let path = first.path().to_owned();
        fs::remove_dir_all(&path).expect("removed");
        let next = open();
        assert_eq!(next.path(), path);
        let admin = next.admin(GenerationId(1));
        for file in [&admin, &path.join(CONTROL), &path.join(METRICS), &path.join(KEPT)] {
            fs::write(file, "").expect("written");
        }
        next.has_control();
        next.make_configuration(GenerationId(1)).expect("made");
        let there = || {
            let entries = fs::read_dir(&path).expect("the directory").flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        let before = there();
        first.remove_admin(GenerationId(1));
        assert!(first.old_configurations(&[]).expect("none").is_empty());
        first.clear().expect("left alone");
        assert_eq!(there(), before);
        next.remove_admin(GenerationId(1));
        assert!(!admin.exists());
        assert_eq!(next.old_configurations(&[]).expect("one").len(), 1);
        next.clear().expect("removed");
        assert_eq!(there(), [LOCK]);
        fs::remove_dir_all(&path).expect("removed");
        // Where the files lie elsewhere, a link to them is here.
        fs::remove_dir_all(&beside).expect("removed");
    }
}
