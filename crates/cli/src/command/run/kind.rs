//! What `bindonce run` supervises: haproxy or another program, and the options that each has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bindonce_core::duration;
use bindonce_core::intercept::Scope;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_core::name::{InvalidName, Name};
use bindonce_haproxy::config;
use bindonce_supervisor::program::{self, Numbers, Program, Readiness, Variable};
use bindonce_supervisor::{Haproxy, Kind};
use bindonce_sys::signals::Signal;
use clap::error::ErrorKind;

use super::preset::Preset;
use crate::stand_in;

/// What kind of program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Wanted {
    /// haproxy if the program's name begins with haproxy, else another program
    Auto,
    /// haproxy: bindonce reads its configuration, and proves each handover
    Haproxy,
    /// Any program that inherits its listening sockets
    Program,
}

/// Options of programs other than haproxy.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Programs other than haproxy")]
pub(super) struct Options {
    /// Whether the program is haproxy
    #[arg(long, value_enum, value_name = "KIND", default_value = "auto")]
    kind: Wanted,
    /// Use the settings for this program: how it gets its sockets, reports that it is ready, and retires
    /// (docs/programs.md). The options below override them
    #[arg(long = "as", value_enum, value_name = "PROGRAM", conflicts_with = "intercept")]
    preset: Option<Preset>,
    /// A generation is ready when this shell command exits with 0; until then the command is repeated, with
    /// BINDONCE_GENERATION and BINDONCE_PID in its environment. Without this option and --ready-delay the program must
    /// send READY=1 (sd_notify)
    #[arg(long, value_name = "CMD", conflicts_with = "ready_delay")]
    ready_check: Option<OsString>,
    /// Treat a generation as ready after this time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    ready_delay: Option<Duration>,
    /// The signal on which a generation closes its listeners, finishes its connections, and exits
    /// [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    retire_signal: Option<Signal>,
    /// Answer the program's bind() calls with the broker's sockets: for programs that inherit no sockets. Without ADDR this
    /// is done for every TCP and UDP listener; with ADDR only for these (a wildcard address matches its port at every
    /// address; a UNIX path or abstract name matches itself). The program is ready when it calls listen()
    #[arg(long, value_name = "[NAME=]ADDR[,OPT]...", num_args = 0..)]
    intercept: Option<Vec<ListenSpec>>,
    /// The same, but the program starts even if the kernel or a container refuses to intercept. Then the program has only the
    /// sockets of --listen, the log reports this, and the program must send READY=1 unless --ready-check or
    /// --ready-delay is given
    #[arg(long, value_name = "[NAME=]ADDR[,OPT]...", num_args = 0.., conflicts_with = "intercept")]
    intercept_if_possible: Option<Vec<ListenSpec>>,
    /// An environment variable that names the sockets, as in NGINX='{fds:;};'. {fds:SEP} is
    /// replaced by all descriptor numbers, {fd:NAME} by one of them; {count}, {service} and
    /// {generation} by these values. May be given again
    #[arg(long, value_name = "NAME=TEXT")]
    variable: Vec<Variable>,
}

/// Parses `SIGQUIT`, `QUIT` or `quit`.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    match name.parse() {
        Ok(Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCONT) => {
            Err(format!("{name} tells a program nothing: choose a signal that it handles"))
        }
        Ok(signal) => Ok(signal),
        Err(_) => Err("no signal has this name: write SIGQUIT, or QUIT".to_owned()),
    }
}

