//! `-sf`, `-st` and `-x`: reloads the running service with these arguments, and with the directory,
//! environment and listeners of this process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce::{Client, Give};
use bindonce_core::name::{Name, service_option};
use bindonce_haproxy::config::{Command, Descriptors};
use bindonce_supervisor::replies::{ENDING, ReloadParams, Status};
use bindonce_supervisor::{Origin, control_socket, services};
use bindonce_sys::{identity, inherit, log, peer};

use super::check;
use crate::command::reload::failure;
use crate::unanswered::Unanswered;

/// How long a supervisor may take to report its generations, and to reload.
const ANSWER: Duration = Duration::from_secs(3);
const RELOAD: Duration = Duration::from_secs(300);

/// The running service that a command replaces: the one with a given pid, else of this name.
///
/// # Errors
/// The pids belong to another service, while the one of this name runs too.
pub(crate) fn running(
    command: &Command,
    name: &Name,
    socket: &Path,
) -> anyhow::Result<Option<Name>> {
    let mut by_pid = None;
    let is_older = |pid: &i32| command.role.older.contains(pid);
    for service in services(socket) {
        let Some((supervisor, pid)) = supervisor(socket, &service) else { continue };
        let is_named = service == *name;
        // A supervisor that does not answer in time still counts as running.
        match is_older(&pid) || generations(supervisor).iter().any(is_older) {
            // The service's own pids, among those of all services on the host, as from pidof(1).
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

/// The supervisor of a service. None if none listens, or if it is this process: an upgraded
/// supervisor still has the command line of its start.
fn supervisor(socket: &Path, service: &Name) -> Option<(Client, i32)> {
    let client = Client::connect(&control_socket(socket, service)).ok()?;
    let pid = peer::credentials(client.as_fd()).ok()?.pid;
    (pid != std::process::id().cast_signed()).then_some((client, pid))
}

/// The pids of the supervisor's generations; none if it does not answer in time.
fn generations(mut supervisor: Client) -> Vec<i32> {
    let mut ask = || -> Option<Status> {
        supervisor.set_timeout(ANSWER).ok()?;
        serde_json::from_value(supervisor.call("status", &serde_json::json!([])).ok()?).ok()
    };
    let generations = ask().map(|status| status.generations).unwrap_or_default();
    generations.into_iter().filter_map(|generation| generation.pid).collect()
}

/// Has the supervisor reload with this command. Returns 0 when the new generation serves and no
/// older one accepts, else 1 with haproxy's words. None if the service is being shut down and its
/// name is `own`, that of the command: a start takes over from it.
pub(crate) fn reload(
    socket: &Path,
    service: &Name,
    own: &Name,
    command: &Command,
    words: impl Iterator<Item = OsString>,
) -> anyhow::Result<Option<ExitCode>> {
    let mut caller = Origin::here(words).context("cannot tell the current directory")?;
    let mut known = Descriptors::new();
    let given = inherit::given(|number, fd| {
        known.insert(number, identity::listener(fd));
        true
    });
    let given = given.context("cannot look at the inherited descriptors")?;
    let mut client = Client::connect(&control_socket(socket, service)).map_err(Unanswered)?;
    may_have_environment(&client, service)?;
    client.set_timeout(RELOAD)?;
    let stored = give(socket, command, known, &given, &mut caller.passed)?;
    let at_once = command.role.at_once;
    let how = ReloadParams { caller: Some(caller), at_once, ..ReloadParams::default() };
    match client.call("reload", &how) {
        Ok(reply) => {
            // Warnings for the caller; an older supervisor sends none.
            let text = reply.get("startup").and_then(|text| text.as_str()).unwrap_or_default();
            log::write(text.as_bytes());
            Ok(Some(ExitCode::SUCCESS))
        }
        Err(bindonce::Error::Refused(refusal)) => {
            release(socket, &stored);
            if refusal.data.contains_key(ENDING) && service == own {
                return Ok(None);
            }
            log::write(format!("{}\n", refusal.message).as_bytes());
            Ok(Some(ExitCode::FAILURE))
        }
        Err(error) => Err(failure(service, error)),
    }
}

/// Fails unless root or our own user is the supervisor: the request has our whole environment. Beside
/// the socket of another user's broker, that user could put a control socket of its own.
fn may_have_environment(supervisor: &Client, service: &Name) -> anyhow::Result<()> {
    let uid = peer::credentials(supervisor.as_fd()).context("cannot tell who supervises")?.uid;
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        bail!(
            "the supervisor of \"{service}\" runs as user {uid}, who would get the environment of this \
             process: nothing was changed\n\
             hint: run this as user {uid}, or `bindonce reload{}`, which sends no environment",
            service_option(service)
        );
    }
    Ok(())
}

/// Gives the broker those of our descriptors that the configuration names. Returns the names of the
/// listeners that are new to the broker.
fn give(
    socket: &Path,
    command: &Command,
    known: Descriptors,
    given: &BTreeMap<RawFd, OwnedFd>,
    passed: &mut BTreeMap<RawFd, String>,
) -> anyhow::Result<Vec<String>> {
    if !known.values().any(Result::is_ok) {
        return Ok(Vec::new());
    }
    // The reload itself reports an error in the configuration.
    let Ok(rendering) = check::rendering(command, known)? else { return Ok(Vec::new()) };
    let mut gives = Vec::new();
    for binding in &rendering.bindings {
        let Some(number) = binding.inherited else { continue };
        let Some(fd) = given.get(&number) else { continue };
        passed.insert(number, binding.listener.to_string());
        gives.push((
            identity::of(fd.as_fd())?.inode,
            Give::new(binding.listener.to_string(), fd.as_fd()),
        ));
    }
    if gives.is_empty() {
        return Ok(Vec::new());
    }
    let mut client = Client::connect(socket)?;
    let held: Vec<u64> = client.list()?.listeners.iter().map(|held| held.inode).collect();
    let all: Vec<Give<'_>> = gives.iter().map(|(_, give)| give.clone()).collect();
    let names = client.store(&all)?;
    let new = gives.iter().zip(names).filter(|((inode, _), _)| !held.contains(inode));
    Ok(new.map(|(_, name)| name).collect())
}

/// Takes these listeners back from the broker, because nothing serves on them.
fn release(socket: &Path, stored: &[String]) {
    if stored.is_empty() {
        return;
    }
    // A listener that is in use by now stays.
    let _ = Client::connect(socket).and_then(|mut client| client.release(stored));
}
