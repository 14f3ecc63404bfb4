//! Tests that change the process or the system: limits, signals, namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use bindonce_sys::limits::Reached;
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::{Error, diag, limits, listen, peer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Test, open_descriptors};

pub(crate) const TESTS: &[Test] = &[
    ("descriptors beyond the limit are an error and none leaks", truncated),
    ("the soft limit rises to the hard one", raised),
    ("who is at the limit is named without a free descriptor", named),
    ("a signal names its sender", signal),
    ("the peer of a pair is this process", credentials),
    ("a listener in another namespace is only there", namespace),
];

fn truncated() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (socket, _other) = UnixStream::pair().expect("pair");
    let many = vec![socket.as_fd(); 20];
    bindonce_fd::send(&ours, b"x", &many).expect("send");
    let before = open_descriptors();
    let limit = getrlimit(Resource::Nofile);
    // Five numbers below the limit are free, and twenty descriptors come.
    let sixth = (0..).filter(|fd| !before.contains(fd)).nth(5).expect("free");
    let low = Rlimit { current: u64::try_from(sixth).ok(), maximum: limit.maximum };
    setrlimit(Resource::Nofile, low).expect("lower");
    let mut fds: Vec<OwnedFd> = Vec::new();
    let received = bindonce_fd::recv(theirs.as_fd(), &mut [0; 4], &mut fds);
    setrlimit(Resource::Nofile, limit).expect("restore");
    let error = Error::from(received.expect_err("too many"));
    assert_eq!(error, Error::Truncated);
    assert!(error.is_descriptor_limit());
    assert!(fds.is_empty());
    assert_eq!(open_descriptors(), before);
}

fn raised() {
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(200), maximum: limit.maximum };
    setrlimit(Resource::Nofile, low).expect("lower");
    assert_eq!(limits::nofile().0, 200);
    let now = limits::raise_nofile().expect("raise");
    assert_eq!(limits::nofile(), (now, now));
    setrlimit(Resource::Nofile, limit).expect("restore");
}

fn named() {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(0), maximum: limit.maximum };
    setrlimit(Resource::Nofile, none).expect("lower");
    let hint = Reached::now().to_string();
    setrlimit(Resource::Nofile, limit).expect("restore");
    assert!(hint.starts_with(&format!("pid {} (processes", std::process::id())), "{hint}");
    assert!(hint.contains("soft limit of 0 open files"), "{hint}");
}

fn signal() {
    let signals = SignalFd::new(&[Signal::SIGUSR1]).expect("signalfd");
    assert_eq!(signals.read().expect("read"), None);
    let status = Command::new("sh").args(["-c", "kill -USR1 $PPID"]).status().expect("sh");
    assert!(status.success());
    let received = signals.read().expect("read").expect("a signal");
    assert_eq!((received.signo, received.code), (Signal::SIGUSR1, 0));
    assert_eq!(received.uid, nix::unistd::getuid().as_raw());
    assert_ne!(received.pid, 0);
    assert_eq!(signals.read().expect("read"), None);
}

fn credentials() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let told = peer::credentials(ours.as_fd()).expect("credentials");
    assert_eq!(told.pid, i32::try_from(std::process::id()).expect("pid"));
    assert_eq!(told.uid, nix::unistd::geteuid().as_raw());
}

/// A network namespace with a unique name.
struct Namespace(String);

impl Namespace {
    fn new() -> Result<Self, String> {
        let name = format!("bindonce-test-{}", std::process::id());
        match Command::new("ip").args(["netns", "add", &name]).output() {
            Ok(output) if output.status.success() => Ok(Self(name)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("ip: {error}")),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn namespace() {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => {
            crate::skip::skip(&format!("network namespaces: {why}"));
            return;
        }
    };
    let here = || std::fs::read_link("/proc/thread-self/ns/net").expect("namespace");
    let before = here();
    let text = format!("0.0.0.0:0,netns={}", namespace.0);
    let held = listen::open(&text.parse().expect("listener")).expect("open");
    assert_eq!(here(), before);
    let listed = |sockets: Vec<diag::Socket>| sockets.iter().any(|s| s.inode == held.inode);
    assert!(!listed(diag::tcp().expect("sock_diag")));
    let there = listen::within_netns(&namespace.0, diag::listening).expect("enter");
    assert!(listed(there.expect("sock_diag")));
}
