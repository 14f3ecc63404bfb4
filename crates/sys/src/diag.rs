//! Lists the listening sockets of this system, as the kernel reports them (sock_diag(7)).
//!
//! This needs no privilege and covers the sockets of every process in the network namespace,
//! including those that bindonce does not hold. [`crate::holders`] finds the processes that hold
//! them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use bindonce_core::address::{Address, MAX_PATH};
use nix::errno::Errno;

use crate::error::Error;
use crate::netlink::{Message, Netlink};

/// An accept queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queue {
    /// Connections in the queue now.
    pub len: u32,
    /// The smaller of backlog and somaxconn. The kernel admits one connection more than this, since
    /// it compares with `>`.
    pub limit: u32,
}

/// A socket that accepts connections, or a UDP socket that receives from anyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The bound address. A UNIX path is the one that was given to bind(2); the file may have been
    /// renamed since.
    pub address: Address,
    /// The socket's inode, as in /proc/PID/fd.
    pub inode: u64,
    /// The socket's cookie (SO_COOKIE).
    pub cookie: u64,
    /// The accept queue. For UDP both numbers are bytes: unread bytes, and the receive buffer
    /// (SO_RCVBUF).
    pub queue: Queue,
    /// User id of the socket's owner; None if the kernel does not report it.
    pub uid: Option<u32>,
    /// The network device that the socket is bound to.
    pub interface: Option<String>,
    /// Whether an IPv6 socket is IPv6 only; None for other sockets.
    pub v6only: Option<bool>,
    /// Whether the listener also accepts multipath TCP (IPPROTO_MPTCP); its queue is that of a TCP
    /// socket.
    pub mptcp: bool,
    /// Packets dropped since the socket was created (sk_drops); for a listener mostly connection
    /// attempts that found the queue full. 0 for UNIX.
    pub drops: u32,
}

/// TCP_LISTEN of the kernel's tcp_states.h, also in UNIX diagnosis.
pub(crate) const LISTEN: u8 = 10;
const TCPDIAG: u16 = 20; // SOCK_DIAG_BY_FAMILY
const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The state of a UDP socket that is not connected (TCP_CLOSE).
const UNCONNECTED: u8 = 7;
/// The state of a TCP socket that is bound, but neither listens nor is connected
/// (TCP_BOUND_INACTIVE, a state that exists only in sock_diag, since Linux 6.8).
const BOUND: u8 = 13;
/// Attributes of linux/inet_diag.h: INET_DIAG_INFO, _SKMEMINFO, _SKV6ONLY, _ULP_INFO, and inside
/// the last INET_ULP_INFO_NAME.
const INFO: u16 = 2;
const SKMEMINFO: u16 = 7;
const SKV6ONLY: u16 = 11;
const ULP_INFO: u16 = 19;
const ULP_NAME: u16 = 1;
/// Offsets of SK_MEMINFO_RCVBUF and SK_MEMINFO_DROPS in SKMEMINFO.
const RCVBUF: usize = 4;
const DROPS: usize = 8 * 4;
/// UNIX_DIAG_* of linux/unix_diag.h, and the UDIAG_SHOW_* bits that request them.
const NAME: u16 = 0;
const VFS: u16 = 1;
const RQLEN: u16 = 4;
const UID: u16 = 7;
const SHOW_NAME: u32 = 1;
const SHOW_VFS: u32 = 2;
const SHOW_RQLEN: u32 = 0x10;
const SHOW_UID: u32 = 0x40;

/// All listening sockets in this thread's network namespace: TCP, UDP and UNIX. For another
/// namespace, call it within [`crate::listen::within_netns`].
///
/// # Errors
/// [`Error::Call`] with the netlink call that failed.
pub fn listening() -> Result<Vec<Socket>, Error> {
    let mut found = tcp()?;
    found.extend(udp()?);
    found.extend(unix()?);
    Ok(found)
}

/// The listening TCP sockets, IPv4 and IPv6.
///
/// # Errors
/// As [`listening`].
pub fn tcp() -> Result<Vec<Socket>, Error> {
    inet(TCP, LISTEN, Address::Tcp)
}

