//! `haproxy ARGS`, through a link of that name, and `bindonce haproxy ARGS`: this program stands in
//! for haproxy. A caller that starts and signals haproxy sees no difference, except that a reload
//! loses nothing (docs/stand-in.md).
//!
//! A command that haproxy answers without serving goes to the real haproxy. A command that serves
//! becomes a `bindonce run` of it.

mod check;
mod name;
mod real;
pub(crate) mod replace;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bindonce_core::name::Name;
use bindonce_haproxy::config::{Command, Rendering, System, keyword};
use bindonce_supervisor::upgrade;
use bindonce_sys::exchange::connect;
use bindonce_sys::log;

use crate::background;
pub(crate) use real::{NAME, command};

/// The outcome of a haproxy command line.
pub(crate) enum Outcome {
    /// The command is answered, with this exit code.
    Done(ExitCode),
    /// This process supervises, as `bindonce run` does with these words.
    Serve {
        words: Vec<OsString>,
        /// Arguments with which to ask haproxy why nothing serves. None if haproxy inherited
        /// listeners, because the supervisor has them by then, and if the configuration can be read
        /// only once.
        arguments: Option<Vec<OsString>>,
    },
}

/// Does what haproxy would do with these words. The first is its name. With `is_proof` they are
/// those of a running supervisor, and nothing is done.
pub(crate) fn answer(mut words: Vec<OsString>, is_proof: bool) -> anyhow::Result<Outcome> {
    let real = real::find()?;
    match words.first_mut() {
        Some(first) => *first = real.clone().into(),
        None => words.push(real.clone().into()),
    }
    let mut arguments = words.get(1..).unwrap_or_default();
    if check::is_wanted(arguments) {
        return check::run(&real, arguments).map(Outcome::Done);
    }
    let command = Command::parse(words.clone());
    let command = command.and_then(|mut command| real::settle(&mut command).map(|()| command));
    let command = match command {
        Ok(command) => command,
        Err(error) if is_proof => return Err(error.into()),
        // haproxy answers and exits, or reports the error in its words and with its exit code.
        Err(_) => return Err(real::become_it(&real, arguments)),
    };
    let name = name::of(&command)?;
    // What a start does was done by the first image of such a process.
    let socket = bindonce::default_socket();
    let starts = !is_proof && !upgrade::is_next_image(&socket, &name);
    let without;
    if command.role.master.is_none()
        && !command.master_sockets.is_empty()
        && !check::is_read_once(&command)
        && !in_configuration("master-worker", &command, |rendering| rendering.mode.is_master)?
    {
        if starts && let Some(code) = no_master(&real, arguments)? {
            return Ok(Outcome::Done(code));
        }
        without = without_master_sockets(arguments);
        arguments = &without;
    }
    if !starts {
        return serve(&real, &command, name.as_str(), arguments);
    }
    let to_background = !background::is_it() && goes_to_background(&command)?;
    if let Some(path) = pid_file(&command, to_background)? {
        name::can_write(&path, check::directory(&command))?;
    }
    // A service that is being shut down is started: that takes over from its supervisor.
    if command.role.replaces()
        && !background::is_it()
        && let Some(service) = replace::running(&command, &name, &socket)?
    {
        let words = std::iter::once(real.clone().into()).chain(arguments.iter().cloned());
        if let Some(done) = replace::reload(&socket, &service, &name, &command, words)? {
            return Ok(Outcome::Done(done));
        }
    }
    if to_background {
        return background::start(NAME.as_ref(), arguments, &command.files).map(Outcome::Done);
    }
    if let Some(path) = &command.role.transfer {
        can_transfer(Path::new(path), &command, &name)?;
    }
    serve(&real, &command, name.as_str(), arguments)
}

/// The pid file that haproxy would write: in the background, or as a master.
fn pid_file(command: &Command, to_background: bool) -> anyhow::Result<Option<PathBuf>> {
    let Some(path) = &command.role.pid_file else {
        // The first process has looked at it. And only what has been read shows its path.
        let is_set = |rendering: &Rendering| rendering.mode.pid_file.is_some();
        if background::is_it() || !in_configuration("pidfile", command, is_set)? {
            return Ok(None);
        }
        let read = check::rendering(command, check::inherited()?)?;
        return Ok(read.ok().and_then(|rendering| rendering.mode.pid_file));
    };
    let is_written = to_background || background::is_it() || is_master(command)?;
    Ok(is_written.then(|| path.clone()))
}

/// Whether haproxy would run with a master.
fn is_master(command: &Command) -> anyhow::Result<bool> {
    Ok(command.role.master.is_some()
        || in_configuration("master-worker", command, |rendering| rendering.mode.is_master)?)
}

