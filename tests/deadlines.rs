//! Nothing stops a broker or a supervisor from answering: neither signals that stop other programs,
//! nor a wait for something that never happens. Each test stalls one thing and checks that the rest
//! continues.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::json;

use crate::harness::{Haproxy, Process, Scene, Wire, bindonce, config, eventually, finish, skip};

/// The state letter of /proc/PID/stat; T is stopped.
fn state(process: &Process) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("its stat");
    let after = stat.rsplit_once(") ").map(|(_, after)| after.chars().next());
    after.flatten().expect("a letter")
}

/// Starts a process in its own process group, whose parent is in another group of the session: only
/// there do job control signals stop anything (setpgid(2), "orphaned").
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
    // During endless signals it logs a few lines in ten seconds.
    for (of_broker, signal) in
        [(true, Signal::SIGTSTP), (true, Signal::SIGHUP), (false, Signal::SIGTSTP)]
    {
        let process = if of_broker { &mut broker } else { &mut haproxy.supervisor };
        let (begun, before) = (Instant::now(), process.story().lines().count());
        for _ in 0..60 {
            process.signal(signal);
            // The process has time to read each signal.
            scene.run("ping", &[]).ok();
        }
        let told = process.story().lines().count() - before;
        let most = 20 * (begun.elapsed().as_secs() as usize / 10 + 2);
        assert!(told <= most, "{told} lines of 60 signals\n{}", process.story());
    }
    haproxy.reload(&scene).ok();
}

/// A thread that sends a process signals without pause, until this is dropped.
struct Flood(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Flood {
    fn of(process: &Process, signals: &'static [Signal]) -> Self {
        let pid = Pid::from_raw(process.pid().cast_signed());
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !until.load(Relaxed) {
                for signal in signals {
                    kill(pid, *signal).expect("the process is there");
                }
            }
        });
        Self(over, Some(thread))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.take().map(JoinHandle::join);
    }
}

#[test]
fn signals_without_pause_keep_a_supervisor_from_nothing() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (_, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let ignored = &[Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
    let _flood = Flood::of(&haproxy.supervisor, ignored);
    for _ in 0..3 {
        scene.run("ping", &["--name", "web", "--serving"]).ok();
        haproxy.reload(&scene).ok();
    }
}

#[test]
fn a_haproxy_that_cannot_bind_an_address_of_its_own_stops_nobody() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
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

/// A full pipe, with its reading end.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
    while writer.write(b"x\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("a flag");
    (reader, writer)
}

/// Starts a daemon with this standard error, which no process reads. Afterwards only the daemon has
/// it open.
fn start_unheard(mut command: Command, stderr: &std::io::PipeWriter) -> Unheard {
    let stderr = stderr.try_clone().expect("a copy");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    Unheard(command.spawn().expect("a daemon"))
}

struct Unheard(Child);

impl Unheard {
    /// Ends the daemon in order; fails the test if it does not end.
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
    // The socket file exists before the broker listens.
    eventually("the broker to answer", || Wire::try_connect(&scene.socket()));
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut run = scene.bindonce("run");
    run.args(["--log-level", "debug", "--name", "web", "--"]).arg(program).arg("-f").arg(file);
    let supervisor = start_unheard(run, &writer);
    let ping = || scene.run("ping", &["--name", "web", "--serving"]);
    eventually("it to serve", || (ping().code == Some(0)).then_some(()));
    for _ in 0..5 {
        scene.run("reload", &["--name", "web"]).ok();
    }
    // haproxy dies, and another is started.
    let old = eventually("the older ones to be gone", || match scene.haproxies()[..] {
        [only] => Some(only),
        _ => None,
    });
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("a signal");
    eventually("another to serve", || {
        (!scene.haproxies().contains(&old) && ping().code == Some(0)).then_some(())
    });
    supervisor.end();
    broker.end();
    drop(writer);
    // The daemon ended unread: only the pipe's earlier contents are there.
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the log");
    assert_eq!(text.replace("x\n", ""), "");
}

#[test]
fn what_was_said_before_somebody_reads_standard_error_is_heard_then() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
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
    // It ends in order while its output is read.
    let reading = std::thread::spawn(move || lines.count());
    supervisor.end();
    reading.join().expect("the rest of the log");
}

#[test]
fn a_fault_that_is_sent_ends_a_broker_and_a_supervisor_at_once() {
    let Some(program) = Haproxy::system() else { return };
    for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT] {
        let (scene, mut broker) = Scene::with_broker();
        let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        for process in [&mut broker, &mut haproxy.supervisor] {
            process.signal(signal);
            assert_eq!(process.wait_exit().signal(), Some(signal as i32));
        }
        for pid in scene.haproxies() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("ending it");
        }
    }
}

