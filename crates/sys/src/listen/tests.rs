//! Real sockets on loopback and in temporary directories.

use std::fs::{Permissions, hard_link};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::io::FdFlags;
use socket2::SockRef;

use super::*;
use crate::testing::{Directory, Exchanging, while_exchanged};
use crate::{diag, holders, queue};

fn listener(text: &str) -> Listener {
    text.parse().expect(text)
}

fn opened(text: &str) -> Opened {
    open(&listener(text)).expect(text)
}

fn tcp_address(opened: &Opened) -> SocketAddr {
    match opened.bound {
        Address::Tcp(at) | Address::Udp(at) | Address::Quic(at) => at,
        ref other => unreachable!("{other} is not an IP address"),
    }
}

fn at(path: &Path) -> String {
    format!("unix@{}", path.display())
}

#[test]
fn tcp_is_exclusive_listening_nonblocking_and_closed_on_exec() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let held = opened(address);
        let at = tcp_address(&held);
        assert_ne!(at.port(), 0);
        assert!(queue::is_listening(held.fd.as_fd()));
        assert!(rustix::io::fcntl_getfd(&held.fd).expect("flags").contains(FdFlags::CLOEXEC));
        let mode = rustix::fs::fcntl_getfl(&held.fd).expect("mode");
        assert!(mode.contains(rustix::fs::OFlags::NONBLOCK));
        assert!(!rustix::net::sockopt::socket_reuseport(&held.fd).expect("option"));
        TcpStream::connect(at).expect("connect");

        let again = open(&listener(&at.to_string())).expect_err("held");
        assert_eq!(again.errno(), Some(Errno::EADDRINUSE as i32));
        assert!(again.to_string().contains(&at.to_string()), "{again}");
        assert!(again.hint().expect("hint").contains("ss -ltnp"), "{again}");

        // Even a socket that asks to share cannot split the address.
        let thief = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("socket");
        thief.set_reuse_port(true).expect("option");
        let refused = thief.bind(&at.into()).expect_err("held");
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    }
}

#[test]
fn the_address_is_free_again_while_old_connections_linger() {
    let held = opened("127.0.0.1:0");
    let at = tcp_address(&held);
    let server = TcpListener::from(held.fd);
    let client = TcpStream::connect(at).expect("connect");
    server.set_nonblocking(false).expect("mode");
    // The side that closes first is left in TIME_WAIT, on our port.
    drop(server.accept().expect("accept"));
    drop(client);
    drop(server);
    opened(&at.to_string());
}

#[test]
fn v6only_decides_who_may_connect() {
    let only = opened("[::]:0,v6only");
    let port = tcp_address(&only).port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    TcpStream::connect(("::1", port)).expect("IPv6");

    let both = opened("[::]:0");
    let port = tcp_address(&both).port();
    TcpStream::connect(("127.0.0.1", port)).expect("IPv4");
    TcpStream::connect(("::1", port)).expect("IPv6");

    let seen = diag::tcp().expect("sock_diag");
    let of = |inode| seen.iter().find(|socket| socket.inode == inode).expect("listed").v6only;
    assert_eq!((of(only.inode), of(both.inode)), (Some(true), Some(false)));
}

#[test]
fn udp_receives_and_shares_with_nobody() {
    let held = opened("udp4@127.0.0.1:0");
    let at = tcp_address(&held);
    assert!(!rustix::net::sockopt::socket_reuseaddr(&held.fd).expect("option"));
    let client = UdpSocket::bind("127.0.0.1:0").expect("client");
    client.send_to(b"ping", at).expect("send");
    let server = UdpSocket::from(held.fd);
    server.set_nonblocking(false).expect("mode");
    let mut buffer = [0; 16];
    assert_eq!(server.recv(&mut buffer).expect("receive"), 4);
    assert!(open(&listener(&format!("udp4@{at}"))).is_err());
    let seen = diag::udp().expect("sock_diag");
    assert!(seen.iter().any(|socket| socket.address == Address::Udp(at)));
}

#[test]
fn a_socket_for_quic_joins_nobody_and_lets_a_socket_for_each_connection_join() {
    let udp = |at: SocketAddr| {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).expect("socket");
        socket.set_reuse_address(true).expect("option");
        socket.bind(&at.into()).map(|()| socket)
    };
    for (any, there) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        // With the options that let other sockets join.
        let other = udp(any.parse().expect("address")).expect("bind");
        let port = other.local_addr().expect("address").as_socket().expect("IP").port();
        for wanted in [
            format!("quic@{there}:{port}"),
            format!("quic6@:{port}"),
            format!("quic@{there}:{port},freebind"),
        ] {
            let refused = open(&listener(&wanted)).expect_err(&wanted);
            assert_eq!(refused.errno(), Some(Errno::EADDRINUSE as i32), "{wanted}");
        }
        drop(other);
        let held = opened(&format!("quic@{there}:{port}"));
        let at = tcp_address(&held);
        assert!(!rustix::net::sockopt::socket_reuseport(&held.fd).expect("option"));
        let client = UdpSocket::bind(any).expect("client");
        let connection = udp(at).expect("a socket for a connection");
        let peer = client.local_addr().expect("address");
        connection.connect(&peer.into()).expect("connect");
        drop(held);
        // A draining program has connected sockets at an address where no socket receives from
        // anyone.
        assert!(open(&listener(&format!("udp@{at}"))).is_err());
        opened(&format!("quic@{at}"));
    }
}

