//! The haproxy that this program stands in for: `$BINDONCE_HAPROXY`, else the first other `haproxy`
//! in PATH or where packages put it. Never this program, which is one file under several names.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce_haproxy::config;
use bindonce_sys::executable;
use bindonce_sys::subprocess::{self, Answer};

/// The name under which this program stands in for haproxy, and the command that does the same.
pub(crate) const NAME: &str = "haproxy";

/// The variable that names the real haproxy.
const VARIABLE: &str = "BINDONCE_HAPROXY";

/// Set for what this program executes as haproxy. If that is a script that executes this program,
/// neither would ever end.
const EXECUTED: &str = "BINDONCE_EXECUTED";

/// Where packages put haproxy, in case PATH lacks it.
const PLACES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// How long haproxy may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Finds the real haproxy.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    let ours = this()?;
    if let Some(program) = std::env::var_os(EXECUTED) {
        let program = program.display();
        bail!("{program} is bindonce, or executes it: let ${VARIABLE} name the real haproxy");
    }
    let is_ours = |path: &Path| file(path).is_ok_and(|file| file == ours);
    if let Some(given) = std::env::var_os(VARIABLE).filter(|given| !given.is_empty()) {
        let path = executable::find(&given)?;
        if is_ours(&path) {
            bail!("${VARIABLE} names bindonce itself: let it name the real haproxy");
        }
        return Ok(path);
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&search).chain(PLACES.map(PathBuf::from));
    directories
        .map(|directory| directory.join(NAME))
        .find(|path| executable::find(path.as_os_str()).is_ok() && !is_ours(path))
        .with_context(|| {
            format!("there is no other haproxy in PATH: install it, or let ${VARIABLE} name it")
        })
}

/// Parses a haproxy command. If its program is bindonce under the name of haproxy, takes the real
/// haproxy. If it is a plain `haproxy` that PATH lacks, as a user's PATH does on Debian, takes the
/// one where packages put it.
pub(crate) fn command(mut words: Vec<OsString>) -> anyhow::Result<config::Command> {
    if let Some(program) = words.first_mut() {
        match executable::find(program) {
            Ok(path) if file(&path).ok() == Some(this()?) => *program = find()?.into(),
            Err(_) if program == NAME => {
                // Without one, the start of the command says what to do.
                if let Ok(path) = find() {
                    *program = path.into();
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    let mut command = config::Command::parse(words)?;
    settle(&mut command)?;
    Ok(command)
}

/// Asks the program of a command how it reads options whose meaning depends on the version.
///
/// # Errors
/// With these options the program would print something and exit.
pub(super) fn settle(command: &mut config::Command) -> Result<(), config::Error> {
    if !command.is_unsettled() {
        return Ok(());
    }
    // If the program cannot be asked, its start says why.
    match answer(Path::new(&command.program), std::iter::once("-h".into())) {
        // haproxy prints its usage on standard error.
        Ok(usage) => command.settle(&String::from_utf8_lossy(&usage.stderr)),
        Err(_) => Ok(()),
    }
}

fn this() -> anyhow::Result<(u64, u64)> {
    file(Path::new("/proc/self/exe")).context("cannot tell which file this is")
}

fn file(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A command whose program is haproxy. If it is another copy of this program, the variables keep it
/// from looking for a third one.
fn as_haproxy<'a>(command: &'a mut Command, real: &Path) -> &'a mut Command {
    command.env(VARIABLE, real).env(EXECUTED, real)
}

/// Executes haproxy in place of this process, with these arguments. Returns only on failure, with
/// the reason.
pub(super) fn become_it(real: &Path, arguments: &[OsString]) -> anyhow::Error {
    let mut command = Command::new(real);
    let error = as_haproxy(&mut command, real).arg0(NAME).args(arguments).exec();
    executable::cannot_execute(real.as_os_str(), &error).into()
}

/// What haproxy answers to these arguments.
pub(super) fn answer(
    real: &Path,
    arguments: impl Iterator<Item = OsString>,
) -> std::io::Result<Answer> {
    let mut command = Command::new(real);
    as_haproxy(&mut command, real).args(arguments);
    subprocess::answer(command, ANSWER)
}

/// Runs haproxy to its end with these arguments, and returns its exit code.
pub(super) fn run(real: &Path, arguments: &[OsString]) -> anyhow::Result<i32> {
    let mut command = Command::new(real);
    let status = as_haproxy(&mut command, real).args(arguments).status();
    let status = status.map_err(|error| executable::cannot_execute(real.as_os_str(), &error))?;
    Ok(status.code().unwrap_or(1))
}
