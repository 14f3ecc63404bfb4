//! The real [`World`]: this system, and the haproxy of the user's command.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_core::listener::Listener;
use bindonce_sys::file::{self, Unread};
use bindonce_sys::subprocess::User;
use bindonce_sys::{listen, network};

use super::ask;
use super::questions::{Answers, Questions};
use super::world::{Environment, Family, World};

/// Size limit for a file of another user's configuration, in bytes.
const LARGEST: u64 = 256 << 20;

/// Time to wait for a file that is being written.
const WRITTEN: Duration = Duration::from_secs(2);

/// The real world: this system, and the haproxy of the user's command.
#[derive(Debug, Clone, Default)]
pub struct System {
    program: OsString,
    directory: PathBuf,
    environment: Environment,
    /// Whether this process has read the configuration before: an unnamed pipe is then empty, and
    /// is refused.
    pub again: bool,
    /// The user whose rights haproxy is asked with, where bindonce does not start it.
    user: Option<User>,
    /// Devices of listeners that are held.
    pub devices: BTreeSet<String>,
    /// Devices whose addresses the serving haproxy has bound itself.
    pub haproxys: BTreeSet<String>,
    /// Descriptors that haproxy would inherit: the listener of each, or why there is none.
    pub inherited: Descriptors,
    /// The device that haproxy's new sockets are bound to.
    device: Option<String>,
}

/// By number: a listener, or why there is none.
pub type Descriptors = BTreeMap<RawFd, Result<Listener, String>>;

impl System {
    /// The system as this process sees it; haproxy's own answers come from `program`. Fails when
    /// the current directory is gone.
    pub fn new(program: &OsStr) -> io::Result<Self> {
        let environment =
            std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
        Ok(Self::at(program, std::env::current_dir()?, environment))
    }

    /// The same for a haproxy that is started without the variables `without`, and with `more`.
    #[must_use]
    pub fn with(mut self, without: &[OsString], more: &[(&str, &str)]) -> Self {
        for name in without {
            self.environment.remove(name.as_encoded_bytes());
        }
        for (name, value) in more {
            self.environment.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
        self
    }

    /// The system as seen by a haproxy started in `directory` with this environment.
    pub fn at(program: &OsStr, directory: PathBuf, environment: Environment) -> Self {
        let device = network::device_of_new_sockets().unwrap_or_default();
        let program = program.to_owned();
        Self { program, directory, environment, device, ..Self::default() }
    }

    /// The same where this user has chosen the program and the environment: haproxy is asked with
    /// that user's rights and no others.
    pub fn of_user(self, user: User) -> Self {
        // That haproxy is not a child of this process.
        Self { user: Some(user), device: None, ..self }
    }
}

impl World for System {
    fn has_device(&self, name: &str, namespace: Option<&str>) -> bool {
        // if_nametoindex(3) finds `eth0` for the alias `eth0:1`; SO_BINDTODEVICE finds no device.
        let look = || !name.contains(':') && nix::net::if_::if_nametoindex(name).is_ok();
        match namespace {
            None => look(),
            // If the namespace cannot be entered, opening the socket reports that.
            Some(other) => listen::within_netns(other, look).unwrap_or(true),
        }
    }

    fn device_of_new_sockets(&self) -> Option<String> {
        self.device.clone()
    }

    fn is_haproxys_device(&self, name: &str) -> bool {
        // haproxy never binds a device of a held listener.
        self.haproxys.contains(name) && !self.devices.contains(name)
    }

    fn is_ipv6_only(&self) -> bool {
        let value = std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only");
        value.is_ok_and(|value| value.trim() == "1")
    }

    fn inherited(&self, number: RawFd) -> Result<Listener, String> {
        let bad = || Err("Bad file descriptor".to_owned());
        self.inherited.get(&number).cloned().unwrap_or_else(bad)
    }

    fn is_reload(&self) -> bool {
        self.again
    }

    fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    fn environment(&self) -> Environment {
        self.environment.clone()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if self.again && file::is_unnamed_pipe(path) {
            return Err(io::Error::other(
                "it is a pipe, which was read when the service began and gives nothing a second time; \
                 to reload, start the service with -f and a file",
            ));
        }
        if self.user.is_some_and(|user| !user.is_ours()) {
            // Open regular files only: root may open devices that the user who named the file may
            // not.
            return file::regular(path, LARGEST);
        }
        file::read(path, WRITTEN).map_err(|unread| match unread {
            Unread::System(error) => error,
            unread @ Unread::BeingWritten { .. } => io::Error::other(format!(
                "{unread}; reload when it is complete, or write a new file and rename it into place"
            )),
            unread => io::Error::other(unread.to_string()),
        })
    }

    fn list(&self, path: &Path) -> io::Result<Option<Vec<OsString>>> {
        if !std::fs::metadata(path)?.is_dir() {
            return Ok(None);
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            // Follows links, as haproxy's stat() does. An entry without readable metadata stays in
            // the list, so that reading it reports the error, if it is a configuration file at all.
            if std::fs::metadata(entry.path()).map_or(true, |about| about.is_file()) {
                names.push(entry.file_name());
            }
        }
        Ok(Some(names))
    }

    fn resolve(&self, host: &str, family: Option<Family>) -> io::Result<IpAddr> {
        use std::net::ToSocketAddrs as _;
        let mut found = (host, 0).to_socket_addrs()?.map(|address| address.ip());
        found
            .find(|ip| match family {
                None => true,
                Some(Family::V4) => ip.is_ipv4(),
                Some(Family::V6) => ip.is_ipv6(),
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address of that family"))
    }

    fn ask(&self, questions: &Questions, arguments: &[OsString]) -> io::Result<Answers> {
        let haproxy = ask::Haproxy {
            program: &self.program,
            arguments,
            directory: &self.directory,
            environment: &self.environment,
            user: self.user,
        };
        ask::ask(&haproxy, questions)
    }

    fn host_name(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim_end().to_owned())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_no_device() {
        let system = System::default();
        assert!(system.has_device("lo", None));
        assert!(!system.has_device("lo:1", None) && !system.has_device("lo1", None));
    }
}
