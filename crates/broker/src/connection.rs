//! One connection: requests in order, each with a deadline for being sent and
//! for its reply being read.
//!
//! Descriptors that a peer sends are not asked for, so plain reads leave them to
//! the kernel, which closes them.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use bindonce_sys::{Errno, scm};
use bindonce_wire::batch::Transmission;
use bindonce_wire::framing::{Frame, Scanner};
use bindonce_wire::message::{Id, encode_error};
use bindonce_wire::{ErrorCode, MAX_REQUEST, RpcError};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::requests::{self, Caller, Reply};
use crate::state::State;

/// Most requests are far shorter; longer ones take more than one read.
const READ: usize = 16 * 1024;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer closed it.
    Closed,
    /// The peer left a request unfinished for too long.
    Unfinished,
    /// The peer did not read its reply in time.
    NotRead,
    /// The kernel let no more descriptors be in flight (ETOOMANYREFS, unix(7)).
    TooManyInFlight,
    /// Reading or writing failed.
    Failed(io::Error),
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    mut stream: UnixStream,
    state: &RefCell<State>,
    caller: Caller,
    deadline: Duration,
) -> End {
    let mut scanner = Scanner::new(MAX_REQUEST);
    let mut buffer = vec![0; READ];
    // Since when the request in progress has been in progress.
    let mut begun: Option<Instant> = None;
    loop {
        let read = stream.read(&mut buffer);
        let read = match begun {
            None => read.await,
            Some(begun) => match timeout_at(begun + deadline, read).await {
                Ok(read) => read,
                Err(_) => return unfinished(&stream, deadline).await,
            },
        };
        let mut input = match read {
            Ok(0) => return End::Closed,
            Ok(count) => &buffer[..count],
            Err(error) => return End::Failed(error),
        };
        let mut complete = false;
        while let Some(frame) = scanner.next(&mut input) {
            complete = true;
            let reply = match frame {
                Frame::Request(frame) => requests::answer(state, caller, &frame).await,
                bad => reject(&bad).into(),
            };
            if let Err(end) = send(&stream, reply, deadline).await {
                return end;
            }
        }
        begun = match (scanner.in_progress(), begun) {
            (false, _) => None,
            (true, Some(begun)) if !complete => Some(begun),
            (true, _) => Some(Instant::now()),
        };
    }
}

/// The reply to what is no request.
fn reject(frame: &Frame) -> Vec<u8> {
    let error = match frame {
        Frame::TooLarge => {
            let message = format!("the request is longer than {MAX_REQUEST} bytes");
            RpcError::new(ErrorCode::TOO_LARGE, message)
                .with_hint("split it, or ask for a range of ports as one element")
        }
        Frame::Malformed { reason, at } => {
            RpcError::new(ErrorCode::PARSE, format!("not JSON at byte {at}: {reason}"))
                .with_hint("a request is one JSON object; docs/protocol.md has examples")
        }
        Frame::Request(_) => RpcError::new(ErrorCode::INVALID_REQUEST, "not a request"),
    };
    encode_error(&Id::Null, &error)
}

async fn unfinished(stream: &UnixStream, deadline: Duration) -> End {
    let message = format!(
        "the request was begun and not finished within {}",
        bindonce_core::duration::format(deadline)
    );
    let error = RpcError::new(ErrorCode::TIMED_OUT, message)
        .with_hint("send a request as a whole; the connection is closed now");
    match send(stream, encode_error(&Id::Null, &error).into(), deadline).await {
        Ok(()) => End::Unfinished,
        Err(end) => end,
    }
}

/// Sends a reply as a whole, or ends the connection.
async fn send(stream: &UnixStream, reply: Reply, deadline: Duration) -> Result<(), End> {
    let Reply { text, descriptors } = reply;
    let mut transmission = Transmission::new(text, descriptors.len());
    let mut until = None;
    loop {
        let Some((bytes, batch)) = transmission.next() else {
            return Ok(());
        };
        let batch: Vec<BorrowedFd<'_>> = descriptors[batch].iter().map(|fd| fd.as_fd()).collect();
        let sent = stream.try_io(Interest::WRITABLE, || scm::send(stream.as_fd(), bytes, &batch));
        match sent {
            Ok(count) => transmission.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let until = *until.get_or_insert_with(|| Instant::now() + deadline);
                match timeout_at(until, stream.writable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(End::Failed(error)),
                    Err(_) => return Err(End::NotRead),
                }
            }
            Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => {
                return Err(too_many(stream, &transmission));
            }
            Err(error) => return Err(End::Failed(error)),
        }
    }
}

/// Descriptors that others have not received yet fill the broker's limit. Says
/// so if nothing of the reply is out yet; the leases end with the connection.
fn too_many(stream: &UnixStream, transmission: &Transmission) -> End {
    if transmission.descriptors_sent() == 0 {
        let message = "too many descriptors are on their way to clients that have not read them";
        let error = RpcError::new(ErrorCode::LIMIT, message).with_hint(
            "connect and ask again; raising the broker's RLIMIT_NOFILE raises this limit as well",
        );
        // The peer waits for this reply, so there is room for it; if not, the
        // end of the connection tells the same.
        let _ = stream.try_write(&encode_error(&Id::Null, &error));
    }
    End::TooManyInFlight
}
