//! `--watch`: reloads when the configuration has changed on disk.
//!
//! The supervisor watches directories, not files: an editor renames a new file into place, and a
//! Kubernetes volume swaps the symbolic link `..data`. It watches every directory in which a step
//! of the path to a file could change, including links and their targets, and resolves the path
//! again after each change. A burst of changes counts as one. It is over when nothing has happened
//! for [`QUIET`], or after [`LATEST`]. Then the contents decide: a file that reads the same as
//! before is no change.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bindonce_sys::changes::{Changes, Directory};
use bindonce_sys::{file, worker};
use tokio::time::Instant;

use crate::error::Error;

/// A burst of changes is over when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Or after this long, if changes never end.
const LATEST: Duration = Duration::from_secs(2);
/// How long reading all files may take before that is logged.
const LOOKS: Duration = Duration::from_secs(10);
/// The number of symbolic links in one path, as path_resolution(7) limits it.
const LINKS: usize = 40;
/// How deep directories are searched.
const DEPTH: usize = 8;

/// The watched files and directories.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    changes: Changes,
    watched: BTreeSet<Directory>,
    /// A hash of all contents.
    pub(crate) contents: u64,
}

impl Files {
    /// Begins to watch. Later contents are compared with the current ones.
    pub(crate) fn watch(paths: Vec<PathBuf>) -> Result<Self, Error> {
        let changes = Changes::new().map_err(Error::system("watch files (inotify)"))?;
        let mut files = Self { paths, changes, watched: BTreeSet::new(), contents: 0 };
        files.look().map_err(Error::system("watch files (inotify)"))?;
        for path in files.paths.iter().filter(|path| !path.exists()) {
            tracing::warn!(path = %path.display(), "this path of --watch does not exist yet");
        }
        Ok(files)
    }

    /// Calls `changed` after each burst of changes that made a difference, with the hash of the new
    /// contents.
    pub(crate) async fn follow(mut self, changed: impl Fn(u64)) {
        loop {
            if let Err(error) = self.burst().await {
                return tracing::error!("files are no longer watched: {error}");
            }
            let before = self.contents;
            let (send, mut done) = tokio::sync::oneshot::channel();
            let started = worker::start("watch", move || {
                let looked = self.look();
                let _ = send.send((self, looked));
            });
            if let Err(error) = started {
                return tracing::error!("files are no longer watched: {error}");
            }
            let looked = match bindonce_sys::patience::timeout(LOOKS, &mut done).await {
                Ok(looked) => looked,
                // Nothing else waits for this, and nothing can be compared until it is done.
                Err(_) => {
                    tracing::error!(
                        "the files that are watched cannot be read: does a file system not answer? \
                         `bindonce reload` still reloads"
                    );
                    done.await
                }
            };
            let Ok((files, looked)) = looked else {
                return tracing::error!("files are no longer watched: reading them panicked");
            };
            self = files;
            if let Err(error) = looked {
                tracing::error!("some files are not watched: {error}");
            }
            if self.contents == before {
                tracing::debug!("the files that are watched read as before");
            } else {
                changed(self.contents);
            }
        }
    }

