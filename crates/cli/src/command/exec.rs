//! `bindonce exec --listen NAME=ADDR... -- PROGRAM [ARG]...`: claims listeners, and becomes a
//! program that finds them as systemd would pass them (sd_listen_fds(3)).
//!
//! Nothing stays between: no runtime, no second process, the same pid.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, bail};
use bindonce::{Claim, Client, Name};
use bindonce_core::listener::Wanted;
use bindonce_sys::{executable, inherit, limits};
use clap::error::ErrorKind;

/// The name of an unnamed descriptor in LISTEN_FDNAMES (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

const HELP: &str = "\
Examples:
  bindonce exec --listen web=127.0.0.1:8080 -- ./server
      The socket is descriptor 3; LISTEN_FDS=1, LISTEN_FDNAMES=web, web=3
  bindonce exec --listen web -- ./server
      The same, with a listener that the broker already holds
  bindonce exec --listen web=127.0.0.1:8080,blocking -- ./simple-server
      For a program that waits in accept(2); without this option sockets are non-blocking

Exit codes:
  1  The broker refused the claim, or the program could not be started
  2  Wrong usage
  other  The program's own";

/// Claim listeners, then execute a program that uses them
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A listener for the program, as in web=0.0.0.0:80,backlog=4096; may be given again.
    /// A bare name is a listener that the broker holds already
    #[arg(long, value_name = "NAME=ADDR[,OPT]...", required = true)]
    listen: Vec<Wanted>,
    /// The program and its arguments. It inherits descriptors from 3 up in the order given,
    /// LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, and for each NAME a variable with its number
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

/// Replaces this process by the program. Returns only on failure.
///
/// # Errors
/// A [`clap::Error`] for names that give the same variable (exit code 2); else the error of the
/// broker or the system.
pub(crate) fn run(args: Args, globals: &crate::globals::Globals) -> anyhow::Result<()> {
    let Args { listen, command } = args;
    let Some((program, arguments)) = command.split_first() else {
        bail!("there is no program to execute");
    };
    // Checked before anything is bound for the program.
    executable::find(program)?;
    let names = names(&listen);
    let variables = variables(&names)?;
    limits::make_room(names.len()).context("cannot raise the open-files limit")?;

    let claims: Vec<Claim> =
        listen.iter().map(|wanted| Claim::listen(wanted.to_string())).collect();
    let path = globals.socket_path();
    // Close-on-exec, like everything that this process has open except the claimed listeners.
    let mut client = Client::connect(&path)?;
    let leases = client.claim(&claims)?;
    if leases.len() != names.len() {
        bail!("the broker gave {} descriptors for {} listeners", leases.len(), names.len());
    }

    let mut command = Command::new(program);
    command.args(arguments).envs(variables);
    let shown: Vec<&str> = names
        .iter()
        .zip(&leases)
        .map(|(name, lease)| match name {
            Some(name) => name.as_str(),
            // The listener may have a name that the caller did not give.
            None if lease.name().parse::<Name>().is_ok() => lease.name(),
            None => UNNAMED,
        })
        .collect();
    command.env("LISTEN_FDS", leases.len().to_string());
    inherit::meant(&mut command);
    command.env("LISTEN_FDNAMES", shown.join(":"));

    let fds = leases.into_iter().map(bindonce::Lease::into_fd).collect();
    Err(inherit::exec(fds, inherit::FIRST, &mut command).into())
}

/// The name of each descriptor as the caller gave it. The broker may know the listener by another
/// name, but the program looks for these.
fn names(listen: &[Wanted]) -> Vec<Option<Name>> {
    let mut names = Vec::new();
    for wanted in listen {
        match wanted {
            Wanted::Named(name) => names.push(Some(name.clone())),
            Wanted::Listen(spec) => names.extend(spec.expand().map(|listener| listener.name)),
        }
    }
    names
}

/// The variable of each named descriptor, with its number.
fn variables(names: &[Option<Name>]) -> Result<HashMap<String, String>, clap::Error> {
    let mut variables = HashMap::new();
    for (number, name) in (inherit::FIRST..).zip(names) {
        let Some(name) = name else { continue };
        let variable = name.variable();
        if let Some(other) = variables.insert(variable.clone(), number.to_string()) {
            return Err(clap::Error::raw(
                ErrorKind::ArgumentConflict,
                format!(
                    "descriptors {other} and {number} would both be ${variable}: give {name} another name\n"
                ),
            ));
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(texts: &[&str]) -> Vec<Wanted> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn every_descriptor_of_a_range_has_its_name_and_variable() {
        let names = names(&wanted(&["web=:8000-8001", "127.0.0.1:80", "api-v1"]));
        let shown: Vec<_> = names.iter().map(|name| name.as_ref().map(Name::as_str)).collect();
        assert_eq!(shown, [Some("web-8000"), Some("web-8001"), None, Some("api-v1")]);
        let variables = variables(&names).expect("distinct");
        assert_eq!(variables.len(), 3);
        assert_eq!(variables["web_8001"], "4");
        assert_eq!(variables["api_v1"], "6");
    }

    #[test]
    fn two_descriptors_with_one_variable_are_a_mistake_of_the_caller() {
        let error = variables(&names(&wanted(&["a-b=:80", "a.b=:81"]))).expect_err("the same");
        assert!(error.to_string().contains("$a_b"), "{error}");
    }
}
