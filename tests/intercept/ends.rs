//! The supervisor, its watchdog or the broker is killed, stopped or upgraded while a program calls: the call is answered by who comes next, or
//! fails with an errno, and never waits for ever.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{BINDER, only, pid_of, python, reload, run};
use crate::harness::{Process, Scene, Wire, allow, eventually};

/// Listens on the first port; once there is a file `go` it binds the second one, and says what has come of it.
const LATE: &str = "\
import errno, os, socket, sys, time
first = socket.socket()
first.bind(('127.0.0.1', int(sys.argv[1])))
first.listen()
while not os.path.exists('go'): time.sleep(0.01)
second = socket.socket()
try:
    second.bind(('127.0.0.1', int(sys.argv[2])))
    second.listen()
    print('second', os.fstat(second.fileno()).st_ino, flush=True)
except OSError as error: print('second', errno.errorcode[error.errno], flush=True)
time.sleep(1000)
";

/// [`LATE`] under a supervisor.
struct Late {
    supervisor: Process,
    program: Vec<String>,
    first: SocketAddr,
    second: SocketAddr,
    pid: i32,
}

impl Late {
    fn start(scene: &Scene) -> Option<Self> {
        let (first, second) = (scene.address(), scene.address());
        let program = python(LATE, &[first, second]);
        let mut supervisor = run(scene, &[], &program)?;
        let pid = pid_of(&mut supervisor, 1);
        is_confirmed(scene);
        Some(Self { supervisor, program, first, second, pid })
    }

    /// Has it bind, and waits until it waits there.
    fn binds(&self, scene: &Scene) {
        scene.write("go", "");
        eventually("it to wait in bind()", || {
            let waits = fs::read_to_string(format!("/proc/{}/syscall", self.pid)).ok()?;
            waits.starts_with(&format!("{} ", nix::libc::SYS_bind)).then_some(())
        });
    }

    /// Waits until its supervisor has received a call and not answered it, by what it has written down of that.
    fn is_received(&self) {
        let directory = format!("/proc/{}/fd", self.supervisor.pid());
        eventually("its call to be received", || {
            let mut open = fs::read_dir(&directory).ok()?.flatten();
            let ledger = open.find(|fd| {
                let name = fs::read_link(fd.path()).unwrap_or_default();
                name.to_string_lossy().contains("bindonce-calls")
            })?;
            let bytes = fs::read(ledger.path()).ok()?;
            // How many there are, behind two other numbers.
            let count = bytes.get(16..24)?.try_into().ok()?;
            (u64::from_ne_bytes(count) == 1).then_some(())
        });
    }

    #[track_caller]
    fn is_answered(&mut self) {
        self.is_answered_beside(&[]);
    }

    /// The program's line and these of the log come in any order.
    #[track_caller]
    fn is_answered_beside(&mut self, logged: &[&str]) {
        let lines = self.supervisor.wait_lines(&[&["second "], logged].concat()).concat();
        assert!(lines.contains(&format!("second {}", only(self.second))), "{lines}");
    }

    fn run_again(&self, scene: &Scene) -> Process {
        run(scene, &[], &self.program).expect("the next supervisor")
    }
}

/// Until the broker has heard that the first generation serves, it closes what that one has opened when its supervisor goes.
fn is_confirmed(scene: &Scene) {
    eventually("the broker to know that it serves", || {
        scene.run("list", &[]).ok().contains(" serving").then_some(())
    });
}

/// It waits for a broker that does not answer, and the image that received it is another one when it does.
#[test]
fn a_bind_that_waits_while_the_supervisor_is_upgraded_is_answered_after_it() {
    let (scene, broker) = Scene::with_broker();
    let Some(mut late) = Late::start(&scene) else { return };
    only(late.first);
    broker.signal(Signal::SIGSTOP);
    late.binds(&scene);
    let before = image(&late.supervisor);
    let mut upgrade = Process::start(scene.bindonce("upgrade").args(["--name", "web"]));
    eventually("the new image", || (image(&late.supervisor) != before).then_some(()));
    broker.signal(Signal::SIGCONT);
    assert!(upgrade.wait_exit().success(), "{}", upgrade.story());
    late.is_answered();
    assert!(late.supervisor.terminate().success(), "{}", late.supervisor.story());
}

/// Where the kernel has put things: the same for as long as it is one image.
fn image(process: &Process) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{}/auxv", process.pid())).ok()
}

/// The broker does not answer the new image: it goes on with the listeners that it has, and claims them when the broker is back.
#[test]
fn an_upgrade_while_the_broker_is_stopped_goes_on() {
    let (scene, broker) = Scene::with_broker();
    let Some(mut late) = Late::start(&scene) else { return };
    let inode = only(late.first);
    broker.signal(Signal::SIGSTOP);
    scene.run("upgrade", &["--name", "web"]).ok();
    late.supervisor.wait_line("continuing with the listeners that it gave before");
    let mut control = Wire::try_connect(&scene.path("web.d/control.sock")).expect("a supervisor");
    let status = control.call("status", &json!([])).to_string();
    assert!(status.contains("\"serving\""), "{status}");
    late.binds(&scene);
    late.is_received();
    broker.signal(Signal::SIGCONT);
    late.is_answered_beside(&["reconnected to the broker"]);
    scene.run("reload", &["--name", "web"]).ok();
    assert_eq!(only(late.first), inode);
    // Not released while it was away: the lease is there again.
    let busy = scene.wire().error("release", &json!([late.first.to_string()]));
    assert_eq!(busy["code"], -32007, "{busy}");
    assert!(late.supervisor.terminate().success(), "{}", late.supervisor.story());
}

