//! What a reload under the name of haproxy does beside the handover.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use super::{Caller, signal};
use crate::harness::{Haproxy, Process, eventually, finish};

/// A client whose request is in progress in the generation that serves.
fn half_a_request(caller: &Caller, tag: u64) -> TcpStream {
    drop(caller.answers(tag).stop());
    let mut client = TcpStream::connect(caller.address).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
    // Connections are accepted in order: with an answer to a later one, this one is in progress.
    drop(caller.answers(tag).stop());
    client
}

/// haproxy's master ends a worker that has survived more reloads than `mworker-max-reloads`, and none without a master.
#[test]
fn an_older_generation_survives_as_many_reloads_as_the_configuration_says() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let limit = "    mworker-max-reloads 1\n";
        caller.configure(limit, 1);
        let mut haproxy = Process::start(&mut caller.haproxy("-W -f haproxy.cfg"));
        let mut clients = [half_a_request(&caller, 1), half_a_request(&caller, 1)];
        for (tag, client) in (2..).zip(&mut clients) {
            caller.configure(limit, tag);
            haproxy.signal(Signal::SIGUSR2);
            drop(caller.answers(tag).stop());
            if tag == 3 {
                haproxy.wait_line("a reload asked it to end");
            }
            // It may be cut off at once.
            let _ = client.write_all(b"\r\n");
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            assert_eq!(answer.contains("x-generation: 1"), tag == 2, "{tag}: {answer}");
        }
        haproxy.signal(Signal::SIGTERM);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
        caller.wait_none();
    });
}

/// What a reload cannot bring is refused, rather than left out.
#[test]
fn a_socket_of_the_master_cli_comes_with_a_start_alone() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let socket = |name: &str| caller.scene.path(name).display().to_string();
    let words = format!("-W -D -f haproxy.cfg -p pid -S {}", socket("1.sock"));
    finish(&mut caller.haproxy(&words)).ok();
    let first = caller.pid("pid").expect("the pid file");
    caller.configure("", 2);
    finish(&mut caller.haproxy(&format!("{words} -sf {first}"))).ok();
    drop(caller.answers(2).stop());
    let words = format!("{words} -S {} -sf {first}", socket("2.sock"));
    caller.configure("", 3);
    let said = finish(&mut caller.haproxy(&words)).fails(1);
    assert!(said.contains(&format!("cannot open -S {}", socket("2.sock"))), "{said}");
    drop(caller.answers(2).stop());
    // As it says.
    let client = half_a_request(&caller, 2);
    signal(first, Signal::SIGUSR1);
    eventually("it to stop", || {
        let said = finish(&mut caller.haproxy(&words));
        (said.code == Some(0)).then_some(())
    });
    drop(caller.answers(3).stop());
    assert!(caller.scene.path("2.sock").exists());
    drop(client);
    signal(caller.pid("pid").expect("the pid file"), Signal::SIGTERM);
    caller.wait_none();
}
