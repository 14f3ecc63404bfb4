//! Compares the overlaps that the core predicts without a system call with what the kernel does
//! when both sockets are really bound.

#![allow(missing_docs)]

use std::net::TcpListener;

use bindonce_core::listener::Listener;
use bindonce_sys::{Errno, listen};

/// Every kind of address that the rules distinguish. PORT is replaced.
const KINDS: [&str; 16] = [
    "0.0.0.0:PORT",
    "127.0.0.1:PORT",
    "127.0.0.2:PORT",
    "[::]:PORT",
    "[::]:PORT,v6only",
    "[::1]:PORT",
    "[::1]:PORT,v6only",
    "[::ffff:127.0.0.1]:PORT",
    "[::ffff:0.0.0.0]:PORT",
    "0.0.0.0:PORT,interface=lo",
    "127.0.0.1:PORT,interface=lo",
    "[::]:PORT,interface=lo",
    "udp4@0.0.0.0:PORT",
    "udp4@127.0.0.1:PORT",
    "udp6@[::]:PORT",
    "udp6@[::1]:PORT",
];

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("bind");
    listener.local_addr().expect("address").port()
}

fn listener(kind: &str, port: u16) -> Listener {
    kind.replace("PORT", &port.to_string()).parse().expect(kind)
}

/// Whether the kernel binds `second` while `first` is bound. None if it does not bind `first` at
/// all, or refuses `second` for another reason.
fn both(first: &str, second: &str) -> Option<bool> {
    let port = free_port();
    let _first = listen::open(&listener(first, port)).ok()?;
    match listen::open(&listener(second, port)) {
        Ok(_) => Some(true),
        Err(error) if error.errno() == Some(Errno::EADDRINUSE as i32) => Some(false),
        Err(_) => None,
    }
}

#[test]
fn the_core_and_the_kernel_agree_on_every_pair() {
    let mut compared = 0;
    for first in KINDS {
        for second in KINDS {
            let overlap = listener(first, 80).key().overlaps(&listener(second, 80).key());
            // Another process may take the port in between, so only a difference that stays counts.
            let answers: Vec<bool> = (0..3).filter_map(|_| both(first, second)).collect();
            if answers.is_empty() {
                continue; // No IPv6 here, or no right to choose a device.
            }
            compared += 1;
            assert!(
                answers.contains(&!overlap),
                "{second} beside {first}: the core says overlap={overlap}, the kernel does not"
            );
        }
    }
    assert!(compared >= 25, "only {compared} pairs could be bound at all");
}
