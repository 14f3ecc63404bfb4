//! What can be wrong with a command line or a configuration.

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

/// Two lines that cannot stand beside each other.
#[derive(Debug)]
pub struct Clash {
    /// The first, or the one of the broker's.
    pub first: Place,
    /// What it says.
    pub first_text: String,
    /// The other line.
    pub second: Place,
    /// What it says.
    pub second_text: String,
    /// What they have in common, or why the broker does not bind the second.
    pub about: String,
}

/// Why a haproxy command or configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that the supervisor itself has to give, or that defeats it.
    #[error("haproxy's {argument} cannot be given here: {hint}", argument = .argument.display())]
    Refused {
        /// The argument as written.
        argument: OsString,
        /// What to do instead.
        hint: &'static str,
    },
    /// An option that needs a value and is the last word.
    #[error("haproxy's {argument} needs a value after it", argument = .argument.display())]
    MissingValue {
        /// The option as written.
        argument: OsString,
    },
    /// A word that haproxy itself would answer with its usage text.
    #[error(
        "haproxy takes no argument {argument:?}: a configuration file is given with -f FILE, or after --"
    )]
    UnknownArgument {
        /// The word as written.
        argument: OsString,
    },
    /// A word after `-sf` or `-st` that is no pid.
    #[error("haproxy's -sf and -st take pids, and {text:?} is none")]
    NoPid {
        /// The word as written.
        text: OsString,
    },
    /// The socket of a master CLI that cannot be.
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
    /// A line that bindonce has to understand and that breaks haproxy's quoting rules.
    #[error("{place}: {reason} at byte {position} of the line: {text}")]
    Syntax {
        /// Where it stands.
        place: Place,
        /// What is wrong.
        reason: &'static str,
        /// Offset in the line, counted from 1.
        position: usize,
        /// The line, made printable.
        text: String,
    },
    /// `.if` and its relatives do not nest.
    #[error("{place}: {reason}")]
    Nesting {
        /// Where it stands.
        place: Place,
        /// What is wrong.
        reason: &'static str,
    },
    /// haproxy could not say whether a condition holds.
    #[error("{place}: haproxy cannot evaluate the condition {condition:?}: {reason}")]
    Condition {
        /// Where it stands.
        place: Place,
        /// The expression.
        condition: String,
        /// What haproxy said.
        reason: String,
    },
    /// haproxy had to be asked how it reads the configuration, and has not answered.
    #[error(
        "this configuration depends on what only haproxy knows (conditions, its own variables, \
         variables that are not set, late global sections), and {program} does not answer: {source}",
        program = .program.display()
    )]
    Unanswered {
        /// The haproxy of the command.
        program: OsString,
        /// What happened.
        source: io::Error,
    },
    /// An address that haproxy would not take either.
    #[error("{place}: {word:?} is not an address to listen on: {reason}")]
    BadAddress {
        /// Where it stands.
        place: Place,
        /// The address as written.
        word: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host name without an address.
    #[error("{place}: the name {host:?} has no address: {source}")]
    Unresolved {
        /// Where it stands.
        place: Place,
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Options that do not make a listener.
    #[error("{place}: {source}")]
    Listener {
        /// Where it stands.
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
        /// Where it stands.
        place: Place,
        /// How many variables there are.
        variables: usize,
        /// How many more words haproxy takes.
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
    /// Two lines name one UNIX socket, and haproxy binds at least one of them by itself.
    #[error(
        "{}: {} is the address of {} ({}) too: one of them would have all clients of {}; \
         remove one of the two, or give it another address",
        .0.second, .0.second_text, .0.first, .0.first_text, .0.about
    )]
    SamePath(Box<Clash>),
    /// haproxy binds an address by itself that overlaps one of the broker's, which nothing is bound beside.
    #[error(
        "{}: {} overlaps {} of {}, which the broker binds, and haproxy could not bind it beside that \
         ({}); give it another port",
        .0.second, .0.second_text, .0.first_text, .0.first, .0.about
    )]
    Beside(Box<Clash>),
    /// A descriptor that nobody gives to haproxy.
    #[error(
        "{place}: {text}: {why}; write the address itself{}",
        if text.starts_with("fd@") {
            ", or start the service with a listening socket under that number"
        } else {
            ""
        }
    )]
    ForeignDescriptor {
        /// Where it stands.
        place: Place,
        /// The address as written.
        text: String,
        /// Why there is no listener, in haproxy's words.
        why: String,
    },
    /// A `program` section: haproxy's own master would run it, in each generation once.
    #[error(
        "{place}: the section {section:?} cannot be run here: a master of haproxy's own would run it, in \
         each generation, so every reload would start one more copy of the program; run the program as a \
         service of its own (a systemd unit, another container) and remove the section"
    )]
    Program {
        /// As a person names it: `program api`.
        section: String,
        /// Where it stands.
        place: Place,
    },
    /// A template says more than `bind_tcp`.
    #[error(
        "{place}: only <%= bind_tcp('IP', PORT) %> can stand in a template, not: {text}; run \
         templates with other tags through their own tool first and give bindonce the result"
    )]
    Template {
        /// Where it stands.
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
