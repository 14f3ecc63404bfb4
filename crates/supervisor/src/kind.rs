//! The differences between haproxy and any other program, in one place.
//!
//! Everything else in a supervisor is the same for both: claims, the start through the shim,
//! watching, draining, saving, taking over, the watchdog. [`crate::generations::start`] has the
//! start of each kind.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use bindonce_core::listener::Listener;
use bindonce_haproxy::cli::Version;
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::{process, subprocess, tree};

use crate::error::Error;
use crate::generations::listeners::read;
use crate::origin::Origin;
use crate::program::Program;
use bindonce_haproxy::config::{Command, Descriptors, Rendering, Supplied, System};
use bindonce_sys::spawn::Launch;

/// The kind of program that is supervised.
#[derive(Debug, Clone)]
pub enum Kind {
    /// haproxy. The supervisor reads its configuration, pauses it, asks it, and proves its
    /// handovers.
    Haproxy(Haproxy),
    /// Any other program.
    Program(Program),
}

/// A haproxy and how it is started.
#[derive(Debug, Clone)]
pub struct Haproxy {
    /// The command line.
    pub command: Command,
    /// Whether each generation gets a private admin socket.
    pub admin: bool,
    /// The process that gave the command line; none if it is this process's own.
    pub caller: Option<Box<Origin>>,
}

/// How long a haproxy binary may take to print its version.
const VERSION: Duration = Duration::from_secs(10);

impl Haproxy {
    /// The same program with a caller's command line.
    pub(crate) fn of(&self, caller: Origin) -> Result<Self, Error> {
        let mut command = Command::parse(caller.command.iter())?;
        if self.command.nested_master {
            command = command.with_nested_master();
        }
        Ok(Self { command, admin: self.admin, caller: Some(Box::new(caller)) })
    }

    /// The system as this haproxy will see it. `passed` are the descriptors that this process
    /// inherited.
    pub(crate) fn world(&self, passed: &Descriptors) -> io::Result<System> {
        let Some(caller) = &self.caller else {
            let mut world = System::new(&self.command.program)?;
            world.inherited.clone_from(passed);
            return Ok(world);
        };
        let bytes = |text: &OsStr| text.as_encoded_bytes().to_vec();
        let environment = caller.variables();
        let environment = environment.map(|(name, value)| (bytes(name), bytes(value)));
        let directory = caller.directory.clone();
        let mut world = System::at(&self.command.program, directory, environment.collect());
        let passed = caller.passed.iter();
        world.inherited.extend(passed.filter_map(|(of, text)| Some((*of, Ok(read(text)?)))));
        Ok(world)
    }

    /// The listeners that the configuration asks for now. None if it cannot be read, or is a pipe:
    /// that is for the first generation.
    pub(crate) fn listeners(
        &self,
        supplied: &[Listener],
        passed: &Descriptors,
    ) -> Option<Vec<Listener>> {
        let mut world = self.world(passed).ok()?;
        world.again = true;
        let supplied = Supplied { listeners: supplied, keep: &[] };
        let rendering = Rendering::of(&self.command, supplied, &world).ok()?;
        Some(rendering.bindings.into_iter().map(|binding| binding.listener).collect())
    }

    /// Sets the launch's directory and environment to those of the caller.
    pub(crate) fn place(&self, launch: &mut Launch) {
        let Some(caller) = &self.caller else { return };
        launch.cwd = Some(caller.directory.clone());
        launch.env_remove.extend(std::env::vars_os().map(|(name, _)| name));
        let not_theirs = crate::broker::not_theirs();
        let environment = caller.variables().map(|(name, value)| (name.into(), value.into()));
        launch.env.extend(environment.filter(|(name, _)| !not_theirs.contains(name)));
    }

    /// The version of the binary, for a haproxy without an admin socket.
    pub(crate) fn version(&self) -> Result<Option<Version>, Error> {
        if self.admin {
            return Ok(None);
        }
        version_of(&self.command.program).map(Some)
    }
}

/// The version that a haproxy binary prints with `-v`.
pub(crate) fn version_of(program: &OsStr) -> Result<Version, Error> {
    let mut command = std::process::Command::new(program);
    command.arg("-v");
    let answer = subprocess::answer(command, VERSION);
    let answer = answer.map_err(Error::system("ask haproxy for its version"))?;
    Ok(Version::of_banner(&String::from_utf8_lossy(&answer.stdout)))
}

impl Kind {
    /// The name for messages.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Haproxy(_) => "haproxy".into(),
            Self::Program(program) => program.name(),
        }
    }

    pub(crate) fn haproxy(&self) -> Option<&Haproxy> {
        match self {
            Self::Haproxy(haproxy) => Some(haproxy),
            Self::Program(_) => None,
        }
    }

    pub(crate) fn program(&self) -> Option<&Program> {
        match self {
            Self::Haproxy(_) => None,
            Self::Program(program) => Some(program),
        }
    }

    /// Whether the supervisor answers the program's bind(2) and listen(2).
    pub(crate) fn is_intercepted(&self) -> bool {
        self.program().is_some_and(|program| program.intercept.is_some())
    }

    /// Whether the generations have a private admin socket.
    pub fn has_admin(&self) -> bool {
        self.haproxy().is_some_and(|haproxy| haproxy.admin)
    }

    /// The signal on which the program closes its listeners, finishes its connections, and exits.
    pub(crate) fn retire(&self) -> Number {
        match self {
            Self::Haproxy(_) => Number::SIGUSR1,
            Self::Program(program) => program.retire,
        }
    }

    /// The living processes of the generation with this first process. For haproxy these are its
    /// descendants (a master, its workers, and theirs); for another program also descendants whose
    /// parent has ended.
    pub(crate) fn processes(&self, pid: i32) -> Vec<i32> {
        match self {
            Self::Haproxy(_) => process::family(pid),
            Self::Program(_) => tree::members(pid),
        }
    }
}