/// `-S` without a master: haproxy refuses it, which is the answer, or (2.6) warns and serves none.
fn no_master(real: &Path, arguments: &[OsString]) -> anyhow::Result<Option<ExitCode>> {
    let answer = check::ask(real, arguments).context("cannot ask haproxy about -S")?;
    if !answer.status.success() {
        return check::say(&answer).map(Some);
    }
    let text = String::from_utf8_lossy(&answer.stderr);
    for line in text.lines().filter(|line| line.contains("master CLI socket")) {
        log::write(format!("{line}\n").as_bytes());
    }
    Ok(None)
}

fn without_master_sockets(arguments: &[OsString]) -> Vec<OsString> {
    let (mut kept, mut words) = (Vec::new(), arguments.iter());
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"--" => kept.extend(std::iter::once(word).chain(words.by_ref()).cloned()),
            [b'-', b'S', ..] => drop(words.next()),
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// Without a master, haproxy ends if no process is at the socket of `-x`. Where the service has a
/// supervisor, which is ending, the broker has the listeners.
fn can_transfer(path: &Path, command: &Command, name: &Name) -> anyhow::Result<()> {
    if path == Path::new("/dev/null") {
        return Ok(());
    }
    let socket = bindonce::default_socket();
    let has_them = || replace::running(command, name, &socket).map(|found| found.is_some());
    match connect(&check::directory(command).join(path)) {
        Err(error) if !is_master(command)? && !has_them()? => bail!(
            "Failed to connect to the old process socket '{}': {error}\n\
             Failed to get the sockets from the old process!\n\
             hint: give -x the admin socket of the haproxy that runs, or leave it out",
            path.display()
        ),
        _ => Ok(()),
    }
}

/// The words of `bindonce run` for this command.
fn serve(
    real: &Path,
    command: &Command,
    name: &str,
    arguments: &[OsString],
) -> anyhow::Result<Outcome> {
    let level = if arguments.iter().any(|word| word.as_bytes().starts_with(b"-q")) {
        "off"
    } else if background::is_it() || command.role.replaces() {
        // A failed start is explained at its end, in haproxy's words.
        "error,bindonce_supervisor::generations::steps=off,bindonce_supervisor::report=off"
    } else {
        "info"
    };
    let mut words: Vec<OsString> = Vec::new();
    words.extend(["bindonce", "run", "--kind", "haproxy", "--name", name].map(Into::into));
    // Drain as long as haproxy alone would: hard-stop-after and mworker-max-reloads limit that.
    words.extend(["--drain-timeout", "87600h", "--max-draining", "1000"].map(Into::into));
    words.extend(["--log-level", level].map(Into::into));
    words.push("--".into());
    words.push(real.into());
    words.extend(arguments.iter().cloned());
    // ps(1) and killall(1) look for this name, which is that of the link or of the file.
    if let Ok(name) = std::ffi::CString::new(NAME) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let can_ask = !check::inherited()?.values().any(Result::is_ok)
        && !check::is_read_once(command)
        && !background::reads_input(&command.files);
    Ok(Outcome::Serve { words, arguments: can_ask.then(|| arguments.to_vec()) })
}

/// Reports why nothing serves, in haproxy's words if haproxy refuses this command too.
pub(crate) fn refused(
    error: anyhow::Error,
    arguments: Option<&[OsString]>,
) -> anyhow::Result<ExitCode> {
    let Some(arguments) = arguments else { return Err(error) };
    match check::ask(&real::find()?, arguments) {
        Ok(answer) if !answer.status.success() => check::say(&answer),
        _ => Err(error),
    }
}

/// Whether haproxy would continue in the background with this command.
fn goes_to_background(command: &Command) -> anyhow::Result<bool> {
    let role = &command.role;
    if role.daemon || role.foreground {
        return Ok(role.daemon);
    }
    in_configuration("daemon", command, |rendering| rendering.mode.is_daemon)
}

/// Whether a `global` section sets this. Only if its text does not tell is all of it read.
fn in_configuration(
    keyword: &str,
    command: &Command,
    in_full: impl Fn(&Rendering) -> bool,
) -> anyhow::Result<bool> {
    // Only the start can read a pipe. It also reports errors in a file.
    if check::is_read_once(command) {
        return Ok(false);
    }
    let world = System::new(&command.program).context("cannot tell the current directory")?;
    match keyword::in_global(keyword, command, &world) {
        Ok(Some(is_set)) => Ok(is_set),
        Ok(None) => {
            Ok(check::rendering(command, check::inherited()?)?.is_ok_and(|it| in_full(&it)))
        }
        Err(_) => Ok(false),
    }
}
