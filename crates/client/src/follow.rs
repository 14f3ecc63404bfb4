//! Follows events as they happen, over a connection of its own.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bindonce_wire::event::{Event, decode_notification};
use bindonce_wire::message::{Id, Reply, encode_request};
use bindonce_wire::params::Events;
use bindonce_wire::result::EventsResult;

use crate::blocking::at_least;
use crate::error::Error;
use crate::session::{DEFAULT_TIMEOUT, MAX_REPLY};
use crate::socket;

const METHOD: &str = "events";

/// The events of a broker or of a supervisor: the remembered ones, then each as it happens. The
/// iterator waits for the next event and ends when the other side has gone. A new follower with the
/// last id then continues without a gap, also at the next broker.
///
/// ```no_run
/// # fn main() -> Result<(), bindonce::Error> {
/// for event in bindonce::Follower::connect(&bindonce::default_socket(), 0)? {
///     let event = event?;
///     println!("{} {}: {}", event.time, event.kind, event.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Follower {
    stream: BufReader<UnixStream>,
    /// The received part of an incomplete line.
    partial: Vec<u8>,
    known: VecDeque<Event>,
}

impl Follower {
    /// Follows the events after the id `since`, or all remembered ones with 0, at a control socket.
    ///
    /// # Errors
    /// [`Error::Refused`] if the caller may not see all events; see [`Error`].
    pub fn connect(path: &Path, since: u64) -> Result<Self, Error> {
        let stream = UnixStream::from(socket::connect(path, DEFAULT_TIMEOUT)?);
        stream.set_read_timeout(Some(DEFAULT_TIMEOUT)).map_err(Error::Io)?;
        let params = [Events { since, follow: true }];
        let request = encode_request(&Id::from(1), METHOD, &params).map_err(Error::Encode)?;
        (&stream).write_all(&request).map_err(Error::Io)?;
        let stream = BufReader::new(stream);
        let mut follower = Self { stream, partial: Vec::new(), known: VecDeque::new() };
        let line = match follower.line() {
            Ok(Some(line)) => line,
            Ok(None) => return Err(Error::Closed { during: METHOD }),
            Err(error) if is_timeout(&error) => {
                return Err(Error::TimedOut { during: METHOD, after: DEFAULT_TIMEOUT });
            }
            Err(error) => return Err(Error::Io(error)),
        };
        let reply = Reply::<EventsResult>::decode(&line);
        let reply = reply.map_err(|error| Error::Protocol(error.to_string()))?;
        follower.known = reply.outcome.map_err(Error::Refused)?.events.into();
        Ok(follower)
    }

    /// The next event; None if there is none within `timeout`. Without a timeout the wait has no
    /// limit.
    ///
    /// # Errors
    /// [`Error::Closed`] when the other side has gone; see [`Error`].
    pub fn next_within(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        if let Some(event) = self.known.pop_front() {
            return Ok(Some(event));
        }
        let stream = self.stream.get_ref();
        stream.set_read_timeout(timeout.map(at_least)).map_err(Error::Io)?;
        match self.line() {
            Ok(Some(line)) => {
                let event = decode_notification(&line);
                event.map(Some).map_err(|error| Error::Protocol(error.to_string()))
            }
            Ok(None) => Err(Error::Closed { during: METHOD }),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(Error::Closed { during: METHOD })
            }
            Err(error) => Err(Error::Io(error)),
        }
    }

    /// A whole line; None at the end of the stream. The part of a line that came before a timeout
    /// is kept.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let read = match self.stream.fill_buf() {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            self.partial.extend_from_slice(&read[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if self.partial.len() > MAX_REPLY {
                let message = format!("a line is longer than {MAX_REPLY} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
}

impl Iterator for Follower {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_within(None) {
            Ok(Some(event)) => Some(Ok(event)),
            Ok(None) | Err(Error::Closed { .. }) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// Readable when more events have arrived, or the other side has gone. Events that are already read
/// into memory do not count: take them first, with [`Follower::next_within`].
impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
