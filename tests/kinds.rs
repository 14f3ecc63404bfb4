//! Every kind of listener that haproxy supports: one socket for all generations, which a generation
//! that ignores its signals does not keep.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::PathBuf;

use nix::sys::signal::Signal::{SIGKILL, SIGTTOU, SIGUSR1};
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{
    Fault, Guest, Haproxy, Process, Scene, eventually, finish, listening, skip, with_faults,
};

/// A kind of listener.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Multipath,
    Padded,
    Unpadded,
    Datagram,
}

/// Addresses for one listener of each kind.
struct Places {
    address: SocketAddr,
    name: String,
    /// The socket to which each configuration sends the datagrams that it receives.
    logs: [UdpSocket; 2],
}

impl Places {
    fn new(scene: &Scene) -> Self {
        let name = format!("kinds-{}", scene.path("").display());
        let logs = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        logs.iter().for_each(|log| log.set_nonblocking(true).expect("its mode"));
        Self { address: scene.address(), name, logs }
    }

    fn bind(&self, kind: Kind) -> String {
        let Self { address, name, .. } = self;
        match kind {
            Kind::Multipath => format!("mptcp4@{address}"),
            Kind::Padded => format!("abns@{name}"),
            Kind::Unpadded => format!("abnsz@{name}"),
            Kind::Datagram => format!("udp4@{address}"),
        }
    }

    /// The configuration with this number, 0 or 1.
    fn write(&self, scene: &Scene, kind: Kind, number: usize) -> PathBuf {
        let bind = self.bind(kind);
        let text = match kind {
            Kind::Datagram => {
                let log = self.logs[number].local_addr().expect("its address");
                format!("log-forward f\n    dgram-bind {bind}\n    log {log} local0\n")
            }
            _ => format!(
                "defaults\n    mode http\n    timeout client 5s\nfrontend f\n    bind {bind}\n    \
                 http-request return status 200 content-type text/plain string {number}\n"
            ),
        };
        scene.write("haproxy.cfg", &text)
    }

    /// The numbers of the configurations that answer now.
    fn answering(&self, kind: Kind) -> BTreeSet<usize> {
        (0..20).map(|_| self.ask(kind)).collect()
    }

    fn ask(&self, kind: Kind) -> usize {
        if kind == Kind::Datagram {
            let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            client.send_to(b"<134>Nov 27 12:00:00 host app: a", self.address).expect("sending");
            return eventually("the message to be passed on", || {
                self.logs.iter().position(|log| log.recv(&mut [0; 512]).is_ok())
            });
        }
        let mut name = self.name.clone().into_bytes();
        if kind == Kind::Padded {
            name.resize(107, 0);
        }
        let name = UnixAddress::from_abstract_name(name).expect("a name");
        let mut stream = match kind {
            Kind::Multipath => multipath(self.address),
            _ => Socket::from(UnixStream::connect_addr(&name).expect("connecting")),
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asking");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text.lines().last().and_then(|line| line.parse().ok()).expect("a number")
    }
}

fn multipath(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("a socket");
    socket.connect(&address.into()).expect("connecting");
    socket
}

/// The sockets that a process has.
fn sockets(pid: i32) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = links.filter_map(|link| fs::read_link(link.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).collect()
}

/// A scene where the kernel supports multipath TCP.
fn scene() -> Option<Scene> {
    let scene = Scene::new();
    let can = scene.is_isolated()
        && Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_ok();
    if !can {
        skip("needs root and a kernel with multipath TCP");
    }
    can.then_some(scene)
}

/// The older generation ignores pause and stop: it is ended, and the next one alone answers. Each
/// kind is tested alone, so that no other queue reveals the older generation.
fn goes_over(program: &std::path::Path, kind: Kind) {
    let Some(scene) = scene() else { return };
    let places = Places::new(&scene);
    let deaf = [Fault::Deaf(SIGTTOU, 0), Fault::Deaf(SIGUSR1, 0)];
    let program = with_faults(&scene, Guest::Haproxy, program, &[(1, &deaf)]);
    let broker = scene.broker();
    let file = places.write(&scene, kind, 0);
    let arguments = ["--retire-timeout", "300ms"];
    let mut haproxy = Haproxy::start_with(&scene, &arguments, &program, &file);
    assert_eq!(places.answering(kind), [0].into(), "{kind:?}");
    let (_, pid) = haproxy.wait_serving(&scene);
    let held = sockets(i32::try_from(broker.pid()).expect("a pid"));
    let shared: Vec<_> = sockets(pid).intersection(&held).cloned().collect();
    assert_eq!(shared.len(), 1, "{kind:?}: one socket of the broker's");
    places.write(&scene, kind, 1);
    haproxy.reload(&scene).ok();
    assert_eq!(places.answering(kind), [1].into(), "{kind:?}");
    eventually("the deaf one to be gone", || sockets(pid).is_empty().then_some(()));
    let (_, pid) = haproxy.wait_serving(&scene);
    assert!(sockets(pid).contains(&shared[0]), "{kind:?}: another socket");
    let list = scene.run("list", &[]).ok();
    assert!(list.contains(places.bind(kind).trim_start_matches("mptcp4@")), "{list}");
}

#[test]
fn multipath_tcp_goes_over_from_a_deaf_generation() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    goes_over(&program, Kind::Multipath);
}