/// The pid of this supervisor's watchdog.
pub(crate) fn watchdog(haproxy: &Haproxy) -> Pid {
    let pid = haproxy.supervisor.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("its children");
    let is_one = |pid: &&str| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
        command.is_ok_and(|command| command.contains("__watchdog"))
    };
    let found = children.split_whitespace().find(is_one).expect("a watchdog");
    Pid::from_raw(found.parse().expect("a pid"))
}

#[test]
fn a_watchdog_that_is_stopped_is_replaced_and_holds_up_no_end() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let first = watchdog(&haproxy);
    kill(first, Signal::SIGSTOP).expect("stopping it");
    haproxy.reload(&scene).ok();
    haproxy.supervisor.wait_line("starting another");
    let second = watchdog(&haproxy);
    assert_ne!(first, second);
    kill(second, Signal::SIGSTOP).expect("stopping it");
    assert_eq!(haproxy.supervisor.terminate().code(), Some(0));
}

/// Something that a supervisor or a broker may wait for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// The configuration is a pipe without a writer.
    Configuration,
    /// The haproxy that is asked about a condition does not answer.
    Condition,
    /// The new haproxy never becomes haproxy.
    Exec,
    /// The broker does not answer.
    Broker,
}

/// haproxy behind a script that hangs where a file says so; once in a separate process that
/// inherits the listeners.
fn hanging(scene: &Scene, program: &Path) -> PathBuf {
    let path = scene.path("haproxy");
    let script = format!(
        "#!/bin/sh\n\
         case \" $* \" in *\" -c \"*) [ -e {stall}-condition ] && exec sleep 1000;; \
         *) [ -e {stall}-exec ] && sleep 1000;; esac\n\
         exec {program} \"$@\"\n",
        stall = scene.path("stall").display(),
        program = program.display(),
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

/// Stalls each wait in turn, a read twice. The request is refused with a reason in time, and
/// meanwhile every client is answered. Afterwards a reload works, a dead haproxy is restarted, and
/// the service ends. The limit also allows for delays of the parts that are not stalled, on a busy
/// machine.
fn goes_on_while_it_stalls(stall: Stall, reason: &str) {
    let Some(program) = Haproxy::system() else { return };
    let (scene, broker) = Scene::with_broker();
    let text = format!(".if feature(EPOLL)\n.endif\n{}", config(scene.address(), 1));
    let file = scene.write("haproxy.cfg", &text);
    let program = hanging(&scene, &program);
    let mut haproxy = Haproxy::start_with(&scene, &["--ready-timeout", "5s"], &program, &file);
    let marker = scene.path(if stall == Stall::Exec { "stall-exec" } else { "stall-condition" });
    let reads = matches!(stall, Stall::Configuration | Stall::Condition);
    for _ in 0..if reads { 2 } else { 1 } {
        match stall {
            Stall::Configuration => {
                fs::remove_file(&file).expect("removing it");
                mkfifo(&file, Mode::from_bits_truncate(0o600)).expect("a fifo");
            }
            Stall::Condition | Stall::Exec => fs::write(&marker, "").expect("a file"),
            Stall::Broker => broker.signal(Signal::SIGSTOP),
        }
        let mut reload = Process::start(scene.bindonce("reload").args(["--name", "web"]));
        finish(scene.bindonce("ping").args(["--name", "web", "--serving"])).ok();
        assert!(reload.is_running(), "{}", reload.story());
        assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
        let said = reload.story();
        assert!(said.contains(reason), "{said}");
        assert!(said.contains("generation 1 still serves"), "{said}");
        match stall {
            Stall::Configuration => fs::remove_file(&file).expect("removing it"),
            Stall::Condition | Stall::Exec => fs::remove_file(&marker).expect("removing it"),
            Stall::Broker => broker.signal(Signal::SIGCONT),
        }
        scene.write("haproxy.cfg", &text);
    }
    haproxy.reload(&scene).ok();
    let (generation, pid) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
    eventually("another one to serve", || {
        haproxy.serving(&scene).filter(|(next, _)| *next > generation)
    });
    assert_eq!(haproxy.supervisor.terminate().code(), Some(0));
    // A killed process may take a moment to end.
    eventually("all that stalled to be gone", || {
        let left = scene.processes();
        (!left.iter().any(|(_, command)| command.contains("sleep"))).then_some(())
    });
}

#[test]
fn a_configuration_that_cannot_be_read_is_abandoned() {
    goes_on_while_it_stalls(Stall::Configuration, "within 5s: still reading the configuration");
}

#[test]
fn a_haproxy_that_does_not_judge_a_condition_is_abandoned() {
    goes_on_while_it_stalls(Stall::Condition, "within 5s: still reading the configuration");
}

#[test]
fn a_binary_that_is_slow_to_exec_is_abandoned() {
    goes_on_while_it_stalls(Stall::Exec, "was not ready within 5s");
}

#[test]
fn a_broker_that_does_not_answer_is_abandoned() {
    goes_on_while_it_stalls(Stall::Broker, "within 5s: still asking the broker");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, broker) = Scene::with_broker();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let mut deaf = Vec::new();
    for (socket, method) in
        [(scene.socket(), "status"), (scene.path("web.d/control.sock"), "status")]
    {
        let mut client = UnixStream::connect(socket).expect("connecting");
        client.set_nonblocking(true).expect("a flag");
        let request = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}\n");
        // Until the requests are no longer read.
        while client.write(request.as_bytes()).is_ok() {}
        deaf.push(client);
    }
    finish(scene.bindonce("ping").args(["--name", "web"])).ok();
    finish(&mut scene.bindonce("ping")).ok();
    haproxy.reload(&scene).ok();
    assert_eq!(haproxy.supervisor.terminate().code(), Some(0));
    drop((deaf, broker));
}

