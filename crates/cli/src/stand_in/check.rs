//! `haproxy -c`: gives haproxy's own answer and exit code. What haproxy accepts and bindonce
//! refuses is reported too, so that a reload succeeds after a check that does.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use bindonce_haproxy::config::{Command, Descriptors, Rendering, Supplied, System};
use bindonce_sys::subprocess::Answer;
use bindonce_sys::{identity, inherit, log};

use super::real;
use crate::output;

/// Whether these arguments ask for a check.
pub(super) fn is_wanted(arguments: &[OsString]) -> bool {
    let files = arguments.iter().position(|word| word.as_bytes() == b"--");
    let options = arguments.get(..files.unwrap_or(arguments.len())).unwrap_or_default();
    options.iter().any(is_check)
}

fn is_check(word: &OsString) -> bool {
    word.as_bytes().starts_with(b"-c") && !word.as_bytes().starts_with(b"-cc")
}

pub(super) fn run(haproxy: &Path, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let others = arguments.iter().filter(|word| !is_check(word)).cloned();
    let words = std::iter::once(haproxy.into()).chain(others);
    let refused = match Command::parse(words) {
        // haproxy would find nothing left in it.
        Ok(command) if is_read_once(&command) => None,
        Ok(command) => rendering(&command, inherited()?)?.err(),
        Err(_) => None,
    };
    let Some(refused) = refused else { return Err(real::become_it(haproxy, arguments)) };
    match real::run(haproxy, arguments)? {
        0 => Err(refused.into()),
        code => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
    }
}

/// What haproxy itself answers to these arguments.
pub(super) fn ask(haproxy: &Path, arguments: &[OsString]) -> std::io::Result<Answer> {
    real::answer(haproxy, std::iter::once("-c".into()).chain(arguments.iter().cloned()))
}

/// Passes on the answer, and reports failure: nothing serves.
pub(super) fn say(answer: &Answer) -> anyhow::Result<ExitCode> {
    output::print(&String::from_utf8_lossy(&answer.stdout))?;
    log::write(&answer.stderr);
    Ok(ExitCode::FAILURE)
}

/// The directory to which the paths of a command are relative.
pub(super) fn directory(command: &Command) -> &Path {
    command.directory.as_deref().unwrap_or_else(|| Path::new(""))
}

/// Whether a part of the configuration can be read only once, as what comes through a pipe.
pub(super) fn is_read_once(command: &Command) -> bool {
    command.files.iter().any(|file| {
        let found = std::fs::metadata(directory(command).join(file));
        found.is_ok_and(|found| !found.is_file() && !found.is_dir())
    })
}

/// The descriptors that haproxy would inherit.
pub(super) fn inherited() -> anyhow::Result<Descriptors> {
    let copies = inherit::copies().context("cannot look at the inherited descriptors")?;
    let known = |(number, fd): (RawFd, OwnedFd)| (number, identity::listener(fd.as_fd()));
    Ok(copies.into_iter().map(known).collect())
}

/// The configuration of a command, as a start would read it.
pub(super) fn rendering(
    command: &Command,
    inherited: Descriptors,
) -> anyhow::Result<Result<Rendering, bindonce_haproxy::config::Error>> {
    let world = System::new(&command.program).context("cannot tell the current directory")?;
    let mut world = world.with(&inherit::SERVICE_MANAGER.map(Into::into), &[]);
    world.inherited = inherited;
    Ok(Rendering::of(command, Supplied::default(), &world))
}
