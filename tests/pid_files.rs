//! The pid file of bindonce under the name of haproxy: its reader finds the pid that takes signals,
//! whatever happens to the file meanwhile.

use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Process, bindonce, eventually, finish, skip};
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

/// The path may also be in the configuration, and is relative to `-C`.
#[test]
fn a_pid_file_that_cannot_be_written_lets_nothing_serve() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        caller.configure("    daemon\n    pidfile none/pid\n", 1);
        let said = finish(&mut caller.haproxy("-f haproxy.cfg")).fails(1);
        assert!(said.contains("Cannot create pidfile"), "{said}");
        caller.wait_none();
        caller.configure("", 1);
        std::fs::create_dir_all(caller.scene.path("srv/run")).expect("a directory");
        finish(&mut caller.haproxy("-D -C srv -f ../haproxy.cfg -p run/pid")).ok();
        let supervisor = caller.pid("srv/run/pid").expect("the pid file");
        kill(Pid::from_raw(supervisor), Signal::SIGTERM).expect("it is there");
        caller.wait_none();
    });
}

/// In a directory that is not its user's, haproxy writes into a file that is.
#[test]
fn a_pid_file_that_cannot_be_replaced_is_written_where_it_is() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    if !caller.scene.is_isolated() {
        return skip("needs root, for namespaces");
    }
    for name in ["image", "run"] {
        std::fs::create_dir(caller.scene.path(name)).expect("a directory");
    }
    std::fs::copy(bindonce(), caller.scene.path("image/haproxy")).expect("the binary");
    let file = caller.scene.write("run/pid", "an older and longer text\n");
    std::os::unix::fs::chown(&file, Some(65_532), Some(65_532)).expect("its owner");
    let inside = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm && \
                  setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set=-all \
                  image/haproxy -D -f haproxy.cfg -p run/pid";
    let mut command = caller.scene.command("unshare");
    command.args(["-mpif", "--kill-child", "--mount-proc", "sh", "-c", inside]);
    command.env("BINDONCE_HAPROXY", &program).env_remove("XDG_RUNTIME_DIR");
    finish(&mut command).ok();
    assert!(caller.pid("run/pid").is_some(), "{:?}", std::fs::read_to_string(&file));
}
