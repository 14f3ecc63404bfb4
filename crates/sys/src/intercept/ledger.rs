//! Which calls were received and are not answered, where it outlives the process that has received them.
//!
//! The kernel tells of a call once. Who gets the descriptor after a supervisor that was killed can answer the calls that this one had
//! received only if it knows of them. So they are written, before anything is done about them, to memory (memfd_create(2)) that the
//! watchdog has too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::calls::Calls;
use crate::memory;

/// What the kernel tells of a call when it is received, which it does once: its id, its thread, the architecture, the number
/// and the arguments.
pub type Received = (u64, i32, u32, i32, [u64; 6]);

/// One call: id, thread, architecture, number, six arguments.
const RECORD: usize = 10;
/// The id that was received last and whether there is one, and how many records follow.
const HEAD: usize = 3;
/// What fits into a page: to that size it is written in one piece, also when the process is killed meanwhile.
const MOST: usize = (4096 / size_of::<u64>() - HEAD) / RECORD;

/// A call can be received and not written yet when the process is killed. The kernel numbers the calls of a filter one after the other,
/// also those that a signal interrupts: it is one of so many behind the last that is written.
const NOT_WRITTEN: u64 = 256;

/// The memory.
#[derive(Debug)]
pub(super) struct Ledger(OwnedFd);

/// What is written there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The id of the call that was received last.
    pub(super) last: Option<u64>,
    /// What was not answered.
    pub(super) open: Vec<Received>,
}

impl Ledger {
    /// # Errors
    /// Those of memfd_create(2).
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(memory::file("bindonce-calls")?.into()))
    }

    /// Takes what another process has written.
    pub(super) fn from(memory: OwnedFd) -> Self {
        Self(memory)
    }

    /// Of more calls than fit into a page, which no program makes that waits for its answers, those are written that came first.
    pub(super) fn write<'a>(&self, last: u64, open: impl ExactSizeIterator<Item = &'a Received>) {
        let count = open.len().min(MOST) as u64;
        let mut words = vec![1, last, count];
        for (id, thread, architecture, number, arguments) in open.take(MOST) {
            let of_call = [thread.cast_unsigned(), *architecture, number.cast_unsigned()];
            words.push(*id);
            words.extend(of_call.map(u64::from));
            words.extend(arguments);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        // What cannot be written is not known to the next supervisor, and nothing else.
        let _ = rustix::io::pwrite(&self.0, &bytes, 0);
    }

    /// What was written last.
    pub(super) fn read(&self) -> Written {
        let mut bytes = [0; 4096];
        let length = rustix::io::pread(&self.0, &mut bytes, 0).unwrap_or_default();
        let (words, _) = bytes[..length].as_chunks();
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let [is_there, last, count, records @ ..] = &words[..] else { return Written::default() };
        let (records, _) = records.as_chunks::<RECORD>();
        let records = records.iter().take(usize::try_from(*count).unwrap_or(MOST));
        let int = |word: u64| (word as u32).cast_signed();
        let open = records.map(|[id, thread, architecture, number, arguments @ ..]| {
            (*id, int(*thread), *architecture as u32, int(*number), *arguments)
        });
        Written { last: (*is_there == 1).then_some(*last), open: open.collect() }
    }
}

impl Written {
    /// What was received and not even written: only their ids are known.
    pub(super) fn unknown(&self, calls: &Calls) -> Vec<u64> {
        let known = |id: &u64| self.open.iter().any(|(open, ..)| open == id);
        let behind = self
            .last
            .into_iter()
            .flat_map(|last| (1..=NOT_WRITTEN).map(move |further| last.wrapping_add(further)));
        behind.filter(|id| !known(id) && calls.waits(*id)).collect()
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_takes_the_place_of_what_was_there() {
        let ledger = Ledger::new().expect("memory");
        assert_eq!(ledger.read(), Written::default());
        let call = |id| (id, -7, 0xC000_003E, 49, [1, 2, 3, 4, 5, u64::MAX]);
        let open: Vec<_> = (0..100).map(call).collect();
        ledger.write(99, open.iter());
        let copy = Ledger::from(ledger.as_fd().try_clone_to_owned().expect("a copy"));
        let all = Written { last: Some(99), open: open[..MOST].to_vec() };
        assert_eq!(copy.read(), all);
        ledger.write(u64::MAX, open[..2].iter());
        assert_eq!(copy.read(), Written { last: Some(u64::MAX), open: open[..2].to_vec() });
        ledger.write(0, [].iter());
        assert_eq!(copy.read(), Written { last: Some(0), open: Vec::new() });
    }
}
