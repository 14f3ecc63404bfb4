//! A generation without a broker: it uses the sockets that its starter passed, and binds others
//! itself.

use std::env;
use std::fs::{Permissions, set_permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options, Wanted};
use bindonce_wire::params::Target;
use bindonce_wire::result::Bound;
use rustix::fs::{FileType, Mode, OFlags, fchmod, fcntl_getfl, fcntl_setfl, fstat, open};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    getsockname, listen, socket_with,
};

use crate::claim::Claim;
use crate::error::Error;
use crate::lease::Lease;
use crate::socket;

/// The sockets of a process without a broker.
#[derive(Debug)]
pub(crate) struct Alone {
    /// Passed sockets that are not claimed yet.
    passed: Vec<(String, OwnedFd)>,
    /// Claimed sockets: the same claim gives the same socket again.
    claimed: Vec<(Listener, OwnedFd)>,
}

impl Alone {
    fn new(passed: Vec<(String, OwnedFd)>) -> Self {
        Self { passed, claimed: Vec::new() }
    }

    /// The sockets that the starter passed; None if there are none.
    pub(crate) fn passed() -> Result<Option<Self>, Error> {
        let passed = bindonce_fd::passed()
            .map_err(|source| Error::Bind { listen: "LISTEN_FDS".to_owned(), source })?;
        Ok(Some(Self::new(passed)).filter(|alone| !alone.passed.is_empty()))
    }

    /// After a failed attempt to join: continues without a broker if none answers and no variable
    /// names one.
    pub(crate) fn instead(error: Error) -> Result<Self, Error> {
        match error.is_absence() && socket::named().is_none() {
            true => Ok(Self::new(Vec::new())),
            false => Err(error),
        }
    }

    /// Returns a lease for each listener of the claims. If one fails, those before it stay bound
    /// for the next try.
    pub(crate) fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        let mut leases = Vec::new();
        for Claim(claim) in claims {
            let text = match &claim.target {
                Target::Listen { listen } => listen.clone(),
                Target::Name { name } => name.clone(),
                Target::Tcp { address, port, .. } => format!("{address}:{port}"),
            };
            let failed = |source| Error::Bind { listen: text.clone(), source };
            let wanted = text.parse::<Wanted>();
            match wanted.map_err(|why| failed(io::Error::new(ErrorKind::InvalidInput, why)))? {
                Wanted::Listen(spec) => {
                    for listener in spec.expand() {
                        leases.push(self.one(&listener).map_err(failed)?);
                    }
                }
                Wanted::Named(name) => {
                    let address = self.named(name.as_str()).and_then(|fd| address_of(fd).ok());
                    let absent =
                        || io::Error::new(ErrorKind::NotFound, "no socket of this name was passed");
                    let address = address.ok_or_else(|| failed(absent()))?;
                    let listener =
                        Listener { name: Some(name), address, options: Options::default() };
                    leases.push(self.one(&listener).map_err(failed)?);
                }
            }
        }
        Ok(leases)
    }

    /// Closes every socket: this process accepts no more.
    pub(crate) fn stop(&mut self) {
        self.claimed.clear();
        self.passed.clear();
    }

    /// The claimed or passed socket of this name.
    fn named(&self, name: &str) -> Option<&OwnedFd> {
        let called =
            |listener: &Listener| listener.name.as_ref().is_some_and(|it| it.as_str() == name);
        let claimed = self.claimed.iter().find(|(listener, _)| called(listener)).map(|(_, fd)| fd);
        claimed.or_else(|| self.passed.iter().find(|(it, _)| it == name).map(|(_, fd)| fd))
    }

    fn one(&mut self, listener: &Listener) -> io::Result<Lease> {
        let mut created = false;
        let known = self.claimed.iter().position(|(held, _)| match &listener.name {
            Some(_) => held.name == listener.name,
            None => held.address == listener.address,
        });
        let at = match known {
            Some(at) => at,
            None => {
                let fd = match self.passed_for(listener) {
                    Some(at) => self.passed.swap_remove(at).1,
                    None => {
                        created = true;
                        bound(listener)?
                    }
                };
                self.claimed.push((listener.clone(), fd));
                self.claimed.len() - 1
            }
        };
        let fd = self.claimed[at].1.try_clone()?;
        let bound = Bound {
            name: listener.label(),
            address: listener.address.to_string(),
            bound: address_of(&fd)?.to_string(),
            created,
            inode: fstat(&fd)?.st_ino,
        };
        Ok(Lease::new(bound, fd))
    }

    /// The passed socket for a listener: one with its name and address, else one with its name,
    /// else one at its address. The wildcard addresses of both families match each other.
    fn passed_for(&self, listener: &Listener) -> Option<usize> {
        let name = listener.name.as_ref().map_or("", |name| name.as_str());
        let there = |fd: &OwnedFd| {
            let Ok(found) = address_of(fd) else { return false };
            let wanted = listener.address.as_seen();
            let wildcard = |at: SocketAddr| at.ip().is_unspecified();
            found == wanted
                || found.listens() == wanted.listens()
                    && found.ip().zip(wanted.ip()).is_some_and(|(found, wanted)| {
                        found.port() == wanted.port() && wildcard(found) && wildcard(wanted)
                    })
        };
        let find = |fits: &dyn Fn(&str, &OwnedFd) -> bool| {
            self.passed.iter().position(|(called, fd)| fits(called, fd))
        };
        find(&|called, fd| called == name && there(fd))
            .or_else(|| find(&|called, _| called == name))
            .or_else(|| find(&|_, fd| there(fd)))
    }
}

