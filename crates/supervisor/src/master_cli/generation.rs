//! Commands for a generation. Each goes on its own connection to the admin socket, or, if the
//! generation accepts no new one, on a connection opened earlier
//! ([`Spares`]).

use std::io;
use std::path::Path;
use std::time::Duration;

use bindonce_haproxy::cli::master::{Input, Next, Session};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::ask::Seen;
use super::client::{Client, Goes, Hub};
use crate::generations::spares::Spares;

/// The message for an unreachable generation, in haproxy's words.
const NOT_REACHED: &[u8] = b"Can't connect to the target CLI!\n";

/// How long a generation may take to accept a connection and a command, and how long it may be
/// silent.
const CONNECT: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(600);

/// How long a draining generation may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How often a connection that was not accepted is retried: a handover may have come between.
const ATTEMPTS: usize = 20;

/// A command with its newline and payload, and the session it belongs to.
pub(super) struct Request<'a> {
    pub(super) session: &'a Session,
    pub(super) text: &'a [u8],
}

/// Sends a command to a process, and its answer to the client.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
    hub: &Hub,
    request: Request<'_>,
    pid: i32,
    mut seen: Seen,
) -> io::Result<Goes> {
    for _ in 0..ATTEMPTS {
        let Some(route) = seen.routes.remove(&pid) else { break };
        let Some(socket) = route.socket else {
            return ask_spare(client, &route.spares, &request).await;
        };
        let Some(_permit) = hub.permit().await else { break };
        let sent = bindonce_sys::patience::timeout(CONNECT, send(hub, &socket, &request)).await;
        if let Ok(Ok(mut stream)) = sent
            && relay(&mut stream, client, request.session.empty_answers(seen.version)).await?
        {
            hub.prepare(socket);
            return Ok(Goes::On);
        }
        // The generation was told to stop before it accepted the connection.
        seen = hub.look().await?;
    }
    client.end(NOT_REACHED).await
}

async fn send(hub: &Hub, socket: &Path, request: &Request<'_>) -> io::Result<UnixStream> {
    let mut stream = hub.connect(socket).await?;
    let text = [request.session.preamble().as_bytes(), request.text].concat();
    stream.write_all(&text).await?;
    stream.shutdown().await?;
    Ok(stream)
}

