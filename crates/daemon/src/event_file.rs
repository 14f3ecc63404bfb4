//! The file of the events. It is appended to, and rewritten when it has twice as many events as are
//! remembered, so it never grows longer than that.
//!
//! The events must outlive the process, killed or not, and the kernel's cache does; so nothing is
//! synced. A last line without its line end was cut off by a crash and counts as not written; an
//! unreadable line is skipped. Events that cannot be written are kept in memory, and the file is
//! rewritten as soon as that works.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bindonce_core::event::{REMEMBERED, Ring};
use bindonce_wire::event::Event;

use crate::state;

/// The longest file that is read, in bytes: many times what is ever written.
const MAX_FILE: u64 = 16 << 20;
/// The time after a failed write until the next event makes another attempt.
const AGAIN: Duration = Duration::from_secs(10);

/// The file of one journal.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    /// None after a failed write, until the file has been rewritten.
    file: Option<File>,
    lines: usize,
    failed: Option<Instant>,
}

impl EventFile {
    /// Opens the file and returns its events, oldest first.
    pub(crate) fn open(path: &Path) -> (Self, Vec<Event>) {
        let mut kept = Self { path: path.to_owned(), file: None, lines: 0, failed: None };
        let mut read = match read_all(path) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(
                    path = %path.display(), %error, "earlier events cannot be read"
                );
                Read::default()
            }
        };
        let surplus = read.events.len().saturating_sub(REMEMBERED);
        read.events.drain(..surplus);
        kept.lines = read.events.len();
        if surplus == 0 && read.whole {
            kept.file = state::append(path).ok().flatten();
        }
        if kept.file.is_none() {
            kept.rewrite(read.events.iter());
        }
        (kept, read.events)
    }

    /// Adds an event to the file; `before` has the events before it.
    pub(crate) fn add(&mut self, event: &Event, before: &Ring<Event>) {
        if self.file.is_none() && self.failed.is_some_and(|failed| failed.elapsed() < AGAIN) {
            return;
        }
        if self.file.is_none() || self.lines >= 2 * REMEMBERED {
            let all = before.after(0).map(|(_, event)| event);
            return self.rewrite(all.chain([event]));
        }
        let written = line(event).and_then(|line| match &mut self.file {
            Some(file) => file.write_all(&line),
            None => Ok(()),
        });
        self.lines += 1;
        if let Err(error) = written {
            self.gave_up(&error);
        }
    }

    /// Drops the file: it no longer stands at its path.
    pub(crate) fn forget(&mut self) {
        (self.file, self.failed) = (None, None);
    }

    fn rewrite<'a>(&mut self, events: impl Iterator<Item = &'a Event>) {
        let mut text = Vec::new();
        self.lines = 0;
        for line in events.filter_map(|event| line(event).ok()) {
            text.extend_from_slice(&line);
            self.lines += 1;
        }
        match state::replace(&self.path, &text) {
            Ok(file) => {
                if self.failed.take().is_some() {
                    tracing::info!(path = %self.path.display(), "events are written again");
                }
                self.file = Some(file);
            }
            Err(error) => self.gave_up(&error),
        }
    }

    fn gave_up(&mut self, error: &io::Error) {
        // The file may end in half a line: it must be rewritten before anything follows.
        self.file = None;
        if self.failed.replace(Instant::now()).is_none() {
            tracing::warn!(
                path = %self.path.display(), %error,
                hint = "make room; nothing else depends on it",
                "events cannot be kept on disk: a restart forgets those from now on"
            );
        }
    }

    /// Removes the file.
    pub(crate) fn remove(self) {
        if let Err(error) = state::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the events");
        }
    }
}

/// The events in a daemon's file, whether the daemon runs or has ended; oldest first.
///
/// # Errors
/// Errors from reading the file; a missing file has no events.
pub fn read(path: &Path) -> io::Result<Vec<Event>> {
    read_all(path).map(|mut read| {
        let surplus = read.events.len().saturating_sub(REMEMBERED);
        read.events.split_off(surplus)
    })
}