#[test]
fn options_reach_the_socket() {
    let held = opened("127.0.0.1:0,backlog=7");
    let seen = queue::accept_queue(held.fd.as_fd()).expect("queue");
    assert_eq!(seen, queue::Queue { len: 0, limit: 7 });
    let held = opened("127.0.0.1:0");
    let seen = queue::accept_queue(held.fd.as_fd()).expect("queue");
    assert_eq!(seen.limit, crate::limits::somaxconn());

    // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    let absent = open(&listener("192.0.2.7:0")).expect_err("no such address");
    assert!(absent.hint().expect("hint").contains("freebind"));
    let held = opened("192.0.2.7:0,freebind");
    assert!(rustix::net::sockopt::ip_freebind(&held.fd).expect("option"));

    match open(&listener("127.0.0.1:0,interface=lo")) {
        Ok(held) => {
            let seen = diag::tcp().expect("sock_diag");
            let mine = seen.iter().find(|socket| socket.inode == held.inode).expect("listed");
            assert_eq!(mine.interface.as_deref(), Some("lo"));
        }
        Err(error) => crate::testing::skip(&format!("interface=lo: {error}")),
    }
    match open(&listener("127.0.0.1:0,transparent")) {
        Ok(held) => {
            let socket = Socket::from(held.fd);
            // Without privileges only IP_FREEBIND is set.
            let free = socket.freebind_v4().expect("option");
            assert_ne!(socket.ip_transparent_v4().expect("option"), free);
        }
        Err(error) => panic!("transparent: {error}"),
    }
    let absent = open(&listener("127.0.0.1:0,interface=bindonce-none")).expect_err("no interface");
    assert!(absent.to_string().contains("SO_BINDTODEVICE"), "{absent}");
}

#[test]
fn the_queue_counts_who_waits() {
    let held = opened("127.0.0.1:0");
    let at = tcp_address(&held);
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(at).expect("connect")).collect();
    assert_eq!(queue::accept_queue(held.fd.as_fd()).expect("queue").len, 3);
    let seen = diag::tcp().expect("sock_diag");
    let mine = seen.iter().find(|socket| socket.inode == held.inode).expect("listed");
    assert_eq!((mine.queue.len, mine.cookie, &mine.address), (3, held.cookie, &held.bound));

    // A holder that shuts down a shared listener takes it out of LISTEN for all holders.
    rustix::net::shutdown(&held.fd, rustix::net::Shutdown::Both).expect("shutdown");
    assert!(!queue::is_listening(held.fd.as_fd()));
    assert!(queue::accept_queue(held.fd.as_fd()).is_err());
    drop(clients);
}

#[test]
fn holders_are_found_by_inode() {
    let held = opened("127.0.0.1:0");
    let copy = held.fd.try_clone().expect("dup");
    let found = holders::of(&[held.inode]);
    let pid = i32::try_from(std::process::id()).expect("pid");
    let mine = found.iter().filter(|holder| holder.pid == pid && holder.inode == held.inode);
    assert_eq!(mine.count(), 2, "{found:?}");
    drop(copy);
    assert_eq!(holders::of_process(pid, &[held.inode]).len(), 1);
}

#[test]
fn a_unix_path_appears_with_its_mode_and_goes_only_if_ours() {
    let directory = Directory::new("unix");
    let path = directory.path().join("app.sock");
    let owner = if nix::unistd::geteuid().is_root() { ",user=root,group=0" } else { "" };
    let held = opened(&format!("{},mode=0640{owner}", at(&path)));
    let mode = path.metadata().expect("metadata").permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let client = UnixStream::connect(&path).expect("connect");
    let queue = queue::accept_queue(held.fd.as_fd()).expect("queue");
    assert_eq!((queue.len, queue.limit), (1, crate::limits::somaxconn()));
    drop(client);
    assert_eq!(directory.entries(), ["app.sock"]);

    let guard = held.path.clone().expect("path");
    assert!(unlink_if_ours(&guard).expect("unlink"));
    assert!(!unlink_if_ours(&guard).expect("gone already"));
    let _other = UnixListener::bind(&path).expect("another takes the path");
    assert!(!unlink_if_ours(&guard).expect("not ours"));
    assert!(path.exists());
}

