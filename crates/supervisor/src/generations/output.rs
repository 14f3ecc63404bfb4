//! The standard error of a generation. It is passed on line by line, with the names of the user's
//! files in place of those of the copies ([`Messages`]). The first and last lines are kept: the
//! startup messages and the error message.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::text::printable_but;
use bindonce_sys::log;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;

use bindonce_haproxy::cli::connections_cut;
use bindonce_haproxy::config::Messages;

/// Number of last lines kept, and the maximum bytes of each.
const LINES: usize = 40;
const LINE_BYTES: u64 = 16 * 1024;

/// Number of bytes kept of the startup messages: as many as haproxy's own buffer for them holds.
const STARTUP_BYTES: usize = 64 * 1024;

/// The first and the last lines that a generation wrote on its standard error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Rc<RefCell<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    last: VecDeque<String>,
    startup: String,
    /// Number of bytes read.
    written: u64,
    /// Number of connections that haproxy reported to cut (`hard-stop-after`).
    cut: u64,
    /// Set when it has started: number of unread bytes that it wrote before.
    started: Option<usize>,
}

impl Tail {
    /// The last lines, oldest first.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.borrow();
        lines.last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The lines that it wrote until it had started.
    pub(crate) fn startup(&self) -> String {
        self.0.borrow().startup.clone()
    }

    /// Number of bytes that it has written, as far as they were read.
    pub(crate) fn written(&self) -> u64 {
        self.0.borrow().written
    }

    /// Number of connections that haproxy reported to cut at its own hard stop.
    pub(crate) fn cut(&self) -> u64 {
        self.0.borrow().cut
    }

    /// Ends the start: later output does not belong to it. `unread` is the number of bytes still in
    /// the pipe, which do.
    pub(crate) fn started(&self, unread: usize) {
        self.0.borrow_mut().started.get_or_insert(unread);
    }

    /// `read` is the number of bytes of the line as it was written.
    fn push(&self, line: &[u8], read: usize) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        let mut lines = self.0.borrow_mut();
        lines.written += read as u64;
        lines.cut = lines.cut.saturating_add(connections_cut(line).unwrap_or_default());
        let belongs = lines.started.is_none_or(|left| left > 0);
        if belongs && lines.startup.len() + line.len() < STARTUP_BYTES {
            lines.startup.push_str(line);
            lines.startup.push('\n');
        }
        lines.started = lines.started.map(|left| left.saturating_sub(read));
        if lines.last.len() == LINES {
            lines.last.pop_front();
        }
        lines.last.push_back(line.to_owned());
    }
}

/// The text with everything that a terminal would obey made visible; tabs and line feeds stay.
fn shown(text: &[u8]) -> Vec<u8> {
    printable_but(&String::from_utf8_lossy(text), &['\t', '\n']).into_owned().into_bytes()
}

/// Passes on all that arrives through `stderr` until its last writer is gone.
pub(crate) async fn pass_on(
    stderr: OwnedFd,
    mut messages: Messages,
    tail: Tail,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(pipe::Receiver::from_owned_fd(stderr)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        // haproxy has dropped root by now, and may be compromised: its bytes are not trusted.
        let text = shown(&messages.of_the_user(&line));
        tail.push(&text, read);
        // Our own standard error may have no reader; haproxy must not wait for one.
        log::write(&text);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_line_without_end_is_kept_in_parts() {
        let (from, to) = std::io::pipe().expect("a pipe");
        // The limit is the one in docs/security.md. The pipe takes three such lines before it is
        // read.
        let line = 16 * 1024;
        let written = 3 * line + 1;
        { to }.write_all(&vec![b'x'; written]).expect("written");
        let tail = Tail::default();
        pass_on(from.into(), Messages::default(), tail.clone()).await.expect("read");
        let sizes: Vec<_> = tail.0.borrow().last.iter().map(String::len).collect();
        assert_eq!(sizes, [line, line, line, 1]);
        assert_eq!(tail.written(), written as u64);
    }
}
