//! Errors in a command line or a configuration.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::saved;

/// A line of one of the user's files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The file, as the user named it.
    #[serde(with = "saved::path")]
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Two lines that conflict.
#[derive(Debug)]
pub struct Clash {
    /// The first line, or the broker's.
    pub first: Place,
    /// The text of the first line.
    pub first_text: String,
    /// The other line.
    pub second: Place,
    /// The text of the other line.
    pub second_text: String,
    /// The address that both have, or why the second is left to haproxy.
    pub about: String,
}

/// Why a haproxy command or configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that the supervisor itself has to give, or that would defeat it.
    #[error("haproxy's {argument} cannot be given here: {hint}", argument = .argument.display())]
    Refused {
        /// The argument as written.
        argument: OsString,
        /// What to do instead.
        hint: &'static str,
    },
    /// An option without its value, as the last word.
    #[error("haproxy's {argument} needs a value after it", argument = .argument.display())]
    MissingValue {
        /// The option as written.
        argument: OsString,
    },
    /// A word for which haproxy would print its usage text.
    #[error(
        "haproxy takes no argument {argument:?}: a configuration file is given with -f FILE, or after --"
    )]
    UnknownArgument {
        /// The word as written.
        argument: OsString,
    },
    /// A word after `-sf` or `-st` that is not a pid.
    #[error("haproxy's -sf and -st take pids, and {text:?} is none")]
    NoPid {
        /// The word as written.
        text: OsString,
    },
    /// A socket of the master CLI that cannot be created.
    #[error("cannot create the listener of the master CLI: -S {text}: {why}", text = .text.display())]
    MasterSocket {
        /// The word after `-S`.
        text: OsString,
        /// What is wrong.
        why: String,
    },
    /// No program after `--`.
    #[error(
        "no command: write the haproxy command after --, as in `-- haproxy -f /etc/haproxy/haproxy.cfg`"
    )]
    NoProgram,
    /// No `-f`.
    #[error(
        "the haproxy command names no configuration: add -f FILE (a script that starts haproxy must \
         pass its arguments on, as `exec haproxy \"$@\"` does: haproxy is given a copy of FILE)"
    )]
    NoFiles,
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file, as the user named it.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A line that bindonce has to understand but that breaks haproxy's quoting rules.
    #[error("{place}: {reason} at byte {position} of the line: {text}")]
    Syntax {
        /// The line.
        place: Place,
        /// What is wrong.
        reason: &'static str,
        /// Offset in the line, counted from 1.
        position: usize,
        /// The line, made printable.
        text: String,
    },
    /// `.if`, `.elif`, `.else` and `.endif` do not nest.
    #[error("{place}: {reason}")]
    Nesting {
        /// The line.
        place: Place,
        /// What is wrong.
        reason: &'static str,
    },
    /// haproxy could not evaluate a condition.
    #[error("{place}: haproxy cannot evaluate the condition {condition:?}: {reason}")]
    Condition {
        /// The line.
        place: Place,
        /// The expression.
        condition: String,
        /// haproxy's message.
        reason: String,
    },
    /// haproxy has not answered the questions about the configuration.
    #[error(
        "this configuration depends on what only haproxy knows (conditions, its own variables, \
         variables that are not set, late global sections), and {program} does not answer: {source}",
        program = .program.display()
    )]
    Unanswered {
        /// The haproxy of the command.
        program: OsString,
        /// The cause.
        source: io::Error,
    },
    /// An address that haproxy would refuse too.
    #[error("{place}: {word:?} is not an address to listen on: {reason}")]
    BadAddress {
        /// The line.
        place: Place,
        /// The address as written.
        word: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host name without an address.
    #[error("{place}: the name {host:?} has no address: {source}")]
    Unresolved {
        /// The line.
        place: Place,
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Options that are invalid for a listener.
    #[error("{place}: {source}")]
    Listener {
        /// The line.
        place: Place,
        /// What is wrong.
        source: bindonce_core::error::Invalid,
    },
    /// A `resetenv` line has no room for the variables that carry descriptors.
    #[error(
        "{place}: resetenv would have to keep {variables} more variables, the descriptors of the \
         bind lines after it, and haproxy takes only {room} more words on the line: put several \
         addresses on one bind line as a range of ports, or use unsetenv with the names to remove"
    )]
    TooManyToKeep {
        /// The line.
        place: Place,
        /// Number of variables to keep.
        variables: usize,
        /// Number of further words that haproxy takes on the line.
        room: usize,
    },
    /// Two lines want the same address.
    #[error(
        "{second}: {second_address} is already bound at {first} ({first_address}): haproxy alone \
         would bind both and split connections between them at random, and one socket serves one \
         bind line; remove one of the two, or bind another address"
    )]
    Duplicate {
        /// The line that comes first.
        first: Place,
        /// Its address.
        first_address: String,
        /// The other line.
        second: Place,
        /// Its address.
        second_address: String,
    },
    /// Two lines have the same UNIX socket, and haproxy binds at least one of them itself.
    #[error(
        "{}: {} is the address of {} ({}) too: one of them would get all clients of {}; \
         remove one of the two, or give it another address",
        .0.second, .0.second_text, .0.first, .0.first_text, .0.about
    )]
    SamePath(Box<Clash>),
    /// An address that haproxy binds itself overlaps a listener of the broker, and the broker's
    /// sockets are exclusive.
    #[error(
        "{}: {} overlaps {} of {}, which the broker binds, and haproxy cannot bind it beside that listener \
         ({}); give it another port",
        .0.second, .0.second_text, .0.first_text, .0.first, .0.about
    )]
    Beside(Box<Clash>),
    /// A descriptor that haproxy does not inherit.
    #[error(
        "{place}: {text}: {why}; write the address itself{}",
        if text.starts_with("fd@") {
            ", or start the service with a listening socket under that number"
        } else {
            ""
        }
    )]
    ForeignDescriptor {
        /// The line.
        place: Place,
        /// The address as written.
        text: String,
        /// Why the descriptor is not a listener, in haproxy's words.
        why: String,
    },
    /// A `program` section: haproxy's own master would run the program, once in each generation.
    #[error(
        "{place}: the section {section:?} cannot be run here: a master of haproxy's own would run it, in \
         each generation, so every reload would start one more copy of the program; run the program as a \
         service of its own (a systemd unit, another container) and remove the section"
    )]
    Program {
        /// The section with its name: `program api`.
        section: String,
        /// The line.
        place: Place,
    },
    /// A template has another tag than `bind_tcp`.
    #[error(
        "{place}: only <%= bind_tcp('IP', PORT) %> can stand in a template, not: {text}; run \
         templates with other tags through their own tool first and give bindonce the result"
    )]
    Template {
        /// The line.
        place: Place,
        /// The text of the line.
        text: String,
    },
    /// Two `--listen` names make the same variable.
    #[error("the names {first} and {second} both make the variable {variable}: rename one of them")]
    SameVariable {
        /// The first name.
        first: String,
        /// The second name.
        second: String,
        /// The variable.
        variable: String,
    },
}
