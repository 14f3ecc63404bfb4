//! One client: connect, ask, read to the end, note what happened, again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Shared;
use crate::report::{Answer, Kind, Tally};

/// No answer of a test is longer than this.
const MAX_RESPONSE: usize = 1 << 20;

/// Runs one client until the load is over.
pub(crate) fn client(shared: &Shared, index: usize) -> Tally {
    let mut tally = Tally::default();
    let request =
        format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", shared.plan.host);
    let mut buffer = Vec::with_capacity(4096);
    let mut number = 0_u64;
    while shared.begin() {
        let begun = Instant::now();
        let outcome =
            request_once(shared, source(shared.plan.target, index, number), &request, &mut buffer);
        number += 1;
        let took = begun.elapsed();
        match outcome {
            Ok(Exchange { connect, token }) => {
                shared.answered(token.as_deref());
                let at = (begun - shared.start, begun - shared.start + took);
                tally.answer(Answer { begun: at.0, ended: at.1, connect }, token);
            }
            Err((kind, text)) => {
                tally.failure(kind, begun - shared.start, took, text);
                // A refusal costs nothing: do not spin on it.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    tally
}

/// A source address for connection `number` of client `index`: a quarter of a
/// million for each client before one comes again, and none is 127.0.0.1.
fn source(target: SocketAddr, index: usize, number: u64) -> Option<SocketAddr> {
    let IpAddr::V4(_) = target.ip() else {
        return None;
    };
    let byte = |value: u64| u8::try_from(value).unwrap_or(1);
    let second = 1 + (index as u64 % 250);
    let third = (index as u64 / 250 * 60 + number / 250 % 60) % 250;
    let address = Ipv4Addr::new(127, byte(second), byte(third), byte(1 + number % 250));
    Some(SocketAddr::from((address, 0)))
}

struct Exchange {
    connect: Duration,
    token: Option<String>,
}

type Failed = (Kind, String);

fn request_once(
    shared: &Shared,
    source: Option<SocketAddr>,
    request: &str,
    buffer: &mut Vec<u8>,
) -> Result<Exchange, Failed> {
    let plan = &shared.plan;
    let local = |error: io::Error| (Kind::Local, format!("no socket: {error}"));
    let socket = Socket::new(Domain::for_address(plan.target), Type::STREAM, Some(Protocol::TCP))
        .map_err(local)?;
    if let Some(source) = source {
        // The port is chosen at connect, where only the whole 4-tuple must be free.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(|e| local(e.into()))?;
        socket.bind(&source.into()).map_err(local)?;
    }
    let begun = Instant::now();
    socket.connect_timeout(&plan.target.into(), plan.timeout).map_err(|e| failed(&e, "connect"))?;
    let connect = begun.elapsed();
    let mut stream = TcpStream::from(socket);
    let setup =
        stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(Some(plan.timeout)));
    setup.map_err(|e| failed(&e, "connect"))?;
    stream.write_all(request.as_bytes()).map_err(|e| failed(&e, "write"))?;
    buffer.clear();
    read_all(&mut stream, buffer, begun + plan.timeout)?;
    let token = judge(buffer, &plan.token_header)?;
    Ok(Exchange { connect, token })
}

/// Reads to the end of the stream: the server closes first, so that it and not
/// the client keeps the TIME_WAIT, and a reset after the answer is seen.
fn read_all(stream: &mut TcpStream, buffer: &mut Vec<u8>, deadline: Instant) -> Result<(), Failed> {
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || buffer.len() > MAX_RESPONSE {
            return Err((
                Kind::TimedOut,
                format!("no end of the answer; {} bytes came", buffer.len()),
            ));
        }
        stream.set_read_timeout(Some(left)).map_err(|e| failed(&e, "read"))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(&error, "read")),
        }
    }
}

/// Status 200 and a body of the length it says, or why not.
fn judge(response: &[u8], token_header: &str) -> Result<Option<String>, Failed> {
    let truncated = || (Kind::Truncated, format!("the answer ends after {} bytes", response.len()));
    let head =
        response.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(truncated)?;
    let text = String::from_utf8_lossy(&response[..head]);
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err((Kind::BadStatus, status.to_owned()));
    }
    let mut token = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case(token_header) {
            token = Some(value.trim().to_owned());
        } else if name.eq_ignore_ascii_case("content-length")
            && value.trim().parse::<usize>().is_ok_and(|length| response.len() - head - 4 < length)
        {
            return Err(truncated());
        }
    }
    Ok(token)
}

/// What an error of connect, write or read means for the count.
fn failed(error: &io::Error, during: &str) -> Failed {
    use nix::errno::Errno;
    let kind = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Kind::Refused,
        Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => Kind::Reset,
        Some(
            Errno::EADDRNOTAVAIL
            | Errno::EADDRINUSE
            | Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOBUFS,
        ) => Kind::Local,
        Some(Errno::ETIMEDOUT | Errno::EAGAIN) => Kind::TimedOut,
        _ if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Kind::TimedOut,
        _ => Kind::Other,
    };
    (kind, format!("{during}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_is_good_and_carries_its_token() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Generation: 7\r\n\r\nok";
        assert_eq!(judge(answer, "x-generation").expect("good"), Some("7".to_owned()));
        assert!(matches!(judge(&answer[..answer.len() - 1], "x"), Err((Kind::Truncated, _))));
        assert!(matches!(judge(b"HTTP/1.1 503 No\r\n\r\n", "x"), Err((Kind::BadStatus, _))));
        assert!(matches!(judge(b"", "x"), Err((Kind::Truncated, _))));
    }

    #[test]
    fn source_addresses_differ_between_clients_and_connections() {
        let target = SocketAddr::from(([127, 0, 0, 1], 80));
        let mut seen = std::collections::HashSet::new();
        for index in [0, 1, 249, 250, 999] {
            for number in 0..15_000 {
                assert!(
                    seen.insert(source(target, index, number)),
                    "client {index}, connection {number}"
                );
            }
        }
        assert_eq!(source("[::1]:80".parse().expect("address"), 0, 0), None);
    }
}
