//! A running program: the sockets that it listens on, and what its command line says.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::adoption::{Candidate, Unfit};
use bindonce_core::listener::Listener;
use bindonce_sys::exchange::exchange;
use bindonce_sys::subprocess::User;
use bindonce_sys::{diag, holders, identity, process};

use super::Error;
use super::exported::exported;
use bindonce_haproxy::config::{Command, Environment, Rendering, Supplied, System};
use bindonce_haproxy::names::renamed;
use bindonce_haproxy::stats;

/// A program and duplicates of its listening sockets.
#[derive(Debug)]
pub struct Running {
    /// The process that accepts; with a haproxy master, the worker.
    pub pid: i32,
    /// Its listening sockets, in the order of their descriptors.
    pub sockets: Vec<Socket>,
}

/// One of its sockets.
#[derive(Debug)]
pub struct Socket {
    /// A duplicate of the descriptor.
    pub fd: OwnedFd,
    /// What the kernel says about it.
    pub candidate: Candidate,
    /// Whether no other socket can be bound to the address.
    pub exclusive: bool,
}

impl Running {
    /// Asks the haproxy at a stats socket, in `limit` at most. Its stats sockets are left out.
    ///
    /// # Errors
    /// [`Error::Master`], and the errors of [`exported`].
    pub fn at_stats_socket(path: &Path, limit: Duration) -> Result<Self, Error> {
        let failed = |source| Error::StatsSocket { path: path.to_owned(), source };
        let ask = |question| exchange(path, question, stats::LONGEST, limit).map_err(failed);
        if ask(stats::ASK_MASTER)?.starts_with(stats::MASTER) {
            return Err(Error::Master { path: path.to_owned() });
        }
        let answer = stats::read(&String::from_utf8_lossy(&ask(stats::QUESTION)?));
        let answer = answer.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
        let listening = listening()?;
        let found = exported(path, limit)?;
        let sockets = found
            .into_iter()
            .filter_map(|one| describe(one.fd, one.namespace.is_some(), &listening))
            .collect();
        Ok(Self { pid: answer.pid, sockets })
    }

    /// Takes duplicates from a process and its children (a master's workers).
    ///
    /// # Errors
    /// [`Error::NoProcess`]; [`Error::NotTaken`] without the right to trace it.
    pub fn of_process(pid: i32) -> Result<Self, Error> {
        if process::start_time(pid).is_none() {
            return Err(Error::NoProcess { pid });
        }
        let listening = listening()?;
        let inodes: Vec<u64> = listening.iter().copied().collect();
        let mut seen = HashSet::new();
        let mut sockets = Vec::new();
        let mut accepts = None;
        for member in process::family(pid) {
            let mut held = holders::of_process(member, &inodes);
            held.sort_by_key(|holder| holder.fd);
            held.retain(|holder| seen.insert(holder.inode));
            if held.is_empty() {
                continue;
            }
            let taken = |number, source| Error::NotTaken { pid: member, number, source };
            for holder in held {
                let fd = holder.take().map_err(|error| taken(holder.fd, error))?;
                sockets.extend(describe(fd, false, &listening));
            }
            accepts.get_or_insert(member);
        }
        Ok(Self { pid: accepts.unwrap_or(pid), sockets })
    }

    /// The candidates to decide on.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.sockets.iter().map(|socket| socket.candidate.clone()).collect()
    }
}

/// Inodes of everything that listens in this network namespace.
fn listening() -> Result<BTreeSet<u64>, Error> {
    Ok(diag::listening()?.into_iter().map(|socket| socket.inode).collect())
}

/// The sockets that any of these processes listens on.
///
/// # Errors
/// If the kernel's list of listening sockets cannot be read.
pub fn listening_of(pids: &[i32]) -> Result<Vec<diag::Socket>, Error> {
    let mut all = diag::listening()?;
    let inodes: Vec<u64> = all.iter().map(|socket| socket.inode).collect();
    let held = pids.iter().flat_map(|pid| holders::of_process(*pid, &inodes));
    let held: HashSet<u64> = held.map(|holder| holder.inode).collect();
    all.retain(|socket| held.contains(&socket.inode));
    Ok(all)
}

