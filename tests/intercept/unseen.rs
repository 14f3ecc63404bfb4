//! A program that is intercepted and calls no listen(2) on anything of that: nothing tells when it is ready.

use crate::harness::{Process, Scene, finish};

/// Listens where the kernel chooses.
const ANYWHERE: &str = "\
import socket, time
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen(5)
time.sleep(1000)
";

/// Does not listen on what it finds listening.
const LOOKS: &str = "\
import socket, sys, time
server = socket.socket()
server.bind(('127.0.0.1', int(sys.argv[1])))
if not server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN): server.listen()
time.sleep(1000)
";

#[test]
fn a_program_that_calls_no_listen_on_what_it_has_bound_is_told_so() {
    let (scene, _broker) = Scene::with_broker();
    let port = scene.address().port().to_string();
    let mut command = scene.bindonce("run");
    // It must have bound by then.
    command.args(["--name", "web", "--ready-timeout", "3s", "--intercept"]);
    command.args(["--", "python3", "-c", LOOKS, &port]);
    let said = finish(&mut command).err;
    if said.contains("cannot be intercepted") {
        return crate::harness::skip("bind() cannot be intercepted: seccomp(2) is refused");
    }
    assert!(said.contains("bound what is intercepted, and not called listen(2) on it"), "{said}");
    assert!(said.contains("haproxy -Ws does"), "{said}");
    assert!(!said.contains("nothing that is intercepted"), "{said}");
}

#[test]
fn a_program_that_listens_on_nothing_that_is_intercepted_is_told_so() {
    let (scene, _broker) = Scene::with_broker();
    let mut command = scene.bindonce("run");
    command.args(["--name", "web", "--ready-timeout", "300ms", "--intercept"]);
    command.args(["--", "python3", "-c", ANYWHERE]);
    let said = finish(&mut command).err;
    if said.contains("cannot be intercepted") {
        return crate::harness::skip("bind() cannot be intercepted: seccomp(2) is refused");
    }
    assert!(said.contains("it has listened on nothing that is intercepted"), "{said}");
    assert!(said.contains("a port that the kernel chooses (port 0)"), "{said}");
    assert!(!said.contains("raise --ready-timeout if it needs longer"), "{said}");
    // With another sign it serves.
    let mut command = scene.bindonce("run");
    command.args(["--name", "web", "--ready-delay", "100ms", "--intercept"]);
    let mut supervisor = Process::start(command.args(["--", "python3", "-c", ANYWHERE]));
    supervisor.wait_line(": serving ");
}
