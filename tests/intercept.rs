//! Programs that take no descriptors and were told nothing: their bind() is answered with the broker's socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{DEADLINE, Guest, Process, Scene, eventually, listening, root, skip};

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

/// A supervisor of a program that is intercepted, once it serves; none, with the reason told, where the kernel refuses.
fn run(scene: &Scene, options: &[&str], program: &[&str]) -> Option<Process> {
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

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|found| found.status.success());
    if !found {
        skip(&format!("no {program} is installed"));
    }
    found
}

#[test]
fn generations_that_bind_by_themselves_share_one_socket_and_lose_nobody() {
    let scene = Scene::new();
    let _broker = scene.broker();
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
    let scene = Scene::new();
    let _broker = scene.broker();
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

/// It waits for a broker that does not answer, and the image that received it is another one when it does.
#[test]
fn a_bind_that_waits_while_the_supervisor_is_upgraded_is_answered_after_it() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (address, late) = (scene.address(), scene.address());
    let script = "import os, socket, sys, time\n\
        def bind(port):\n\
        \x20   one = socket.socket(); one.bind(('127.0.0.1', port)); one.listen(); return one\n\
        first = bind(int(sys.argv[1]))\n\
        while not os.path.exists('go'): time.sleep(0.01)\n\
        second = bind(int(sys.argv[2]))\n\
        print('second', os.fstat(second.fileno()).st_ino, flush=True)\n\
        time.sleep(1000)\n";
    let ports = [address.port().to_string(), late.port().to_string()];
    let program = ["python3", "-c", script, &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let pid = pid_of(&mut supervisor, 1);
    only(address);
    broker.signal(Signal::SIGSTOP);
    scene.write("go", "");
    eventually("it to wait in bind()", || {
        let waits = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
        waits.starts_with(&format!("{} ", nix::libc::SYS_bind)).then_some(())
    });
    // Where the kernel has put things: the same for as long as it is one image.
    let image = || fs::read(format!("/proc/{}/auxv", supervisor.pid())).ok();
    let before = image();
    let mut upgrade = Process::start(scene.bindonce("upgrade").args(["--name", "web"]));
    eventually("the new image", || (image() != before).then_some(()));
    broker.signal(Signal::SIGCONT);
    assert!(upgrade.wait_exit().success(), "{}", upgrade.story());
    let second = supervisor.wait_line("second ");
    assert!(second.contains(&format!("second {}", only(late))), "{second}");
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn nginx_binds_and_reloads_by_itself_also_after_an_upgrade_of_the_supervisor() {
    let Some(nginx) = Guest::Nginx.program() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let (one, other) = (scene.address(), scene.address());
    let configuration = |other: SocketAddr| {
        let text = Guest::Nginx.config(&scene, one, 1);
        let text = text.replace("    keepalive", &format!(
            "    server {{ listen {other} reuseport; location / {{ return 200; }} }}\n    keepalive"
        ));
        scene.write("nginx.conf", &format!("daemon off;\n{text}"))
    };
    let file = configuration(other);
    let (nginx, file) = (nginx.to_str().expect("a path"), file.to_str().expect("a path"));
    let retire = ["--retire-signal", "SIGQUIT"];
    let program = [nginx, "-e", "stderr", "-c", file];
    let Some(mut supervisor) = run(&scene, &retire, &program) else { return };
    let inode = only(one);
    // Each worker binds it with SO_REUSEPORT, and all get the same.
    only(other);
    reload(&scene);
    assert_eq!(only(one), inode);
    scene.run("upgrade", &["--name", "web"]).ok();
    let third = scene.address();
    configuration(third);
    // Not by its pid file, which the older one removes when it ends.
    kill(Pid::from_raw(pid_of(&mut supervisor, 2)), Signal::SIGHUP).expect("kill");
    eventually("what it binds after the upgrade to be the broker's", || {
        let held = scene.run("list", &[]).ok();
        held.contains(&third.to_string()).then_some(())
    });
    only(third);
    assert_eq!(only(one), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn other_programs_of_debian_share_one_socket() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let port = address.port().to_string();
    let here = scene.path("");
    let modules = "/usr/lib/apache2/modules";
    let apache = scene.write("apache.conf", &format!(
        "ServerRoot {here}\nPidFile {here}/pid.${{BINDONCE_GENERATION}}\nListen {address}\nServerName x\n\
         LoadModule mpm_event_module {modules}/mod_mpm_event.so\nErrorLog /dev/stderr\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\n",
        here = here.display()
    ));
    let node = scene.write(
        "server.js",
        &format!(
            "require('http').createServer((q, r) => r.end()).listen({port}, '127.0.0.1');\n\
         process.on('SIGTERM', () => process.exit(0));\n"
        ),
    );
    let (apache, node) = (apache.display().to_string(), node.display().to_string());
    for (retire, program) in [
        ("SIGTERM", &["python3", "-m", "http.server", &port, "--bind", "127.0.0.1"][..]),
        ("SIGWINCH", &["apache2", "-DFOREGROUND", "-f", &apache]),
        ("SIGTERM", &["node", &node]),
    ] {
        if !has(program[0]) {
            continue;
        }
        let Some(mut supervisor) = run(&scene, &["--retire-signal", retire], program) else {
            return;
        };
        let inode = only(address);
        let said = reload(&scene);
        assert!(said.contains(" serves"), "{program:?}: {said}");
        if program[0] == "apache2" {
            // It closes and binds by itself; each generation has said this once.
            let generation = said.split("generation ").nth(1).expect("a generation");
            let generation = generation.split(' ').next().and_then(|text| text.parse().ok());
            let pid = pid_of(&mut supervisor, generation.expect("a number"));
            kill(Pid::from_raw(pid), Signal::SIGHUP).expect("kill");
            let resumed = "resuming normal operations";
            eventually("apache2 to have reloaded by itself", || {
                (supervisor.story().matches(resumed).count() == 3).then_some(())
            });
            TcpStream::connect(address).expect("connect");
        }
        assert_eq!(only(address), inode, "{program:?}");
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
        scene.run("release", &[&address.to_string()]).ok();
    }
}

#[test]
fn a_bind_that_the_broker_refuses_fails_in_the_program_as_one_of_the_kernels() {
    let scene = Scene::new();
    let addresses: Vec<_> = (0..3).map(|_| scene.address()).collect();
    let ports: Vec<_> = addresses.iter().map(|at| at.port().to_string()).collect();
    let rule = format!(
        "[[rule]]\nuid = {}\nallow = ['bind', 'use', 'list', 'release', 'store']\naddresses = ['127.0.0.0/8:{}', '127.0.0.0/8:{}']\n",
        nix::unistd::getuid(),
        ports[0],
        ports[1]
    );
    let file = scene.write("broker.toml", &rule);
    let mut broker = Process::start(scene.bindonce("serve").arg("--config").arg(&file));
    scene.wait_broker(&mut broker);
    let _taken = TcpListener::bind(addresses[1]).expect("bind");
    let program = ["python3", "-c", BINDER, &ports[0], &ports[1], &ports[2], "0", &ports[0]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    supervisor.wait_line("said EADDRINUSE EACCES bound bound");
    let story = supervisor.story();
    assert!(story.contains("refused (EADDRINUSE)"), "{story}");
    assert!(supervisor.terminate().success());
}

/// Binds a socket that it has under two numbers, that is registered with epoll under both, and that one thread has in a table of its
/// own; then accepts by epoll alone.
const BEFOREHAND: &str = "\
import ctypes, os, select, socket, sys, threading
one = socket.socket()
one.setblocking(False)
copy = one.dup()
os.set_inheritable(copy.fileno(), True)
epoll = select.epoll()
epoll.register(one.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
epoll.register(copy.fileno(), select.EPOLLIN | select.EPOLLET)
one.bind(('127.0.0.1', int(sys.argv[1])))
epoll.modify(copy.fileno(), select.EPOLLIN)
apart = []
def bind_apart():
    # CLONE_FILES
    assert ctypes.CDLL(None).unshare(0x400) == 0
    other = socket.socket()
    other.bind(('127.0.0.1', int(sys.argv[2])))
    apart.append(os.readlink(f'/proc/thread-self/fd/{other.fileno()}'))
    other.listen(5)
thread = threading.Thread(target=bind_apart)
thread.start()
thread.join()
flags = [os.get_inheritable(each.fileno()) for each in (one, copy)]
print('has', os.fstat(one.fileno()).st_ino, os.fstat(copy.fileno()).st_ino, *flags, apart[0], flush=True)
copy.listen(5)
while True:
    for number, events in epoll.poll():
        try: (one if number == one.fileno() else copy).accept()[0].sendall(b'served')
        except BlockingIOError: pass
";

#[test]
fn a_socket_is_replaced_wherever_the_program_has_it() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let addresses: Vec<_> = (0..2).map(|_| scene.address()).collect();
    let ports: Vec<_> = addresses.iter().map(|at| at.port().to_string()).collect();
    let program = ["python3", "-c", BEFOREHAND, &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let (inode, apart) = (only(addresses[0]), only(addresses[1]));
    // The second is not inherited, the first is.
    let has = format!("has {inode} {inode} False True socket:[{apart}]");
    eventually("the broker's sockets", || supervisor.story().contains(&has).then_some(()));
    for _ in 0..3 {
        let mut client = TcpStream::connect(addresses[0]).expect("connect");
        client.set_read_timeout(Some(DEADLINE)).expect("timeout");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "served");
    }
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn where_the_kernel_refuses_a_program_has_its_sockets_by_listen_or_an_error() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let script = "import os, socket, time\n\
        web = socket.socket(fileno=int(os.environ['web']))\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        print('inode is', os.fstat(web.fileno()).st_ino, flush=True)\n\
        time.sleep(1000)\n";
    let inner = |option: &str| {
        let listen = format!("web={address}");
        let mut words = scene.bindonce("run");
        words.args(["--name", "web", option, "--listen", &listen, "--"]);
        words.args(["python3", "-c", script]);
        let words = std::iter::once(words.get_program()).chain(words.get_args());
        words.map(|word| word.to_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    // What asks about the calls of both.
    let outer = |option: &str| {
        let mut command = scene.bindonce("run");
        command.args(["--name", "outer", "--ready-delay", "1ms", "--intercept", "/none", "--"]);
        Process::start(command.args(inner(option)))
    };
    let mut supervisor = outer("--intercept-if-possible");
    let inode = eventually("it to be started without, or the outer one to be refused", || {
        let story = supervisor.story();
        if !supervisor.is_running() && story.contains("cannot be intercepted") {
            skip("bind() cannot be intercepted: seccomp(2) is refused");
            return Some(None);
        }
        let without = story.contains("started with the sockets of --listen alone");
        let has =
            story.lines().find_map(|line| line.split_once("inode is "))?.1.parse::<u64>().ok()?;
        without.then_some(Some(has))
    });
    let Some(inode) = inode else { return };
    assert!(reload(&scene).contains("generation 2 serves"));
    assert_eq!(only(address), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    let mut supervisor = outer("--intercept");
    supervisor.wait_line("something around this program");
    supervisor.terminate();
}

#[test]
fn a_program_that_finds_its_socket_listening_says_that_it_is_ready() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let script = "import os, socket, sys, time\n\
        web = socket.socket()\n\
        web.bind(('127.0.0.1', int(sys.argv[1])))\n\
        if not web.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN): web.listen()\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        time.sleep(1000)\n";
    let port = address.port().to_string();
    let Some(mut supervisor) = run(&scene, &[], &["python3", "-c", script, &port]) else { return };
    let inode = only(address);
    assert!(reload(&scene).contains("generation 2 serves"));
    assert_eq!(only(address), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn what_is_not_named_is_left_alone() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let (named, other) = (scene.address(), scene.address());
    let ports = [named.port().to_string(), other.port().to_string()];
    let only_named = format!("web={named}");
    let program = ["python3", "-c", BINDER, &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &[&only_named], &program) else { return };
    supervisor.wait_line("said bound");
    let held = scene.run("list", &[]).ok();
    assert!(held.contains("web") && !held.contains(&ports[1]), "{held}");
    assert!(supervisor.terminate().success());
}

#[test]
fn udp_and_unix_sockets_are_shared_where_they_are_named() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let (web, dns) = (scene.address(), scene.address());
    let path = scene.path("app.sock");
    let script = "import os, socket, sys, time\n\
        def bind(family, kind, at):\n\
        \x20   one = socket.socket(family, kind); one.bind(at); return one\n\
        app = bind(socket.AF_UNIX, socket.SOCK_STREAM, 'app.sock'); app.listen()\n\
        dns = bind(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', int(sys.argv[2])))\n\
        web = bind(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', int(sys.argv[1]))); web.listen()\n\
        print('inodes', *(os.fstat(one.fileno()).st_ino for one in (app, dns, web)), flush=True)\n\
        time.sleep(1000)\n";
    let named = [format!("app={}", path.display()), format!("dns=udp@{dns}"), web.to_string()];
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    let ports = [web.port().to_string(), dns.port().to_string()];
    let program = ["python3", "-c", script, &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &named, &program) else { return };
    reload(&scene);
    let inodes = eventually("both generations to have said it", || {
        let story = supervisor.story();
        let said: Vec<_> = story.lines().filter_map(|line| line.split_once("inodes ")).collect();
        let [(_, before), (_, after)] = said[..] else { return None };
        Some((before.to_owned(), after.to_owned()))
    });
    assert_eq!(inodes.0, inodes.1);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn a_supervisor_that_is_killed_leaves_a_bind_that_fails_and_the_next_one_goes_on() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let (address, late) = (scene.address(), scene.address());
    let ports = [address.port().to_string(), late.port().to_string()];
    let program = ["python3", "-c", BINDER, &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let inode = only(address);
    supervisor.wait_line("said bound");
    supervisor.signal(Signal::SIGKILL);
    // Its output goes on where ours did.
    supervisor.wait_line("said ENOSYS");
    assert_eq!(only(address), inode);
    let Some(mut next) = run(&scene, &[], &program) else { return };
    assert!(next.story().contains("its bind() fails with ENOSYS"), "{}", next.story());
    reload(&scene);
    next.wait_line("said bound");
    reload(&scene);
    // What is bound and not listened on is no part of it.
    next.wait_line("it listens on all that is served now");
    assert_eq!(only(address), inode);
    assert!(next.terminate().success(), "{}", next.story());
}

#[test]
fn a_hostile_program_harms_only_itself() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let (named, other) = (scene.address(), scene.address());
    let ports = [named.port().to_string(), other.port().to_string()];
    let script = root().join("tests/harness/hostile.py");
    let program = ["python3", script.to_str().expect("a path"), &ports[0], &ports[1]];
    let only_named = named.to_string();
    let Some(mut supervisor) = run(&scene, &[&only_named], &program) else { return };
    let inode = only(named);
    let line = supervisor.wait_line("did its worst");
    println!("{line}");
    if line.contains("i386 none") {
        skip("a bind() of an i386 program: this kernel runs none");
    } else if cfg!(target_arch = "x86_64") {
        // The same socket, not one of its own.
        assert!(line.contains(&format!("i386 {inode}")), "{line}, not {inode}");
    }
    if line.contains("stalled none") {
        skip("memory that stalls: userfaultfd(2) is refused");
    } else {
        // Also the one whose memory is there: its calls are looked at no more.
        assert!(line.contains("stalled [-1, -1, -1, -1]"), "{line}");
    }
    // Nothing was claimed but what is named, whatever was in its memory when.
    let held = scene.wire().call("list", &json!([]));
    let held = held["listeners"].as_array().expect("listeners");
    assert_eq!(held.len(), 1, "{held:?}");
    reload(&scene);
    assert_eq!(only(named), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