/// Sends READY=1 to `NOTIFY_SOCKET` (sd_notify(3)), if that is set. A failure is no reason not to
/// serve.
pub(crate) fn tell_ready() {
    let Some(place) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match place.as_bytes() {
        [b'@', name @ ..] => UnixAddress::from_abstract_name(name),
        _ => UnixAddress::from_pathname(&place),
    };
    let tell = |address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address);
    let _ = address.and_then(tell);
}

/// The number that a supervisor gave this process.
pub(crate) fn number() -> Option<u64> {
    env::var("BINDONCE_GENERATION").ok().and_then(|number| number.parse().ok())
}

/// The address and the kind of a socket.
fn address_of(fd: &OwnedFd) -> io::Result<Address> {
    let name = getsockname(fd)?;
    if let Ok(at) = SocketAddr::try_from(name.clone()) {
        return Ok(match socket_type(fd)? {
            SocketType::DGRAM => Address::Udp(at),
            _ => Address::Tcp(at),
        });
    }
    let unix = SocketAddrUnix::try_from(name)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (unix.path_bytes(), unix.abstract_name()) {
        (Some(path), _) => Ok(Address::Unix(text(path))),
        (_, Some(name)) => Ok(Address::Unpadded(text(name))),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Binds a listener, and listens.
fn bound(listener: &Listener) -> io::Result<OwnedFd> {
    let Listener { address, options, .. } = listener;
    let Options { backlog, v6only, blocking, mode, .. } = *options;
    let here = Options { backlog, v6only, blocking, mode, ..Options::default() };
    if *options != here {
        let why = "without the broker only backlog, v6only, blocking and mode can be set";
        return Err(io::Error::new(ErrorKind::Unsupported, why));
    }
    let at: SocketAddrAny = match address {
        Address::Tcp(at) | Address::Udp(at) | Address::Quic(at) => (*at).into(),
        Address::Unix(path) => SocketAddrUnix::new(path.as_str())?.into(),
        Address::Unpadded(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?.into(),
        Address::Abstract(name) => {
            let mut padded = [0; 107];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            SocketAddrUnix::new_abstract_name(&padded)?.into()
        }
    };
    let kind = if address.listens() { SocketType::STREAM } else { SocketType::DGRAM };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(at.address_family(), kind, flags, None)?;
    if at.address_family() == AddressFamily::INET6 {
        set_ipv6_v6only(&fd, v6only)?;
    }
    if address.ip().is_some() && (address.listens() || !address.is_exclusive()) {
        set_socket_reuseaddr(&fd, true)?;
    }
    if let (Address::Unix(_), Some(mode)) = (address, mode) {
        // The file gets at most this mode, less what the umask takes (unix_bind in the kernel).
        fchmod(&fd, Mode::from_raw_mode(mode))?;
    }
    match bind(&fd, &at) {
        // A path outlives its socket: a path on which no process listens may be taken.
        Err(Errno::ADDRINUSE) if matches!(address, Address::Unix(_)) => {
            let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            if connect(&probe, &at) != Err(Errno::CONNREFUSED) {
                return Err(Errno::ADDRINUSE.into());
            }
            let Address::Unix(path) = address else { return Err(Errno::ADDRINUSE.into()) };
            std::fs::remove_file(path)?;
            bind(&fd, &at)?;
        }
        bound => bound?,
    }
    if let (Address::Unix(path), Some(mode)) = (address, mode) {
        set_mode(path, mode)?;
    }
    if address.listens() {
        // The kernel caps the backlog at somaxconn.
        listen(&fd, backlog.and_then(|most| i32::try_from(most).ok()).unwrap_or(i32::MAX))?;
    }
    if blocking {
        fcntl_setfl(fd.as_fd(), fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
    }
    Ok(fd)
}

/// Sets the full mode of a socket's file, through a descriptor: the target of a link, or another
/// file in its place, is not changed.
fn set_mode(path: &str, mode: u32) -> io::Result<()> {
    let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&file)?.st_mode;
    if FileType::from_raw_mode(found) != FileType::Socket {
        return Err(Errno::ADDRINUSE.into());
    }
    if Mode::from_raw_mode(found) != Mode::from_raw_mode(mode) {
        let file = format!("/proc/self/fd/{}", file.as_raw_fd());
        set_permissions(file, Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn passed(name: &str, address: &str) -> (String, OwnedFd) {
        (name.to_owned(), TcpListener::bind(address).expect("bind").into())
    }

    fn one(alone: &mut Alone, claim: &str) -> Result<Lease, Error> {
        alone.claim(&[claim.into()]).map(|mut leases| leases.remove(0))
    }

    #[test]
    fn what_was_passed_is_found_by_its_name_else_by_its_address() {
        let given = vec![passed("web", "127.0.0.1:0"), passed("edge.socket", "[::]:0")];
        let ports: Vec<_> = given
            .iter()
            .map(|(_, fd)| address_of(fd).expect("bound").port().expect("one"))
            .collect();
        let mut alone = Alone::new(given);
        let any = one(&mut alone, &format!("any=0.0.0.0:{}", ports[1])).expect("at its address");
        assert_eq!((any.bound(), any.created()), (format!("[::]:{}", ports[1]).as_str(), false));
        let web = one(&mut alone, "web=127.0.0.1:1").expect("of its name");
        assert_eq!(web.bound(), format!("127.0.0.1:{}", ports[0]));
        // The same claim again, also by its bare name.
        assert_eq!(one(&mut alone, "web=127.0.0.1:1").expect("again").inode(), web.inode());
        assert_eq!(one(&mut alone, "web").expect("again").inode(), web.inode());
        let error = one(&mut alone, "other").expect_err("nobody passed it");
        assert!(error.hint().is_some_and(|hint| hint.contains("--listen")), "{error}");
        alone.stop();
        drop((any, web));
        TcpListener::bind(("127.0.0.1", ports[0])).expect("no copy is left");
    }

    #[test]
    fn a_path_has_its_mode_and_nothing_else_is_changed() {
        let directory = env::temp_dir().join(format!("bindonce-mode-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let mode = |path: &std::path::Path| {
            fs::metadata(path).expect("stat").permissions().mode() & 0o7777
        };
        // One mode with less, and one with more, than a usual umask leaves.
        for wanted in [0o600, 0o777] {
            let path = directory.join(format!("{wanted:o}"));
            let claim = format!("unix@{},mode={wanted:04o}", path.display());
            one(&mut Alone::new(Vec::new()), &claim).expect("bound");
            assert_eq!(mode(&path), wanted);
        }
        let (victim, link) = (directory.join("victim"), directory.join("link"));
        fs::write(&victim, "").expect("written");
        fs::set_permissions(&victim, Permissions::from_mode(0o640)).expect("chmod");
        std::os::unix::fs::symlink(&victim, &link).expect("a link");
        for path in [&victim, &link] {
            set_mode(path.to_str().expect("text"), 0o666).expect_err("no socket");
        }
        assert_eq!(mode(&victim), 0o640);
        fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn what_was_not_passed_is_bound() {
        let mut alone = Alone::new(Vec::new());
        let web = one(&mut alone, "web=127.0.0.1:0,backlog=16").expect("bound");
        assert!(web.created());
        assert_eq!(one(&mut alone, "web=127.0.0.1:0").expect("again").inode(), web.inode());
        let at: SocketAddr = web.bound().parse().expect("an address");
        let acceptor = web.into_tcp_acceptor().expect("it listens");
        let client = TcpStream::connect(at).expect("connect");
        let (_, peer) = acceptor.accept(None).expect("accepted");
        assert_eq!(peer, client.local_addr().expect("bound"));
        let error = one(&mut Alone::new(Vec::new()), &at.to_string()).expect_err("it is taken");
        assert!(error.hint().is_some_and(|hint| hint.contains("another process")), "{error}");
        one(&mut alone, "udp4@127.0.0.1:0").expect("bound").into_udp_socket().expect("UDP");
        let path = env::temp_dir().join(format!("bindonce-alone-{}", std::process::id()));
        let claim = format!("unix@{},mode=0600", path.display());
        drop(one(&mut alone, &claim).expect("bound").into_unix_acceptor().expect("it listens"));
        let taken = one(&mut Alone::new(Vec::new()), &claim);
        assert!(taken.is_err(), "somebody listens there");
        alone.stop();
        one(&mut alone, &claim).expect("what the first left behind may go");
        std::fs::remove_file(&path).expect("it is there");
        for refused in ["web=127.0.0.1:0,transparent", "nonsense:", "127.0.0.1:99999"] {
            assert!(one(&mut alone, refused).is_err(), "{refused}");
        }
    }
}