/// Describes a descriptor. None if it is no bound socket, or its device has been deleted.
fn describe(fd: OwnedFd, elsewhere: bool, listening: &BTreeSet<u64>) -> Option<Socket> {
    let identity = identity::of(fd.as_fd()).ok().filter(|found| !found.device_gone)?;
    let mut listener = identity.listener();
    let mut unfit = None;
    if let Address::Unix(path) = &identity.bound {
        let path = renamed(path).map_or(path.as_str(), |(path, _)| path);
        match diag::unix_is_at(identity.inode, Path::new(path)) {
            Ok(true) => listener.address = Address::Unix(path.to_owned()),
            _ => unfit = Some(Unfit::PathGone),
        }
    }
    if elsewhere || !listening.contains(&identity.inode) {
        unfit = Some(Unfit::OtherNamespace);
    }
    if !identity.listening {
        unfit = Some(Unfit::NotListening);
    }
    let candidate = Candidate { listener, inode: identity.inode, unfit };
    Some(Socket { fd, candidate, exclusive: identity.exclusive })
}

/// The haproxy command that a process runs, without the options for how it was started (`-D`, `-p`,
/// `-sf`, `-x` ...). None for another program.
pub fn command_of(pid: i32) -> Option<Vec<OsString>> {
    // Other programs, such as a supervisor, have the word on their command line too.
    let name = process::name(pid)?;
    if !name.starts_with("haproxy") && !name.starts_with("ld-linux") {
        return None;
    }
    own_command(process::command(pid)?)
}

fn own_command(words: Vec<String>) -> Option<Vec<OsString>> {
    let is_haproxy = |word: &String| word.rsplit('/').next() == Some("haproxy");
    let mut words = words.into_iter().peekable();
    // With the dynamic loader of another system's libraries (ld.so(8)), haproxy is not the first
    // word.
    while let Some(word) = words.next_if(|word| !is_haproxy(word)) {
        if ["--argv0", "--library-path", "--preload"].contains(&word.as_str()) {
            words.next();
        }
    }
    let mut kept: Vec<OsString> = vec![words.next()?.into()];
    while let Some(word) = words.next() {
        match word.as_str() {
            "-p" | "-x" | "-S" => drop(words.next()),
            "-sf" | "-st" => while words.next_if(|pid| pid.parse::<u32>().is_ok()).is_some() {},
            "-D" | "-db" | "-W" | "-Ws" | "-Ds" | "-q" => {}
            _ => kept.push(word.into()),
        }
    }
    Some(kept)
}

/// The listeners that `bindonce run` would claim for this command, read in the directory in which
/// the process was started, and with its environment.
///
/// The user who started the process has chosen its program, arguments and environment. Whatever is
/// executed because of them runs with the rights of that user, not ours.
///
/// # Errors
/// [`Error::Configuration`].
pub fn configured(pid: i32, command: &[OsString]) -> Result<Vec<Listener>, Error> {
    let failed = |why: String| Error::Configuration { pid, why };
    let command = Command::parse(command.to_vec());
    let mut command = command.map_err(|error| failed(error.to_string()))?;
    let begun = process::start_time(pid);
    let environment = std::fs::read(format!("/proc/{pid}/environ"))
        .map_err(|error| failed(format!("its environment cannot be read: {error}")))?;
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        Some((variable.get(..at)?.to_vec(), variable.get(at + 1..)?.to_vec()))
    });
    let environment: Environment = variables.collect();
    // A worker may be in a chroot. Its master never is.
    let top = master_of(pid);
    let link = |name: &str| {
        std::fs::read_link(format!("/proc/{top}/{name}"))
            .map_err(|error| failed(format!("its directory cannot be read: {error}")))
    };
    let directory = started_in(&link("root")?, link("cwd")?, &environment, &mut command);
    let user = User::of(pid).map_err(|error| failed(error.to_string()))?;
    if process::start_time(pid) != begun {
        return Err(failed("it has ended".to_owned()));
    }
    let world = System::at(&command.program, directory, environment).of_user(user);
    let rendering = Rendering::of(&command, Supplied::default(), &world);
    let rendering = rendering.map_err(|error| failed(error.to_string()))?;
    Ok(rendering.bindings.into_iter().map(|binding| binding.listener).collect())
}

