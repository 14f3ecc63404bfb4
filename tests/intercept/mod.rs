//! Programs that take no descriptors and were told nothing: their bind() is answered with the broker's socket.

mod ends;
mod haproxy;
mod hostile;
mod neighbours;
mod programs;
mod sockets;
mod unseen;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Process, Scene, eventually, finish, listening, root, skip};

/// Binds by itself, and answers one request after the other with the number of its generation.
const SERVER: &str = "\
import os, select, signal, socket, sys
host, port = sys.argv[1].rsplit(':', 1)
told, tell = socket.socketpair()
tell.setblocking(False)
signal.set_wakeup_fd(tell.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((host, int(port)))
server.listen(511)
server.setblocking(False)
answer = f'HTTP/1.0 200 OK\\r\\nx-generation: {os.environ[\"BINDONCE_GENERATION\"]}\\r\\ncontent-length: 0\\r\\n\\r\\n'
while told not in select.select([told, server], [], [])[0]:
    try:
        client = server.accept()[0]
        client.settimeout(5)
        while not client.recv(4096).endswith(b'\\r\\n\\r\\n'): pass
        client.sendall(answer.encode())
        client.close()
    except OSError: pass
server.close()
";

/// Listens on the first port, and says what becomes of a bind of each of the others, again and again.
const BINDER: &str = "\
import errno, os, signal, socket, sys, time
def bind(port):
    one = socket.socket()
    try:
        one.bind(('127.0.0.1', port))
        return 'bound'
    except OSError as error:
        return errno.errorcode[error.errno]
server = socket.socket()
server.bind(('127.0.0.1', int(sys.argv[1])))
server.listen(5)
while True:
    print('said', *(bind(int(port)) for port in sys.argv[2:]), flush=True)
    time.sleep(0.05)
";

/// A program in Python with the ports of these addresses.
fn python(script: &str, addresses: &[SocketAddr]) -> Vec<String> {
    let ports = addresses.iter().map(|at| at.port().to_string());
    ["python3", "-c", script].map(str::to_owned).into_iter().chain(ports).collect()
}

/// A supervisor of a program that is intercepted, once it serves; none, with the reason told, where the kernel refuses.
fn run(scene: &Scene, options: &[&str], program: &[impl AsRef<OsStr>]) -> Option<Process> {
    let mut command = scene.bindonce("run");
    command.args(["--name", "web", "--intercept"]).args(options).arg("--").args(program);
    let mut supervisor = Process::start(&mut command);
    eventually("it to serve, or to be refused", || {
        let story = supervisor.story();
        if story.contains("cannot be intercepted") {
            skip("bind() cannot be intercepted: seccomp(2) is refused");
            return Some(None);
        }
        assert!(supervisor.is_running(), "{story}");
        story.contains(": serving ").then_some(Some(()))
    })?;
    Some(supervisor)
}

fn reload(scene: &Scene) -> String {
    scene.run("reload", &["--name", "web"]).ok()
}

/// The first process of a generation.
fn pid_of(supervisor: &mut Process, generation: u64) -> i32 {
    let story = supervisor.story();
    let started = story.split(&format!("started generation={generation} pid=")).nth(1);
    let word = started.expect("its start").split_whitespace().next();
    word.and_then(|pid| pid.parse().ok()).expect("a pid")
}

/// The only listening socket there.
#[track_caller]
fn only(address: SocketAddr) -> u64 {
    let all = listening(address);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].inode
}

#[test]
fn generations_that_bind_by_themselves_share_one_socket_and_lose_nobody() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let script = scene.write("server.py", SERVER);
    let script = script.to_str().expect("a path");
    let text = address.to_string();
    let Some(mut supervisor) = run(&scene, &[], &["python3", script, &text]) else { return };
    let inode = only(address);
    let mut plan = bindonce_load::Plan::new(address);
    plan.rate = Some(500);
    let load = plan.start().expect("load");
    for generation in 2..=4 {
        assert!(reload(&scene).contains(&format!("generation {generation} serves")));
        assert!(load.wait_for_token(&generation.to_string(), DEADLINE), "answers");
        assert_eq!(only(address), inode);
    }
    let report = load.stop();
    assert_eq!((report.failed(), report.stale), (0, 0), "{report}");
    let story = supervisor.story();
    assert_eq!(story.matches("it listens on all that is served now").count(), 3, "{story}");
    assert!(supervisor.terminate().success());
}

/// An older generation ends the socket of all: the broker's guard lets it listen again.
#[test]
fn a_program_that_shuts_its_listener_down_ends_it_for_nobody() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let script = scene.write("server.py", &SERVER.replace("server.close()", "server.shutdown(2)"));
    let script = script.to_str().expect("a path");
    let text = address.to_string();
    let Some(mut supervisor) = run(&scene, &[], &["python3", script, &text]) else { return };
    let inode = only(address);
    reload(&scene);
    eventually("generation 2 to answer", || {
        let mut client = TcpStream::connect(address).ok()?;
        client.set_read_timeout(Some(DEADLINE)).expect("timeout");
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        answer.contains("x-generation: 2").then_some(())
    });
    assert_eq!(only(address), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn a_program_that_finds_its_socket_listening_says_that_it_is_ready() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let script = "import os, socket, sys, time\n\
        web = socket.socket()\n\
        web.bind(('127.0.0.1', int(sys.argv[1])))\n\
        if not web.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN): web.listen()\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        time.sleep(1000)\n";
    let program = python(script, &[address]);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let inode = only(address);
    assert!(reload(&scene).contains("generation 2 serves"));
    assert_eq!(only(address), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

/// What stops a new generation reaches the thread that listens, and not only the one that takes signals for the process.
#[test]
fn a_thread_that_listens_is_held_in_it() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let (program, source) = (scene.path("threads"), root().join("tests/harness/threads.c"));
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"]).arg(&program).arg(source);
    finish(&mut cc).ok();
    let (program, port) = (program.to_str().expect("a path"), address.port().to_string());
    // The older one hears no SIGTERM: the newer one is held until it is gone.
    let options = ["--retire-timeout", "1m"];
    let Some(mut supervisor) = run(&scene, &options, &[program, &port]) else { return };
    let mut reload = Process::start(scene.bindonce("reload").args(["--name", "web"]));
    supervisor.wait_line("it listens on all that is served now");
    let newer = pid_of(&mut supervisor, 2);
    eventually("its thread to be stopped", || {
        let story = supervisor.story();
        assert!(!story.contains("past listen 2"), "{story}");
        let threads = fs::read_dir(format!("/proc/{newer}/task")).ok()?.flatten();
        let mut states = threads.filter_map(|one| fs::read_to_string(one.path().join("stat")).ok());
        states.any(|stat| stat.contains(") T ")).then_some(())
    });
    assert!(!supervisor.story().contains("past listen 2"), "{}", supervisor.story());
    kill(Pid::from_raw(pid_of(&mut supervisor, 1)), Signal::SIGKILL).expect("kill");
    supervisor.wait_line("past listen 2");
    assert!(reload.wait_exit().success(), "{}", reload.story());
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
