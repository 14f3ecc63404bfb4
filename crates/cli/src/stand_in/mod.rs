//! `haproxy ARGS`, through a link of that name, and `bindonce haproxy ARGS`: this program stands in for haproxy. A caller that
//! starts and signals haproxy sees no difference, except that a reload loses nothing (docs/stand-in.md).
//!
//! A command that haproxy answers without serving goes to the real haproxy. A command that serves becomes `bindonce run` of it.

mod check;
mod name;
mod real;
pub(crate) mod replace;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use bindonce_haproxy::config::{Command, Role};
use bindonce_sys::log;

use crate::background;
pub(crate) use real::{NAME, command};

/// What becomes of a haproxy command line.
pub(crate) enum Outcome {
    /// It is answered.
    Done(ExitCode),
    /// This process supervises, as `bindonce run` with these words does.
    Serve {
        words: Vec<OsString>,
        /// What haproxy can be asked with why nothing serves; nothing where it has inherited listeners, which are
        /// the supervisor's by then.
        arguments: Option<Vec<OsString>>,
    },
}

/// Does what haproxy would do with these words, its name first.
pub(crate) fn answer(mut words: Vec<OsString>) -> anyhow::Result<Outcome> {
    let real = real::find()?;
    match words.first_mut() {
        Some(first) => *first = real.clone().into(),
        None => words.push(real.clone().into()),
    }
    let arguments = words.get(1..).unwrap_or_default();
    if check::is_wanted(arguments) {
        return check::run(&real, arguments).map(Outcome::Done);
    }
    let Ok(command) = Command::parse(words.clone()) else {
        // It answers and exits, or says what is wrong, in its own words and with its own exit code.
        return Err(real::become_it(&real, arguments));
    };
    let name = name::of(&command)?;
    if command.role.replaces()
        && !background::is_it()
        && let Some(service) = replace::running(&command, &name, &bindonce::default_socket())?
    {
        let done =
            replace::reload(&bindonce::default_socket(), &service, &command, words.into_iter());
        return done.map(Outcome::Done);
    }
    if !background::is_it() && goes_to_background(&command)? {
        return background::start(NAME.as_ref(), arguments).map(Outcome::Done);
    }
    serve(&real, &command.role, name.as_str(), arguments)
}

/// What `bindonce run` is told for this command.
fn serve(real: &Path, role: &Role, name: &str, arguments: &[OsString]) -> anyhow::Result<Outcome> {
    if let Some(path) = &role.pid_file {
        name::can_write(path)?;
    }
    let level = if arguments.iter().any(|word| word.as_bytes().starts_with(b"-q")) {
        "off"
    } else if background::is_it() || role.replaces() {
        // Why a start failed is said at its end, in haproxy's words.
        "error,bindonce_supervisor::inbox=off,bindonce_supervisor::report=off"
    } else {
        "info"
    };
    let mut words: Vec<OsString> = Vec::new();
    words.extend(["bindonce", "run", "--kind", "haproxy", "--name", name].map(Into::into));
    // As long as haproxy's own do: hard-stop-after and mworker-max-reloads are haproxy's to say.
    words.extend(["--drain-timeout", "87600h", "--max-draining", "1000"].map(Into::into));
    words.extend(["--log-level", level].map(Into::into));
    words.push("--".into());
    words.push(real.into());
    words.extend(arguments.iter().cloned());
    // ps(1) and killall(1) look for the name, which is that of the link or of the file.
    if let Ok(name) = std::ffi::CString::new(NAME) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let inherits = check::inherited()?.values().any(Result::is_ok);
    Ok(Outcome::Serve { words, arguments: (!inherits).then(|| arguments.to_vec()) })
}

/// Why nothing serves: in haproxy's words, where it refuses this command too.
pub(crate) fn refused(
    error: anyhow::Error,
    arguments: Option<&[OsString]>,
) -> anyhow::Result<ExitCode> {
    let Some(arguments) = arguments else { return Err(error) };
    check::refused(&real::find()?, arguments).map_or(Err(error), |words| {
        log::write(&words);
        Ok(ExitCode::FAILURE)
    })
}

/// Whether haproxy would go on in the background with this command.
fn goes_to_background(command: &Command) -> anyhow::Result<bool> {
    let role = &command.role;
    if role.daemon || role.foreground {
        return Ok(role.daemon);
    }
    // What is wrong with it is said where it is started.
    Ok(check::rendering(command, check::inherited()?)?.is_ok_and(|rendering| rendering.is_daemon))
}
