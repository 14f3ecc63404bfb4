//! Inspects a call: the program's own socket, and the address in its memory.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use bindonce_core::intercept::{Kind, Ports, Socket, Target};
use bindonce_core::listener::Options;
use nix::errno::Errno;
use nix::libc;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::{AddressFamily, SocketType, sockopt as get};
use socket2::{Protocol, SockRef};

use crate::filter::Number;
use crate::options::number;
use crate::process::{self, Pidfd};
use crate::{identity, limits};

/// What was found out about a call. A part that is missing here is missing for the kernel too,
/// which returns the right error.
#[derive(Debug)]
pub struct Look {
    /// The socket that the call names, if any.
    pub socket: Option<Theirs>,
    /// The address of a bind(2), if readable; the path of an unlink(2), if a socket has it.
    pub target: Option<Target>,
}

/// A socket of the program.
#[derive(Debug)]
pub struct Theirs {
    /// Our copy of the socket.
    pub fd: OwnedFd,
    /// The descriptor number in the program.
    pub number: RawFd,
    /// The socket's inode.
    pub inode: u64,
    /// The facts that a decision depends on.
    pub socket: Socket,
    /// The descriptor table with that number.
    pub(super) table: Pidfd,
}

/// Inspects the call of a thread.
pub(super) fn at(thread: i32, number: Number, arguments: &[u64; 6]) -> io::Result<Look> {
    let none = Look { socket: None, target: None };
    let [fd, address, length] = match number {
        Number::Bind | Number::Listen => [arguments[0], arguments[1], arguments[2]],
        Number::BindInMemory | Number::ListenInMemory => {
            let mut words = [0; 12];
            if !read(thread, arguments[1], &mut words)? {
                return Ok(none);
            }
            let word = |at: usize| {
                let bytes = words.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                u64::from(u32::from_ne_bytes(bytes.unwrap_or_default()))
            };
            [word(0), word(4), word(8)]
        }
        Number::Unlink => return unlinked(thread, libc::AT_FDCWD, arguments[0]),
        Number::UnlinkAt if arguments[2] != 0 => return Ok(none),
        Number::UnlinkAt => return unlinked(thread, arguments[0] as i32, arguments[1]),
        Number::Kill => return Ok(none),
    };
    let status = Status::of(thread)?;
    // An int: the kernel ignores the upper half of the register.
    let Ok(number_of) = i32::try_from(fd & 0xFFFF_FFFF) else { return Ok(none) };
    let table = table_of(thread, status.process)?;
    let fd = match table.take(number_of) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(none),
        taken => taken?,
    };
    let Ok(kind) = get::socket_type(fd.as_fd()) else { return Ok(none) };
    let target = match number {
        Number::Bind | Number::BindInMemory => target(thread, address, length)?,
        _ => None,
    };
    let is_path = matches!(target, Some(Target::Path(_)));
    let mut socket = socket(fd.as_fd(), kind)?;
    socket.privileged = status.privileged;
    if is_path {
        socket.elsewhere = sees_other_files(thread);
        socket.options.mode = Some(0o777 & !status.umask);
        socket.options.user = Some(status.user.to_string());
        socket.options.group = Some(status.group.to_string());
    }
    let inode = rustix::fs::fstat(&fd)?.st_ino;
    let theirs = Theirs { fd, number: number_of, inode, socket, table };
    Ok(Look { socket: Some(theirs), target })
}

/// The socket file that an unlink call would remove.
fn unlinked(thread: i32, directory: RawFd, at: u64) -> io::Result<Look> {
    let directory = match directory {
        libc::AT_FDCWD => "cwd".to_owned(),
        number => format!("fd/{number}"),
    };
    let path = text(thread, at)?.map(PathBuf::from);
    let path = match path {
        Some(path) if path.is_relative() => {
            let directory = fs::read_link(format!("/proc/{thread}/{directory}")).ok();
            directory.map(|directory| directory.join(path))
        }
        path => path,
    };
    let path = path.map(|path| plain(&path)).and_then(|path| path.to_str().map(str::to_owned));
    let path = path.filter(|path| !sees_other_files(thread) && identity::file(path).is_some());
    Ok(Look { socket: None, target: path.map(Target::Path) })
}

