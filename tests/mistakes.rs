//! Mistakes on haproxy's command line (docs/stand-in.md): each is refused with haproxy's exit code
//! or ignored, and the serving generation is unaffected.

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process, config, finish, serves};
use crate::stand_in::Caller;

/// A pid file may be older than the process that has its pid now.
#[test]
fn a_pid_of_another_program_is_left_alone() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let address = caller.scene.address();
        let mut other = Process::start(caller.scene.command("sleep").arg("1000"));
        caller.scene.write("pid", &format!("{}\n", other.pid()));
        for (tag, option) in [(1, "-sf"), (2, "-sf"), (3, "-st")] {
            caller.scene.write("haproxy.cfg", &config(address, tag));
            let words = format!("-D -f haproxy.cfg -p pid {option} {}", other.pid());
            let done = finish(&mut caller.haproxy(&words));
            assert_eq!((done.code, &*done.err), (Some(0), ""), "{words}");
            serves(address, tag);
            assert_ne!(caller.pid("pid"), Some(other.pid().cast_signed()));
        }
        assert!(other.is_running(), "{}", other.story());
        caller.signal_all(Signal::SIGTERM);
        caller.wait_none();
        other.signal(Signal::SIGTERM);
        other.wait_exit();
    });
}

#[test]
fn the_pid_file_of_another_service_is_an_error() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let address = [caller.scene.address(), caller.scene.address()];
        let configure = |index: usize, tag| {
            caller.scene.write(&format!("{index}.cfg"), &config(address[index], tag));
        };
        for index in 0..2 {
            configure(index, 1);
            let words = format!("-D -f {index}.cfg -p {index}.pid");
            assert_eq!(finish(&mut caller.haproxy(&words)).ok(), "");
        }
        let pid = |index| caller.pid(&format!("{index}.pid")).expect("the pid file");
        configure(0, 2);
        for (words, said) in [
            (format!("-D -f 0.cfg -p 0.pid -sf {}", pid(1)), "nothing was changed"),
            (format!("-D -Z -f 0.cfg -p 0.pid -sf {}", pid(0)), ""),
            (format!("-D -f 0.cfg -p 0.pid -sf {} x", pid(0)), "-sf"),
            (format!("-D -f 0.cfg -f none.cfg -p 0.pid -sf {}", pid(0)), "none.cfg"),
        ] {
            let done = finish(&mut caller.haproxy(&words));
            assert_eq!(done.code, Some(1), "{words}: {}", done.err);
            assert!(done.err.contains(said), "{words}: {}", done.err);
            serves(address[0], 1);
            serves(address[1], 1);
        }
        // With all pids, as pidof(1) prints them, `-p` chooses the service.
        let words = format!("-D -f 0.cfg -p 0.pid -sf {} {}", pid(1), pid(0));
        assert_eq!(finish(&mut caller.haproxy(&words)).ok(), "");
        serves(address[0], 2);
        serves(address[1], 1);
        caller.signal_all(Signal::SIGTERM);
        caller.wait_none();
    });
}
