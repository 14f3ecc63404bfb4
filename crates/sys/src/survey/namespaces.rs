//! Network namespaces: those of all processes, and those that have a name.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use super::numbered;
use crate::Error;
use crate::listen::within_open;

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its inode, as in `net:[4026531840]`.
    pub id: u64,
    /// What people call it: its name under /run/netns (ip-netns(8)), if it has one.
    pub name: Option<String>,
    /// Where it can be opened; none for the one that this process is in.
    path: Option<PathBuf>,
}

/// What [`Namespaces::find`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// The namespaces, the caller's own first.
    pub all: Vec<Namespace>,
    /// How many processes do not tell theirs, because they are another user's.
    pub hidden: usize,
    /// The namespace of each process that tells it.
    pub of: BTreeMap<i32, u64>,
}

impl Namespaces {
    /// Finds every namespace that a process of this system is in or that has a name.
    pub fn find() -> Self {
        let own = id(Path::new("/proc/thread-self/ns/net"));
        let mut found = Self::default();
        if let Some(id) = own {
            found.all.push(Namespace { id, name: None, path: None });
        }
        for pid in numbered(Path::new("/proc")).unwrap_or_default() {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            match fs::metadata(&path) {
                Ok(about) => {
                    found.of.insert(pid, about.ino());
                    found.add(about.ino(), None, path);
                }
                // One that has ended meanwhile, or a zombie, hides nothing.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(_) => found.hidden += 1,
            }
        }
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            // A name whose namespace is no longer mounted is an ordinary empty file.
            if let Ok(about) = fs::metadata(entry.path())
                && is_namespace(&entry.path())
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.add(about.ino(), Some(name), entry.path());
            }
        }
        found
    }

    /// The namespace of a process, also of one that has begun since.
    pub fn of_process(&self, pid: i32) -> Option<u64> {
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
    /// Runs `work` in it: in the calling thread if that is in it already, else in a
    /// thread that ends with the work.
    ///
    /// # Errors
    /// [`Error::Netns`] if it may not be entered, or is gone.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let Some(path) = &self.path else {
            return Ok(work());
        };
        within_open(&self.open(path)?, &self.label(), work)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Error> {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error());
            Error::Netns { name: self.label(), operation: "open", errno }
        })
    }

    /// Whether the caller is in it.
    pub fn is_own(&self) -> bool {
        self.path.is_none()
    }

    /// Its name, or else the way in which the kernel shows it.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("net:[{}]", self.id))
    }
}