#[test]
fn a_live_path_is_never_taken_and_a_dead_one_is_replaced() {
    let directory = Directory::new("paths");
    let path = directory.path().join("app.sock");
    let live = UnixListener::bind(&path).expect("bind");
    let refused = open(&listener(&at(&path))).expect_err("live");
    assert_eq!(refused, Error::PathInUse { path: path.clone() });
    UnixStream::connect(&path).expect("untouched");
    drop(live);
    assert!(UnixStream::connect(&path).is_err());
    let held = opened(&at(&path));
    UnixStream::connect(&path).expect("replaced");
    drop(held);

    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("write");
    let refused = open(&listener(&at(&path))).expect_err("a file");
    assert_eq!(refused, Error::NotASocket { path: path.clone() });
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "precious");
    assert_eq!(directory.entries(), ["app.sock"]);

    let absent = open(&listener(&at(&directory.path().join("no/app.sock")))).expect_err("no dir");
    assert!(absent.hint().expect("hint").contains("directory"));
    let text = format!("{},user=bindonce-nobody", at(&directory.path().join("x")));
    let unknown = open(&listener(&text)).expect_err("no such user");
    assert!(unknown.to_string().contains("bindonce-nobody"), "{unknown}");
    assert_eq!(directory.entries(), ["app.sock"]);
}

#[test]
fn the_name_of_a_socket_is_its_path_wherever_that_is() {
    let directory = Directory::new("name");
    for (sub, mode) in [("own", 0o755), ("shared", 0o777), ("shared/below", 0o777)] {
        let sub = directory.path().join(sub);
        std::fs::create_dir(&sub).expect("directory");
        std::fs::set_permissions(&sub, Permissions::from_mode(mode)).expect("mode");
        let path = sub.join("app.sock");
        for round in 0..2 {
            // The second round binds over the file that the first left behind.
            let held = opened(&format!("{},mode=0640", at(&path)));
            let name = SockRef::from(&held.fd).local_addr().expect("name");
            assert_eq!(name.as_pathname(), Some(&*path), "round {round}");
            assert_eq!(path.metadata().expect("stat").mode() & 0o7777, 0o640);
            let entries = std::fs::read_dir(&sub).expect("entries").flatten();
            assert_eq!(entries.filter(|entry| entry.file_name() != "below").count(), 1);
        }
    }
}

/// Runs rounds of a race until one reports that the race occurred, and at least 400. On a busy
/// machine the other thread seldom runs: each round begins when it does.
fn rounds(exchanging: &Exchanging, mut round: impl FnMut(u32) -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    for number in 0.. {
        exchanging.meet();
        let met = round(number);
        if met && number >= 400 {
            return;
        }
        assert!(met || Instant::now() < until, "what is raced for was never met");
    }
}

/// The owner of the directory puts a link to a file of root, or that very file, in the place of the
/// new socket.
#[test]
fn a_file_that_takes_the_place_of_a_new_socket_is_left_alone() {
    let directory = Directory::new("swap");
    let (secret, path) = (directory.path().join("secret"), directory.path().join("app"));
    std::fs::write(&secret, "root only").expect("secret");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("mode");
    let other = directory.path().join("other");
    let wanted = listener(&format!("{},mode=0666", at(&path)));
    let mut met = 0;
    while_exchanged(&other, &path, |exchanging| {
        rounds(exchanging, |round| {
            for left in [&path, &other] {
                let _ = std::fs::remove_file(left);
            }
            let make = if round % 2 == 0 { symlink::<&Path, &Path> } else { hard_link };
            make(&secret, &other).expect("in the way");
            met += usize::from(open(&wanted).is_err());
            let mode = secret.metadata().expect("stat").mode() & 0o777;
            assert_eq!(mode, 0o600, "round {round}");
            met > 0
        });
    });
}

#[test]
fn a_directory_that_is_exchanged_leads_nothing_elsewhere() {
    let directory = Directory::new("lead");
    let (theirs, target) = (directory.path().join("theirs"), directory.path().join("target"));
    for new in [&theirs, &target, &theirs.join("sub")] {
        std::fs::create_dir(new).expect("directory");
    }
    // Everybody may write here, and so can put another directory in the place of `sub`.
    std::fs::set_permissions(&theirs, Permissions::from_mode(0o777)).expect("mode");
    let (sub, link) = (theirs.join("sub"), theirs.join("link"));
    symlink(&target, &link).expect("link");
    let refused =
        open(&listener(&at(&link.join("app")))).expect_err("a link in a directory of another user");
    assert_eq!(refused.errno(), Some(Errno::ELOOP as i32));
    assert!(refused.hint().expect("hint").contains("without it"), "{refused}");

    let wanted = listener(&format!("{},mode=0666", at(&sub.join("app"))));
    let (mut bound, mut refused) = (0, 0);
    while_exchanged(&sub, &link, |exchanging| {
        rounds(exchanging, |_| {
            match open(&wanted) {
                Ok(held) => {
                    bound += 1;
                    let _ = unlink_if_ours(&held.path.expect("path"));
                }
                Err(_) => refused += 1,
            }
            assert!(!target.join("app").exists(), "a socket was made through the link");
            bound > 0 && refused > 0
        });
    });
}