/// Passes an answer on to its end, without the first `empty` newlines. The answer may be empty
/// (`quit`). False if the connection was not accepted, which resets it.
async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut UnixStream,
    client: &mut Client<S>,
    mut empty: usize,
) -> io::Result<bool> {
    let mut bytes = vec![0; 16 * 1024];
    let mut passed = false;
    loop {
        match bindonce_sys::patience::timeout(SILENT, stream.read(&mut bytes)).await {
            Ok(Ok(read @ 1..)) => {
                let skipped = empty.min(read);
                client.say(&bytes[skipped..read]).await?;
                (empty, passed) = (empty - skipped, true);
            }
            Ok(Ok(_)) => return Ok(true),
            Ok(Err(_)) => return Ok(passed),
            // It may still be executed, so it must not be sent again.
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Asks a generation that accepts no new connections.
async fn ask_spare<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
    spares: &Spares,
    request: &Request<'_>,
) -> io::Result<Goes> {
    let Request { session, text } = request;
    let text = String::from_utf8_lossy(text);
    let command = text.strip_suffix('\n').unwrap_or(&text).to_owned();
    if is_of_the_connection(&command) {
        // As on a connection of its own, which ends with the command.
        let answer: &[u8] = if command == "quit" { b"" } else { b"\n" };
        client.say(answer).await?;
        return Ok(Goes::On);
    }
    let owned = |commands: Vec<&str>| commands.into_iter().map(str::to_owned).collect();
    let (before, after) = (owned(session.modes()), owned(session.undone()));
    let answer = match spares.get(session.level) {
        Some(spare) => spare.ask_between(before, command, after, ANSWER).await.ok(),
        None => None,
    };
    let Some(answer) = answer else {
        return client.end(NOT_REACHED).await;
    };
    // The connection uses a prompt, which marks the end of an answer. For each line of a payload
    // haproxy prompts for more.
    let mut answer = answer.as_str();
    while let Some(rest) = answer.strip_prefix("+ ") {
        answer = rest;
    }
    client.say(answer.as_bytes()).await?;
    client.say(b"\n").await?;
    Ok(Goes::On)
}

/// Whether a command only changes or ends the connection that it comes on, which others share here.
fn is_of_the_connection(command: &str) -> bool {
    let mut words = command.split_ascii_whitespace();
    match words.next() {
        Some(
            "quit" | "prompt" | "operator" | "user" | "expert-mode" | "experimental-mode"
            | "mcli-debug-mode",
        ) => true,
        Some("set") => matches!(words.next(), Some("timeout" | "severity-output" | "anon")),
        _ => false,
    }
}

/// Connects the client with a process until the process closes the connection.
pub(super) async fn join<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
    hub: &Hub,
    request: Request<'_>,
    pid: i32,
    seen: &Seen,
) -> io::Result<Goes> {
    let Some(route) = seen.routes.get(&pid) else {
        return client.end(NOT_REACHED).await;
    };
    let Some(socket) = &route.socket else {
        if request.text.is_empty() {
            let text = "This process is stopping, and can be asked only single commands: @@!PID COMMAND\n\n";
            client.say(text.as_bytes()).await?;
            return Ok(Goes::On);
        }
        // The connection is shared, so each command is sent alone.
        let mut commands = Input::default();
        commands.push(request.text);
        while let Next::Command(mut text) = commands.next(false) {
            text.push(b'\n');
            let one = Request { session: request.session, text: &text };
            if ask_spare(client, &route.spares, &one).await? == Goes::Ends {
                return Ok(Goes::Ends);
            }
        }
        return Ok(Goes::On);
    };
    let Some(_permit) = hub.permit().await else {
        return client.end(NOT_REACHED).await;
    };
    let stream = bindonce_sys::patience::timeout(CONNECT, UnixStream::connect(socket)).await;
    let Ok(Ok(mut stream)) = stream else {
        return client.end(NOT_REACHED).await;
    };
    let more = client.input.take();
    let text = match request.text {
        [] if more.is_empty() => request.session.mode().as_bytes(),
        text => text,
    };
    let text = [request.session.lowered().as_bytes(), text, &more].concat();
    pass(&mut stream, &text, CONNECT).await?;
    let (mut theirs, mut ours) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        let next = async {
            tokio::select! {
                read = stream.read(&mut theirs) => Moved::Theirs(read),
                read = client.stream.read(&mut ours), if !client.ended => Moved::Ours(read),
                () = hub.is_needed() => Moved::Nothing,
            }
        };
        let next = bindonce_sys::patience::timeout(SILENT, next).await;
        match next.unwrap_or(Moved::Nothing) {
            Moved::Theirs(Ok(read @ 1..)) => client.say(&theirs[..read]).await?,
            Moved::Theirs(_) => return Ok(Goes::On),
            Moved::Ours(read) => match read? {
                0 => {
                    client.ended = true;
                    stream.shutdown().await?;
                }
                read => pass(&mut stream, &ours[..read], SILENT).await?,
            },
            Moved::Nothing => return Ok(Goes::Ends),
        }
    }
}

/// What came between a client and a process.
enum Moved {
    Theirs(io::Result<usize>),
    Ours(io::Result<usize>),
    Nothing,
}

/// Passes on what a client sends, for `limit` at most.
async fn pass(stream: &mut UnixStream, text: &[u8], limit: Duration) -> io::Result<()> {
    bindonce_sys::patience::timeout(limit, stream.write_all(text)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_only_the_connection_is_not_sent_on_a_shared_one() {
        for own in ["quit", "operator", "prompt i timed", "set timeout cli 1s", "set anon on"] {
            assert!(is_of_the_connection(own), "{own}");
        }
        for other in
            ["", "show info", "set maxconn global 7", "set server a/b state ready", "quitx"]
        {
            assert!(!is_of_the_connection(other), "{other}");
        }
    }
}
