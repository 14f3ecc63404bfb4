//! A program that is not haproxy, as a user describes it to `bindonce run`: how it is started,
//! learns its sockets, reports that it is ready, and is told to stop.
//!
//! Everything here is a pure function of its arguments.

mod template;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use bindonce_core::intercept::Scope;
use bindonce_sys::signals::Signal;

pub use template::{Numbers, Template, TemplateError, Variable};

/// A program, and how to run it.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program: a path, or a name to be found in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How the supervisor knows that a generation is ready.
    pub readiness: Readiness,
    /// The signal on which it closes its listeners, finishes its connections and exits.
    pub retire: Signal,
    /// The listeners that it gets when it calls bind(2) instead of at its start.
    pub intercept: Option<Scope>,
    /// Whether it is started even if the kernel refuses interception, with the sockets from its
    /// start.
    pub without_intercept: bool,
    /// Variables that name its sockets, besides those that every program gets.
    pub variables: Vec<Variable>,
}

/// How the supervisor knows that a generation is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// One of its processes sends READY=1 (sd_notify(3)).
    Notify,
    /// This shell command exits with 0.
    Check(OsString),
    /// The generation has lived for this long.
    Delay(Duration),
    /// The program calls listen(2), where that is intercepted.
    Listen,
}

impl Program {
    /// The name in messages: the program's name without directories.
    pub fn name(&self) -> Cow<'_, str> {
        base_name(&self.program)
    }
}

/// The name of a program without directories.
pub fn base_name(program: &OsStr) -> Cow<'_, str> {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy()
}

/// Whether a command is haproxy, by the name of its program: `haproxy` and what begins with it,
/// such as `haproxy-3.2`.
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
