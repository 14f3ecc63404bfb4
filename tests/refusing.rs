//! Where a container forbids asking about system calls, or inspecting their callers: there is no
//! filter, one line says so, and everything else works.

use std::process::Command;

use crate::harness::{Finished, Process, Scene, eventually, finish, serves, skip};

/// Makes one system call fail with EPERM, as the profile of a container does, and becomes a
/// command: NUMBER COMMAND...
const WITHOUT: &str = "\
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *one) for one in code))
program = ctypes.create_string_buffer(struct.pack('@HP', 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[2], sys.argv[2:])
";

/// The refused system calls, by number: seccomp(2), which makes a filter, and pidfd_getfd(2), by
/// which a call is inspected.
const REFUSED: [(i64, &str); 2] =
    [(nix::libc::SYS_seccomp, "seccomp"), (nix::libc::SYS_pidfd_getfd, "pidfd_getfd")];

fn without(scene: &Scene, number: i64, command: &Command) -> Command {
    let mut wrapped = scene.command("python3");
    wrapped.args(["-c", WITHOUT, &number.to_string()]).arg(command.get_program());
    wrapped.args(command.get_args());
    wrapped
}

fn has_python() -> bool {
    let has = Command::new("python3").arg("--version").output().is_ok();
    if !has {
        skip("no python3 is installed");
    }
    has
}

fn reload(scene: &Scene) -> Finished {
    scene.run("reload", &["--name", "web"])
}

#[test]
fn a_program_whose_calls_cannot_be_looked_at_is_started_without_or_not_at_all() {
    let script = "import os, socket, sys, time\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        web = socket.socket(fileno=int(os.environ['web']))\n\
        time.sleep(1000)\n";
    for (number, name) in REFUSED.into_iter().filter(|_| has_python()) {
        let (scene, _broker) = Scene::with_broker();
        let listen = format!("web={}", scene.address());
        let start = |option: &str| {
            let mut command = scene.bindonce("run");
            command.args(["--name", "web", option, "--listen", &listen, "--"]);
            without(&scene, number, command.args(["python3", "-c", script]))
        };
        let said = finish(&mut start("--intercept")).fails(1);
        assert!(said.contains(&format!("cannot be intercepted ({name}: EPERM")), "{said}");
        let mut supervisor = Process::start(&mut start("--intercept-if-possible"));
        supervisor.wait_line("started with the sockets of --listen alone");
        supervisor.wait_line(": serving ");
        assert!(reload(&scene).ok().contains(" serves"));
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
    }
}

/// Addresses that haproxy binds itself are searched for afterwards, and reported as usual.
#[test]
fn a_haproxy_whose_calls_cannot_be_seen_is_looked_at_afterwards() {
    let programs: Vec<_> = crate::harness::Haproxy::all().collect();
    for ((number, _), program) in
        REFUSED.into_iter().filter(|_| has_python()).zip(programs.iter().rev().chain(&programs))
    {
        let (scene, _broker) = Scene::with_broker();
        let (address, stats) = (scene.address(), scene.address());
        let write = |tag| {
            let text = crate::harness::config(address, tag);
            let line = format!("global\n    noreuseport\n    stats socket ipv4@{stats}\n");
            scene.write("haproxy.cfg", &text.replace("global\n", &line))
        };
        let mut command = scene.bindonce("run");
        command.args(["--name", "web", "--"]).arg(program).arg("-f").arg(write(1));
        let mut supervisor = Process::start(&mut without(&scene, number, &command));
        supervisor.wait_line("at a reload the older one lets go of it");
        for tag in [2, 3] {
            write(tag);
            reload(&scene).ok();
            serves(address, tag);
        }
        let line = "haproxy's bind() cannot be seen here";
        eventually("that to be told", || supervisor.story().contains(line).then_some(()));
        assert_eq!(supervisor.story().matches(line).count(), 1, "{}", supervisor.story());
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
    }
}

/// After the last stop no generation is started, with epoll or without, so there is nothing to warn
/// of.
#[test]
fn an_orderly_last_stop_warns_of_no_ghosts() {
    for program in crate::harness::Haproxy::all().filter(|_| has_python()) {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let file = scene.write("haproxy.cfg", &crate::harness::config(address, 1));
        let mut command = scene.bindonce("run");
        command.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(file);
        let mut supervisor =
            Process::start(&mut without(&scene, nix::libc::SYS_pidfd_getfd, &command));
        supervisor.wait_line(": serving ");
        serves(address, 1);
        assert!(supervisor.terminate().success(), "{}", supervisor.story());
        let said = supervisor.story();
        assert!(said.contains(": drained "), "{said}");
        assert!(!said.contains("is woken for connections"), "{said}");
    }
}