#[test]
fn a_broker_whose_configuration_cannot_be_read_again_answers_and_keeps_its_rules() {
    let scene = Scene::new();
    let file = scene.write("broker.toml", "[limits]\nconnections = 100\n");
    let mut command = scene.bindonce("serve");
    let mut broker = Process::start(command.arg("--config").arg(&file));
    broker.wait_line("broker serves");
    fs::remove_file(&file).expect("removing it");
    mkfifo(&file, Mode::from_bits_truncate(0o600)).expect("a fifo");
    broker.signal(Signal::SIGHUP);
    broker.wait_line("told to read the configuration again");
    finish(&mut scene.bindonce("ping")).ok();
    broker.wait_line("the rules and limits stay as they were");
    fs::remove_file(&file).expect("removing it");
    scene.write("broker.toml", "[limits]\nconnections = 200\n");
    broker.signal(Signal::SIGHUP);
    broker.wait_line("rules and limits read again");
    assert_eq!(broker.terminate().code(), Some(0));
}

/// A broker in a mount namespace where this nscd is the name service. glibc asks nscd before it
/// reads /etc/passwd.
fn broker_with_name_service(scene: &Scene, nscd: &Path) -> Process {
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/nscd && ln -s \"$NSCD\" /run/nscd/socket \
                  && exec \"$@\"";
    let mut command = scene.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(bindonce());
    command.args(["serve", "--socket"]).arg(scene.socket()).env("NSCD", nscd);
    let mut broker = Process::start(&mut command);
    scene.wait_broker(&mut broker);
    broker
}

#[test]
fn a_name_service_that_does_not_answer_holds_up_only_the_claims_that_need_it() {
    let scene = Scene::new();
    let mut mount = scene.command("unshare");
    let mounted = finish(mount.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"]));
    if mounted.code != Some(0) {
        return skip("needs root, for a name service of its own");
    }
    let nscd = scene.path("nscd");
    let service = UnixListener::bind(&nscd).expect("a socket");
    service.set_nonblocking(true).expect("a flag");
    let _broker = broker_with_name_service(&scene, &nscd);
    let at = |name: &str| format!("unix@{}", scene.path(name).display());
    let mut other = scene.wire();
    other.bind(&[at("held").as_str()]);
    let wanted = [
        json!({"listen": at("new") + ",user=root"}),
        json!({"listen": at("held") + ",group=root", "change": true}),
    ];
    let mut waiting = Vec::new();
    for element in &wanted {
        let mut wire = scene.wire();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [element]});
        wire.send(request.to_string().as_bytes());
        waiting.push(wire);
    }
    let asked = eventually("the broker to ask", || service.accept().ok());
    // Numbers need no name service.
    other.bind(&[(at("number") + ",user=0,group=0").as_str()]);
    for wire in &mut waiting {
        assert!(wire.is_quiet(), "it was answered before the name service");
    }
    for (wire, who) in waiting.iter_mut().zip(["user \"root\"", "group \"root\""]) {
        let reply = wire.reply();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        let late = "the name service did not answer within 5s";
        assert!(message.contains(who) && message.contains(late), "{reply}");
    }
    assert!(!scene.path("new").exists());
    // Without a server at its socket, glibc reads the files.
    drop((service, asked));
    for (wire, element) in waiting.iter_mut().zip(&wanted) {
        wire.call("bind", &json!([element]));
    }
}
