//! Hints for refused command lines: the bindonce command that a user of haproxy, systemctl or a
//! shell probably meant. The hint stands below the error, in place of clap's guess by spelling.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Adds to the error the command that was probably meant. `words` are the arguments of `ours`.
pub(crate) fn explained(
    mut error: clap::Error,
    ours: &clap::Command,
    words: &[OsString],
) -> clap::Error {
    if !matches!(error.kind(), ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument) {
        return error;
    }
    let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let refused =
        match error.get(ContextKind::InvalidSubcommand).or(error.get(ContextKind::InvalidArg)) {
            Some(ContextValue::String(word)) => word.clone(),
            _ => return error,
        };
    if let Some(tip) = words.and_then(|words| tip(ours, &words, &refused)) {
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
}

/// What these words, of which `refused` was refused, probably meant.
fn tip(ours: &clap::Command, words: &[&str], refused: &str) -> Option<String> {
    let at = words.iter().position(|word| *word == refused)?;
    let (before, rest) = words.split_at(at);
    // A subcommand, not the value of an option before it.
    let command = before.iter().find(|word| ours.find_subcommand(word).is_some());
    let program = match rest {
        // haproxy's own option, without the program.
        ["-f", ..] => [&["haproxy"], rest].concat(),
        [file, ..] if file.ends_with(".cfg") => [&["haproxy", "-f"], rest].concat(),
        _ => rest.to_vec(),
    };
    match (command, *program.first()?) {
        (None, "start") => Some(
            "`bindonce run -- haproxy -f FILE` starts haproxy, and a broker if none answers".to_owned(),
        ),
        (None, "restart") => Some(
            "`bindonce reload` starts a new haproxy beside the old one, and no connection is lost".to_owned(),
        ),
        (None, "stop") => Some(
            "a service stops when its `bindonce run` gets Ctrl-C or SIGTERM; `bindonce status` shows its pid".to_owned(),
        ),
        (None, "haproxy") => Some(meant("bindonce run", &program)),
        (Some(&("run" | "check")), program_name) if !program_name.starts_with('-') => {
            Some(meant(&format!("bindonce {}", before.join(" ")), &program))
        }
        (Some(&"exec"), _) if !refused.starts_with('-') => {
            Some(meant(&format!("bindonce {}", before.join(" ")), rest))
        }
        _ => None,
    }
}

/// The command in full, if a shell needs no quotes for its words.
fn meant(command: &str, program: &[&str]) -> String {
    let line = format!("{command} -- {}", program.join(" "));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " _./:=@,+%-".contains(c);
    match line.chars().all(is_plain) {
        true => format!("the program stands behind `--`: `{line}`"),
        false => "the program stands behind `--`: `bindonce run -- haproxy -f FILE`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::Cli;

    fn said(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let error = Cli::try_parse_from(&words).expect_err("it is wrong");
        explained(error, &Cli::command(), words.get(1..).unwrap_or_default()).to_string()
    }

    #[test]
    fn what_was_meant_is_said() {
        for (line, meant) in [
            ("bindonce haproxy.cfg", "`bindonce run -- haproxy -f haproxy.cfg`"),
            ("bindonce -f haproxy.cfg", "`bindonce run -- haproxy -f haproxy.cfg`"),
            ("bindonce --socket s -f a.cfg", "`bindonce run -- haproxy -f a.cfg`"),
            ("bindonce run haproxy.cfg", "`bindonce run -- haproxy -f haproxy.cfg`"),
            ("bindonce run -f x -f y", "`bindonce run -- haproxy -f x -f y`"),
            ("bindonce run --name web haproxy -f x", "`bindonce run --name web -- haproxy -f x`"),
            ("bindonce run haproxy -f a;b", "`bindonce run -- haproxy -f FILE`"),
            ("bindonce check -f x", "`bindonce check -- haproxy -f x`"),
            ("bindonce exec --listen web=:80 nginx", "`bindonce exec --listen web=:80 -- nginx`"),
            ("bindonce start", "`bindonce run -- haproxy -f FILE`"),
            ("bindonce restart", "`bindonce reload`"),
            ("bindonce stop", "Ctrl-C"),
        ] {
            let said = said(line);
            assert!(said.contains(meant), "{line}: {said}");
            assert_eq!(said.matches("tip:").count(), 1, "{line}: {said}");
        }
    }

    #[test]
    fn other_mistakes_are_left_to_clap() {
        for (line, tip) in [
            ("bindonce staus", "'status'"),
            ("bindonce run --nmae x -- haproxy -f y", "'--name'"),
            ("bindonce reload --wiat", "'--wait'"),
        ] {
            assert!(said(line).contains(tip), "{line}: {}", said(line));
        }
    }
}