/// The directory in which a running haproxy has found the files of its command. None if any other
/// does as well, and if it is not known.
pub fn needs_directory(pid: i32, command: &[OsString]) -> Option<PathBuf> {
    let command = Command::parse(command.to_vec()).ok()?;
    let anywhere = command.files.iter().all(|file| file.is_absolute());
    let link = |name| std::fs::read_link(format!("/proc/{}/{name}", master_of(pid))).ok();
    if anywhere || command.directory.is_some() || link("root")? != Path::new("/") {
        return None;
    }
    link("cwd")
}

/// The directory from which a haproxy with this root and working directory has read its files. An
/// option `-C` that it has carried out by now is taken out of the command.
fn started_in(
    root: &Path,
    cwd: PathBuf,
    environment: &Environment,
    command: &mut Command,
) -> PathBuf {
    if root == Path::new("/") {
        command.directory = None;
        return cwd;
    }
    // The working directory is the chroot. A shell has noted the one before.
    match environment.get(&b"PWD"[..]).filter(|path| path.starts_with(b"/")) {
        Some(path) => OsString::from_vec(path.clone()).into(),
        None => cwd,
    }
}

/// The process to signal in order to stop this one: its topmost ancestor that also runs haproxy.
pub fn master_of(pid: i32) -> i32 {
    let mut top = pid;
    while let Some(parent) = process::parent(top).filter(|parent| command_of(*parent).is_some()) {
        top = parent;
    }
    top
}

/// The systemd service whose control group a process is in. None if the unit is no service.
pub fn belongs_to(pid: i32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let text = OsString::from_vec(text).into_string().ok()?;
    let unit = text
        .lines()
        .find_map(|line| line.rsplit('/').next().filter(|name| name.ends_with(".service")));
    unit.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_no_haproxy_has_no_command() {
        assert_eq!(command_of(i32::try_from(std::process::id()).expect("pid")), None);
    }

    #[test]
    fn files_are_looked_for_where_haproxy_has_found_them() {
        let noted: Environment = [(b"PWD".to_vec(), b"/srv".to_vec())].into();
        let relative: Environment = [(b"PWD".to_vec(), b"srv".to_vec())].into();
        for (root, cwd, environment, directory, option) in [
            ("/", "/etc/conf", &noted, "/etc/conf", None),
            ("/jail", "/jail", &noted, "/srv", Some("conf")),
            ("/jail", "/jail", &relative, "/jail", Some("conf")),
            ("/jail", "/jail", &Environment::new(), "/jail", Some("conf")),
        ] {
            let command = Command::parse(["haproxy", "-C", "conf", "-f", "a.cfg"]);
            let mut command = command.expect("a command");
            let found = started_in(Path::new(root), cwd.into(), environment, &mut command);
            assert_eq!(found, Path::new(directory), "{root} {cwd}");
            assert_eq!(command.directory.as_deref(), option.map(Path::new), "{root} {cwd}");
        }
    }

    #[test]
    fn what_the_loader_is_told_is_not_the_command() {
        let command = |line: &str| {
            let words = own_command(line.split(' ').map(str::to_owned).collect())?;
            words.into_iter().map(OsString::into_string).collect::<Result<Vec<_>, _>>().ok()
        };
        let haproxy = ["/x/haproxy", "-f", "a.cfg"].map(str::to_owned).to_vec();
        for line in [
            "/x/haproxy -D -f a.cfg -sf 1 2",
            "/lib/ld-linux.so --library-path /opt/haproxy /x/haproxy -db -f a.cfg",
            "/lib/ld-linux.so --argv0 /opt/haproxy --library-path /lib /x/haproxy -f a.cfg -p pid",
        ] {
            assert_eq!(command(line).as_ref(), Some(&haproxy), "{line}");
        }
    }
}
