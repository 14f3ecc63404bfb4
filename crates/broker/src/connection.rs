//! One connection: requests in order, each with a deadline for being sent and
//! for its reply being read.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bindonce_daemon::follow;
use bindonce_wire::framing::Frame;
use bindonce_wire::message::{Id, Request, encode_error};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};

use crate::broker::Broker;
use crate::clients::{End, LARGE, Link, Sending, Taken, send};
use crate::requests;

/// Serves a connection to its end. One that has sent much gives way to the others after each
/// request and each read: none of them waits for more than one of its steps.
pub(crate) async fn serve(link: &Rc<Link>, broker: &RefCell<Broker>) -> End {
    let in_progress = || link.scanner.borrow().in_progress();
    // Since when the request in progress has been in progress.
    let mut begun = in_progress().then(Instant::now);
    loop {
        let (deadline, idle) = {
            let limits = &broker.borrow().clients.limits;
            (limits.request_time, limits.idle_time)
        };
        if let Err(end) = link.flush(deadline).await {
            return end;
        }
        let readable = async {
            tokio::select! {
                ready = link.stream.readable() => ready.map(|()| true),
                () = link.woken.notified() => Ok(false),
            }
        };
        let ready = match begun {
            None => match timeout(idle, readable).await {
                Ok(ready) => ready,
                Err(_) if broker.borrow().listeners.registry.is_used(link.caller.connection) => {
                    continue;
                }
                Err(_) => return End::Idle,
            },
            Some(begun) => match timeout_at(begun + deadline, readable).await {
                Ok(ready) => ready,
                Err(_) => return unfinished(&link.stream, deadline).await,
            },
        };
        let read = |ready| if ready { link.read() } else { Ok(Some(Taken::default())) };
        let Taken { frames, more } = match ready.and_then(read) {
            Ok(Some(taken)) => taken,
            Ok(None) => return End::Closed,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return End::Failed(error),
        };
        let waiting: usize = frames.iter().map(Frame::memory).sum();
        if !link.keep(waiting) {
            return too_much(link, &frames);
        }
        let complete = !frames.is_empty();
        link.progress.busy.set(complete);
        let last = frames.len().saturating_sub(1);
        for (index, frame) in frames.into_iter().enumerate() {
            let last_word = frame.ends_connection();
            let reply = match frame {
                // In a box: most connections are idle, and the way to an answer is long.
                Frame::Request(frame) => Box::pin(requests::answer(broker, link, &frame)).await,
                bad => encode_error(&Id::Null, &bad.refusal(link.cap)).into(),
            };
            link.progress.large.set(link.progress.large.get() || reply.text.len() >= LARGE);
            let mut sending = Sending::new(reply);
            let sent = sending.push(&link.stream);
            // Before anything else has a turn, whatever has become of the reply.
            broker.borrow_mut().settle();
            let sent = match sent {
                Ok(false) if !link.share.keep_one(waiting + sending.memory()) => {
                    return End::TooMuch;
                }
                Ok(false) => sending.finish(&link.stream, deadline).await,
                done => done.map(drop),
            };
            if let Err(end) = sent {
                return end;
            }
            if last_word {
                return End::Malformed;
            }
            let following = link.following.take();
            if let Some((follower, last)) = following {
                link.progress.follows.set(true);
                broker.borrow().upgrade.calmer();
                return match follow(&follower, last, &link.stream, deadline).await {
                    Ok(()) => End::Closed,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => End::NotRead,
                    Err(error) => End::Failed(error),
                };
            }
            if index < last {
                yield_now().await;
            }
        }
        if more {
            yield_now().await;
        }
        // Less memory is in use now.
        link.keep(0);
        if complete {
            link.progress.busy.set(false);
            broker.borrow().upgrade.calmer();
        }
        let in_progress = in_progress();
        if !in_progress {
            // Nobody has asked for these.
            link.take_received();
        }
        begun = match (in_progress, begun) {
            (false, _) => None,
            (true, Some(begun)) if !complete => Some(begun),
            (true, _) => Some(Instant::now()),
        };
    }
}

/// There is no room for what has been read. The last word; where the peer has no room for it, the
/// end of the connection tells as much.
fn too_much(link: &Link, frames: &[Frame]) -> End {
    let message =
        "more requests wait, or are not finished, than the broker keeps for one user or for all";
    let error = RpcError::new(ErrorCode::LIMIT, message).with_hint(
        "finish one before the next, on fewer connections, or raise buffered_bytes in [limits] of \
         the broker's configuration",
    );
    let id = frames.iter().find_map(|frame| match frame {
        Frame::Request(text) => Request::decode(text).ok().map(|request| request.id),
        _ => None,
    });
    let _ = link.stream.try_write(&encode_error(&id.unwrap_or(Id::Null), &error));
    End::TooMuch
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
