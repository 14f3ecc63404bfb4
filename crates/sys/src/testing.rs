//! Helpers for several tests.

#[path = "../../../tests/harness/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bindonce_core::patience::Patience;
use rustix::fs::{CWD, RenameFlags, renameat_with};

pub(crate) use skip::skip;

/// The patience of a process that was stopped for twice the limit in its first wait.
pub(crate) fn stopped_within(limit: Duration) -> Patience {
    let begun = Instant::now().checked_sub(2 * limit).expect("this machine runs for longer");
    let mut patience = Patience::new(limit);
    assert!(patience.next_wait(begun).is_some());
    patience
}

/// A thread that constantly exchanges two files.
pub(crate) struct Exchanging(AtomicU32);

impl Exchanging {
    /// Returns when the thread runs at this moment, beside the caller; after 50 ms in any case.
    pub(crate) fn meet(&self) {
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            // Less than the time for which a thread runs before another one has its turn: a change
            // is made while this thread looks.
            let (before, looks) = (self.0.load(Ordering::Relaxed), Instant::now());
            while looks.elapsed() < Duration::from_micros(500) {
                if self.0.load(Ordering::Relaxed) != before {
                    return;
                }
            }
            std::thread::yield_now();
        }
    }
}

/// Runs `work` while another thread constantly exchanges two files.
pub(crate) fn while_exchanged(one: &Path, other: &Path, work: impl FnOnce(&Exchanging)) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let flag = AtomicBool::new(false);
    let exchanging = Exchanging(AtomicU32::new(0));
    std::thread::scope(|scope| {
        let _done = Done(&flag);
        scope.spawn(|| {
            while !flag.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
                exchanging.0.fetch_add(1, Ordering::Relaxed);
            }
        });
        work(&exchanging);
    });
}

/// A directory that is removed with the value.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(what: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("bindonce-{what}-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The names of the entries.
    pub(crate) fn entries(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).expect("directory").flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
