//! The messages to a service manager under `-Ws` (sd_notify(3)): byte for byte those of haproxy's
//! own master from 3.0 on.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Haproxy, Process};
use crate::stand_in::Caller;

/// The service manager of a unit with Type=notify.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message, with MAINPID and the time replaced by words.
    #[track_caller]
    fn heard(&self, of: u32) -> String {
        let mut text = [0; 512];
        let length = self.0.recv(&mut text).expect("a state");
        let text = String::from_utf8_lossy(&text[..length]);
        let text = text.replace(&format!("MAINPID={of}"), "MAINPID=PID");
        let time = |line: &str| line.starts_with("MONOTONIC_USEC=").then_some("MONOTONIC_USEC=N");
        text.split('\n').map(|line| time(line).unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }
}

/// All messages from a start to the end, with reloads that succeed and fail.
fn life(caller: &Caller, mut command: Command, stop: Signal) -> Vec<String> {
    caller.configure("", 1);
    let path = caller.scene.path("notify");
    let manager = Manager(UnixDatagram::bind(&path).expect("a socket"));
    manager.0.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut haproxy = Process::start(command.env("NOTIFY_SOCKET", &path));
    let pid = haproxy.pid();
    let mut heard = vec![manager.heard(pid)];
    for file in ["good", "bad", "bad", "good"] {
        match file {
            "good" => caller.configure("", 2),
            _ => drop(caller.scene.write("haproxy.cfg", "frontend web\n    bnid :80\n")),
        }
        haproxy.signal(Signal::SIGUSR2);
        heard.extend([manager.heard(pid), manager.heard(pid)]);
    }
    haproxy.signal(stop);
    heard.push(manager.heard(pid));
    assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
    caller.wait_none();
    std::fs::remove_file(path).expect("the socket");
    heard
}

/// As recorded from the masters of 3.0.11 and 3.2.26. The master of 2.6 reports each reload twice,
/// and not whether it failed.
#[test]
fn a_service_manager_hears_what_haproxys_master_says() {
    const READY: &str = "READY=1\nMAINPID=PID\nSTATUS=Ready.\n";
    const RELOADING: &str = "RELOADING=1\nSTATUS=Reloading Configuration.\nMONOTONIC_USEC=N\n";
    const FAILED: &str = "READY=1\nSTATUS=Reload failed!\n";
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let words = "-Ws -f haproxy.cfg -p pid";
        for stop in [Signal::SIGUSR1, Signal::SIGTERM] {
            let ours = life(&caller, caller.haproxy(words), stop);
            let expected = [
                READY,
                RELOADING,
                READY,
                RELOADING,
                FAILED,
                RELOADING,
                FAILED,
                RELOADING,
                READY,
                "STOPPING=1",
            ];
            assert_eq!(ours, expected);
        }
    });
}
