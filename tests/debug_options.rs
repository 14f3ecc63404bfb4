//! haproxy's options that begin with `-d`. With most of them haproxy serves, even if it prints
//! something first, and is supervised; with the others it prints and exits.

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process, eventually, finish};
use crate::stand_in::Caller;

#[test]
fn what_haproxy_prints_before_it_serves_is_no_reason_to_leave_it_alone() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let usage = finish(&mut caller.command(&program, "-h")).err;
        let is_known = usage.contains(" -dC");
        let mut served = vec!["-dK", "-dKcli", "-dKall", "-dA", "-dL", "-dk"];
        let mut answered = vec!["-dMhelp", "-dt help"];
        match is_known {
            true => answered.extend(["-dC", "-dCglobal"]),
            false => served.extend(["-dC", "-dCglobal"]),
        }
        for option in served {
            let words = format!("-f haproxy.cfg {option} -p pid");
            let mut haproxy = Process::start(&mut caller.haproxy(&words));
            haproxy.wait_line(": serving ");
            drop(caller.load().stop());
            // No process is left.
            haproxy.signal(Signal::SIGTERM);
            haproxy.wait_exit();
            caller.wait_none();
        }
        for option in answered {
            let words = format!("-f haproxy.cfg {option}");
            let real = finish(&mut caller.command(&program, &words));
            let ours = finish(&mut caller.haproxy(&words));
            assert_eq!((ours.code, &*ours.out), (real.code, &*real.out), "{option}: {}", ours.err);
        }
        // With such an option, a reload applies to the supervised service.
        finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid")).ok();
        let supervisor = caller.pid("pid").expect("the pid file");
        caller.configure("", 2);
        finish(&mut caller.haproxy(&format!("-D -dK -f haproxy.cfg -p pid -sf {supervisor}"))).ok();
        assert_eq!(caller.pid("pid"), Some(supervisor));
        eventually("the supervisor and one generation to be all", || {
            (caller.scene.haproxies().len() == 2).then_some(())
        });
        caller.signal_all(Signal::SIGTERM);
        caller.wait_none();
    });
}
