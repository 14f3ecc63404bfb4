//! The errors of this crate: which operation failed on what, and a hint what to do about it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::duration;
use bindonce_core::error::Invalid;
use nix::errno::Errno;

use crate::limits::{self, Reached};
use crate::process;

/// A failed operation of this crate. The text names the operation and its object; [`Error::hint`]
/// tells the user what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed while a listener was being created or changed.
    #[error("cannot listen on {address}: {operation}: {errno}")]
    Listen {
        /// The call, and the option where there is one: `bind`, `setsockopt(IP_FREEBIND)`.
        operation: &'static str,
        /// The requested address.
        address: Address,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The socket overlaps sockets that are already open, and could be opened only in a way that
    /// lets other processes of this user join them.
    #[error(
        "cannot listen on {address} beside the sockets of its port that it overlaps: others could join them"
    )]
    NotExclusive {
        /// The requested address.
        address: Address,
    },
    /// Another process accepts connections on this UNIX path.
    #[error("cannot listen on {path}: a live socket answers there")]
    PathInUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The path exists and is not a socket. It is never removed.
    #[error("cannot listen on {path}: it exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// This path cannot be the path of a UNIX socket.
    #[error("cannot listen on {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why the path is not valid.
        source: Invalid,
    },
    /// This system does not know the `user=` or `group=` of a UNIX path.
    #[error("cannot listen on {address}: there is no {kind} {name:?} on this system")]
    UnknownOwner {
        /// `user` or `group`.
        kind: &'static str,
        /// The requested name.
        name: String,
        /// The requested address.
        address: Address,
    },
    /// The name service did not answer in time for the `user=` or `group=` of a UNIX path.
    #[error(
        "cannot listen on {address}: cannot look up the {kind} {name:?}: the name service did not \
         answer within {}", duration::format(*.limit)
    )]
    OwnerNotAnswered {
        /// `user` or `group`.
        kind: &'static str,
        /// The requested name.
        name: String,
        /// The requested address.
        address: Address,
        /// How long it had.
        limit: Duration,
    },
    /// The lookup of the `user=` or `group=` of a UNIX path failed.
    #[error("cannot listen on {address}: cannot look up the {kind} {name:?}: {errno}")]
    OwnerLookup {
        /// `user` or `group`.
        kind: &'static str,
        /// The requested name.
        name: String,
        /// The requested address.
        address: Address,
        /// The answer of getpwnam(3) or getgrnam(3).
        errno: Errno,
    },
    /// The user or group to switch to does not exist.
    #[error("there is no {kind} {name:?} on this system")]
    UnknownAccount {
        /// `user` or `group`.
        kind: &'static str,
        /// The requested name.
        name: String,
    },
    /// A network namespace could not be entered.
    #[error("cannot enter network namespace {name:?}: {operation}: {errno}")]
    Netns {
        /// The name of the namespace under /run/netns.
        name: String,
        /// The call that failed.
        operation: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A message came with more descriptors than this process could take. The descriptors that did
    /// arrive are closed again.
    #[error("descriptors were lost on the way: the kernel truncated the message")]
    Truncated,
    /// A program needs more descriptors than its limit allows.
    #[error("{needed} descriptors are needed, and RLIMIT_NOFILE allows {limit}")]
    DescriptorLimit {
        /// The limit that would suffice.
        needed: u64,
        /// The limit in effect: the soft limit, raised as far as the hard limit allows.
        limit: u64,
    },
    /// A program could not be executed.
    #[error("cannot execute {}: {errno}", program.display())]
    Exec {
        /// The program, as it was given.
        program: OsString,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A system call failed because this process may open no more descriptors.
    #[error("{failed}")]
    LimitReached {
        /// The call that failed.
        failed: Box<Error>,
        /// The process that reached its limit, and the limit.
        reached: Reached,
    },
    /// The supervisor cannot intercept the bind(2) and listen(2) of a program.
    #[error("bind() and listen() of the program cannot be intercepted ({refused})")]
    Intercept {
        /// The call that was refused.
        refused: Box<Error>,
    },
    /// No thread could be had to start a process.
    #[error("start the shim: {why}")]
    NoThread {
        /// Why: the kernel's answer, or that earlier starts are stalled.
        why: String,
    },
    /// Another system call failed.
    #[error("{operation}: {errno}")]
    Call {
        /// The call.
        operation: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl From<bindonce_fd::Error> for Error {
    fn from(error: bindonce_fd::Error) -> Self {
        match error {
            bindonce_fd::Error::Truncated => Self::Truncated,
            error => Self::call("recvmsg", error),
        }
    }
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Listen { errno, .. }
            | Self::OwnerLookup { errno, .. }
            | Self::Netns { errno, .. }
            | Self::Exec { errno, .. }
            | Self::Call { errno, .. } => Some(*errno as i32),
            Self::Intercept { refused } => refused.errno(),
            Self::PathInUse { .. } | Self::NotExclusive { .. } => Some(Errno::EADDRINUSE as i32),
            Self::DescriptorLimit { .. } | Self::LimitReached { .. } => Some(Errno::EMFILE as i32),
            _ => None,
        }
    }

    /// A hint for the user, as one sentence without a full stop.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Listen { operation, address, errno } => {
                return listen_hint(operation, address, *errno);
            }
            Self::PathInUse { path } => format!(
                "stop the program that listens on {}, or choose another path",
                path.display()
            ),
            Self::NotExclusive { address } => format!(
                "write `v6only` on it, or give the broker CAP_NET_ADMIN, or stop what uses port {}, \
                 release it (`bindonce release`) and start again: the wildcard of both families \
                 is then bound first",
                address.port().unwrap_or(0)
            ),
            Self::NotASocket { path } => {
                format!("move {} away, or choose another path", path.display())
            }
            Self::UnknownOwner { kind, .. } => {
                format!("create the {kind}, or give its number instead of a name")
            }
            Self::OwnerNotAnswered { kind, .. } | Self::OwnerLookup { kind, .. } => {
                let database = if *kind == "user" { "passwd" } else { "group" };
                format!(
                    "`getent {database} NAME` asks the same services (/etc/nsswitch.conf, nscd): \
                     repair the one that does not answer, or give the number of the {kind} instead \
                     of a name"
                )
            }
            Self::UnknownAccount { kind, .. } => {
                format!(
                    "create the {kind}; a user given as a number without an account needs a group"
                )
            }
            Self::Netns { name, errno: Errno::ENOENT, .. } => {
                format!(
                    "create it with `ip netns add {name}`; `ip netns list` shows the existing ones"
                )
            }
            Self::Netns { errno: Errno::EPERM | Errno::EACCES, .. } => {
                "entering a network namespace needs root or CAP_SYS_ADMIN".to_owned()
            }
            Self::Truncated => {
                "raise the open-files limit of the receiving process (ulimit -n, LimitNOFILE=)"
                    .to_owned()
            }
            Self::LimitReached { reached, .. } => reached.to_string(),
            Self::DescriptorLimit { needed, .. } => format!(
                "raise the hard limit to {needed} or more (ulimit -Hn, LimitNOFILE= in the unit, \
                 --ulimit nofile= of a container)"
            ),
            Self::Exec { errno: Errno::ENOENT, program } if !looks_like_path(program) => {
                "install it, or give its full path: it is not in PATH".to_owned()
            }
            Self::Exec { errno: Errno::ENOENT, .. } => {
                "check the path of the program, and the interpreter in its first line".to_owned()
            }
            Self::Exec { errno: Errno::EACCES, .. } => {
                "make it executable for this user (chmod +x), on a file system that is not mounted noexec; if it already is, \
                 a security module (AppArmor, SELinux) refused it"
                    .to_owned()
            }
            Self::Call { operation: "pidfd_getfd", errno: Errno::EPERM | Errno::EACCES } => {
                "taking a descriptor of another process needs CAP_SYS_PTRACE, also in a container"
                    .to_owned()
            }
            Self::Intercept { refused } => return Some(intercept_hint(refused).to_owned()),
            Self::NoThread { .. } => {
                "see what the stalled programs wait for (`ps -eo pid,stat,wchan:30,args`), and raise the \
                 limit on processes if it is reached (ulimit -u, TasksMax=)"
                    .to_owned()
            }
            Self::Path { .. } | Self::Netns { .. } | Self::Exec { .. } | Self::Call { .. } => {
                return None;
            }
        };
        Some(hint)
    }

    /// Whether the process or the system ran out of descriptors.
    pub fn is_descriptor_limit(&self) -> bool {
        matches!(self.errno(), Some(n) if n == Errno::EMFILE as i32 || n == Errno::ENFILE as i32)
            || matches!(self, Self::Truncated)
    }

    pub(crate) fn call(operation: &'static str, error: impl Into<std::io::Error>) -> Self {
        let errno = errno_of(&error.into());
        Self::Call { operation, errno }.with_limit(errno)
    }

    /// For `map_err`: a system call that failed for a listener on `address`.
    pub(crate) fn listen(
        operation: &'static str,
        address: &Address,
    ) -> impl Fn(std::io::Error) -> Self + use<> {
        let address = address.clone();
        move |error| {
            let errno = errno_of(&error);
            Self::Listen { operation, address: address.clone(), errno }.with_limit(errno)
        }
    }

    /// A process needs `count` descriptors besides its own, which its limit does not allow.
    pub(crate) fn too_many(count: usize) -> Self {
        let (needed, limit) = limits::needed(count);
        Self::DescriptorLimit { needed, limit }
    }

    fn with_limit(self, errno: Errno) -> Self {
        match errno {
            Errno::EMFILE => Self::LimitReached { failed: Box::new(self), reached: Reached::now() },
            _ => self,
        }
    }
}

