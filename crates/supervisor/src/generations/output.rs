//! The standard error of a generation: passed on line by line, with the names of the user's files in place of those of the
//! copies ([`Messages`]), and its last lines kept for the error message.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::text::is_obeyed;
use bindonce_sys::log;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;

use bindonce_haproxy::config::Messages;

/// How many lines are kept, and of how many bytes each.
const LINES: usize = 40;
const LINE_BYTES: u64 = 16 * 1024;

/// The last lines that a generation wrote on its standard error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Rc<RefCell<VecDeque<String>>>);

impl Tail {
    /// The lines, oldest first.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.borrow();
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(line).trim_end().to_owned());
    }
}

/// The text with what a terminal would obey shown as text; tabs and line feeds stay.
fn shown(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' | '\n' => out.push(c),
            c if is_obeyed(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.into_bytes()
}

/// Passes on what comes through `stderr` until its last writer is gone.
pub(crate) async fn pass_on(
    stderr: OwnedFd,
    mut messages: Messages,
    tail: Tail,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(pipe::Receiver::from_owned_fd(stderr)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        // haproxy has dropped root by now, and may have been taken over: its bytes are not trusted.
        let text = shown(&messages.of_the_user(&line));
        tail.push(&text);
        // Our own standard error may have no reader; haproxy must not wait for one.
        log::write(&text);
    }
}