/// The TCP sockets that are bound to an address and neither listen nor are connected, IPv4 and
/// IPv6. Empty before Linux 6.8, which does not report them.
///
/// # Errors
/// As [`listening`].
pub fn tcp_bound() -> Result<Vec<Socket>, Error> {
    inet(TCP, BOUND, Address::Tcp)
}

/// The unconnected UDP sockets, which receive from anyone, IPv4 and IPv6.
///
/// # Errors
/// As [`listening`].
pub fn udp() -> Result<Vec<Socket>, Error> {
    inet(UDP, UNCONNECTED, Address::Udp)
}

/// The listening UNIX sockets that have a name.
///
/// # Errors
/// As [`listening`].
pub fn unix() -> Result<Vec<Socket>, Error> {
    let request = unix_request(0, SHOW_NAME | SHOW_RQLEN | SHOW_UID);
    let mut found = Vec::new();
    Netlink::diagnosis()?.dump(TCPDIAG, &request, |message| {
        found.extend(unix_socket(message));
    })?;
    Ok(found)
}

/// The UNIX datagram sockets that are bound to a name and not connected.
///
/// # Errors
/// As [`listening`].
pub fn unix_datagrams() -> Result<Vec<Socket>, Error> {
    let mut request = unix_request(0, SHOW_NAME);
    request[4..8].copy_from_slice(&(1_u32 << UNCONNECTED).to_ne_bytes());
    let mut found = Vec::new();
    Netlink::diagnosis()?.dump(TCPDIAG, &request, |message| {
        // A stream socket that is bound but does not listen is in the same state.
        let is_datagram = message.u8(1).map(i32::from) == Some(nix::libc::SOCK_DGRAM);
        found.extend(unix_socket(message).filter(|_| is_datagram));
    })?;
    Ok(found)
}

/// Calls `each` with the name and the inode of every connected UNIX stream socket that has a name.
/// A connection has the name of the listener that it was accepted from.
///
/// # Errors
/// As [`listening`].
pub fn unix_connections(mut each: impl FnMut(Address, u64)) -> Result<(), Error> {
    let mut request = unix_request(0, SHOW_NAME);
    // TCP_ESTABLISHED, also in UNIX diagnosis.
    request[4..8].copy_from_slice(&(1_u32 << 1).to_ne_bytes());
    Netlink::diagnosis()?.dump(TCPDIAG, &request, |message| {
        let is_stream = message.u8(1).map(i32::from) == Some(nix::libc::SOCK_STREAM);
        if let Some(socket) = unix_socket(message).filter(|_| is_stream) {
            each(socket.address, socket.inode);
        }
    })
}

/// The accept queue of the listening UNIX socket with this inode.
///
/// # Errors
/// As [`listening`]; `ENOENT` if this network namespace has no such socket.
pub fn unix_queue(inode: u64) -> Result<Queue, Error> {
    let missing = Error::Call { operation: "sock_diag", errno: Errno::ENOENT };
    let inode = u32::try_from(inode).map_err(|_| missing.clone())?;
    let mut queue = None;
    Netlink::diagnosis()?.ask(TCPDIAG, &unix_request(inode, SHOW_RQLEN), |message| {
        queue = unix_rqlen(message);
    })?;
    queue.ok_or(missing)
}

/// Whether the file at `path` belongs to the listening UNIX socket with this inode. The path that
/// the socket was bound to does not matter: programs bind to a temporary name and rename it.
///
/// # Errors
/// As [`listening`].
pub fn unix_is_at(inode: u64, path: &Path) -> Result<bool, Error> {
    let (Ok(inode), Ok(file)) = (u32::try_from(inode), path.symlink_metadata()) else {
        return Ok(false);
    };
    let mut found = false;
    Netlink::diagnosis()?.ask(TCPDIAG, &unix_request(inode, SHOW_VFS), |message| {
        found = unix_vfs(message) == Some(vfs_of(&file));
    })?;
    Ok(found)
}

