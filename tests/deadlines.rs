//! Nothing stops a broker or a supervisor from answering: neither signals that stop other programs, nor
//! a wait for something that never comes. Each test stalls one thing, and asks for what must go on.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Process, Scene, config, eventually, finish};

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

/// A pipe that takes nothing more, and its reading end.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
    while writer.write(b"x\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("a flag");
    (reader, writer)
}

/// Starts a daemon whose standard error is this, which nobody reads. Only the daemon has it then.
fn start_unheard(mut command: Command, stderr: &std::io::PipeWriter) -> Unheard {
    let stderr = stderr.try_clone().expect("a copy");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    Unheard(command.spawn().expect("a daemon"))
}

struct Unheard(Child);

impl Unheard {
    /// Ends it in order; fails the test if it does not end.
    fn end(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("a signal");
        eventually("the daemon to end", || self.0.try_wait().expect("a child"));
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn standard_error_that_nobody_reads_holds_up_no_start_no_reload_and_no_end() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (mut reader, writer) = full_pipe();
    let broker = start_unheard(scene.bindonce("serve"), &writer);
    eventually("the broker to listen", || scene.socket().exists().then_some(()));
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut run = scene.bindonce("run");
    run.args(["--log-level", "debug", "--name", "web", "--"]).arg(program).arg("-f").arg(file);
    let supervisor = start_unheard(run, &writer);
    let ping = || scene.run("ping", &["--name", "web", "--serving"]);
    eventually("it to serve", || (ping().code == Some(0)).then_some(()));
    for _ in 0..5 {
        scene.run("reload", &["--name", "web"]).ok();
    }
    // It dies, and another is started.
    let old = scene.haproxies()[0];
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("a signal");
    eventually("another to serve", || {
        (!scene.haproxies().contains(&old) && ping().code == Some(0)).then_some(())
    });
    supervisor.end();
    broker.end();
    drop(writer);
    // Ended without having been heard: what was in the pipe before is all there is.
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the log");
    assert_eq!(text.replace("x\n", ""), "");
}

#[test]
fn what_was_said_before_somebody_reads_standard_error_is_heard_then() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let (reader, writer) = full_pipe();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut run = scene.bindonce("run");
    run.args(["--name", "web", "--"]).arg(program).arg("-f").arg(file);
    let supervisor = start_unheard(run, &writer);
    let ping = || scene.run("ping", &["--name", "web", "--serving"]);
    eventually("it to serve", || (ping().code == Some(0)).then_some(()));
    scene.run("reload", &["--name", "web"]).ok();
    drop(writer);
    let mut lines = BufReader::new(reader).lines().map(|line| line.expect("a line"));
    for wanted in ["started generation=1", "started generation=2", "serving generation=2"] {
        assert!(lines.any(|line| line.contains(wanted)), "no line with {wanted:?}");
    }
    // While somebody reads it is ended in order.
    let reading = std::thread::spawn(move || lines.count());
    supervisor.end();
    reading.join().expect("the rest of the log");
}