#[test]
fn a_bind_after_the_supervisor_was_killed_is_answered_by_the_next_one() {
    let (scene, _broker) = Scene::with_broker();
    let Some(mut late) = Late::start(&scene) else { return };
    let inode = only(late.first);
    late.supervisor.kill();
    late.binds(&scene);
    let mut next = late.run_again(&scene);
    late.is_answered();
    assert!(!next.story().contains("ENOSYS"), "{}", next.story());
    reload(&scene);
    assert_eq!(only(late.first), inode);
    assert!(next.terminate().success(), "{}", next.story());
}

/// The kernel tells of a call once: who is killed then has written it down for the next one.
#[test]
fn a_bind_that_a_killed_supervisor_had_received_is_answered_by_the_next_one() {
    let (scene, broker) = Scene::with_broker();
    let Some(mut late) = Late::start(&scene) else { return };
    broker.signal(Signal::SIGSTOP);
    late.binds(&scene);
    late.is_received();
    late.supervisor.kill();
    broker.signal(Signal::SIGCONT);
    let mut next = late.run_again(&scene);
    late.is_answered();
    assert!(next.terminate().success(), "{}", next.story());
}

#[test]
fn without_a_next_supervisor_a_bind_fails_until_there_is_one() {
    let (scene, _broker) = Scene::with_broker();
    let (address, late) = (scene.address(), scene.address());
    let program = python(BINDER, &[address, late]);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let inode = only(address);
    supervisor.wait_line("said bound");
    is_confirmed(&scene);
    supervisor.signal(Signal::SIGKILL);
    let begun = Instant::now();
    // Its output goes on where ours did.
    supervisor.wait_line("said EADDRNOTAVAIL");
    let (took, most) = (begun.elapsed(), Duration::from_secs(10) + allow(Duration::from_secs(2)));
    assert!(took < most, "it took {took:?}, at most {most:?}");
    supervisor.wait_line("said EADDRNOTAVAIL");
    assert_eq!(only(address), inode);
    let mut next = run(&scene, &[], &program).expect("the next supervisor");
    // The generation of before, without a reload.
    supervisor.wait_line("said bound");
    assert!(!next.story().contains("ENOSYS"), "{}", next.story());
    assert_eq!(scene.run("upgrade", &["--name", "web"]).code, Some(0));
    supervisor.wait_line("said bound");

    // With its watchdog nobody is left to answer.
    for (watchdog, _) in scene.processes().iter().filter(|(_, it)| it.contains("__watchdog")) {
        kill(Pid::from_raw(*watchdog), Signal::SIGKILL).expect("kill");
    }
    next.signal(Signal::SIGKILL);
    supervisor.wait_line("said ENOSYS");
    let mut last = run(&scene, &[], &program).expect("the last supervisor");
    assert!(last.story().contains("its bind() fails with ENOSYS"), "{}", last.story());
    reload(&scene);
    last.wait_line("said bound");
    reload(&scene);
    // What is bound and not listened on is no part of it.
    last.wait_line("it listens on all that is served now");
    assert_eq!(only(address), inode);
    assert!(last.terminate().success(), "{}", last.story());
}

/// Nobody answers it any more: no copy of the descriptor may be left, or it would wait for ever.
#[test]
fn a_process_that_has_outlived_its_generation_gets_an_error_when_the_next_supervisor_comes() {
    let (scene, _broker) = Scene::with_broker();
    let (address, late) = (scene.address(), scene.address());
    // The first process only waits.
    let script = BINDER.replace(
        "while True:",
        "if os.fork(): time.sleep(1000)\nprint('child', os.getpid())\nwhile True:",
    );
    let program = python(&script, &[address, late]);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let first = pid_of(&mut supervisor, 1);
    let child: i32 = eventually("its pid", || {
        let story = supervisor.story();
        story.lines().find_map(|line| line.split_once("| child "))?.1.parse().ok()
    });
    is_confirmed(&scene);
    supervisor.kill();
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("kill");
    // One that still ends would be taken over, and the child end with it.
    eventually("its end", || {
        let stat = fs::read_to_string(format!("/proc/{first}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
    let mut next = run(&scene, &[], &program).expect("the next supervisor");
    supervisor.wait_line("said ENOSYS");
    next.wait_line("said bound");
    kill(Pid::from_raw(child), Signal::SIGKILL).expect("kill");
    assert!(next.terminate().success(), "{}", next.story());
}

/// It does not answer calls, and says so; what the program has stays and is served.
#[test]
fn a_next_supervisor_without_intercept_lets_each_bind_fail() {
    let (scene, _broker) = Scene::with_broker();
    let (address, late) = (scene.address(), scene.address());
    let program = python(BINDER, &[address, late]);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let inode = only(address);
    supervisor.wait_line("said bound");
    is_confirmed(&scene);
    supervisor.kill();
    let listen = format!("other={}", scene.address());
    let mut next = scene.bindonce("run");
    next.args(["--name", "web", "--listen", &listen, "--"]).args(program);
    let mut next = Process::start(&mut next);
    next.wait_line("--intercept, and this supervisor was not: its bind() fails with ENOSYS");
    supervisor.wait_line("said ENOSYS");
    assert_eq!(only(address), inode);
    assert!(next.terminate().success(), "{}", next.story());
}