/// Reads a path from a thread's memory, up to PATH_MAX, once; None if it cannot be read.
fn text(thread: i32, at: u64) -> io::Result<Option<OsString>> {
    const PAGE: u64 = 4096;
    let (mut text, mut at) = (Vec::new(), at);
    while text.len() < libc::PATH_MAX.cast_unsigned() as usize {
        // The next page may be unmapped.
        let mut part = vec![0; usize::try_from(PAGE - at % PAGE).unwrap_or(1)];
        if !read(thread, at, &mut part)? {
            return Ok(None);
        }
        if let Some(end) = part.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(part.get(..end).unwrap_or_default());
            return Ok(Some(OsString::from_vec(text)));
        }
        at = at.saturating_add(part.len() as u64);
        text.extend(part);
    }
    Ok(None)
}

/// The descriptor table of a thread, which may have its own (unshare(2) with CLONE_FILES).
///
/// # Errors
/// Errors from pidfd_open(2): `EINVAL` before Linux 6.9, which gives access only to the table of
/// the process.
fn table_of(thread: i32, process: i32) -> io::Result<Pidfd> {
    if thread == process || process::share_descriptors(process, process, thread) {
        Pidfd::open(process)
    } else {
        Pidfd::of_thread(thread)
    }
}

/// The facts about a socket that a decision depends on, without those about the process.
fn socket(fd: BorrowedFd<'_>, kind: SocketType) -> io::Result<Socket> {
    let family = get::socket_domain(fd)?;
    let reference = SockRef::from(&fd);
    let protocol = reference.protocol()?;
    let is_ip = matches!(family, AddressFamily::INET | AddressFamily::INET6);
    let kind = match (kind, protocol) {
        (SocketType::STREAM, Some(Protocol::TCP | Protocol::MPTCP)) if is_ip => Kind::Tcp,
        (SocketType::DGRAM, Some(Protocol::UDP)) if is_ip => Kind::Udp,
        (SocketType::STREAM, _) if family == AddressFamily::UNIX => Kind::UnixStream,
        _ if family == AddressFamily::UNIX => Kind::UnixOther,
        _ => Kind::Other,
    };
    let ipv6 = family == AddressFamily::INET6;
    let name = reference.local_addr()?;
    let bound = match name.as_socket() {
        Some(at) => at.port() != 0,
        None => !name.is_unnamed(),
    };
    let mut options = if is_ip { identity::ip_options(fd)? } else { Options::default() };
    options.blocking = !fcntl_getfl(fd)?.contains(OFlags::NONBLOCK);
    options.mptcp = protocol == Some(Protocol::MPTCP);
    let late_port = is_ip && number(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT) == Some(1);
    let elsewhere = identity::network_of(fd) != identity::network();
    Ok(Socket { kind, ipv6, bound, elsewhere, late_port, privileged: false, options })
}

/// The address of a bind(2); None if the kernel refuses it too.
fn target(thread: i32, at: u64, length: u64) -> io::Result<Option<Target>> {
    let length = usize::try_from(length & 0xFFFF_FFFF).unwrap_or(usize::MAX);
    let mut bytes = [0; size_of::<libc::sockaddr_storage>()];
    let Some(place) = bytes.get_mut(..length) else { return Ok(None) };
    if length < size_of::<libc::sa_family_t>() || !read(thread, at, place)? {
        return Ok(None);
    }
    let mut target = parse(place);
    if let Target::Path(path) = &mut target {
        let directory = fs::read_link(format!("/proc/{thread}/cwd"))?;
        match plain(&directory.join(&*path)).to_str() {
            Some(whole) => *path = whole.to_owned(),
            None => target = Target::Other,
        }
    }
    Ok(Some(target))
}

/// The path as a person would write it: without `.` and doubled slashes, and with `..` resolved
/// through the file system.
fn plain(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().collect();
    let goes_up = plain.components().any(|part| part == Component::ParentDir);
    let directory = plain.parent().filter(|_| goes_up).map(fs::canonicalize);
    match (directory, plain.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        _ => plain,
    }
}