/// The events in the text of such a file, oldest first.
pub fn parse(text: &[u8]) -> Vec<Event> {
    parse_all(text).events
}

/// The content of the file.
#[derive(Debug, Default)]
struct Read {
    events: Vec<Event>,
    /// Whether every line could be read, and the last one has its line end.
    whole: bool,
}

fn read_all(path: &Path) -> io::Result<Read> {
    Ok(state::read(path, MAX_FILE)?.map_or_else(Read::default, |text| parse_all(&text)))
}

fn parse_all(text: &[u8]) -> Read {
    let mut read = Read { events: Vec::new(), whole: text.last().is_none_or(|b| *b == b'\n') };
    // The text after the last line end is torn, or empty.
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in text.get(..end).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Event>(line) {
            Ok(event) => read.events.push(event),
            Err(_) => read.whole = false,
        }
    }
    read
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bindonce_core::event::Kind;

    use super::*;
    use crate::testing::Directory;
    use crate::{Happening, Journal};

    fn say(journal: &Journal, text: &str) {
        journal.record(Happening::new(Kind::GenerationServing, text));
    }

    fn texts(journal: &Journal) -> Vec<String> {
        journal.after(0).iter().map(|event| event.text.to_string()).collect()
    }

    #[test]
    fn the_next_one_goes_on_where_a_killed_one_stopped() {
        let directory = Directory::new("next");
        let path = directory.0.join("events");
        let journal = Journal::open(&path, None);
        say(&journal, "one");
        say(&journal, "two");
        drop(journal);
        // A line that is cut off, after a damaged line.
        let mut text = fs::read(&path).expect("the file");
        text.extend_from_slice(b"no event\n{\"id\":3,\"time\":\"20");
        fs::write(&path, text).expect("writing");
        let journal = Journal::open(&path, None);
        assert_eq!(texts(&journal), ["one", "two"]);
        say(&journal, "three");
        let journal = Journal::open(&path, None);
        assert_eq!(texts(&journal), ["one", "two", "three"]);
        assert_eq!(journal.after(2).first().map(|event| event.id), Some(3));
        let mode = fs::metadata(&path).expect("the file").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    }

    /// The broker's user may put anything there, and root reads it.
    #[test]
    fn a_pipe_in_its_place_is_not_waited_for() {
        let directory = Directory::new("pipe");
        let path = directory.0.join("events");
        let pipe = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(pipe.success());
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).expect("remove");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a device");
        assert!(read(&path).is_err());
        // The writer replaces it with a file of its own.
        let journal = Journal::open(&path, None);
        say(&journal, "one");
        assert_eq!(texts(&Journal::open(&path, None)), ["one"]);
    }

    #[test]
    fn the_file_is_bounded_and_nothing_but_the_oldest_is_lost() {
        let directory = Directory::new("bounded");
        let path = directory.0.join("events");
        let journal = Journal::open(&path, None);
        let mut most = 0;
        for number in 1..=5 * REMEMBERED {
            say(&journal, &number.to_string());
            if number % 97 == 0 {
                most = most.max(fs::read_to_string(&path).expect("the file").lines().count());
            }
        }
        assert!(most <= 2 * REMEMBERED, "{most}");
        let expected: Vec<_> =
            (4 * REMEMBERED + 1..=5 * REMEMBERED).map(|n| n.to_string()).collect();
        assert_eq!(texts(&journal), expected);
        assert_eq!(texts(&Journal::open(&path, None)), expected);
    }

    #[test]
    fn what_cannot_be_kept_is_told_nevertheless() {
        let directory = Directory::new("unkept");
        // Nothing can be written there, not even by root.
        let path = directory.0.join("none/events");
        let journal = Journal::open(&path, None);
        say(&journal, "one");
        say(&journal, "two");
        assert_eq!(texts(&journal), ["one", "two"]);
        assert!(!path.exists());
    }
}
