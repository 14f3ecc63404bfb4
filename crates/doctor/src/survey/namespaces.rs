//! Finds network namespaces: those of all processes, and those with a name.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bindonce_sys::Error;
use bindonce_sys::listen::within_netns_at;
use bindonce_sys::process::numbered;

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespace {
    /// The inode, as in `net:[4026531840]`.
    pub(super) id: u64,
    /// The name under /run/netns (ip-netns(8)), if it has one.
    pub(super) name: Option<String>,
    /// The path to open it; None for the namespace of this process.
    path: Option<PathBuf>,
}

/// The result of [`Namespaces::find`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// The namespaces, the caller's own first.
    pub(super) all: Vec<Namespace>,
    /// The namespace of each process that shows it.
    pub(super) of: BTreeMap<i32, u64>,
}

impl Namespaces {
    /// Finds every namespace that has a name or a process of this system in it.
    pub(super) fn find() -> Self {
        let own = id(Path::new("/proc/thread-self/ns/net"));
        let mut found = Self::default();
        if let Some(id) = own {
            found.all.push(Namespace { id, name: None, path: None });
        }
        for pid in numbered(Path::new("/proc")).unwrap_or_default() {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            // A process that has ended meanwhile, or is another user's, does not show its
            // namespace.
            if let Some(id) = id(&path) {
                found.of.insert(pid, id);
                found.add(id, None, path);
            }
        }
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            // A name without a mounted namespace is an ordinary empty file.
            if let Ok(about) = fs::metadata(entry.path())
                && is_namespace(&entry.path())
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.add(about.ino(), Some(name), entry.path());
            }
        }
        found
    }

    /// The namespace of a process, including one that has started since.
    pub(super) fn of_process(&self, pid: i32) -> Option<u64> {
        self.of.get(&pid).copied().or_else(|| id(Path::new(&format!("/proc/{pid}/ns/net"))))
    }

    fn add(&mut self, id: u64, name: Option<String>, path: PathBuf) {
        match self.all.iter_mut().find(|known| known.id == id) {
            Some(known) => known.name = known.name.take().or(name),
            None => self.all.push(Namespace { id, name, path: Some(path) }),
        }
    }
}

fn id(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|about| about.ino())
}

/// NSFS_MAGIC of linux/magic.h.
fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|about| about.f_type as u64 == 0x6e73_6673)
}

impl Namespace {
    /// Runs `work` in the namespace: in the calling thread if that is already in it, else in a
    /// thread that ends with the work.
    ///
    /// # Errors
    /// [`Error::Netns`] if the namespace may not be entered, or is gone.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match &self.path {
            Some(path) => within_netns_at(path, &self.label(), work),
            None => Ok(work()),
        }
    }

    /// Whether it is the caller's own namespace.
    pub(super) fn is_own(&self) -> bool {
        self.path.is_none()
    }

    /// The name, or the kernel's notation if it has none.
    pub(super) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("net:[{}]", self.id))
    }
}
