//! Several plain haproxies on one address, each with its own socket (SO_REUSEPORT), as callers
//! leave them that start another haproxy beside the first: `-sf` with all pids replaces all of
//! them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bindonce_load::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Haproxy, Process, eventually, finish, listening};
use crate::stand_in::Caller;

#[test]
fn haproxies_that_listen_beside_each_other_are_replaced_together() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let mut plain: Vec<Process> = (0..3)
            .map(|_| Process::start(&mut caller.command(&program, "-db -f haproxy.cfg")))
            .collect();
        let address = caller.address();
        eventually("all of them to listen", || (listening(address).len() == 3).then_some(()));
        // Each haproxy very likely has a request in progress.
        let mut clients: Vec<_> = (0..12)
            .map(|_| {
                let mut client = TcpStream::connect(address).expect("it listens");
                client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
                client
            })
            .collect();
        let mut plan = Plan::new(address);
        (plan.clients, plan.rate) = (4, Some(500));
        let load = plan.start().expect("load");
        caller.wait_tag(&load, 1);
        caller.configure("", 2);
        let pids: Vec<_> = plain.iter().map(|one| one.pid().to_string()).collect();
        let words = format!("-D -f haproxy.cfg -p pid -sf {}", pids.join(" "));
        let done = finish(&mut caller.haproxy(&words));
        assert_eq!((done.code, &*done.err), (Some(0), ""));
        // No other process accepts: the broker's socket is the only listener.
        assert_eq!(listening(address).len(), 1);
        caller.wait_tag(&load, 2);
        for client in &mut clients {
            client.write_all(b"\r\n").expect("the rest");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        for one in &mut plain {
            assert!(one.wait_exit().success(), "{}", one.story());
        }
        let report = load.stop();
        assert_eq!((report.failed(), report.local), (0, 0), "{report}");
        kill(Pid::from_raw(caller.pid("pid").expect("a pid")), Signal::SIGTERM).expect("it runs");
        caller.wait_none();
    });
}
