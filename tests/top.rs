//! `bindonce top` at a terminal, as a person sits at it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Haproxy, Scene, Terminal, config};

fn top(scene: &Scene) -> Command {
    let mut command = scene.bindonce("top");
    command.args(["--interval", "100ms"]).env("TERM", "xterm-256color");
    command
}

/// Matches a screen whose line for this generation has this state.
fn is(generation: u64, state: &str) -> impl Fn(&str) -> bool {
    let number = generation.to_string();
    move |text| {
        let mut lines = text.lines().map(|line| line.split_whitespace());
        lines.any(|mut words| words.next() == Some(number.as_str()) && words.next() == Some(state))
    }
}

/// A connection that the current generation has accepted and that does not end by itself.
fn kept(address: SocketAddr) -> TcpStream {
    let mut half = TcpStream::connect(address).expect("connecting");
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    // A later connection is answered, so this one was accepted.
    let mut whole = TcpStream::connect(address).expect("connecting");
    whole.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    whole.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
    whole.read_to_end(&mut Vec::new()).expect("the answer");
    half
}

#[track_caller]
fn assert_given_back(terminal: &mut Terminal) {
    assert_eq!(terminal.wait_exit().code(), Some(0));
    assert!(!terminal.screen.other && terminal.screen.cursor && terminal.is_cooked());
}

#[test]
fn a_person_reloads_retires_and_sees_the_broker_restart() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, mut broker) = Scene::with_broker();
    let (address, _haproxy) = Haproxy::start_at(&scene, &[], &program);
    let mut terminal = Terminal::start(&top(&scene));
    terminal.wait("the service", is(1, "serving"));
    terminal.wait_text(&format!("pid {}", broker.pid()));
    terminal.wait_text(&address.to_string());
    terminal.wait_text("generation-serving");
    assert!(terminal.screen.other && !terminal.screen.cursor && !terminal.is_cooked());
    // A reload, with a connection that keeps the older generation.
    let half = kept(address);
    terminal.press("r");
    terminal.wait("the newer one", is(2, "serving"));
    terminal.wait("the older one", is(1, "draining"));
    terminal.wait_text("generation 2 serves, pid ");
    // Down to the older generation; it is ended after a question.
    terminal.press("jjx");
    terminal.wait_text("End it? y/n  generation 1 of \"web\", with its 1 connection");
    terminal.press("y");
    terminal.wait_text("generation 1, pid ");
    terminal.wait("its end", is(1, "gone"));
    drop(half);
    // A failed reload shows the reason in haproxy's words, and the serving generation is
    // unaffected.
    scene.write("haproxy.cfg", &(config(address, 3) + "    no-such-word\n"));
    terminal.press("r");
    terminal.wait_text("'no-such-word' in 'frontend' section");
    assert!(is(2, "serving")(&terminal.screen.text()));
    // The broker goes and comes back.
    broker.kill();
    terminal.wait_text("broker does not answer since ");
    terminal.wait_text("as they were at ");
    assert!(is(2, "serving")(&terminal.screen.text()));
    let broker = scene.broker();
    terminal.wait_text(&format!("pid {}, up ", broker.pid()));
    terminal.wait_text("broker-back");
    terminal.wait("its listeners", |text| !text.contains("as they were at "));
    terminal.press("?");
    terminal.wait_text("time line: ");
    // The first key closes the help.
    terminal.press("qq");
    assert_given_back(&mut terminal);
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    let scene = Scene::new();
    for ending in [Some(Signal::SIGTERM), Some(Signal::SIGINT), Some(Signal::SIGHUP), None] {
        let mut terminal = Terminal::start(&top(&scene));
        terminal.wait_text("no service; start one");
        terminal.wait_text("cannot connect to the broker at");
        match ending {
            Some(signal) => terminal.signal(signal),
            // Ctrl-C is a key here, not a signal.
            None => terminal.press("\x03"),
        }
        assert_given_back(&mut terminal);
    }
    let mut terminal = Terminal::start(&top(&scene));
    terminal.wait_text("no service; start one");
    terminal.close();
    assert_eq!(terminal.wait_exit().code(), Some(0));
}

#[test]
fn a_window_that_hangs_does_not_keep_it() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&top(&scene));
    terminal.wait_text("no service; start one");
    terminal.hold();
    terminal.signal(Signal::SIGTERM);
    assert_eq!(terminal.wait_exit_unread().code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn what_cannot_show_it_is_told_what_can() {
    let scene = Scene::new();
    let said = scene.run("top", &[]).fails(1);
    assert!(said.contains("needs a terminal"), "{said}");
    assert!(said.contains("hint: use `bindonce status --watch`"), "{said}");
    let mut terminal = Terminal::start(top(&scene).env("TERM", "dumb"));
    assert_eq!(terminal.wait_exit().code(), Some(1));
    assert!(terminal.screen.text().contains("TERM=dumb"), "{}", terminal.screen.text());
    assert!(!terminal.screen.other && terminal.is_cooked());
}
