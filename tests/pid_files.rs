//! The pid file of bindonce under the name of haproxy: its reader finds the pid that takes signals,
//! whatever happens to the file meanwhile.

use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Process, eventually, finish};
use crate::stand_in::Caller;

/// haproxy's master writes the file with each reload, and `-sf` starts another master that does.
#[test]
fn a_reload_writes_a_pid_file_that_has_gone_or_has_another_pid() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid")).ok();
        let supervisor = caller.pid("pid").expect("the pid file");
        let lose = |has: Option<&str>| match has {
            None => std::fs::remove_file(caller.scene.path("pid")).expect("it is there"),
            Some(text) => drop(caller.scene.write("pid", text)),
        };
        for has in [None, Some(""), Some("99999\n")] {
            lose(has);
            // The file is there when the caller continues.
            let words = format!("-D -f haproxy.cfg -p pid -sf {supervisor}");
            finish(&mut caller.haproxy(&words)).ok();
            assert_eq!(caller.pid("pid"), Some(supervisor), "{has:?}, -sf");
            lose(has);
            kill(Pid::from_raw(supervisor), Signal::SIGUSR2).expect("it is there");
            eventually("the pid file", || (caller.pid("pid") == Some(supervisor)).then_some(()));
        }
        let words = format!("-D -f haproxy.cfg -p pid -sf {supervisor}");
        let before = std::fs::metadata(caller.scene.path("pid")).expect("it is there").modified();
        finish(&mut caller.haproxy(&words)).ok();
        let after = std::fs::metadata(caller.scene.path("pid")).expect("it is there").modified();
        assert_eq!(before.expect("a time"), after.expect("a time"), "a file that is right stays");
        // haproxy refuses a file that it cannot write, and the older generation keeps serving.
        let words = format!("-D -f haproxy.cfg -p none/pid -sf {supervisor}");
        let said = finish(&mut caller.haproxy(&words)).fails(1);
        assert!(said.contains("Cannot create pidfile none/pid"), "{said}");
        kill(Pid::from_raw(supervisor), Signal::SIGTERM).expect("it is there");
        caller.wait_none();
    });
}

/// The killed supervisor's pid is replaced when the next supervisor serves, here on the killed
/// one's generations.
#[test]
fn a_supervisor_that_takes_over_has_its_pid_in_the_file() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    for lost in [false, true] {
        let mut killed = Process::start(&mut caller.haproxy("-W -db -f haproxy.cfg -p pid"));
        let first = killed.pid().cast_signed();
        eventually("its pid", || (caller.pid("pid") == Some(first)).then_some(()));
        drop(caller.load().stop());
        killed.signal(Signal::SIGKILL);
        assert_eq!(killed.wait_exit().signal(), Some(Signal::SIGKILL as i32));
        if lost {
            std::fs::remove_file(caller.scene.path("pid")).expect("it is there");
        }
        finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid")).ok();
        let next = caller.pid("pid").expect("the pid file");
        assert_ne!(next, first);
        kill(Pid::from_raw(next), Signal::SIGTERM).expect("it is the supervisor");
        caller.wait_none();
    }
}
