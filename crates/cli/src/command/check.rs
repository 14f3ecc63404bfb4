//! `bindonce check -- haproxy -f FILE`: `haproxy -c` on the rendered copy, with the
//! descriptors that `run` would give it.
//!
//! It leaves nothing behind: listeners that did not exist are claimed tentatively
//! and end with the connection, and the copies are files in memory. Where no
//! broker runs and none was named, the sockets are opened here and closed again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, bail};
use bindonce::{Claim, Client};
use bindonce_core::listener::Wanted;
use bindonce_haproxy::config::{Command, PathMap, Rendering, Supplied, System};
use bindonce_sys::listen::{self, UnixPath};
use bindonce_sys::process::{Exit, Pidfd};
use bindonce_sys::spawn::Launch;
use bindonce_sys::{inherit, limits, spawn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Globals;

/// Check a haproxy configuration with the real sockets; nothing stays bound
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::CHECK)]
pub(crate) struct Args {
    /// A listener for `fd@${NAME}` in the configuration; may be given again
    #[arg(long, value_name = "NAME=ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    /// The haproxy command, as in: -- haproxy -f /etc/haproxy/haproxy.cfg
    #[arg(last = true, required = true, value_name = "HAPROXY")]
    command: Vec<OsString>,
}

/// Checks. haproxy's own words tell what is wrong; the exit code is 0 or 1.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    // `check -- haproxy -c -f FILE` says what it means twice.
    let command = Command::parse(args.command.into_iter().filter(|word| word != "-c"))?;
    spawn::find(&command.program)?;
    let listeners = super::run::named(args.listen)?;
    let supplied = Supplied { listeners: &listeners, keep: &[] };
    let world = System::new(&command.program).context("cannot tell the current directory")?;
    let rendering = Rendering::of(&command, supplied, &world)?;
    rendering.self_contained()?;
    let needed = 2 * (rendering.bindings.len() + rendering.files.len());
    limits::make_room(needed).context("cannot raise the open-files limit")?;

    // Leases and opened paths live until haproxy has answered.
    let mut sockets = Sockets::of(&rendering, globals)?;
    let exit = haproxy(&command, &rendering, sockets.take())?;
    drop(sockets);
    match exit {
        // Some versions say so only when they start (3.5).
        Exit::Code(0) if !rendering.may_listen() && !command.master_worker => bail!(
            "No enabled listener found (check for 'bind' directives): haproxy does not start on this"
        ),
        Exit::Code(0) => Ok(ExitCode::SUCCESS),
        Exit::Code(_) => Ok(ExitCode::FAILURE),
        Exit::Signal(signal) => bail!("signal {signal} ended `haproxy -c`"),
    }
}

/// The descriptors of all bindings, in order, and what keeps them bound.
struct Sockets {
    descriptors: Vec<OwnedFd>,
    /// Paths of sockets that were opened here.
    paths: Vec<UnixPath>,
    /// The connection with the leases.
    _broker: Option<Client>,
}

impl Sockets {
    fn of(rendering: &Rendering, globals: &Globals) -> anyhow::Result<Self> {
        let mut client = match Client::connect(&globals.socket_path()) {
            Err(bindonce::Error::Connect { .. }) if !globals.socket_is_given() => {
                return Self::open(rendering);
            }
            client => client?,
        };
        let claims: Vec<Claim> = rendering
            .bindings
            .iter()
            .map(|binding| Claim::listen(binding.listener.to_string()).tentative())
            .collect();
        let leases = if claims.is_empty() { Vec::new() } else { client.claim(&claims)? };
        Ok(Self {
            descriptors: leases.into_iter().map(bindonce::Lease::into_fd).collect(),
            paths: Vec::new(),
            _broker: Some(client),
        })
    }

    fn open(rendering: &Rendering) -> anyhow::Result<Self> {
        let mut sockets = Self { descriptors: Vec::new(), paths: Vec::new(), _broker: None };
        for binding in &rendering.bindings {
            let opened = listen::open(&binding.listener)
                .with_context(|| format!("{}: {}", binding.place, binding.text))?;
            sockets.descriptors.push(opened.fd);
            sockets.paths.extend(opened.path);
        }
        Ok(sockets)
    }

    fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.paths {
            // Somebody else's file by now, or gone: either is fine.
            let _ = listen::unlink_if_ours(path);
        }
    }
}

/// Runs `haproxy -c` and passes on what it says, with the user's paths.
fn haproxy(
    command: &Command,
    rendering: &Rendering,
    mut descriptors: Vec<OwnedFd>,
) -> anyhow::Result<Exit> {
    let numbers: Vec<RawFd> = (inherit::FIRST..).take(descriptors.len()).collect();
    let mut files = Vec::new();
    for file in &rendering.files {
        let number = inherit::FIRST + RawFd::try_from(descriptors.len())?;
        files.push(PathBuf::from(format!("/dev/fd/{number}")));
        descriptors.push(in_memory(&file.text).context("cannot keep the copy in memory")?);
    }
    let users = rendering.files.iter().map(|file| file.user_path.clone());
    let paths = PathMap::new(files.iter().cloned().zip(users));

    let mut launch = Launch::new(command.program.clone());
    launch.args.push("-c".into());
    launch.args.extend(command.arguments_on(&files));
    let environment = rendering.environment(&numbers);
    launch.env = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    launch.env_remove = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"]
        .map(OsString::from)
        .to_vec();
    launch.descriptors = descriptors.into_iter().map(|fd| (String::new(), fd)).collect();
    launch.stderr = Stdio::piped();
    let started = launch.start()?;
    if let Some(stderr) = started.stderr {
        let mut reader = BufReader::new(File::from(stderr));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).context("cannot read haproxy's words")? > 0 {
            // Nobody may be listening; the exit code tells it too.
            let _ = std::io::stderr().write_all(&paths.user_place(&line));
            line.clear();
        }
    }
    ended(&started.pidfd).context("cannot wait for haproxy")
}

/// A file without a name, which goes away with its last descriptor.
fn in_memory(text: &[u8]) -> std::io::Result<OwnedFd> {
    let file = memfd_create("haproxy.cfg", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(text)?;
    Ok(file.into())
}

/// Waits until a child has ended.
fn ended(child: &Pidfd) -> std::io::Result<Exit> {
    use std::os::fd::AsFd as _;
    loop {
        match poll(&mut [PollFd::new(child.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(exit) = child.try_wait()? {
            return Ok(exit);
        }
    }
}
