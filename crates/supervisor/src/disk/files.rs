//! `--watch`: reloads when the configuration has changed on disk.
//!
//! The supervisor watches directories, not files: an editor renames a new file into place, and a
//! Kubernetes volume swaps the symbolic link `..data`. It watches every directory in which a step
//! of the path to a file could change, including links and their targets, and resolves the path
//! again after each change. A burst of changes counts as one. It is over when nothing has happened
//! for [`QUIET`], or after [`LATEST`]. Then the contents decide: a file that reads the same as
//! before is no change.
//!
//! Files are looked at on a thread of their own, since a file system may not answer. What fails is
//! logged once and tried again. No change is lost meanwhile: the next look compares the contents
//! with those of the last one.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bindonce_sys::changes::{self, Changes, Directory};
use bindonce_sys::{file, patience, worker};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Error;

/// A burst of changes is over when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Or after this long, if changes never end.
const LATEST: Duration = Duration::from_secs(2);
/// How long reading all files may take before that is logged.
const LOOKS: Duration = Duration::from_secs(10);
/// How long the first look may take before the start continues without it, if a generation runs: it
/// has no supervisor meanwhile.
const FIRST: Duration = Duration::from_secs(5);
/// The pause before another attempt at what has failed: the first, which doubles, and the longest.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_LAST: Duration = Duration::from_secs(60);
/// The number of symbolic links in one path, as path_resolution(7) limits it.
const LINKS: usize = 40;
/// How deep directories are searched.
const DEPTH: usize = 8;

const UNREAD: &str = "the files that are watched cannot be read: does a file system not answer? \
                      a reload that is requested still takes them";
const PANICKED: &str = "reading them panicked";

/// The watched files: until something happens, or while a thread looks at them.
#[derive(Debug)]
pub(crate) enum Watching {
    Waiting(Files),
    Looking(oneshot::Receiver<Files>),
}

/// The watched files and directories.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    /// None until the system gives an inotify instance.
    changes: Option<Changes>,
    watched: BTreeSet<Directory>,
    /// A hash of all contents; None before the first look.
    contents: Option<u64>,
    /// Why the last look failed, or could not begin.
    failed: Option<io::Error>,
    /// Whether that was logged.
    told: bool,
    /// The pause before the next attempt.
    again: Duration,
}

impl Watching {
    /// Begins to watch. Later contents are compared with the current ones. `runs` says that a
    /// generation runs, which needs this supervisor more than a watch: what fails then is logged
    /// and tried again. A look that takes too long goes on beside the start in any case.
    ///
    /// # Errors
    /// If nothing runs: those of inotify(7) and of starting a thread.
    pub(crate) async fn begin(paths: Vec<PathBuf>, runs: bool) -> Result<Self, Error> {
        let limit = if runs { FIRST } else { LOOKS };
        let mut files = match Files::new(paths.clone()).look_aside() {
            Self::Waiting(files) => files,
            Self::Looking(mut looking) => match patience::timeout(limit, &mut looking).await {
                Ok(Ok(files)) => files,
                Ok(Err(_)) => {
                    Files { failed: Some(io::Error::other(PANICKED)), ..Files::new(paths) }
                }
                Err(_) => {
                    tracing::warn!("{UNREAD}");
                    return Ok(Self::Looking(looking));
                }
            },
        };
        match files.failed.take_if(|_| !runs) {
            Some(error) => Err(Error::system("watch files (inotify)")(error)),
            None => {
                files.tell();
                Ok(Self::Waiting(files))
            }
        }
    }

    /// A hash of all contents at the last look; None before the first look has ended.
    pub(crate) fn contents(&self) -> Option<u64> {
        match self {
            Self::Waiting(files) => files.contents,
            Self::Looking(_) => None,
        }
    }

    /// Calls `changed` after each burst of changes that made a difference, with the hash of the new
    /// contents; also with the first contents, if they were not known before.
    pub(crate) async fn follow(self, changed: impl Fn(u64)) {
        let mut before = self.contents();
        let mut now = self;
        loop {
            let looked = match now {
                Self::Waiting(files) => {
                    if let Err(error) = files.due().await {
                        return tracing::error!("files are no longer watched: {error}");
                    }
                    files.look_aside().end().await
                }
                // Its delay was logged when the supervisor began.
                Self::Looking(looking) => looking.await.ok(),
            };
            let Some(mut files) = looked else {
                return tracing::error!("files are no longer watched: {PANICKED}");
            };
            files.tell();
            match files.contents {
                Some(contents) if before != Some(contents) => changed(contents),
                _ => tracing::debug!("the files that are watched read as before"),
            }
            before = files.contents;
            now = Self::Waiting(files);
        }
    }

    /// The files, when the look has ended. None if it panicked.
    async fn end(self) -> Option<Files> {
        let mut looking = match self {
            Self::Waiting(files) => return Some(files),
            Self::Looking(looking) => looking,
        };
        match patience::timeout(LOOKS, &mut looking).await {
            Ok(looked) => looked.ok(),
            // Nothing else waits for this, and nothing can be compared until it is done.
            Err(_) => {
                tracing::error!("{UNREAD}");
                looking.await.ok()
            }
        }
    }
}

