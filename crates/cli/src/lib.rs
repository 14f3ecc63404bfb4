//! The `bindonce` command: reads the command line, does one thing, and reports what went wrong
//! once, with what to do about it.
//!
//! Each command has a file in `command/`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `doctor`
//! found something.
//!
//! The binary calls [`main`]; [`command()`] describes the command line.

#![forbid(unsafe_code)]

#[cfg(test)]
mod advice;
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

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bindonce_supervisor::{Settings, upgrade, watchdog};
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
            return proved(can_supervise(&path, words.collect()));
        }
        Some(word) if word == bindonce_broker::CHECK => {
            let words = std::iter::once("bindonce".into()).chain(words);
            let cli = Cli::try_parse_from(words).map_err(anyhow::Error::from);
            let checked = cli.and_then(|cli| match cli.command {
                command::Command::Serve(args) => command::serve::check(&args),
                _ => anyhow::bail!("these are not the arguments of a broker"),
            });
            return proved(checked);
        }
        _ => {}
    }
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(words) = of_haproxy(&words) {
        return finish(stand_in::answer(words, false).and_then(|outcome| match outcome {
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

/// The command line of haproxy, if this program stands in for it with these words.
fn of_haproxy(words: &[OsString]) -> Option<Vec<OsString>> {
    let arguments = match words {
        [name, rest @ ..] if Path::new(name).file_name() == Some(stand_in::NAME.as_ref()) => rest,
        [_, word, rest @ ..] if word == stand_in::NAME => rest,
        _ => return None,
    };
    Some(std::iter::once(stand_in::NAME.into()).chain(arguments.iter().cloned()).collect())
}

/// Proves that this binary can take over from a running supervisor: from its state at `path`, and
/// with its command line `words`, of which an older supervisor says nothing.
fn can_supervise(path: &Path, words: Vec<OsString>) -> anyhow::Result<()> {
    let settings = if words.is_empty() { None } else { Some(settings(words)?) };
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    output::print(&upgrade::check(path, &text, settings.as_deref())?)
}

/// The settings of a running supervisor with this command line, for its next image.
fn settings(words: Vec<OsString>) -> anyhow::Result<Box<Settings>> {
    let (words, at_once) = match of_haproxy(&words) {
        None => (words, false),
        Some(words) => match stand_in::answer(words, true)? {
            stand_in::Outcome::Serve { words, .. } => (words, true),
            stand_in::Outcome::Done(_) => anyhow::bail!("haproxy would not serve with these words"),
        },
    };
    let Cli { globals, command } = Cli::try_parse_from(words)?;
    match command {
        command::Command::Run(args) => command::run::settings(*args, &globals, at_once),
        _ => anyhow::bail!("these are not the arguments of a supervisor"),
    }
}

/// The exit code of a proof. Why it has failed is for the process that asked, on standard output,
/// and for its log.
fn proved(checked: anyhow::Result<()>) -> ExitCode {
    checked.map_or_else(
        |error| {
            let _ = output::print(&failure::text(&error));
            failure::print(&error)
        },
        |()| ExitCode::SUCCESS,
    )
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
    fn a_supervisor_is_taken_over_only_with_its_command_line() {
        let path = std::env::temp_dir().join(format!("bindonce-state-{}", std::process::id()));
        std::fs::write(&path, "{}").expect("a state");
        let proof = |words: &[&str]| {
            let done = can_supervise(&path, words.iter().map(OsString::from).collect());
            done.map_err(|error| failure::text(&error))
        };
        let run = ["bindonce", "run", "--name", "web"];
        let haproxy = ["--", "haproxy", "-f", "web.cfg"];
        assert_eq!(proof(&[]), Ok(()), "an older supervisor");
        assert_eq!(proof(&[&run[..], &haproxy].concat()), Ok(()));
        // What a start does is not done again: the service may be named by other pids by now.
        assert_eq!(proof(&[&run[..], &haproxy, &["-D", "-sf", "1"]].concat()), Ok(()));
        let lacks = proof(&[&run[..], &["--of-later"], &haproxy].concat()).expect_err("refused");
        assert!(lacks.contains("--of-later"), "{lacks}");
        let other = proof(&["bindonce", "serve"]).expect_err("refused");
        assert!(other.contains("not the arguments of a supervisor"), "{other}");
        std::fs::remove_file(&path).expect("removed");
    }

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