/// Parses a sockaddr(3type) of the length that its caller stated.
fn parse(bytes: &[u8]) -> Target {
    let part = |from: usize, to: usize| bytes.get(from..to);
    let family = part(0, 2).map(|family| i32::from(u16::from_ne_bytes([family[0], family[1]])));
    let port = part(2, 4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let ipv4 = || Some((Ipv4Addr::from(<[u8; 4]>::try_from(part(4, 8)?).ok()?), port?));
    let found = match family {
        Some(libc::AF_INET) if bytes.len() >= 16 => ipv4().map(|at| Target::Ip(at.into())),
        // For old programs (inet_bind in the kernel): with the wildcard only.
        Some(libc::AF_UNSPEC) if bytes.len() >= 16 => {
            ipv4().filter(|(ip, _)| ip.is_unspecified()).map(|at| Target::Ip(at.into()))
        }
        Some(libc::AF_INET6) if bytes.len() >= 24 => (|| {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(part(8, 24)?).ok()?);
            let scope = part(24, 28).and_then(|scope| scope.try_into().ok());
            // The scope has a meaning only for these addresses (inet6_bind in the kernel).
            let has_scope = ip.is_unicast_link_local() || ip.is_multicast();
            let scope = u32::from_ne_bytes(scope.filter(|_| has_scope).unwrap_or_default());
            Some(Target::Ip(SocketAddr::V6(SocketAddrV6::new(ip, port?, 0, scope))))
        })(),
        // The kernel accepts no longer address (unix_validate_addr).
        Some(libc::AF_UNIX) if bytes.len() <= size_of::<libc::sockaddr_un>() => {
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok();
            match bytes.get(2..) {
                Some([0, name @ ..]) => text(name).map(Target::Abstract),
                Some([]) | None => None,
                Some(path) => {
                    let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
                    text(&path[..end]).map(Target::Path)
                }
            }
        }
        _ => None,
    };
    found.unwrap_or(Target::Other)
}

