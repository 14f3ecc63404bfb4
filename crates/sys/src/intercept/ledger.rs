//! A record of the calls that were received and not answered, which outlives the process that
//! received them.
//!
//! The kernel reports a call once. The successor of a killed supervisor gets the descriptor, but
//! can answer the calls that were already received only if it knows them. So each call is written,
//! before anything is done about it, to memory (memfd_create(2)) that the watchdog has too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::calls::Calls;
use crate::memory;

/// A call as the kernel reports it on receipt, which it does once: id, thread, architecture, number
/// and arguments.
pub type Received = (u64, i32, u32, i32, [u64; 6]);

/// Words of a record: id, thread, architecture, number, six arguments.
const RECORD: usize = 10;
/// Words before the records: whether any call was received, the id of the last one, and the number
/// of records.
const HEAD: usize = 3;
/// How many records fit into a page. Up to that size a write is complete even if the process is
/// killed meanwhile.
const MOST: usize = (4096 / size_of::<u64>() - HEAD) / RECORD;

/// A process can be killed after it received a call and before it wrote it. The kernel numbers the
/// calls of a filter consecutively, including those that a signal interrupts, so the id of such a
/// call is among this many after the last one written.
const NOT_WRITTEN: u64 = 256;

/// The shared memory.
#[derive(Debug)]
pub(super) struct Ledger(OwnedFd);

/// The contents of the ledger.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The id of the call that was received last.
    pub(super) last: Option<u64>,
    /// The calls that were not answered.
    pub(super) open: Vec<Received>,
}

impl Ledger {
    /// # Errors
    /// Errors from memfd_create(2).
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(memory::file("bindonce-calls")?.into()))
    }

    /// Takes a ledger that another process has written.
    pub(super) fn from(memory: OwnedFd) -> Self {
        Self(memory)
    }

    /// Writes the open calls. If they do not fit into a page, only the first are written; a program
    /// that waits for its answers does not make that many.
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
        // If the write fails, the next supervisor does not know the calls; there is no other
        // effect.
        let _ = rustix::io::pwrite(&self.0, &bytes, 0);
    }

    /// Reads what was written last.
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
    /// The ids of calls that were received and not even written; nothing else is known of them.
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
