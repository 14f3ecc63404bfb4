//! haproxy 2.6 hangs at its end when a signal arrives after its first thread has left and before
//! the others have. The test stops the second thread at that moment, as a tracer, so it does not
//! depend on luck.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Scene, config, eventually};

/// A configuration with two threads and all connections on the first.
fn on_one_thread(address: SocketAddr, tag: u64) -> String {
    let text = config(address, tag).replace("global\n", "global\n    nbthread 2\n");
    text.replace(&format!("bind {address}\n"), &format!("bind {address} thread 1/1\n"))
}

/// One line of a thread's file in /proc.
fn told(pid: i32, thread: i32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}")).expect("it lives")
}

/// How often the thread has slept, if it sleeps in this call now.
fn sleeps(pid: i32, thread: i32, call: &str) -> Option<u64> {
    told(pid, thread, "wchan").contains(call).then_some(())?;
    let status = told(pid, thread, "status");
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

fn ends_one_that_hangs(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &on_one_thread(address, 1));
    // An admin connection could be on either thread.
    let mut haproxy = Haproxy::begin(&scene, &["--no-admin"], program, &file);
    let (_, pid) = haproxy.wait_serving(&scene);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let other = threads.into_iter().find(|thread| *thread != pid).expect("a second thread");
    let mut client = TcpStream::connect(address).expect("connecting");
    client.write_all(b"GET / HTTP/1.1\r\n").expect("half a request");
    let before = eventually("its second thread to wait for events", || sleeps(pid, other, "poll"));
    scene.write("haproxy.cfg", &on_one_thread(address, 2));
    haproxy.reload(&scene).ok();
    eventually("its second thread to know that it stops", || {
        sleeps(pid, other, "poll").filter(|after| *after > before)
    });
    let thread = Pid::from_raw(other);
    ptrace::seize(thread, ptrace::Options::empty()).expect("tracing its second thread");
    ptrace::interrupt(thread).expect("stopping it");
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it is stopped");
    drop(client);
    let before =
        eventually("its first thread to wait for the second", || sleeps(pid, pid, "futex"));
    // As with `kill -USR1 $(pidof haproxy)` when the service is stopped.
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("a second signal");
    eventually("its first thread to have the signal", || {
        sleeps(pid, pid, "futex").filter(|after| *after > before)
    });
    ptrace::detach(thread, None).expect("letting it go on");
    let version = std::process::Command::new(program).arg("-v").output().expect("its version");
    // Later versions exit by themselves.
    if String::from_utf8_lossy(&version.stdout).contains("version 2.6.12") {
        let line = haproxy.supervisor.wait_line("does not exit");
        assert!(line.contains(&format!("generation=1 pid={pid} signal=\"SIGKILL\"")), "{line}");
    }
    eventually("only the newest one", || (scene.haproxies().len() == 1).then_some(()));
    let status = eventually("the broker and the supervisor to know it", || {
        Some(scene.run("status", &[]).ok()).filter(|status| !status.contains("generation 1"))
    });
    assert!(!status.contains("cut"), "{status}");
}

#[test]
fn one_that_hangs_at_its_end_is_ended() {
    Haproxy::all().for_each(|program| ends_one_that_hangs(&program));
}
