//! `bindonce exec`: starts a program of the systemd convention with its sockets.

use std::io::{Read, Write as _};
use std::net::TcpStream;

use crate::harness::{Process, Scene, finish, listening};

/// Checks the convention from inside, serves one connection, and ends.
const PROGRAM: &str = r#"
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
assert os.environ["LISTEN_FDS"] == "2", os.environ
assert os.environ["LISTEN_FDNAMES"] == "web:admin-a", os.environ
assert os.environ["web"] == "3" and os.environ["admin_a"] == "4", os.environ
assert os.get_inheritable(3) and os.get_inheritable(4)
links = {fd: os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
sockets = sorted(int(fd) for fd, link in links.items() if "socket:" in link)
assert sockets == [3, 4], links  # neither a copy nor the connection to the broker
web, admin = socket.socket(fileno=3), socket.socket(fileno=4)
assert web.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
assert web.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
print("ready", web.getsockname()[1], admin.getsockname()[1], flush=True)
web.settimeout(30)
peer, _ = web.accept()
peer.sendall(b"hello")
"#;

#[test]
fn a_program_of_the_systemd_convention_serves() {
    let (scene, _broker) = Scene::with_broker();
    let (web, admin) = (scene.address(), scene.address());
    let mut command = scene.bindonce("exec");
    command
        .arg("--listen")
        .arg(format!("web={web}"))
        .arg("--listen")
        .arg(format!("admin-a={admin}"));
    let mut program = Process::start(command.args(["--", "python3", "-c", PROGRAM]));
    assert_eq!(program.wait_line("ready"), format!("ready {} {}", web.port(), admin.port()));
    let mut said = String::new();
    TcpStream::connect(web).expect("connecting").read_to_string(&mut said).expect("reading");
    assert_eq!(said, "hello");
    assert!(program.wait_exit().success());
    assert_eq!(listening(web).len(), 1, "the broker holds it on");
}

#[test]
fn the_exit_code_and_the_arguments_are_the_programs_own() {
    let (scene, _broker) = Scene::with_broker();
    let address = format!("web={}", scene.address());
    let run = |arguments: &[&str]| {
        finish(scene.bindonce("exec").args(["--listen", &address, "--"]).args(arguments))
    };
    run(&["sh", "-c", "exit 7"]).fails(7);
    assert_eq!(run(&["printf", "%s|", "a b", "--", "c"]).ok(), "a b|--|c|");
    let missing = run(&["/nonexistent/program"]).fails(1);
    assert!(missing.contains("/nonexistent/program"), "{missing}");
}

#[test]
fn a_listener_already_held_is_claimed_by_name_alone() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    scene.run("bind", &[&format!("web={address}")]).ok();
    let shown =
        finish(scene.bindonce("exec").args(["--listen", "web", "--", "sh", "-c", "echo $web"]))
            .ok();
    assert_eq!(shown, "3\n");
    let unknown =
        finish(scene.bindonce("exec").args(["--listen", "nobody", "--", "true"])).fails(1);
    assert!(unknown.contains("nobody"), "{unknown}");
}

/// Waits in accept(2) for one connection, as simple servers do.
const SIMPLE: &str = "import socket
s = socket.socket(fileno=3)
print('waits', flush=True)
c, _ = s.accept()
c.recv(999)
c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nhello')
";

#[test]
fn a_program_that_waits_in_accept_is_given_a_listener_that_blocks() {
    let (scene, mut broker) = Scene::with_broker();
    let address = scene.address();
    let exec = |options: &str| {
        let mut command = scene.bindonce("exec");
        command.args(["--listen", &format!("web={address}{options}"), "--"]);
        command.args(["python3", "-c", SIMPLE]);
        command
    };
    let said = finish(&mut exec("")).fails(1);
    assert!(said.contains("BlockingIOError"), "{said}");
    // The flag belongs to the socket: a held listener either blocks or not.
    let said = finish(&mut exec(",blocking")).fails(1);
    assert!(said.contains("asks for blocking") && said.contains("has no blocking"), "{said}");
    scene.run("release", &["web"]).ok();
    for round in 0..2 {
        let mut program = Process::start(&mut exec(",blocking"));
        program.wait_line("waits");
        let mut client = TcpStream::connect(address).expect("connecting");
        client.write_all(b"a request").expect("writing");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("reading");
        assert!(answer.ends_with("hello"), "{answer}");
        assert!(program.wait_exit().success());
        let listed = scene.run("list", &[]).ok();
        assert!(listed.contains("blocking") && !listed.contains("O_NONBLOCK"), "{listed}");
        if round == 0 {
            // A broker that is replaced, and one that binds anew, keep the option.
            scene.run("upgrade", &[]).ok();
            broker.kill();
            broker = scene.broker();
        }
    }
}