/// The inode of the listening UNIX socket that the file at `path` belongs to, whatever path the
/// socket was bound to.
///
/// # Errors
/// As [`listening`].
pub fn unix_at(path: &Path) -> Result<Option<u64>, Error> {
    let Ok(file) = path.symlink_metadata() else { return Ok(None) };
    let mut found = None;
    Netlink::diagnosis()?.dump(TCPDIAG, &unix_request(0, SHOW_VFS), |message| {
        if unix_vfs(message) == Some(vfs_of(&file)) {
            found = message.u32(4).map(u64::from);
        }
    })?;
    Ok(found)
}

/// The file of a UNIX socket: struct unix_diag_vfs has the low half of the file's inode, and the
/// device in the kernel's encoding.
fn unix_vfs(message: Message<'_>) -> Option<(u32, u32)> {
    let vfs = message.attributes(16).find(|(kind, _)| *kind == VFS).map(|(_, value)| value)?;
    Some((vfs.u32(0)?, vfs.u32(4)?))
}

fn vfs_of(file: &std::fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt as _;
    let device = rustix::fs::major(file.dev()) << 20 | rustix::fs::minor(file.dev());
    (file.ino() as u32, device)
}

fn inet(protocol: u8, state: u8, kind: fn(SocketAddr) -> Address) -> Result<Vec<Socket>, Error> {
    let mut found = Vec::new();
    // The kernel reports the ULP attribute only along with INFO.
    dump_inet(&[AF_INET, AF_INET6], protocol, 1 << state, &[SKMEMINFO, INFO], |message| {
        found.extend(inet_socket(message, kind));
    })?;
    Ok(found)
}

/// Requests the sockets of these families in one of `states`, each with these extra attributes.
fn dump_inet(
    families: &[u8],
    protocol: u8,
    states: u32,
    attributes: &[u16],
    mut each: impl FnMut(Message<'_>),
) -> Result<(), Error> {
    let netlink = Netlink::diagnosis()?;
    for family in families.iter().copied() {
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states, and a socket id
        // that the kernel ignores in a dump.
        let mut request = [0; 56];
        let extension = attributes.iter().fold(0, |all, attribute| all | 1_u8 << (attribute - 1));
        request[..4].copy_from_slice(&[family, protocol, extension, 0]);
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        netlink.dump(TCPDIAG, &request, &mut each)?;
    }
    Ok(())
}

/// A TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The local address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The socket's inode; 0 until the connection is accepted.
    pub inode: u64,
    /// Milliseconds since this end last sent data, or since the connection was established if it
    /// never did.
    pub since_sent: u32,
    /// The same for received data.
    pub since_received: u32,
}

/// Calls `each` for every established TCP connection of this thread's network namespace, including
/// those that the peer has closed.
///
/// # Errors
/// As [`listening`].
pub fn connections(mut each: impl FnMut(Connection)) -> Result<(), Error> {
    // TCP_ESTABLISHED and TCP_CLOSE_WAIT.
    dump_connections(&[AF_INET, AF_INET6], 1 << 1 | 1 << 8, &[INFO], &mut each)
}

/// As [`connections`], in every state from SYN_SENT to TIME_WAIT, and without times. IPv6 is
/// included only on request: for each family the kernel walks through all connections.
///
/// # Errors
/// As [`listening`].
pub fn all_connections(v6: bool, mut each: impl FnMut(Connection)) -> Result<(), Error> {
    let families: &[u8] = if v6 { &[AF_INET, AF_INET6] } else { &[AF_INET] };
    dump_connections(families, 0xffe & !(1 << LISTEN | 1 << UNCONNECTED), &[], &mut each)
}

fn dump_connections(
    families: &[u8],
    states: u32,
    attributes: &[u16],
    each: &mut dyn FnMut(Connection),
) -> Result<(), Error> {
    dump_inet(families, TCP, states, attributes, |message| {
        if let Some(connection) = connection(message) {
            each(connection);
        }
    })
}

