//! One connection: requests in order, each with a deadline for being complete and for its reply
//! being read.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::patience::{LAST_LOOK, Patience, within};
use bindonce_wire::framing::{Frame, Text};
use bindonce_wire::message::{Id, Request, encode_error};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::clients::Clients;
use super::end::End;
use super::handler::{Excess, Handler};
use super::link::{Link, Taken};
use super::sending::{Pushed, Reply, Sending, send};
use crate::follow::follow;

/// The length of a request or a reply, in bytes, from which its memory is given back to the system
/// once it is answered.
const LARGE: usize = 32 * 1024;

/// Serves a connection to its end. A connection that has sent much yields after each request and
/// each read: no other connection waits for more than one of its steps.
pub(super) async fn serve(link: &Rc<Link>, clients: &Clients, handler: &impl Handler) -> End {
    let in_progress = || link.scanner.borrow().in_progress();
    // Boxed, like all that is rare here: most connections are idle, and each has room for whatever
    // is not boxed.
    let patience = || Box::new(Patience::new(clients.limits().request_time));
    // For the request in progress.
    let mut unfinished_for = in_progress().then(patience);
    loop {
        let limits = clients.limits();
        let deadline = limits.request_time;
        if let Err(end) = link.flush(deadline).await {
            return end;
        }
        let ready = {
            let mut readable = pin!(async {
                tokio::select! {
                    ready = link.stream.readable() => ready.map(|()| true),
                    () = link.woken.notified() => Ok(false),
                }
            });
            match &mut unfinished_for {
                None => match timeout(limits.idle_time, readable.as_mut()).await {
                    Ok(ready) => ready,
                    Err(_) if handler.is_used(link.caller.connection) => continue,
                    // What came while this process was stopped may not be known yet.
                    Err(_) => match timeout(LAST_LOOK, readable).await {
                        Ok(ready) => ready,
                        Err(_) => return End::Idle,
                    },
                },
                Some(patience) => {
                    let limit = patience.limit();
                    match Box::pin(within(patience, readable)).await {
                        Ok(ready) => ready,
                        Err(_) => return Box::pin(unfinished(link, clients, limit)).await,
                    }
                }
            }
        };
        if !link.closed(deadline).await {
            return End::TooMuch;
        }
        let read = |ready| if ready { link.read() } else { Ok(Some(Taken::default())) };
        let Taken { frames, more } = match ready.and_then(read) {
            Ok(Some(taken)) => taken,
            Ok(None) => return End::Closed,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return End::Failed(error),
        };
        let waiting: usize = frames.iter().map(Frame::memory).sum();
        if !link.keep(waiting) {
            return too_much(link, handler, &frames);
        }
        let complete = !frames.is_empty();
        link.progress.busy.set(complete);
        let last = frames.len().saturating_sub(1);
        let mut large = waiting >= LARGE;
        for (index, frame) in frames.into_iter().enumerate() {
            let last_word = frame.ends_connection();
            let reply = match frame {
                Frame::Request(frame) => Box::pin(answer(link, handler, &frame)).await,
                bad => encode_error(&Id::Null, &bad.refusal(link.scanner.borrow().cap())).into(),
            };
            large |= reply.text.len() >= LARGE;
            let mut sending = Sending::new(reply);
            let sent = sending.push(link);
            // Before any other task has a turn, whatever became of the reply.
            handler.replied();
            let sent = match sent {
                Ok(Pushed::Whole) => Ok(()),
                Ok(_) if !link.shares.memory.keep_one(waiting + sending.memory()) => {
                    return End::TooMuch;
                }
                Ok(_) => Box::pin(sending.finish(link, clients, deadline)).await,
                Err(end) => Err(end),
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
                clients.calmer();
                let following = Box::pin(follow(&follower, last, &link.stream, deadline));
                return match following.await {
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
        if large {
            clients.unburdened.notify_one();
        }
        if complete {
            link.progress.busy.set(false);
            clients.calmer();
        }
        let in_progress = in_progress();
        if !in_progress {
            // No request has asked for these descriptors.
            link.take_received();
        }
        unfinished_for = match (in_progress, unfinished_for) {
            (false, _) => None,
            (true, Some(patience)) if !complete => Some(patience),
            (true, _) => Some(patience()),
        };
    }
}

/// Lets the handler answer a request.
async fn answer(link: &Rc<Link>, handler: &impl Handler, text: &Text) -> Reply {
    let request = match Request::decode(text) {
        Ok(request) => request,
        Err(rejected) => return encode_error(&rejected.id, &rejected.error).into(),
    };
    handler.answer(link, &request).await.unwrap_or_else(|error| {
        let peer = link.caller.peer;
        tracing::debug!(
            method = %request.method, uid = peer.uid, pid = peer.pid,
            code = error.code.0, %error, "request refused"
        );
        encode_error(&request.id, &error).into()
    })
}

/// Refuses requests for which there is no memory, and ends the connection. If the peer has no room
/// for the error, the close says as much.
fn too_much(link: &Link, handler: &impl Handler, frames: &[Frame]) -> End {
    let error = handler.refusal(Excess::Buffered);
    let id = frames.iter().find_map(|frame| match frame {
        Frame::Request(text) => Request::decode(text).ok().map(|request| request.id),
        _ => None,
    });
    let _ = link.stream.try_write(&encode_error(&id.unwrap_or(Id::Null), &error));
    End::TooMuch
}

async fn unfinished(link: &Link, clients: &Clients, deadline: Duration) -> End {
    let message = format!(
        "the request was begun and not finished within {}",
        bindonce_core::duration::format(deadline)
    );
    let error = RpcError::new(ErrorCode::TIMED_OUT, message)
        .with_hint("send a request as a whole; the connection is closed now");
    match send(link, clients, encode_error(&Id::Null, &error).into(), deadline).await {
        Ok(()) => End::Unfinished,
        Err(end) => end,
    }
}