fn looks_like_path(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

/// How to bind an address that the host does not have yet. haproxy has no keyword `freebind`.
fn not_here_hint(address: &Address) -> String {
    let version = if address.ip().is_some_and(|at| at.is_ipv6()) { "ipv6" } else { "ipv4" };
    format!(
        "no interface has this address: add it, or listen before it exists, by `transparent` on a \
         bind line of haproxy, by --listen NAME={address},freebind (`freebind` after the address \
         wherever bindonce is given one), or by net.{version}.ip_nonlocal_bind=1 for the whole host"
    )
}

/// How to find the process that holds the address. A search here would read all of /proc.
fn occupied_hint(address: &Address) -> String {
    let ask = match address {
        Address::Tcp(at) => format!("ss -ltnp 'sport = :{}'", at.port()),
        Address::Udp(at) | Address::Quic(at) => format!("ss -lunp 'sport = :{}'", at.port()),
        _ => "ss -lxp".to_owned(),
    };
    format!("another process holds it: `{ask}`, as root, names it")
}

/// What to do if the calls of a program cannot be intercepted.
fn intercept_hint(refused: &Error) -> &'static str {
    match refused {
        Error::Call { operation: "pidfd_getfd" | "process_vm_readv", .. } => {
            "the supervisor must be allowed pidfd_getfd(2) and process_vm_readv(2) (Linux 5.6) over its own children: give the \
             container CAP_SYS_PTRACE or a profile that allows both, or start the program without --intercept"
        }
        Error::Call { errno: Errno::EBUSY, .. } => {
            "the kernel lets one supervisor ask about system calls, and something around this \
             program, such as a container runtime, does already: start it without --intercept"
        }
        Error::Call { errno: Errno::EACCES, .. } => {
            "its file gives it rights (set-user-ID or file capabilities), which it would lose: \
             run bindonce with CAP_SYS_ADMIN, or start it without --intercept"
        }
        _ => {
            "it needs Linux 5.9 or newer on x86-64 or aarch64, and a container's profile that \
             allows seccomp(2): start it without --intercept"
        }
    }
}

