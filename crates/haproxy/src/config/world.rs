//! The outside world as the reader of a configuration needs it: files, environment, host names, and
//! answers from haproxy.

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

/// Everything that the reader cannot compute. Tests implement it with maps.
pub trait World {
    /// The absolute directory in which haproxy is started, before `-C`.
    fn directory(&self) -> PathBuf;

    /// A directory path with symbolic links and `..` resolved.
    fn resolved(&self, directory: &Path) -> io::Result<PathBuf> {
        directory.canonicalize()
    }

    /// Whether a network device of this name exists, in the given network namespace or in haproxy's
    /// own.
    fn has_device(&self, name: &str, namespace: Option<&str>) -> bool;

    /// The device to which haproxy's sockets are bound where a line names none (`ip vrf exec`).
    fn device_of_new_sockets(&self) -> Option<String> {
        None
    }

    /// Whether the serving haproxy has bound the addresses of this device itself: the broker cannot
    /// bind them beside it, and the next haproxy can.
    fn is_haproxys_device(&self, _name: &str) -> bool {
        false
    }

    /// The listener that haproxy would inherit under this descriptor number.
    ///
    /// # Errors
    /// Why the descriptor is not a listener, in the words that haproxy prints after `cannot use
    /// file descriptor`.
    fn inherited(&self, _number: RawFd) -> Result<Listener, String> {
        Err("Bad file descriptor".to_owned())
    }

    /// Whether this is a reload, so that the files were read before.
    fn is_reload(&self) -> bool {
        false
    }

    /// The environment that haproxy is started with.
    fn environment(&self) -> Environment;

    /// The bytes of a file. The caller has joined relative paths to [`World::directory`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names of the regular files in a directory, in any order; `None` for a path that is not a
    /// directory.
    fn list(&self, path: &Path) -> io::Result<Option<Vec<OsString>>>;

    /// The address that haproxy would take for a host name: the first one from getaddrinfo.
    fn resolve(&self, host: &str, family: Option<Family>) -> io::Result<IpAddr>;

    /// Puts questions to the haproxy that will run, with those of its arguments that affect the
    /// answers.
    fn ask(&self, questions: &Questions, arguments: &[OsString]) -> io::Result<Answers>;

    /// Whether an IPv6 wildcard without `v6only` or `v4v6` accepts IPv6 only: net.ipv6.bindv6only of
    /// haproxy's own network namespace, which haproxy reads once, for every namespace.
    fn is_ipv6_only(&self) -> bool {
        false
    }

    /// The name of this host, which haproxy uses as the name of the local peer.
    fn host_name(&self) -> String;
}
