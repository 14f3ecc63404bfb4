//! `-sf`, `-st` and `-x`: the service that runs is reloaded, with these arguments and from here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce::Client;
use bindonce_core::name::Name;
use bindonce_haproxy::config::Command;
use bindonce_supervisor::replies::Status;
use bindonce_supervisor::{Origin, control_socket, services};

/// How long a supervisor may take to say who it is, and to reload.
const ANSWER: Duration = Duration::from_secs(3);
const RELOAD: Duration = Duration::from_secs(300);

/// The service that a command replaces: the one that has a given pid, else the one of this name, if it runs.
///
/// # Errors
/// The pids are those of another service, while that of this name runs too.
pub(super) fn running(command: &Command, name: &Name) -> anyhow::Result<Option<Name>> {
    let socket = bindonce::default_socket();
    let mut by_pid = None;
    for service in services(&socket) {
        let Some(status) = status(&socket, &service) else { continue };
        let generations = status.generations.iter().filter_map(|generation| generation.pid);
        let mut pids = generations.chain([status.pid.cast_signed()]);
        let is_named = service == *name;
        match pids.any(|pid| command.role.older.contains(&pid)) {
            // Its own pids among those of all services on the host, as pidof(1) gives them.
            true if is_named => return Ok(Some(service)),
            false if is_named && by_pid.is_none() => by_pid = Some((service, true)),
            true => match &by_pid {
                Some((_, true)) => bail!(
                    "the pids after -sf are those of the service \"{service}\", and -p or -f name \"{name}\", \
                     which runs too: nothing was changed"
                ),
                _ => by_pid = Some((service, false)),
            },
            false => {}
        }
    }
    Ok(by_pid.map(|(service, _)| service))
}

fn status(socket: &Path, service: &Name) -> Option<Status> {
    let mut client = Client::connect(&control_socket(socket, service)).ok()?;
    client.set_timeout(ANSWER).ok()?;
    serde_json::from_value(client.call("status", &serde_json::json!([])).ok()?).ok()
}

/// Has it reloaded with this command; gives 0 when the new generation serves and no older one accepts, else 1 with
/// haproxy's words.
pub(super) fn reload(
    service: &Name,
    real: &Path,
    arguments: &[OsString],
    at_once: bool,
) -> anyhow::Result<ExitCode> {
    let path: PathBuf = control_socket(&bindonce::default_socket(), service);
    let text = |word: OsString| word.into_string().ok();
    let words = std::iter::once(real.into()).chain(arguments.iter().cloned());
    let command: Option<Vec<String>> = words.map(text).collect();
    let caller = Origin {
        command: command.context("an argument is not UTF-8")?,
        directory: std::env::current_dir().context("cannot tell the current directory")?,
        // What is not UTF-8 is not passed on.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
            .collect(),
    };
    let mut client = Client::connect(&path)?;
    client.set_timeout(RELOAD)?;
    let how = serde_json::json!({ "caller": caller, "at_once": at_once });
    match client.call("reload", &how) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(bindonce::Error::Refused(refusal)) => {
            eprintln!("{}", refusal.message);
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}