fn connection(message: Message<'_>) -> Option<Connection> {
    let ends = |port, address| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(message.bytes(port)?);
        let ip: IpAddr = match message.u8(0)? {
            AF_INET => Ipv4Addr::from(message.bytes::<4>(address)?).into(),
            _ => Ipv6Addr::from(message.bytes::<16>(address)?).into(),
        };
        Some(SocketAddr::new(ip.to_canonical(), port))
    };
    // struct tcp_info: tcpi_last_data_sent and tcpi_last_data_recv.
    let info = message.attributes(72).find(|(kind, _)| *kind == INFO).map(|(_, info)| info);
    let since = |at| info.and_then(|info| info.u32(at)).unwrap_or(0);
    Some(Connection {
        local: ends(4, 8)?,
        remote: ends(6, 24)?,
        inode: u64::from(message.u32(68)?),
        since_sent: since(44),
        since_received: since(52),
    })
}

/// Reads struct inet_diag_msg and its attributes.
fn inet_socket(message: Message<'_>, kind: fn(SocketAddr) -> Address) -> Option<Socket> {
    let family = message.u8(0)?;
    let port = u16::from_be_bytes(message.bytes(4)?);
    let ip: IpAddr = match family {
        AF_INET => Ipv4Addr::from(message.bytes::<4>(8)?).into(),
        AF_INET6 => Ipv6Addr::from(message.bytes::<16>(8)?).into(),
        _ => return None,
    };
    let attribute = |wanted| message.attributes(72).find(|(kind, _)| *kind == wanted);
    let v6only = attribute(SKV6ONLY);
    let memory = |at| attribute(SKMEMINFO).and_then(|(_, value)| value.u32(at)).unwrap_or(0);
    let upper = attribute(ULP_INFO).map(|(_, value)| value);
    let mut upper = upper.into_iter().flat_map(|value| value.attributes(0));
    let address = kind(SocketAddr::new(ip, port));
    let limit = if address.listens() { message.u32(60)? } else { memory(RCVBUF) };
    Some(Socket {
        address,
        interface: interface(message.u32(40)?),
        cookie: u64::from(message.u32(44)?) | u64::from(message.u32(48)?) << 32,
        queue: Queue { len: message.u32(56)?, limit },
        uid: Some(message.u32(64)?),
        inode: u64::from(message.u32(68)?),
        v6only: v6only.and_then(|(_, value)| value.u8(0)).map(|value| value != 0),
        mptcp: upper.any(|(kind, name)| kind == ULP_NAME && name.0.starts_with(b"mptcp")),
        drops: memory(DROPS),
    })
}

fn interface(index: u32) -> Option<String> {
    if index == 0 {
        return None;
    }
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
fn unix_request(inode: u32, show: u32) -> [u8; 24] {
    let mut request = [0; 24];
    request[0] = AF_UNIX;
    request[4..8].copy_from_slice(&(1_u32 << LISTEN).to_ne_bytes());
    request[8..12].copy_from_slice(&inode.to_ne_bytes());
    request[12..16].copy_from_slice(&show.to_ne_bytes());
    // INET_DIAG_NOCOOKIE: match any socket with this inode.
    request[16..24].fill(0xff);
    request
}

/// Reads struct unix_diag_msg and its attributes; None for a socket without a name.
fn unix_socket(message: Message<'_>) -> Option<Socket> {
    let attribute =
        |wanted| message.attributes(16).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = attribute(NAME)?.0;
    let text = |bytes: &[u8]| {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    };
    let address = match name {
        [] => return None,
        [0, rest @ ..] if rest.len() < MAX_PATH => {
            Address::Unpadded(String::from_utf8_lossy(rest).into_owned())
        }
        [0, rest @ ..] => Address::Abstract(text(rest)),
        path => Address::Unix(text(path)),
    };
    Some(Socket {
        address,
        inode: u64::from(message.u32(4)?),
        cookie: u64::from(message.u32(8)?) | u64::from(message.u32(12)?) << 32,
        queue: unix_rqlen(message).unwrap_or_default(),
        uid: attribute(UID).and_then(|value| value.u32(0)),
        interface: None,
        v6only: None,
        mptcp: false,
        drops: 0,
    })
}

fn unix_rqlen(message: Message<'_>) -> Option<Queue> {
    let (_, value) = message.attributes(16).find(|(kind, _)| *kind == RQLEN)?;
    Some(Queue { len: value.u32(0)?, limit: value.u32(4)? })
}
