//! Tests that need a process of their own: the shim, exec, ghosts, limits, signals.
//!
//! This binary is its own shim (`Launch` starts /proc/self/exe) and its own children. Its tests run
//! one after the other in the main thread, so that counts of descriptors mean something and exec
//! has a single thread.

mod children;
mod ghosts;
mod hold;
mod programs;
#[path = "../../../../tests/harness/skip.rs"]
mod skip;
mod system;
mod worker;

use std::ffi::OsString;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// A test and its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some(bindonce_sys::spawn::SUBCOMMAND) => children::shim(&args),
        Some("child") => children::child(&args),
        filter => run(filter.filter(|text| !text.starts_with('-')).unwrap_or_default()),
    }
}

fn run(filter: &str) -> ExitCode {
    keep_to_ourselves();
    let mut failed = 0;
    for (name, test) in [programs::TESTS, worker::TESTS, hold::TESTS, ghosts::TESTS, system::TESTS]
        .concat()
        .into_iter()
        .filter(|(n, _)| n.contains(filter))
    {
        let before = open_descriptors();
        let outcome = catch_unwind(test).map(|()| open_descriptors());
        let verdict = match outcome {
            Ok(after) if after == before => "ok".to_owned(),
            Ok(after) => format!("FAILED: descriptors leaked: {before:?} became {after:?}"),
            Err(_) => "FAILED".to_owned(),
        };
        failed += usize::from(verdict != "ok");
        println!("test {name} ... {verdict}");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Descriptors that the starter of the tests left open must not reach the children, which look at
/// every descriptor that they have.
fn keep_to_ourselves() {
    for fd in open_descriptors().into_iter().filter(|fd| *fd > 2) {
        // SAFETY: the descriptor is open, and only its flag is set.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).expect("close-on-exec");
    }
}

/// The numbers of this process's open descriptors.
pub(crate) fn open_descriptors() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let mut open: Vec<i32> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    open.sort_unstable();
    // The descriptor that read the directory is in the list, and is closed now.
    open.retain(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
    open
}
