//! A server that takes the sockets that its starter passed (sd_listen_fds(3)), as systemd and
//! `bindonce run` start it.

#![cfg(all(test, feature = "hyper"))]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

/// The example server, with a listener as descriptor 3 and the variables that the shell exports. It
/// is killed if the test ends early.
struct Server(Child);

impl Server {
    fn start(listener: &TcpListener, claim: &str, exports: &str) -> Self {
        let fd: OwnedFd = listener.try_clone().expect("a copy").into();
        let mut program = std::env::current_exe().expect("the test's path");
        program.pop();
        program.pop();
        let script = format!("exec 3<&0 </dev/null; export {exports}; exec \"$0\" \"$1\"");
        let child = Command::new("sh")
            .args(["-c", script.as_str()])
            .arg(program.join("examples/hyper_server"))
            .arg(claim)
            // A socket that is not passed must come neither from a broker nor from bind(2).
            .env("BINDONCE_SOCKET", "/nonexistent/bindonce.sock")
            .stdin(fd)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("cargo builds the examples before the tests"))
    }

    fn fails(mut self) -> String {
        let mut said = String::new();
        self.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(!self.0.wait().expect("wait").success(), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("as the starters make it");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

#[test]
fn what_was_passed_is_served_and_a_signal_ends_it_after_the_last_answer() {
    let (listener, address) = listener();
    let place = format!("bindonce-passed-{}", std::process::id());
    let named = UnixAddress::from_abstract_name(&place).expect("a name");
    let notified = UnixDatagram::bind_addr(&named).expect("bind");
    notified.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let exports = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web BINDONCE_GENERATION=7 NOTIFY_SOCKET=@{place}"
    );
    let mut server = Server::start(&listener, "web=127.0.0.1:0", &exports);
    let mut said = [0; 64];
    let length = notified.recv(&mut said).expect("it says that it is ready");
    assert_eq!(&said[..length], b"READY=1");
    let mut first = String::new();
    let output = server.0.stdout.take().expect("piped");
    BufReader::new(output).read_line(&mut first).expect("text");
    assert_eq!(first, format!("generation 7 accepts on {address}\n"));
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /").expect("write");
    let mut answer = vec![0; 1024];
    assert_ne!(stream.read(&mut answer).expect("an answer"), 0);
    // Half of a second request has come; the rest comes after the signal to end.
    let pid = Pid::from_child(&server.0);
    kill_process(pid, Signal::TERM).expect("it runs");
    stream.write_all(b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("write");
    answer.clear();
    stream.read_to_end(&mut answer).expect("an answer");
    assert!(server.0.wait().expect("wait").success());
}

#[test]
fn what_was_passed_to_another_process_is_left_alone() {
    let (listener, _) = listener();
    for exports in
        ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_PIDFDID=1 LISTEN_FDS=1"]
    {
        let said = Server::start(&listener, "web=127.0.0.1:0", exports).fails();
        assert!(said.contains("Connect"), "{exports}: {said}");
    }
    // The variable promises more descriptors than there are.
    let said = Server::start(&listener, "web=127.0.0.1:0", "LISTEN_PID=$$ LISTEN_FDS=2").fails();
    assert!(said.contains("LISTEN_FDS"), "{said}");
}