#[test]
fn an_abstract_name_goes_over_from_a_deaf_generation() {
    Haproxy::all().for_each(|program| goes_over(&program, Kind::Padded));
}

#[test]
fn an_abstract_name_without_padding_goes_over_from_a_deaf_generation() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    goes_over(&program, Kind::Unpadded);
}

#[test]
fn datagrams_of_log_forward_go_over_from_a_deaf_generation() {
    Haproxy::all().for_each(|program| goes_over(&program, Kind::Datagram));
}

/// The socket keeps its protocol: for clients of both protocols, in the broker's output and after
/// the broker was killed, and when it is taken over from a haproxy without bindonce.
#[test]
fn multipath_tcp_is_listed_restored_and_adopted() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    let Some(scene) = scene() else { return };
    let places = Places::new(&scene);
    let file = places.write(&scene, Kind::Multipath, 0);
    let stats = scene.path("stats.sock");
    let more =
        format!("global\n    stats socket {} level admin expose-fd listeners\n", stats.display());
    let text = more + &fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, text).expect("writing");
    let mut plain = Process::start(scene.command(&program).args(["-db", "-f"]).arg(&file));
    let inode = eventually("haproxy to listen", || {
        assert!(plain.is_running(), "{}", plain.story());
        listening(places.address).first().map(|socket| socket.inode)
    });
    let mut broker = scene.broker();
    let pid = plain.pid().to_string();
    let mut adopting = scene.bindonce("adopt");
    adopting.args(["--pid", &pid, "--"]).arg(&program).arg("-f").arg(&file);
    println!("{}", finish(&mut adopting).ok());
    let listed = || scene.run("list", &[]).ok();
    assert!(listed().lines().any(|line| line.contains(" mptcp ")), "{}", listed());
    let look = finish(scene.bindonce("doctor").args(["--json", &places.address.to_string()]));
    let sockets = &serde_json::from_str::<serde_json::Value>(&look.out).expect("JSON")["sockets"];
    let of = |at: &serde_json::Value| at["inode"] == inode && at["mptcp"] == true;
    assert!(sockets.as_array().expect("sockets").iter().any(of), "{sockets:#}");
    broker.signal(SIGKILL);
    broker.wait_exit();
    let _broker = scene.broker();
    eventually("the listener to be given back", || listed().contains(" mptcp ").then_some(()));
    assert_eq!(listening(places.address).first().map(|socket| socket.inode), Some(inode));
    assert_eq!(places.ask(Kind::Multipath), 0);
}

/// Words unknown to haproxy are left to haproxy, and a kernel without multipath TCP is reported.
#[test]
fn multipath_tcp_that_cannot_be_is_refused_with_the_reason() {
    let Some(scene) = scene() else { return };
    let places = Places::new(&scene);
    let file = places.write(&scene, Kind::Multipath, 0);
    let _broker = scene.broker();
    if let Some(program) = Haproxy::system() {
        let mut older = Haproxy::begin(&scene, &[], &program, &file);
        assert!(!older.supervisor.wait_exit().success());
        let story = older.supervisor.story();
        assert!(story.contains("invalid address"), "{story}");
    }
    let Some(program) = Haproxy::fetched("3.2") else { return };
    finish(scene.command("sysctl").args(["-qw", "net.mptcp.enabled=0"])).ok();
    let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
    assert!(!haproxy.supervisor.wait_exit().success());
    let story = haproxy.supervisor.story();
    assert!(story.contains("net.mptcp.enabled") && story.contains("haproxy.cfg:5"), "{story}");
    assert!(!scene.run("list", &[]).ok().contains(&places.address.to_string()));
}