    /// Waits for a burst of changes to be over.
    async fn burst(&self) -> io::Result<()> {
        self.changes.next().await?;
        let latest = Instant::now() + LATEST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match tokio::time::timeout_at(quiet, self.changes.next()).await {
                Ok(more) => drop(more?),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Watches the directories that matter now, and reads the contents.
    fn look(&mut self) -> io::Result<()> {
        let mut directories = BTreeSet::new();
        for path in &self.paths {
            way(path, &mut directories);
            below(path, DEPTH, &mut directories);
        }
        // Watched first, then read: a change in between is reported.
        let mut failed = None;
        let mut watched = BTreeSet::new();
        for directory in directories {
            match self.changes.watch(&directory) {
                Ok(directory) => drop(watched.insert(directory)),
                // Gone since; the path to it is watched.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        for old in self.watched.difference(&watched) {
            self.changes.forget(*old);
        }
        self.watched = watched;
        let mut hasher = DefaultHasher::new();
        for path in &self.paths {
            contents(path, DEPTH, &mut hasher);
        }
        self.contents = hasher.finish();
        failed.map_or(Ok(()), Err)
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
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::symlink;
    use std::rc::Rc;

    use super::*;

    /// A directory that is removed on drop.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("bindonce-{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("directory");
            Self(path.canonicalize().expect("its path"))
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).expect("write");
        }

        fn swap(&self, target: &str, link: &str) {
            symlink(target, self.0.join("..new")).expect("link");
            fs::rename(self.0.join("..new"), self.0.join(link)).expect("rename");
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ways(path: &Path) -> Vec<PathBuf> {
        let mut directories = BTreeSet::new();
        way(path, &mut directories);
        directories.into_iter().collect()
    }

    #[test]
    fn every_step_that_could_change_is_watched() {
        let place = Place::new("way");
        fs::create_dir_all(place.0.join("..1")).expect("directory");
        place.write("..1/a.cfg", "1");
        symlink("..1", place.0.join("..data")).expect("link");
        symlink("..data/a.cfg", place.0.join("a.cfg")).expect("link");
        place.write("plain.cfg", "1");
        let top = place.0.clone();
        assert_eq!(ways(&top.join("plain.cfg")), std::slice::from_ref(&top));
        assert_eq!(ways(&top.join("a.cfg")), [top.clone(), top.join("..1")]);
        assert_eq!(ways(&top.join("none/there/x.cfg")), std::slice::from_ref(&top));
        symlink("loop", top.join("loop")).expect("link");
        assert_eq!(ways(&top.join("loop")), std::slice::from_ref(&top));
        let up = top.join("..1/../plain.cfg");
        assert_eq!(ways(&up), [top.join("..1/..")]);
    }

    /// Applies each deed, and checks how many reloads there were after it.
    async fn reloads(paths: Vec<PathBuf>, deeds: Vec<(Box<dyn Fn()>, u32)>) {
        let files = Files::watch(paths).expect("watch");
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        let local = tokio::task::LocalSet::new();
        local.spawn_local(files.follow(move |_| counted.set(counted.get() + 1)));
        let test = async {
            for (number, (deed, wanted)) in deeds.iter().enumerate() {
                deed();
                // Long enough for a burst, on a slow machine too.
                let deadline = Instant::now() + Duration::from_secs(10);
                while count.get() < *wanted && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                tokio::time::sleep(QUIET * 3).await;
                assert_eq!(count.get(), *wanted, "deed {number}");
            }
        };
        local.run_until(test).await;
    }

    fn deed(
        place: &Rc<Place>,
        deed: impl Fn(&Place) + 'static,
        wanted: u32,
    ) -> (Box<dyn Fn()>, u32) {
        let place = Rc::clone(place);
        (Box::new(move || deed(&place)), wanted)
    }

    #[tokio::test]
    async fn only_what_reads_differently_is_a_change() {
        let place = Rc::new(Place::new("files"));
        place.write("a.cfg", "one");
        let deeds = vec![
            deed(&place, |p| p.write("other", "x"), 0),
            deed(&place, |p| p.write("a.cfg", "one"), 0),
            deed(&place, |p| (0..20).for_each(|n| p.write("a.cfg", &n.to_string())), 1),
            deed(
                &place,
                |p| {
                    p.write("new", "two");
                    fs::rename(p.0.join("new"), p.0.join("a.cfg")).expect("rename");
                },
                2,
            ),
            deed(&place, |p| fs::remove_file(p.0.join("a.cfg")).expect("remove"), 3),
            deed(&place, |p| p.write("a.cfg", "three"), 4),
        ];
        reloads(vec![place.0.join("a.cfg")], deeds).await;
    }

    #[tokio::test]
    async fn a_volume_that_is_swapped_is_one_change() {
        let place = Rc::new(Place::new("volume"));
        for (version, text) in [("..1", "one"), ("..2", "two"), ("..3", "two")] {
            fs::create_dir(place.0.join(version)).expect("directory");
            place.write(&format!("{version}/a.cfg"), text);
        }
        place.swap("..1", "..data");
        symlink("..data/a.cfg", place.0.join("a.cfg")).expect("link");
        let deeds = vec![
            deed(&place, |p| p.swap("..2", "..data"), 1),
            // The same text again.
            deed(&place, |p| p.swap("..3", "..data"), 1),
            deed(&place, |p| p.swap("..1", "..data"), 2),
        ];
        reloads(vec![place.0.join("a.cfg"), place.0.clone()], deeds).await;
    }
}