impl Options {
    /// Builds the description of what is supervised.
    ///
    /// # Errors
    /// A [`clap::Error`] for options that do not fit the program; else the error of its command.
    pub(super) fn kind(
        self,
        command: Vec<OsString>,
        no_admin: bool,
        no_epoll: bool,
        listeners: &[Listener],
    ) -> anyhow::Result<Kind> {
        let Self { kind, ready_check, ready_delay, retire_signal, .. } = self;
        let Self { preset, intercept, intercept_if_possible, mut variable, .. } = self;
        let without_intercept = intercept_if_possible.is_some();
        let intercept = intercept.or(intercept_if_possible);
        let first = command.first().cloned().unwrap_or_default();
        let is_haproxy = match kind {
            Wanted::Auto => program::is_haproxy(&first),
            Wanted::Haproxy => true,
            Wanted::Program => false,
        };
        if is_haproxy {
            let given = [
                (preset.is_some(), "--as"),
                (ready_check.is_some(), "--ready-check"),
                (ready_delay.is_some(), "--ready-delay"),
                (retire_signal.is_some(), "--retire-signal"),
                (intercept.is_some(), "--intercept"),
                (!variable.is_empty(), "--variable"),
            ];
            if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
                return Err(usage(format!(
                    "{option} is for programs other than haproxy, which needs none of it; if {} is \
                     another program, say --kind program\n",
                    first.display()
                )));
            }
            let command = stand_in::command(command)?;
            return Ok(Kind::Haproxy(Haproxy { command, admin: !no_admin, caller: None }));
        }
        let given = [(no_admin, "--no-admin"), (no_epoll, "--ghosts noepoll")];
        if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
            return Err(usage(format!(
                "{option} is for haproxy; if {} is one, say --kind haproxy\n",
                first.display()
            )));
        }
        let intercept = intercept
            .map(|named| Scope { named: named.iter().flat_map(ListenSpec::expand).collect() });
        if without_intercept && listeners.is_empty() {
            return Err(usage(
                "--intercept-if-possible needs --listen NAME=ADDR: where bind() cannot be intercepted these are \
                 the sockets that the program has; one that takes none is started with --intercept alone\n"
                    .to_owned(),
            ));
        }
        if listeners.is_empty() && intercept.is_none() {
            return Err(usage(format!(
                "{0} gets its sockets from --listen NAME=ADDR, and there is none; if it takes none from the \
                 process that starts it, --intercept gives it the broker's when it binds; if it is haproxy \
                 under another name, say --kind haproxy and give its -f FILE; of a script that starts \
                 haproxy give the command that is in it, as in `-- haproxy -f FILE`, or let the script \
                 end with `exec haproxy \"$@\"`, and write `--kind haproxy -- {0} -f FILE`\n",
                first.display()
            )));
        }
        let readiness = match (ready_check, ready_delay) {
            (Some(check), _) => Readiness::Check(check),
            (None, Some(delay)) => Readiness::Delay(delay),
            (None, None) if intercept.is_some() => Readiness::Listen,
            (None, None) => preset.map_or(Readiness::Notify, Preset::readiness),
        };
        if let Some(known) = preset.map_or(Ok(None), Preset::variable)?
            && !variable.iter().any(|said| said.name == known.name)
        {
            variable.push(known);
        }
        let program = Program {
            program: first,
            arguments: command.into_iter().skip(1).collect(),
            readiness,
            retire: retire_signal.unwrap_or_else(|| preset.map_or(Signal::SIGTERM, Preset::retire)),
            intercept,
            without_intercept,
            variables: variable,
        };
        try_variables(&program, listeners)?;
        Ok(Kind::Program(program))
    }
}

/// Fills in every variable, so that a mistake is reported before anything is started.
fn try_variables(program: &Program, listeners: &[Listener]) -> anyhow::Result<()> {
    let names = listeners.iter().filter_map(|listener| listener.name.clone());
    let descriptors: Vec<(Name, i32)> = names.zip(bindonce_sys::inherit::FIRST..).collect();
    for (at, (name, _)) in descriptors.iter().enumerate() {
        let same = |(other, _): &&(Name, i32)| other.variable() == name.variable();
        if let Some((other, _)) = descriptors.iter().take(at).find(same) {
            return Err(usage(format!(
                "listeners {other} and {name} would both be ${}: give one of them another name\n",
                name.variable()
            )));
        }
    }
    // The service's name does not matter here.
    let service = "program".parse()?;
    let numbers = Numbers { descriptors: &descriptors, service: &service, generation: 1 };
    for variable in &program.variables {
        variable.value.fill(numbers).map_err(|wrong| usage(format!("--variable: {wrong}\n")))?;
    }
    Ok(())
}

/// The sockets of the master CLI that a haproxy command names.
pub(super) fn master_cli(kind: &Kind) -> anyhow::Result<Vec<config::MasterSocket>> {
    let Kind::Haproxy(Haproxy { command, .. }) = kind else { return Ok(Vec::new()) };
    let world =
        config::System::new(&command.program).context("cannot tell the current directory")?;
    Ok(config::MasterSocket::all_of(command, &world)?)
}

/// The name of a service that was given none: `haproxy`, or the program's own name; `program` if
/// that is not a valid service name.
pub(super) fn service_name(kind: &Kind) -> Result<Name, InvalidName> {
    match kind {
        Kind::Haproxy(_) => "haproxy".parse(),
        Kind::Program(program) => program.name().parse().or_else(|_| "program".parse()),
    }
}

/// The paths that `--watch` watches.
pub(super) fn watched(kind: &Kind, paths: Vec<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    match kind {
        _ if !paths.is_empty() => Ok(paths),
        // As haproxy sees them: it first changes to the directory of -C.
        Kind::Haproxy(Haproxy { command, .. }) => {
            let directory = command.directory.as_deref().unwrap_or_else(|| Path::new(""));
            Ok(command.files.iter().map(|file| directory.join(file)).collect())
        }
        Kind::Program(program) => Err(usage(format!(
            "--watch needs a PATH: which files {} reads is not known\n",
            program.name()
        ))),
    }
}

pub(super) fn usage(text: String) -> anyhow::Error {
    clap::Error::raw(ErrorKind::ArgumentConflict, text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_people_write_them() {
        for text in ["SIGQUIT", "QUIT", "quit", "sigquit"] {
            assert_eq!(signal(text), Ok(Signal::SIGQUIT), "{text}");
        }
        for text in ["SIGKILL", "stop", "CONT", "3", "SIGNOTHING", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
