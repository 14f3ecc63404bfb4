//! Signals that haproxy's master ignores and survives: bindonce under its name survives them too,
//! and so does the serving generation.

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process};
use crate::stand_in::Caller;

#[test]
fn signals_that_haproxys_master_survives_end_no_supervisor() {
    // As observed with 2.6.12 and 3.2.26.
    const HARMLESS: [Signal; 8] = [
        Signal::SIGALRM,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
        Signal::SIGURG,
        Signal::SIGWINCH,
        Signal::SIGCHLD,
        Signal::SIGCONT,
        Signal::SIGTTIN,
    ];
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let mut haproxy = Process::start(&mut caller.haproxy("-W -db -f haproxy.cfg"));
        drop(caller.load().stop());
        for signal in HARMLESS {
            haproxy.signal(signal);
            drop(caller.load().stop());
        }
        // The process has handled all of them.
        haproxy.signal(Signal::SIGTERM);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
        caller.wait_none();
    });
}
