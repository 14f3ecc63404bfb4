//! Opens many listeners, on more than one core where that pays.

use std::ops::Range;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;

use super::{Opened, open};
use crate::error::Error;

/// So many listeners a thread must have to open that starting it pays, by far.
const SHARE: usize = 250;

/// More threads than these would only wait for each other in the kernel.
const THREADS: usize = 4;

/// So many are opened in one go. When all have been begun, nobody waits for more than that.
const PIECE: usize = 32;

/// What opening in order came to: those before the first that failed, and why that one did.
type Outcome = (Vec<Opened>, Result<(), Error>);

/// Opens listeners, in order. Nearly all of the time is the kernel's, several microseconds a
/// listener, so other threads help with hundreds of IP addresses. This one waits for
/// none of them that has not begun: on a busy machine it opens most of them itself.
///
/// Gives those before the first that failed, and why that one did. Nothing behind it stays open.
/// Fewer without an error means that a thread has panicked.
pub fn open_all(listeners: &Arc<Vec<Listener>>) -> Outcome {
    let helpers = helpers(listeners);
    if helpers == 0 {
        return open_each(listeners);
    }
    let pieces = listeners.len().div_ceil(PIECE);
    let state = State { next: 0, running: 0, done: Vec::with_capacity(pieces) };
    let listeners = Arc::clone(listeners);
    let work = Arc::new(Work { listeners, state: Mutex::new(state), idle: Condvar::new() });
    for _ in 0..helpers {
        let theirs = Arc::clone(&work);
        // Without one it only takes longer.
        let _ = thread::Builder::new().name("open".to_owned()).spawn(move || theirs.help());
    }
    work.help();
    work.outcome()
}

/// How many threads help: none where the listeners are few, or have files, which somebody
/// would have to remove behind a failure.
fn helpers(listeners: &[Listener]) -> usize {
    static CORES: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let has_file = |listener: &Listener| matches!(listener.address, Address::Unix(_));
    let shares = listeners.len() / SHARE;
    if shares < 2 || listeners.iter().any(has_file) {
        return 0;
    }
    CORES.min(THREADS).min(shares) - 1
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

/// What several threads open together.
#[derive(Debug)]
struct Work {
    listeners: Arc<Vec<Listener>>,
    state: Mutex<State>,
    /// Told when nobody works on a piece any more.
    idle: Condvar,
}

#[derive(Debug)]
struct State {
    /// The first listener that nobody has begun with.
    next: usize,
    /// How many pieces are being worked on.
    running: usize,
    /// Where each finished piece began, and what it came to.
    done: Vec<(usize, Outcome)>,
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on pieces until all have been begun, or one has failed: then those before it have.
    fn help(&self) {
        while let Some(piece) = self.begin() {
            let _running = Running(self);
            let begun = piece.start;
            let outcome = open_each(&self.listeners[piece]);
            let mut state = self.state();
            if outcome.1.is_err() {
                state.next = self.listeners.len();
            }
            state.done.push((begun, outcome));
        }
    }

    fn begin(&self) -> Option<Range<usize>> {
        let mut state = self.state();
        let piece = state.next..self.listeners.len().min(state.next + PIECE);
        if piece.is_empty() {
            return None;
        }
        state.next = piece.end;
        state.running += 1;
        Some(piece)
    }

    /// Waits for the pieces that others have begun, and puts all together.
    fn outcome(&self) -> Outcome {
        let running = |state: &mut State| state.running > 0;
        let waited = self.idle.wait_while(self.state(), running);
        let mut done = std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).done);
        done.sort_unstable_by_key(|(begun, _)| *begun);
        let mut all = Vec::with_capacity(self.listeners.len());
        for (begun, (opened, outcome)) in done {
            // What a thread that panicked has begun is missing: nothing behind it has its place.
            if begun != all.len() {
                break;
            }
            all.extend(opened);
            if outcome.is_err() {
                return (all, outcome);
            }
        }
        (all, Ok(()))
    }
}

/// A piece that is being worked on, until it is finished or its thread panics: nobody may wait for
/// it in vain.
struct Running<'a>(&'a Work);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running -= 1;
        if state.running == 0 {
            self.0.idle.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::limits;

    fn loopback(port: u16, count: usize) -> Arc<Vec<Listener>> {
        let listener = |n: usize| format!("127.78.{}.{}:{port}", n / 250, n % 250 + 1);
        Arc::new((0..count).map(|n| listener(n).parse().expect("listener")).collect())
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
        assert!(
            opened.iter().zip(&*listeners).all(|(opened, asked)| opened.bound == asked.address)
        );
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

    #[test]
    fn a_thread_that_panics_keeps_nobody_waiting_and_misplaces_nothing() {
        let listeners = loopback(free_port(), 2 * PIECE);
        let state = State { next: 0, running: 0, done: Vec::new() };
        let work = Work { listeners, state: Mutex::new(state), idle: Condvar::new() };
        let panicked = thread::scope(|scope| {
            let fail = || {
                work.begin().expect("a piece");
                let _running = Running(&work);
                std::panic::resume_unwind(Box::new("as a panic does"));
            };
            scope.spawn(fail).join().is_err()
        });
        work.help();
        let (opened, outcome) = work.outcome();
        assert!(panicked && outcome.is_ok());
        // The second piece was opened, and would stand in the first one's place.
        assert_eq!(opened.len(), 0);
    }
}