/// Whether users and capabilities allow this process to bind the address. If they do, something
/// else refused it.
fn may_bind(address: &Address) -> bool {
    let any_port = || process::binds_any_port(std::process::id().cast_signed()) == Some(true);
    match address.port() {
        Some(port) => port >= limits::unprivileged_ports() || any_port(),
        None => rustix::process::geteuid().is_root(),
    }
}

/// What to do if bind(2) was denied.
fn denied_hint(address: &Address, may_bind: bool) -> String {
    if may_bind {
        return "users and capabilities allow it, so a security module (AppArmor, SELinux) or a container's profile \
                is the likely cause: `journalctl -k -g 'apparmor|avc'`, as root, shows what was denied"
            .to_owned();
    }
    match address.port() {
        Some(port) => format!(
            "ports below net.ipv4.ip_unprivileged_port_start, such as {port}, need root or CAP_NET_BIND_SERVICE: start the \
             broker with one of them (stop this one first), or listen on a port from {} up",
            limits::unprivileged_ports()
        ),
        None => "the directory is not writable for this user".to_owned(),
    }
}

fn listen_hint(operation: &str, address: &Address, errno: Errno) -> Option<String> {
    let hint = match (errno, operation) {
        (Errno::EADDRINUSE, _) => occupied_hint(address),
        (Errno::EADDRNOTAVAIL, _) => not_here_hint(address),
        (Errno::EACCES, "bind") => denied_hint(address, may_bind(address)),
        // bind(2) of the same address was allowed before.
        (Errno::EACCES, "listen") => denied_hint(address, true),
        (Errno::ENOPROTOOPT | Errno::EPROTONOSUPPORT, "socket") => {
            "multipath TCP needs net.mptcp.enabled=1 in the network namespace, and a kernel with MPTCP support".to_owned()
        }
        (Errno::EPERM, "chown") => {
            "giving a file to another user needs root or CAP_CHOWN (`capabilities = [\"chown\"]` beside \
             `user` in the configuration)"
                .to_owned()
        }
        (Errno::EPERM | Errno::EACCES, "setsockopt(IP_TRANSPARENT)") => {
            "`transparent` needs root or CAP_NET_RAW; the fallback, IP_FREEBIND, is denied too".to_owned()
        }
        (Errno::EPERM | Errno::EACCES, "setsockopt(SO_BINDTODEVICE)") => {
            "`interface` needs root or CAP_NET_RAW".to_owned()
        }
        (Errno::ENODEV, _) => {
            "no such interface: `ip link` lists the existing ones".to_owned()
        }
        (Errno::ENOENT | Errno::ENOTDIR, _) => {
            "the directory does not exist: create it first".to_owned()
        }
        (Errno::ELOOP, _) => {
            "a symbolic link is followed only where nobody but root and this user can change it: give \
             the path without it"
                .to_owned()
        }
        (Errno::EAFNOSUPPORT, _) => {
            "this system has no IPv6: use an IPv4 address, or enable it".to_owned()
        }
        _ => return None,
    };
    Some(hint)
}

/// The error number of an [`std::io::Error`] from a system call.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_bind_names_the_right_that_is_missing_or_who_else_may_deny_it() {
        let address: Address = "127.0.0.1:80".parse().expect("an address");
        let hint = denied_hint(&address, false);
        assert!(hint.contains("such as 80, need root or CAP_NET_BIND_SERVICE"), "{hint}");
        let path: Address = "unix@/run/app.sock".parse().expect("an address");
        assert!(denied_hint(&path, false).contains("not writable"));
        for address in [address, path] {
            let hint = denied_hint(&address, true);
            assert!(hint.contains("AppArmor, SELinux"), "{hint}");
        }
    }
}
