//! Sends each event to a follower as it happens, over a connection of the follower's own.
//!
//! Nothing is queued for a follower beyond what the journal remembers anyway. A slow follower gets
//! the next part when it has read the last one, and finds a gap in the ids if that took too long. A
//! follower that does not read at all is cut off.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::patience::{Patience, within};
use bindonce_wire::event::encode_notification;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::net::UnixStream;

use crate::Journal;

/// The most followers of one journal at the same time.
const MOST: usize = 32;

/// The length of a write, in bytes, from which on no further event goes into it.
const PART: usize = 16 * 1024;

/// The place of a client that follows, until this is dropped.
#[derive(Debug)]
pub(crate) struct Follower(Rc<Journal>);

impl Follower {
    /// Takes a place, if one is left.
    pub(crate) fn new(journal: &Rc<Journal>) -> Option<Self> {
        let following = journal.followers.get();
        (following < MOST).then(|| {
            journal.followers.set(following + 1);
            Self(Rc::clone(journal))
        })
    }
}

impl Follower {
    /// The error if no place is left.
    pub(crate) fn refused() -> RpcError {
        let message = format!("{MOST} clients already follow the events");
        RpcError::new(ErrorCode::LIMIT, message).with_hint("end one, or ask without `follow`")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.followers.set(self.0.followers.get().saturating_sub(1));
    }
}

/// Sends every event after `last`, until the peer closes the connection or sends anything.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the peer has not read for as long as `patience`; else errors from
/// the socket.
pub(crate) async fn follow(
    follower: &Follower,
    mut last: u64,
    stream: &UnixStream,
    patience: Duration,
) -> io::Result<()> {
    let journal = &follower.0;
    loop {
        // From here on no event is missed.
        let changed = journal.changed();
        let part = part(journal, &mut last)?;
        if !part.is_empty() {
            write(stream, &part, Patience::new(patience)).await?;
            continue;
        }
        tokio::select! {
            () = changed => {}
            ended = end_of(stream) => return ended,
        }
    }
}

fn part(journal: &Journal, last: &mut u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for event in journal.after(*last) {
        if text.len() >= PART {
            break;
        }
        text.extend_from_slice(&encode_notification(&event)?);
        *last = event.id;
    }
    Ok(text)
}

async fn write(stream: &UnixStream, mut text: &[u8], mut patience: Patience) -> io::Result<()> {
    while !text.is_empty() {
        match stream.try_write(text) {
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                within(&mut patience, stream.writable()).await.map_err(io::Error::from)??;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends when the peer has closed the connection or sent a byte.
async fn end_of(stream: &UnixStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use bindonce_core::event::Kind;
    use bindonce_wire::event::decode_notification;
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;
    use crate::Happening;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    fn say(journal: &Journal, count: usize) {
        for _ in 0..count {
            journal.record(Happening::new(Kind::GenerationServing, "x".repeat(400)));
        }
    }

    #[test]
    fn a_follower_gets_every_event_once_and_in_order() {
        run(async {
            let journal = Journal::in_memory(None);
            say(&journal, 500);
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let follower = Follower::new(&journal).expect("a place");
            let read = async {
                let mut lines = BufReader::new(theirs).lines();
                for id in 1..=600 {
                    if id == 300 {
                        say(&journal, 100);
                    }
                    let line = lines.next_line().await.expect("a line").expect("a line");
                    assert_eq!(decode_notification(line.as_bytes()).expect("an event").id, id);
                }
            };
            let patience = Duration::from_secs(5);
            let (followed, ()) = tokio::join!(follow(&follower, 0, &ours, patience), read);
            followed.expect("it ends with the connection");
            drop(follower);
            assert_eq!(journal.followers.get(), 0);
        });
    }

    #[test]
    fn one_who_does_not_read_is_cut_off() {
        run(async {
            let journal = Journal::in_memory(None);
            say(&journal, 1000);
            let (ours, _theirs) = UnixStream::pair().expect("a pair");
            let follower = Follower::new(&journal).expect("a place");
            let error = follow(&follower, 0, &ours, Duration::from_millis(50)).await;
            assert_eq!(error.expect_err("cut off").kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn there_are_only_so_many_places() {
        let journal = Journal::in_memory(None);
        let all: Vec<_> = (0..MOST).map(|_| Follower::new(&journal).expect("a place")).collect();
        assert!(Follower::new(&journal).is_none());
        drop(all);
        assert!(Follower::new(&journal).is_some());
    }
}
