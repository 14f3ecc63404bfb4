//! A program that is not haproxy, as a person describes it to `bindonce run`: how it is started,
//! how it is told its sockets, how it says that it is ready, and how it is told to stop.
//!
//! Everything here is a function of its arguments.

mod template;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use bindonce_core::intercept::Scope;
use bindonce_sys::signals::Signal;

pub use template::{Numbers, Template, TemplateError, Variable};

/// A program.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program: a path, or a name to be found in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How a generation of it is known to be ready.
    pub readiness: Readiness,
    /// What tells it to close its listeners, serve what is connected, and exit.
    pub retire: Signal,
    /// The listeners that it gets when it calls bind(2), instead of at its start.
    pub intercept: Option<Scope>,
    /// It is started also where the kernel refuses that, with what it is given at its start.
    pub without_intercept: bool,
    /// Variables that tell it its sockets, besides those that every program gets.
    pub variables: Vec<Variable>,
}

/// How a generation is known to be ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// A process of it says READY=1 (sd_notify(3)).
    Notify,
    /// This command of the shell exits with 0.
    Check(OsString),
    /// It has lived for this long.
    Delay(Duration),
    /// It calls listen(2), where that is intercepted.
    Listen,
}

impl Program {
    /// What it is called in messages: its name without directories.
    pub fn name(&self) -> Cow<'_, str> {
        base_name(&self.program)
    }
}

/// The name of a program without directories.
pub fn base_name(program: &OsStr) -> Cow<'_, str> {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy()
}

/// Whether a command is haproxy, by the name of its program: `haproxy` and what begins with it, such as
/// `haproxy-3.2`.
pub fn is_haproxy(program: &OsStr) -> bool {
    base_name(program).starts_with("haproxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_is_known_by_its_name() {
        for (program, is) in [
            ("haproxy", true),
            ("/usr/sbin/haproxy", true),
            ("/opt/haproxy-3.2", true),
            ("/opt/haproxy/nginx", false),
            ("nginx", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(is_haproxy(OsStr::new(program)), is, "{program}");
        }
    }
}