impl Files {
    fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            changes: None,
            watched: BTreeSet::new(),
            contents: None,
            failed: None,
            told: false,
            again: AGAIN,
        }
    }

    /// Logs a failure once, and once that it is over.
    fn tell(&mut self) {
        match &self.failed {
            Some(error) if !self.told => {
                let limit = changes::limit(error);
                tracing::warn!(
                    "files of --watch are not watched, which is tried again: {error}{limit}"
                );
            }
            None if self.told => tracing::info!("the files of --watch are watched again"),
            _ => {}
        }
        self.again = match (&self.failed, self.told) {
            (Some(_), true) => (2 * self.again).min(AGAIN_LAST),
            _ => AGAIN,
        };
        self.told = self.failed.is_some();
    }

    /// Waits for a burst of changes to be over; after a failure, for the next attempt at most.
    async fn due(&self) -> io::Result<()> {
        let burst = async {
            match &self.changes {
                Some(changes) => burst(changes).await,
                None => std::future::pending().await,
            }
        };
        match self.failed {
            None => burst.await,
            Some(_) => tokio::time::timeout(self.again, burst).await.unwrap_or(Ok(())),
        }
    }

    /// Begins to look, on a thread of its own. Where that fails, the files wait, with the reason.
    fn look_aside(mut self) -> Watching {
        if self.changes.is_none() {
            match Changes::new() {
                Ok(changes) => self.changes = Some(changes),
                Err(error) => {
                    self.failed = Some(error);
                    return Watching::Waiting(self);
                }
            }
        }
        // The thread gets the files when it runs: one that cannot be started takes nothing along.
        let (give, given) = std::sync::mpsc::channel::<Self>();
        let (send, looking) = oneshot::channel();
        let span = tracing::Span::current();
        let started = worker::start("watch", move || {
            let Ok(mut files) = given.recv() else { return };
            files.failed = span.in_scope(|| files.look()).err();
            // Nothing waits for it when the supervisor ends.
            let _ = send.send(files);
        });
        if let Err(error) = started {
            self.failed = Some(error);
            return Watching::Waiting(self);
        }
        // The thread waits for this.
        let _ = give.send(self);
        Watching::Looking(looking)
    }

    /// Watches the directories that matter now, and reads the contents.
    fn look(&mut self) -> io::Result<()> {
        let Some(changes) = &self.changes else { return Ok(()) };
        if self.contents.is_none() {
            for path in self.paths.iter().filter(|path| !path.exists()) {
                tracing::warn!(path = %path.display(), "this path of --watch does not exist yet");
            }
        }
        let mut directories = BTreeSet::new();
        for path in &self.paths {
            way(path, &mut directories);
            below(path, DEPTH, &mut directories);
        }
        // Watched first, then read: a change in between is reported.
        let mut failed = None;
        let mut watched = BTreeSet::new();
        for directory in directories {
            match changes.watch(&directory) {
                Ok(directory) => drop(watched.insert(directory)),
                // Gone since; the path to it is watched.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        for old in self.watched.difference(&watched) {
            changes.forget(*old);
        }
        self.watched = watched;
        let mut hasher = DefaultHasher::new();
        for path in &self.paths {
            contents(path, DEPTH, &mut hasher);
        }
        self.contents = Some(hasher.finish());
        failed.map_or(Ok(()), Err)
    }
}

/// Waits for a burst of changes to be over.
async fn burst(changes: &Changes) -> io::Result<()> {
    changes.next().await?;
    let latest = Instant::now() + LATEST;
    loop {
        let quiet = (Instant::now() + QUIET).min(latest);
        match tokio::time::timeout_at(quiet, changes.next()).await {
            Ok(more) => drop(more?),
            Err(_) => return Ok(()),
        }
    }
}

/// The directories in which something could change what `path` leads to: the directory of each
/// symbolic link on the path, and that of the last step, or of the first missing one.
fn way(path: &Path, directories: &mut BTreeSet<PathBuf>) {
    let mut at = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut steps: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(step) = steps.pop_front() {
        if step == ".." {
            at.push(step);
            continue;
        }
        let next = at.join(&step);
        match fs::read_link(&next) {
            Ok(target) if links < LINKS => {
                links += 1;
                directories.insert(at.clone());
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for step in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    steps.push_front(step);
                }
            }
            _ if steps.is_empty() || !next.exists() => {
                directories.insert(at);
                return;
            }
            _ => at = next,
        }
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Adds the contents at `path` to the hash; for a directory, all entries that are not hidden. An
/// unreadable file is hashed by its error.
fn contents(path: &Path, depth: usize, hasher: &mut DefaultHasher) {
    path.hash(hasher);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return error.raw_os_error().hash(hasher),
    };
    if metadata.is_dir() {
        for entry in entries(path).into_iter().filter(|_| depth > 0) {
            contents(&entry, depth - 1, hasher);
        }
    } else if metadata.is_file()
        && let Err(error) = read(path, hasher)
    {
        error.raw_os_error().hash(hasher);
    }
}

/// Adds `path` and its subdirectories, if it is a directory.
fn below(path: &Path, depth: usize, directories: &mut BTreeSet<PathBuf>) {
    if path.is_dir() {
        directories.insert(path.to_owned());
        for entry in entries(path).iter().filter(|_| depth > 0) {
            below(entry, depth - 1, directories);
        }
    }
}

/// The entries of a directory that are not hidden, in order.
fn entries(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let shown = names.filter(|name| !name.as_encoded_bytes().starts_with(b"."));
    shown.map(|name| directory.join(name)).collect()
}

fn read(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    let mut file = file::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        hasher.write(buffer.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
