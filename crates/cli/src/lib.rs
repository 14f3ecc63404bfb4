//! The `bindonce` command: reads the command line, does one thing, and reports what went wrong
//! once, with what to do about it.
//!
//! Each command has a file in `command/`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `doctor`
//! found something.
//!
//! The binary calls [`main`]; [`command()`] describes the command line.

#![forbid(unsafe_code)]

mod background;
mod command;
mod events;
mod failure;
mod globals;
mod logging;
mod mistyped;
mod output;
mod stand_in;
mod unanswered;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bindonce_supervisor::{upgrade, watchdog};
use bindonce_sys::{log, signals, spawn, tether};
use clap::{CommandFactory as _, Parser};

use globals::Globals;

/// Text below the options; `the_help_of_every_command_has_examples_and_exit_codes` checks its form.
const HELP: &str = "\
Examples:
  bindonce run -- haproxy -f /etc/haproxy/haproxy.cfg
      haproxy under supervision, with a broker of its own if none answers
  bindonce reload
      A new generation; waits for the outcome
  bindonce status
      What the broker holds, and who uses it
  bindonce doctor
      Why clients see 503 or hang; needs no broker

Environment:
  BINDONCE_SOCKET    The broker's control socket, unless --socket is given
  MULTIBINDER_SOCK   The same, for clients of multibinder

Files:
  /run/bindonce/bindonce.sock
      The broker's control socket, for root and where the Debian package is installed
  /run/bindonce/SERVICE.d
      A service's control socket, its haproxys' admin sockets and its state
  /etc/bindonce/bindonce.toml
      The configuration of the packaged broker; see bindonce.toml(5)

Exit codes:
  0  Done
  1  The command failed; the message says why, and what to do
  2  Wrong usage
  3  `doctor` has findings";

/// Binds every listen address once and hands the same sockets to each new generation of a proxy
#[derive(Debug, Parser)]
#[command(name = "bindonce", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_long_help = HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: command::Command,
}

/// The command line as `--help` describes it, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line says, and returns the exit code.
pub fn main() -> ExitCode {
    // Rust's handler distinguishes a stack overflow from other faults. But it swallows the first
    // SIGSEGV or SIGBUS that is sent with kill(2), and a process that must end continues.
    signals::die_of_faults();
    // Subcommands that only bindonce itself starts. They come first, with as little as possible
    // before them.
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(word) if word == spawn::SUBCOMMAND => return command::shim::run(),
        Some(word) if word == tether::SUBCOMMAND => {
            tether::run();
            return ExitCode::SUCCESS;
        }
        Some(word) if word == watchdog::SUBCOMMAND => {
            watchdog::run();
            return ExitCode::SUCCESS;
        }
        Some(word) if word == upgrade::CHECK => {
            let path = PathBuf::from(words.next().unwrap_or_default());
            let text =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
            let checked = text.and_then(|text| Ok(upgrade::check(&path, &text)?));
            let printed = checked.and_then(|answer| output::print(&answer));
            return printed.map_or_else(|error| failure::print(&error), |()| ExitCode::SUCCESS);
        }
        Some(word) if word == bindonce_broker::CHECK => {
            let words = std::iter::once("bindonce".into()).chain(words);
            let cli = Cli::try_parse_from(words).map_err(anyhow::Error::from);
            let checked = cli.and_then(|cli| match cli.command {
                command::Command::Serve(args) => command::serve::check(&args),
                _ => anyhow::bail!("these are not the arguments of a broker"),
            });
            return checked.map_or_else(|error| failure::print(&error), |()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let mut words = words.peekable();
    let is_stand_in = Path::new(&name).file_name() == Some(stand_in::NAME.as_ref());
    if is_stand_in || words.next_if(|word| word == stand_in::NAME).is_some() {
        let words = std::iter::once(stand_in::NAME.into()).chain(words).collect();
        return finish(stand_in::answer(words).and_then(|outcome| match outcome {
            stand_in::Outcome::Done(code) => Ok(code),
            stand_in::Outcome::Serve { words, arguments } => {
                let Cli { globals, command } = Cli::try_parse_from(words)?;
                match command {
                    command::Command::Run(args) => command::run::supervise(*args, &globals, true)
                        .or_else(|error| stand_in::refused(error, arguments.as_deref())),
                    _ => anyhow::bail!("these are not the words of `bindonce run`"),
                }
            }
        }));
    }
    // `run` executes a broker as /proc/self/exe; ps(1), pgrep(1) and `doctor` look for the name.
    let _ = nix::sys::prctl::set_name(c"bindonce");
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        mistyped::explained(error, &Cli::command(), &words).exit()
    });
    finish(command::run(cli.command, &cli.globals))
}

/// Writes the rest of the log, and returns the exit code.
fn finish(done: anyhow::Result<ExitCode>) -> ExitCode {
    let code = done.unwrap_or_else(|error| failure::print(&error));
    log::finish(log::LAST_WORDS);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help() {
        let mut whole = command().term_width(100);
        whole.build();
        insta::assert_snapshot!("help", whole.render_long_help());
        for command in whole.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            let name = format!("help-{}", command.get_name());
            insta::assert_snapshot!(name, command.render_long_help());
        }
    }

    /// The form of the text below the options in `--help`, and in the manual pages made from it. A
    /// heading is a line that ends in a colon. Each entry below it is indented by two spaces. Its
    /// explanation is on the same line after at least two more spaces, or on the next lines,
    /// indented by six.
    #[test]
    fn the_help_of_every_command_has_examples_and_exit_codes() {
        let mut whole = command();
        whole.build();
        let commands = whole.get_subcommands().filter(|command| !command.is_hide_set());
        for command in commands.chain([&whole]) {
            let name = command.get_name();
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            for heading in ["Examples:", "Exit codes:"] {
                assert!(help.lines().any(|line| line == heading), "{name} lacks {heading}");
            }
            for line in help.lines().filter(|line| !line.is_empty()) {
                let indent = line.len() - line.trim_start().len();
                assert!(
                    [2, 6].contains(&indent) || (indent == 0 && line.ends_with(':')),
                    "{name}: {line:?} is neither heading nor entry nor explanation"
                );
                assert!(line.len() <= 100, "{name}: {line:?} is too long");
            }
        }
    }
}
