//! haproxy's standard error: passed on line by line, with the user's paths in
//! place of the rendered ones, and its last lines kept for the error message.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_sys::log;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;

use crate::config::PathMap;

/// How many lines are kept, and of how many bytes each.
const LINES: usize = 40;
const LINE_BYTES: u64 = 16 * 1024;

/// What the user calls what haproxy was given in its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// The rendered copies.
    pub(super) paths: PathMap,
    /// The address as the user wrote it, for each number of a descriptor.
    pub(super) addresses: BTreeMap<i32, String>,
}

impl Names {
    /// Puts the user's names back into a message.
    fn of_the_user(&self, line: &[u8]) -> Vec<u8> {
        let line = self.paths.user_place(line);
        let Some(at) = find(&line, BIND) else { return line };
        let (before, rest) = line.split_at(at + BIND.len());
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = rest.split_at(digits);
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        match number.and_then(|number: i32| self.addresses.get(&number)) {
            Some(address) => {
                let before = before.strip_suffix(b"fd@").unwrap_or(before);
                [before, address.as_bytes(), rest].concat()
            }
            None => line,
        }
    }
}

/// How haproxy names a bind line.
const BIND: &[u8] = b"'bind fd@";

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The last lines that a generation wrote on its standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Rc<RefCell<VecDeque<String>>>);

impl Tail {
    /// The lines, oldest first.
    pub(super) fn text(&self) -> String {
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

/// Passes on what comes through `stderr` until its last writer is gone.
pub(super) async fn pass_on(stderr: OwnedFd, names: Names, tail: Tail) -> std::io::Result<()> {
    let mut reader = BufReader::new(pipe::Receiver::from_owned_fd(stderr)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = names.of_the_user(&line);
        tail.push(&text);
        // Nobody may be listening; haproxy must not be held up by that.
        log::write(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_for_its_descriptor() {
        let addresses = BTreeMap::from([(6, "127.0.0.1:443".to_owned())]);
        let names = Names { paths: PathMap::default(), addresses };
        for (line, expected) in [
            ("'bind fd@6' in section", "'bind 127.0.0.1:443' in section"),
            ("'bind fd@7' in section", "'bind fd@7' in section"),
            ("'bind fd@' x", "'bind fd@' x"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(names.of_the_user(line.as_bytes()), expected.as_bytes());
        }
    }
}
