//! What reading a configuration needs from outside: files, environment, host
//! names, and what only haproxy knows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use bindonce_core::listener::Listener;

use super::questions::{Answers, Questions};

/// Environment variables by name.
pub type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// The family of addresses that a prefix such as `ipv6@` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// Everything the reader cannot compute. Tests put maps behind it.
pub trait World {
    /// The directory in which haproxy is started: absolute, before `-C`.
    fn directory(&self) -> PathBuf;

    /// The directory that a path leads to, without symbolic links and `..`.
    fn resolved(&self, directory: &Path) -> io::Result<PathBuf> {
        directory.canonicalize()
    }

    /// Whether there is a network device of this name, in a network namespace or in haproxy's own.
    fn has_device(&self, name: &str, namespace: Option<&str>) -> bool;

    /// The device that sockets of haproxy are bound to where its line names none (`ip vrf exec`).
    fn device_of_new_sockets(&self) -> Option<String> {
        None
    }

    /// Whether the haproxy that serves has bound the addresses of this device by itself: the broker
    /// cannot bind them beside it, and the next haproxy can.
    fn is_haproxys_device(&self, _name: &str) -> bool {
        false
    }

    /// The listener that haproxy would inherit as descriptor of this number, or why it is none.
    ///
    /// # Errors
    /// As haproxy says it after `cannot use file descriptor`.
    fn inherited(&self, _number: RawFd) -> Result<Listener, String> {
        Err("Bad file descriptor".to_owned())
    }

    /// Whether this is a reload: the files were read before.
    fn is_reload(&self) -> bool {
        false
    }

    /// The environment that haproxy is started with.
    fn environment(&self) -> Environment;

    /// The bytes of a file. Relative paths have been joined to
    /// [`World::directory`] already.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names of the regular files in a directory, in any order; `None` when
    /// the path is something else.
    fn list(&self, path: &Path) -> io::Result<Option<Vec<OsString>>>;

    /// The address that haproxy would take for a host name: the first that
    /// getaddrinfo gives.
    fn resolve(&self, host: &str, family: Option<Family>) -> io::Result<IpAddr>;

    /// What the haproxy that will run says, with those of its arguments that matter.
    fn ask(&self, questions: &Questions, arguments: &[OsString]) -> io::Result<Answers>;

    /// Whether an IPv6 wildcard is for IPv6 alone where nothing is said (net.ipv6.bindv6only), in
    /// this network namespace.
    fn is_ipv6_only(&self, _namespace: Option<&str>) -> bool {
        false
    }

    /// The name of this host, which haproxy takes for the local peer.
    fn host_name(&self) -> String;
}
