//! Standard error of a process that must not block when the output is not read: a full pipe, a
//! terminal stopped with Ctrl-S, a log service that hangs.
//!
//! write(2) would block until the output is read, and O_NONBLOCK is a property of the open file,
//! which other processes share. So text goes into a buffer, and a dedicated thread writes it. Lines
//! that find the buffer full are dropped and counted, and the count is reported as soon as there is
//! room again. If the system allows no thread (a limit on pids), text is written directly as far as
//! the reader has room at once, and the rest waits for the next line.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::worker;

/// Bytes buffered for a reader that does not read, about a thousand lines.
const ROOM: usize = 128 * 1024;

/// Most bytes in one write: a pipe takes this many in one piece (pipe(7), PIPE_BUF), so that lines
/// of two processes do not mix.
const PIECE: usize = 4096;

/// Room beyond [`ROOM`] for the line that reports dropped lines.
const NOTICE: usize = 512;

/// Formats the line that reports the number of dropped lines, with its newline.
pub type Notice = fn(u64) -> String;

/// How long the final output of a process may take ([`finish`]).
pub const LAST_WORDS: Duration = Duration::from_secs(1);

static LOG: OnceLock<Log> = OnceLock::new();

/// Makes [`write`] buffer its text from now on, until [`start`] is called.
pub fn keep(notice: Notice) {
    let _ = LOG.get_or_init(|| Log::new(None, notice));
}

/// Starts the thread that writes the text that [`keep`] buffers. Call it only after this process
/// has dropped the privileges that it does not need: privileges belong to threads.
pub fn start() {
    if let Some(log) = LOG.get() {
        log.start();
    }
}

/// Writes whole lines to standard error. Does not block if [`keep`] was called.
pub fn write(text: &[u8]) {
    match LOG.get() {
        Some(log) => log.write(text),
        // If standard error cannot be written, there is nobody to tell.
        None => drop(io::Write::write_all(&mut io::stderr(), text)),
    }
}

/// Waits until everything is written, at most for `patience`.
pub fn finish(patience: Duration) {
    if let Some(log) = LOG.get() {
        log.start();
        log.finish(patience);
    }
}

#[derive(Debug)]
struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is text to write.
    more: Condvar,
    /// Everything is written.
    done: Condvar,
    notice: Notice,
    /// The output; None is standard error.
    to: Option<OwnedFd>,
}

#[derive(Debug, Default)]
struct State {
    text: Vec<u8>,
    /// Number of lines that found no room.
    dropped: u64,
    started: bool,
    /// The thread could not be started; each line tries again.
    alone: bool,
    /// The text taken out of `text` is being written.
    writing: bool,
}

impl Log {
    fn new(to: Option<OwnedFd>, notice: Notice) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            more: Condvar::new(),
            done: Condvar::new(),
            notice,
            to,
        }))
    }

    fn start(&self) {
        let mut state = self.0.lock();
        if state.started {
            return;
        }
        let shared = Arc::clone(&self.0);
        state.started = worker::start("log", move || shared.pass_on()).is_ok();
        state.alone = !state.started;
        drop(state);
        self.0.write_ready();
    }

    fn write(&self, text: &[u8]) {
        let mut state = self.0.lock();
        if state.text.len() + text.len() > ROOM {
            let lines = text.split_inclusive(|byte| *byte == b'\n').count();
            state.dropped = state.dropped.saturating_add(lines.try_into().unwrap_or(u64::MAX));
            return;
        }
        if state.text.is_empty() && state.text.capacity() > PIECE {
            state.text = Vec::new();
        }
        state.text.extend_from_slice(text);
        let alone = state.alone;
        drop(state);
        self.0.more.notify_one();
        if alone {
            self.start();
        }
    }

    fn finish(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.0.lock();
        while !state.text.is_empty() || state.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes for as long as the process lives. Uses only its own buffer: an allocation here would
    /// give this thread an arena of its own (malloc(3)).
    fn pass_on(&self) {
        let mut piece = [0; PIECE];
        loop {
            let length = self.take(&mut piece);
            self.put(piece.get(..length).unwrap_or_default());
        }
    }

    /// Without a thread: writes as much as there is room for now.
    fn write_ready(&self) {
        let mut piece = [0; PIECE];
        loop {
            let state = self.lock();
            if !state.alone || state.text.is_empty() {
                return;
            }
            drop(state);
            let stderr = io::stderr();
            let to = self.to.as_ref().map_or(stderr.as_fd(), OwnedFd::as_fd);
            let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            // A writable pipe has room for one piece (pipe(7)).
            if !poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], Some(&now))
                .is_ok_and(|ready| ready > 0)
            {
                return;
            }
            let length = self.take(&mut piece);
            self.put(piece.get(..length).unwrap_or_default());
            self.lock().writing = false;
        }
    }

    /// Waits for text, and takes as many whole lines as fit into one write.
    fn take(&self, piece: &mut [u8; PIECE]) -> usize {
        let mut state = self.lock();
        state.writing = false;
        while state.text.is_empty() {
            self.done.notify_all();
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let ready = state.text.get(..PIECE).unwrap_or(&state.text);
        let length = match ready.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None => ready.len(),
        };
        piece[..length].copy_from_slice(&ready[..length]);
        state.text.drain(..length);
        state.writing = true;
        if state.dropped > 0 {
            let notice = (self.notice)(std::mem::take(&mut state.dropped));
            state.text.extend(notice.bytes().take(NOTICE));
        }
        length
    }

    fn put(&self, mut text: &[u8]) {
        let stderr = io::stderr();
        let to = self.to.as_ref().map_or(stderr.as_fd(), OwnedFd::as_fd);
        while !text.is_empty() {
            match rustix::io::write(to, text) {
                Ok(written) => text = text.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                // Another process that shares the file has made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
                }
                // The reader is gone.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn notice(dropped: u64) -> String {
        format!("{dropped} dropped\n")
    }

    const LINES: u64 = 20_000;

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let log = Log::new(Some(writer.into()), notice);
        log.write(b"before the thread\n");
        log.start();
        for number in 0..LINES {
            log.write(format!("line {number}\n").as_bytes());
        }
        let begun = Instant::now();
        log.finish(Duration::from_millis(10));
        assert!(begun.elapsed() < Duration::from_secs(5));
        // The reader resumes, until every line has arrived or was reported as dropped. If the
        // thread was late, some lines were dropped between others.
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        let numbers = |text: &str, before: &str, after: &str| -> Vec<u64> {
            let number = |line: &str| line.strip_prefix(before)?.strip_suffix(after)?.parse().ok();
            text.split_inclusive('\n').filter_map(number).collect()
        };
        let (lines, dropped) = loop {
            let lines = numbers(&text, "line ", "\n");
            let dropped: u64 = numbers(&text, "", " dropped\n").iter().sum();
            if lines.len() as u64 + dropped == LINES {
                break (lines, dropped);
            }
            let read = reader.read(&mut buffer).expect("a read");
            text.push_str(std::str::from_utf8(&buffer[..read]).expect("whole characters"));
        };
        assert!(text.starts_with("before the thread\n"));
        assert!(dropped > 0 && lines.is_sorted());
        log.write(b"after\n");
        log.finish(Duration::from_secs(10));
        let read = reader.read(&mut buffer).expect("a read");
        assert!(buffer[..read].ends_with(b"after\n"));
    }
}