/// The file is not looked for, or removed, in another directory.
#[test]
fn a_file_is_removed_only_where_it_was_made() {
    let directory = Directory::new("remove");
    let (theirs, target) = (directory.path().join("theirs"), directory.path().join("target"));
    for new in [&theirs, &target, &theirs.join("sub")] {
        std::fs::create_dir(new).expect("directory");
    }
    std::fs::set_permissions(&theirs, Permissions::from_mode(0o777)).expect("mode");
    let (sub, link) = (theirs.join("sub"), theirs.join("link"));
    symlink(&target, &link).expect("link");
    let precious = target.join("app");
    std::fs::write(&precious, "root's").expect("write");
    let wanted = listener(&at(&sub.join("app")));
    while_exchanged(&sub, &link, |exchanging| {
        for _ in 0..400 {
            exchanging.meet();
            if let Ok(Opened { path: Some(ours), .. }) = open(&wanted) {
                let _ = unlink_if_ours(&ours);
            }
        }
    });
    assert!(precious.exists(), "another directory's file was removed");
    // Another directory of that user, with a file of that user.
    let kept = theirs.join("kept");
    std::fs::create_dir(&kept).expect("directory");
    let ours = opened(&at(&kept.join("app"))).path.expect("path");
    std::fs::rename(&kept, theirs.join("away")).expect("rename");
    std::fs::create_dir(&kept).expect("directory");
    std::fs::write(kept.join("app"), "theirs").expect("write");
    assert!(!unlink_if_ours(&ours).expect("unlink") && kept.join("app").exists());
}

#[test]
fn a_link_that_only_root_and_this_user_can_change_is_followed() {
    let directory = Directory::new("link");
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    std::fs::create_dir(&real).expect("directory");
    symlink(
        "../".to_owned() + &directory.path().file_name().expect("name").to_string_lossy() + "/real",
        &link,
    )
    .expect("link");
    let held = opened(&at(&link.join("app")));
    UnixStream::connect(real.join("app")).expect("connect");
    // A file that takes the name of the directory is not removed instead.
    assert!(unlink_if_ours(&held.path.expect("path")).expect("unlink"));
    assert!(!real.join("app").exists());
}

#[test]
fn a_path_that_just_fits_can_be_bound() {
    let directory = Directory::new("long");
    let room = 107 - directory.path().as_os_str().len() - 1;
    let long = directory.path().join("d".repeat(room - 2));
    std::fs::create_dir(&long).expect("directory");
    let path = long.join("s");
    assert_eq!(path.as_os_str().len(), 107);
    let _held = opened(&at(&path));
    UnixStream::connect(&path).expect("connect");
}

#[test]
fn an_abstract_name_is_padded_as_haproxy_pads_it() {
    let name = format!("bindonce-test-{}", std::process::id());
    let held = opened(&format!("abns@{name}"));
    let mut padded = name.clone().into_bytes();
    padded.resize(107, 0);
    let address = UnixAddress::from_abstract_name(&padded).expect("address");
    let client = UnixStream::connect_addr(&address).expect("connect");
    assert!(open(&listener(&format!("abns@{name}"))).is_err());
    let seen = diag::unix().expect("sock_diag");
    let mine = seen.iter().find(|socket| socket.inode == held.inode).expect("listed");
    assert_eq!((&mine.address, mine.queue.len, mine.cookie), (&held.bound, 1, held.cookie));
    drop(crate::probe::Probe::begin(&held.bound, held.fd.as_fd()).expect("probe"));
    assert_eq!(queue::accept_queue(held.fd.as_fd()).expect("queue").len, 2);
    drop(client);
}

#[test]
fn a_namespace_that_is_not_there_is_an_error_that_names_it() {
    let error = open(&listener("127.0.0.1:0,netns=bindonce-none")).expect_err("no such namespace");
    assert!(error.to_string().contains("bindonce-none"), "{error}");
    assert!(error.hint().expect("hint").contains("ip netns add bindonce-none"));
    for outside in ["..", "../x", "", "a/b"] {
        assert!(within_netns(outside, || ()).is_err(), "{outside}");
    }
}
