//! The client of the demonstration: a new connection for each request.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time limit for every step; what hangs has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// More bytes than any answer to these requests has.
const ANSWER: u64 = 16 * 1024;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The host is known: the number of the configuration that answered.
    Configuration(u64),
    /// The host is unknown there: the status, 503 from a haproxy without a backend.
    Status(u16),
    /// There was no answer: refused, reset, or too late.
    None,
}

/// Asks for `host` on a connection of its own.
pub(super) fn ask(address: SocketAddr, host: &str) -> Answer {
    exchange(address, host).map_or(Answer::None, |text| read(&text))
}

fn exchange(address: SocketAddr, host: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Finds the configuration in an answer's `Location` (every haproxy can redirect), as `/7`.
fn read(text: &str) -> Answer {
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().strip_prefix('/')?.parse().ok())
    });
    match (location.flatten(), status) {
        (Some(configuration), _) => Answer::Configuration(configuration),
        (None, Some(status)) => Answer::Status(status),
        (None, None) => Answer::None,
    }
}

/// Answers, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Requests.
    pub(super) asked: u64,
    /// Answered by a configuration that had been replaced.
    pub(super) stale: u64,
    /// Not answered.
    pub(super) failed: u64,
}

impl Tally {
    /// Counts an answer, while every client should get configuration `newest`.
    pub(super) fn count(&mut self, answer: &Answer, newest: u64) {
        self.asked += 1;
        match answer {
            Answer::Configuration(number) => self.stale += u64::from(*number < newest),
            Answer::Status(_) | Answer::None => self.failed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_which_configuration_it_is_from() {
        let found = "HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: /12\r\n\r\n";
        assert_eq!(read(found), Answer::Configuration(12));
        let unknown = "HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/html\r\n\r\n<html>";
        assert_eq!(read(unknown), Answer::Status(503));
        for nothing in ["", "HTTP/1.1", "HTTP/1.1 abc\r\nlocation: /x\r\n\r\n"] {
            assert_eq!(read(nothing), Answer::None, "{nothing}");
        }
    }

    #[test]
    fn an_older_configuration_is_stale_and_no_answer_is_a_failure() {
        let mut tally = Tally::default();
        for answer in [Answer::Configuration(4), Answer::Configuration(5), Answer::Configuration(6)]
        {
            tally.count(&answer, 5);
        }
        tally.count(&Answer::Status(503), 5);
        tally.count(&Answer::None, 5);
        assert_eq!(tally, Tally { asked: 5, stale: 1, failed: 2 });
    }
}