/// Reads memory of a thread once. False if it is not mapped.
pub(super) fn read(thread: i32, at: u64, into: &mut [u8]) -> io::Result<bool> {
    let Ok(base) = usize::try_from(at) else { return Ok(false) };
    let ours = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let theirs = libc::iovec { iov_base: base as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`, which nothing else refers to.
    // `theirs` holds an address of the other process: the kernel checks it, and reads there.
    let done =
        unsafe { libc::process_vm_readv(thread, &raw const ours, 1, &raw const theirs, 1, 0) };
    match Errno::result(done) {
        Ok(count) => Ok(usize::try_from(count) == Ok(into.len())),
        Err(Errno::EFAULT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The facts about a thread from /proc.
struct Status {
    process: i32,
    umask: u32,
    user: u32,
    group: u32,
    privileged: bool,
}

impl Status {
    fn of(thread: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{thread}/status"))?;
        let line = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name));
            found.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        // Real, effective, saved, and file system id.
        let of_files = |name| line(name).get(3).and_then(|id| id.parse().ok());
        let first = |name| line(name).first().copied().unwrap_or_default();
        let odd = || io::Error::from(io::ErrorKind::InvalidData);
        Ok(Self {
            process: first("Tgid:").parse().map_err(|_| odd())?,
            umask: u32::from_str_radix(first("Umask:"), 8).map_err(|_| odd())?,
            user: of_files("Uid:").ok_or_else(odd)?,
            group: of_files("Gid:").ok_or_else(odd)?,
            // Capabilities count in the user namespace of the thread, which may have made its own.
            privileged: process::status_binds_any_port(&text).ok_or_else(odd)?
                && is_same(thread, "ns/user"),
        })
    }
}

/// Whether a path means another file to a thread than to this process.
fn sees_other_files(thread: i32) -> bool {
    !(is_same(thread, "ns/mnt") && is_same(thread, "root"))
}

/// Whether a link in its directory of /proc leads a thread to the same as this process.
fn is_same(thread: i32, link: &str) -> bool {
    let theirs = fs::read_link(format!("/proc/{thread}/{link}")).ok();
    theirs.is_some() && theirs == fs::read_link(format!("/proc/self/{link}")).ok()
}

/// The port ranges of this host; the kernel's defaults if they cannot be read.
pub fn ports() -> Ports {
    let ephemeral = limits::chosen_ports().unwrap_or(32768..=60999);
    Ports { unprivileged: limits::unprivileged_ports(), ephemeral }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let ipv4 = [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&ipv4), Target::Ip("127.0.0.1:80".parse().expect("address")));
        assert_eq!(parse(&ipv4[..15]), Target::Other);
        let mut old = [0; 16];
        old[3] = 80;
        assert_eq!(parse(&old), Target::Ip("0.0.0.0:80".parse().expect("address")));
        old[4] = 10;
        assert_eq!(parse(&old), Target::Other);
        let mut ipv6 = [0; 28];
        (ipv6[0], ipv6[3], ipv6[23]) = (10, 80, 1);
        assert_eq!(parse(&ipv6), Target::Ip("[::1]:80".parse().expect("address")));
        assert_eq!(parse(&ipv6[..24]), Target::Ip("[::1]:80".parse().expect("address")));
        ipv6[24] = 2;
        assert_eq!(parse(&ipv6), Target::Ip("[::1]:80".parse().expect("address")));
        (ipv6[8], ipv6[9]) = (0xfe, 0x80);
        assert_eq!(parse(&ipv6), Target::Ip("[fe80::1%2]:80".parse().expect("address")));
        assert_eq!(parse(b"\x01\0/run/a\0b"), Target::Path("/run/a".to_owned()));
        assert_eq!(parse(b"\x01\0\0a"), Target::Abstract("a".to_owned()));
        assert_eq!(parse(b"\x01\0"), Target::Other);
        let mut long = [0; 111];
        (long[0], long[2]) = (1, b'/');
        assert_eq!(parse(&long[..110]), Target::Path("/".to_owned()));
        assert_eq!(parse(&long), Target::Other);
        assert_eq!(parse(b"\x01\0\0\xff"), Target::Other);
        assert_eq!(parse(b"\x10\0"), Target::Other);
        assert_eq!(parse(b""), Target::Other);
    }

    #[test]
    fn paths_are_written_as_a_person_would() {
        for (path, expected) in [
            ("/run//a/./b", "/run/a/b"),
            ("/proc/self/../b", "/proc/b"),
            ("/none/../b", "/none/../b"),
        ] {
            assert_eq!(plain(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn memory_that_is_not_there_is_no_error() {
        let me = std::process::id().cast_signed();
        let there = [7_u8; 4];
        let mut read_back = [0; 4];
        let at = there.as_ptr().addr() as u64;
        assert!(read(me, at, &mut read_back).expect("read"));
        assert_eq!(read_back, there);
        assert!(!read(me, 8, &mut read_back).expect("read"));
        assert_eq!(text(me, 8).expect("read"), None);
        let path = c"/run/a";
        let path_at = path.as_ptr().addr() as u64;
        assert_eq!(text(me, path_at).expect("read").expect("a path"), "/run/a");
    }

    #[test]
    fn a_socket_is_seen_as_it_is() {
        let fd = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        let fd = fd.expect("socket");
        fd.set_only_v6(true).expect("v6only");
        let seen = socket(fd.as_fd(), SocketType::STREAM).expect("seen");
        assert_eq!((seen.kind, seen.ipv6, seen.bound), (Kind::Tcp, true, false));
        assert!(seen.options.v6only && seen.options.blocking && !seen.elsewhere);
        fd.bind(&"[::1]:0".parse::<SocketAddr>().expect("address").into()).expect("bind");
        assert!(socket(fd.as_fd(), SocketType::STREAM).expect("seen").bound);
        let status = Status::of(std::process::id().cast_signed()).expect("status");
        assert_eq!(status.process, std::process::id().cast_signed());
        assert!(*ports().ephemeral.start() > 0);
    }
}
