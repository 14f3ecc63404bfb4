//! Opens many listeners, on more than one core where that pays.

use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;

use super::{Opened, open};
use crate::error::Error;

/// So many listeners a thread must have to open that starting it pays, by far.
const SHARE: usize = 250;

/// More threads than these would only wait for each other in the kernel.
const THREADS: usize = 4;

/// What opening in order came to: those before the first that failed, and why that one did.
type Outcome = (Vec<Opened>, Result<(), Error>);

/// Opens listeners, in order. Nearly all of the time is the kernel's, several microseconds a
/// listener, so hundreds of IP addresses are shared out to threads, which end before this does.
///
/// Gives those before the first that failed, and why that one did. Nothing behind it stays open.
pub fn open_all(listeners: &[Listener]) -> Outcome {
    let mut shares = listeners.chunks(share(listeners));
    let first = shares.next().unwrap_or_default();
    thread::scope(|scope| {
        let start =
            |share| (share, thread::Builder::new().spawn_scoped(scope, move || open_each(share)));
        let others: Vec<_> = shares.map(start).collect();
        let (mut opened, mut outcome) = open_each(first);
        opened.reserve_exact(if outcome.is_ok() { listeners.len() - opened.len() } else { 0 });
        for (share, thread) in others {
            let (theirs, how) = match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No thread can be had: then it is done here.
                Err(_) if outcome.is_ok() => open_each(share),
                Err(_) => continue,
            };
            if outcome.is_ok() {
                opened.extend(theirs);
                outcome = how;
            }
        }
        (opened, outcome)
    })
}

/// How many listeners each thread opens; all, where they are few or have files, which somebody
/// would have to remove behind a failure.
fn share(listeners: &[Listener]) -> usize {
    static CORES: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let all = listeners.len().max(1);
    if all < 2 * SHARE
        || listeners.iter().any(|listener| matches!(listener.address, Address::Unix(_)))
    {
        return all;
    }
    all.div_ceil((*CORES).min(THREADS).min(all / SHARE))
}

fn open_each(listeners: &[Listener]) -> Outcome {
    let mut opened = Vec::with_capacity(listeners.len());
    for listener in listeners {
        match open(listener) {
            Ok(socket) => opened.push(socket),
            Err(error) => return (opened, Err(error)),
        }
    }
    (opened, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::limits;

    fn loopback(port: u16, count: usize) -> Vec<Listener> {
        let listener = |n: usize| format!("127.78.{}.{}:{port}", n / 250, n % 250 + 1);
        (0..count).map(|n| listener(n).parse().expect("listener")).collect()
    }

    fn free_port() -> u16 {
        let any = TcpListener::bind("127.0.0.1:0").expect("a port");
        any.local_addr().expect("its address").port()
    }

    #[test]
    fn each_is_opened_in_its_place_whoever_opens_it() {
        limits::raise_nofile().expect("descriptors");
        let listeners = loopback(free_port(), 2 * SHARE + 1);
        let (opened, outcome) = open_all(&listeners);
        outcome.expect("all are free");
        assert_eq!(opened.len(), listeners.len());
        assert!(opened.iter().zip(&listeners).all(|(opened, asked)| opened.bound == asked.address));
    }

    #[test]
    fn nothing_behind_the_first_failure_stays_open() {
        limits::raise_nofile().expect("descriptors");
        let listeners = loopback(free_port(), 2 * SHARE);
        for taken in [SHARE / 2, SHARE + SHARE / 2] {
            let blocking = open(&listeners[taken]).expect("it is free");
            let (opened, outcome) = open_all(&listeners);
            let error = outcome.expect_err("one is taken").to_string();
            assert!(error.contains(&listeners[taken].address.to_string()), "{error}");
            assert_eq!(opened.len(), taken);
            drop((opened, blocking));
            // All are free again.
            let (opened, outcome) = open_all(&listeners);
            outcome.expect("none is left");
            assert_eq!(opened.len(), listeners.len());
        }
    }
}
