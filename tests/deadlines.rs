//! Nothing stops a broker or a supervisor from answering: neither signals that stop other programs, nor
//! a wait for something that never comes. Each test stalls one thing, and asks for what must go on.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process, Scene, config, finish};

/// The letter of /proc/PID/stat for what a process does now; T is stopped.
fn state(process: &Process) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("its stat");
    let after = stat.rsplit_once(") ").map(|(_, after)| after.chars().next());
    after.flatten().expect("a letter")
}

/// In a process group of its own, whose parent is in another one of the session: nowhere else do
/// the signals of job control stop anything (setpgid(2), "orphaned").
fn start_in_a_group(scene: &Scene, words: &[&str]) -> Process {
    let mut command = scene.bindonce(words[0]);
    Process::start(command.args(&words[1..]).process_group(0))
}

#[test]
fn signals_of_job_control_stop_no_broker_and_no_supervisor() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let mut broker = start_in_a_group(&scene, &["serve"]);
    broker.wait_line("broker serves");
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let (program, file) = (program.display().to_string(), file.display().to_string());
    let supervisor =
        start_in_a_group(&scene, &["run", "--name", "web", "--", &program, "-f", &file]);
    let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        for process in [&mut broker, &mut haproxy.supervisor] {
            process.signal(signal);
            process.wait_line("signal ignored");
            assert_ne!(state(process), 'T', "{signal}");
        }
    }
    haproxy.reload(&scene).ok();
}

#[test]
fn a_haproxy_that_cannot_bind_an_address_of_its_own_stops_nobody() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = occupied.local_addr().expect("its address");
    let text = config(scene.address(), 1);
    let file = scene.write("haproxy.cfg", &text);
    let (program, file) = (program.display().to_string(), file.display().to_string());
    let words = ["run", "--name", "web", "--", &program, "-L", "me", "-f", &file];
    let supervisor = start_in_a_group(&scene, &words);
    let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    scene.write("haproxy.cfg", &format!("{text}peers p\n    peer me {address}\n"));
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains("Address already in use"), "{said}");
    haproxy.supervisor.wait_line("cannot bind an address; it asks the older haproxy");
    assert_ne!(state(&haproxy.supervisor), 'T');
    finish(scene.bindonce("ping").args(["--name", "web", "--serving"])).ok();
    drop(occupied);
    haproxy.reload(&scene).ok();
}
