//! Where the news comes from: keys and signals, snapshots, events, and the outcomes of actions.
//! Each source has its own thread, so that nothing slow keeps the screen from answering. The
//! threads end with the process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use bindonce_core::name::Name;
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::terminal;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::keys::Decoder;
use super::model::{Action, Input};
use super::overview::Overview;
use crate::command::status::Snapshot;
use crate::command::{reload, retire};
use crate::{events, failure};

/// Shortest interval. A shorter one would keep the broker and the supervisors from their work.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);
/// How long the rest of a key that begins like the key Escape may take, in milliseconds.
const REST_OF_KEY: u16 = 50;
/// How long to wait for a reload; after that the reload continues without this program.
const RELOAD: Duration = Duration::from_secs(300);

/// From the order to end until output that the terminal does not take is discarded, and again.
const ENDING: Duration = Duration::from_millis(500);

/// Signals that mean something here.
pub(super) const SIGNALS: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// A piece of news.
#[derive(Debug)]
pub(super) enum News {
    Input(Input),
    /// The terminal has another size.
    Resized,
    /// The process was stopped, and other programs may have changed the terminal since.
    Continued,
    /// The process must end, or its terminal is gone.
    End,
    /// A thread has failed, and has printed why.
    Panicked,
}

/// Listens for keys and signals, until the process must end.
pub(super) fn hear(signals: SignalFd, news: SyncSender<News>) {
    thread::spawn(move || {
        // If listening fails, that is the end too.
        let _ = listen(&signals, &news);
        thread::spawn(insist);
        let _ = news.send(News::End);
    });
}

/// Makes sure that the end comes, even if the terminal takes no more output: discards what waits to
/// be shown until the process has ended.
fn insist() {
    loop {
        thread::sleep(ENDING);
        let _ = terminal::discard_output(io::stdout());
    }
}

fn listen(signals: &SignalFd, news: &SyncSender<News>) -> anyhow::Result<()> {
    let keyboard = io::stdin();
    let mut decoder = Decoder::default();
    loop {
        let timeout = if decoder.is_waiting() { REST_OF_KEY.into() } else { PollTimeout::NONE };
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut both = [readable(keyboard.as_fd()), readable(signals.as_fd())];
        match poll(&mut both, timeout) {
            Err(Errno::EINTR) => continue,
            Ok(0) => {
                if let Some(key) = decoder.timed_out() {
                    news.send(News::Input(Input::Key(key)))?;
                }
                continue;
            }
            found => found?,
        };
        let [typed, _] = both.map(|fd| fd.any().unwrap_or(true));
        while let Some(received) = signals.read()? {
            news.send(match received.signo {
                Signal::SIGWINCH => News::Resized,
                Signal::SIGCONT => News::Continued,
                _ => return Ok(()),
            })?;
        }
        if typed && !read_keys(keyboard.as_fd(), &mut decoder, news)? {
            return Ok(());
        }
    }
}

/// Reads keys. Returns whether there may be more.
fn read_keys(
    keyboard: BorrowedFd<'_>,
    decoder: &mut Decoder,
    news: &SyncSender<News>,
) -> anyhow::Result<bool> {
    let mut bytes = [0; 256];
    let read = match nix::unistd::read(keyboard, &mut bytes) {
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(true),
        read => read?,
    };
    for byte in bytes.iter().take(read) {
        if let Some(key) = decoder.byte(*byte) {
            news.send(News::Input(Input::Key(key)))?;
        }
    }
    Ok(read > 0)
}

/// Takes a snapshot after each interval, which is at least [`SHORTEST`], and sooner when told to.
pub(super) fn watch(socket: &Path, interval: Duration, now: Receiver<()>, news: SyncSender<News>) {
    let socket = socket.to_owned();
    thread::spawn(move || {
        loop {
            let begun = Instant::now();
            let seen = Box::new(Overview::from(Snapshot::take(&socket)));
            if news.send(News::Input(Input::Overview(seen))).is_err() {
                return;
            }
            let left = interval.saturating_sub(begun.elapsed());
            if now.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            // Many events at once are one reason to look.
            thread::sleep(SHORTEST.saturating_sub(begun.elapsed()));
        }
    });
}

/// Sends past events, then each event as it comes.
pub(super) fn follow(socket: &Path, news: SyncSender<News>) {
    let socket = socket.to_owned();
    thread::spawn(move || {
        let recent = events::recent(&socket, None);
        let happened = |events| news.send(News::Input(Input::Happened(events)));
        if happened(recent.events).is_err() {
            return;
        }
        let coming = events::follow(&socket, None, recent.last);
        for first in &coming {
            let together = std::iter::once(first).chain(coming.try_iter()).collect();
            if happened(together).is_err() {
                return;
            }
        }
    });
}

/// Performs an action as the command of that name would, and reports its outcome.
pub(super) fn act(socket: &Path, action: Action, news: SyncSender<News>) {
    let socket = socket.to_owned();
    thread::spawn(move || {
        let name = |service: &str| service.parse::<Name>().map_err(anyhow::Error::from);
        let outcome = match &action {
            Action::Reload { service } => {
                name(service).and_then(|name| reload::ask(&socket, &name, RELOAD))
            }
            Action::Retire { service, generation } => {
                name(service).and_then(|name| retire::ask(&socket, &name, Some(*generation)))
            }
        };
        let outcome = outcome.map_err(|error| failure::text(&error));
        // If this fails, there is no one left to tell.
        let _ = news.send(News::Input(Input::Done(outcome)));
    });
}
