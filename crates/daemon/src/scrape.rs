//! The other end of a scrape: one page over HTTP/1.1, for `curl` and Prometheus.
//!
//! It answers GET and HEAD, one request to a connection, and is no web server. A request has
//! a longest head and a time; a reply has a time to be read. Only so many connections are
//! open at once: the oldest ends for the next, so that one who is slow, or many, keep nobody
//! out. Nothing that a client sends is kept or told to anybody.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::memory;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::openmetrics::CONTENT_TYPE;

/// The longest head of a request, in bytes.
const HEAD: usize = 8 * 1024;
/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(5);
/// How long it may take to read the reply.
const REPLY: Duration = Duration::from_secs(10);
/// From this length on the memory of a page is given back to the system.
const LARGE: usize = 32 * 1024;
/// How many connections are open at the same time.
const CONNECTIONS: usize = 16;
/// Pause after accept(2) has failed for want of descriptors or memory: there is no event for
/// their return.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// Serves pages on a listening TCP or UNIX socket that does not block, until the task is
/// ended. Call it within a [`tokio::task::LocalSet`]. `page` is called for each request; one that
/// is empty or does not come in time is answered with 503.
///
/// # Errors
/// If the socket is neither, or cannot be watched.
pub async fn serve<P, F>(listener: OwnedFd, is_tcp: bool, page: P) -> io::Result<()>
where
    P: Fn() -> F + 'static,
    F: Future<Output = String> + 'static,
{
    let page = Rc::new(page);
    let mut open = VecDeque::new();
    if is_tcp {
        let listener = TcpListener::from_std(listener.into())?;
        loop {
            take(listener.accept().await, &mut open, &page).await;
        }
    }
    let listener = UnixListener::from_std(listener.into())?;
    loop {
        take(listener.accept().await, &mut open, &page).await;
    }
}

async fn take<S, A, P, F>(
    accepted: io::Result<(S, A)>,
    open: &mut VecDeque<AbortHandle>,
    page: &Rc<P>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    P: Fn() -> F + 'static,
    F: Future<Output = String> + 'static,
{
    let stream = match accepted {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::debug!(%error, "metrics: cannot accept a connection");
            return tokio::time::sleep(ACCEPT_AGAIN).await;
        }
    };
    open.retain(|task| !task.is_finished());
    if open.len() >= CONNECTIONS
        && let Some(oldest) = open.pop_front()
    {
        oldest.abort();
    }
    let page = Rc::clone(page);
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = converse(stream, &*page).await {
            tracing::debug!(%error, "metrics: connection ended");
        }
    });
    open.push_back(task.abort_handle());
}

async fn converse<S, F>(mut stream: S, page: impl Fn() -> F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = String>,
{
    let asked = match timeout(REQUEST, head(&mut stream)).await {
        Ok(head) => head?.as_deref().map_or(Asked::TooLong, read),
        Err(_) => Asked::TooLate,
    };
    let (status, text) = match asked {
        Asked::Page | Asked::Head => match timeout(REPLY, page()).await {
            Ok(text) if !text.is_empty() => ("200 OK", text),
            // Whoever makes the page has not begun or has ended.
            _ => ("503 Service Unavailable", "not now: ask again\n".to_owned()),
        },
        Asked::Elsewhere => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        Asked::OtherMethod => ("405 Method Not Allowed", "ask with GET\n".to_owned()),
        Asked::Nonsense => ("400 Bad Request", "this is no request of HTTP/1\n".to_owned()),
        Asked::TooLong => {
            ("431 Request Header Fields Too Large", format!("a head has at most {HEAD} bytes\n"))
        }
        Asked::TooLate => ("408 Request Timeout", "the request did not come in time\n".to_owned()),
    };
    let of = if status == "200 OK" { CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    let allow = if asked == Asked::OtherMethod { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {of}\r\nContent-Length: {}\r\n{allow}Connection: \
         close\r\n\r\n",
        text.len()
    );
    let reply = async {
        stream.write_all(head.as_bytes()).await?;
        if asked != Asked::Head {
            stream.write_all(text.as_bytes()).await?;
        }
        stream.shutdown().await?;
        // Until the client has it all: closing before would cut it off if it has sent more.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok(())
    };
    let replied = timeout(REPLY, reply).await.map_err(io::Error::from);
    if text.len() >= LARGE {
        drop(text);
        memory::return_freed();
    }
    replied?
}

/// Reads to the empty line that ends the head; none if that does not come soon enough.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        let count = stream.read(&mut part).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The end may lie across two reads.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(part.get(..count).unwrap_or_default());
        let new = head.get(from..).unwrap_or_default();
        if new.windows(4).any(|four| four == b"\r\n\r\n")
            || new.windows(2).any(|two| two == b"\n\n")
        {
            return Ok(Some(head));
        }
        if head.len() > HEAD {
            return Ok(None);
        }
    }
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Page,
    /// What a page would be, without it.
    Head,
    Elsewhere,
    OtherMethod,
    Nonsense,
    TooLong,
    TooLate,
}

/// Reads the first line of a head (RFC 9112, section 3).
fn read(head: &[u8]) -> Asked {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Asked::Nonsense;
    };
    if !version.starts_with(b"HTTP/1.") || method.is_empty() {
        return Asked::Nonsense;
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match method {
        b"GET" | b"HEAD" if path != b"/metrics" && path != b"/" => Asked::Elsewhere,
        b"GET" => Asked::Page,
        b"HEAD" => Asked::Head,
        _ => Asked::OtherMethod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_is_asked() {
        for (line, asked) in [
            ("GET /metrics HTTP/1.1", Asked::Page),
            ("GET / HTTP/1.0", Asked::Page),
            ("GET /metrics?collect[]=x HTTP/1.1", Asked::Page),
            ("HEAD /metrics HTTP/1.1", Asked::Head),
            ("GET /other HTTP/1.1", Asked::Elsewhere),
            ("POST /metrics HTTP/1.1", Asked::OtherMethod),
            ("GET /metrics", Asked::Nonsense),
            ("GET /metrics HTTP/2", Asked::Nonsense),
            ("GET  /metrics HTTP/1.1", Asked::Nonsense),
            (" / HTTP/1.1", Asked::Nonsense),
            ("", Asked::Nonsense),
        ] {
            assert_eq!(read(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), asked, "{line:?}");
        }
    }

    /// The reply to what is sent in these parts.
    fn exchange(parts: &[&str]) -> String {
        exchange_for(parts, "page\n# EOF\n")
    }

    fn exchange_for(parts: &[&str], page: &'static str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            let talk = async {
                for part in parts {
                    client.write_all(part.as_bytes()).await.expect("writing");
                    tokio::task::yield_now().await;
                }
                let mut reply = String::new();
                client.read_to_string(&mut reply).await.expect("reading");
                drop(client);
                reply
            };
            let serve = converse(server, || async { page.to_owned() });
            let (reply, served) = tokio::join!(talk, serve);
            served.expect("served");
            reply
        })
    }

    #[test]
    fn no_page_is_no_success() {
        let reply = exchange_for(&["GET /metrics HTTP/1.1\r\n\r\n"], "");
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    }

    #[test]
    fn a_request_in_parts_is_one_request() {
        let whole = exchange(&["GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"]);
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert!(whole.ends_with("\r\n\r\npage\n# EOF\n"), "{whole}");
        assert!(whole.contains("Content-Length: 11\r\n"), "{whole}");
        assert_eq!(exchange(&["GET /met", "rics HTTP/1.1\r\nHost: x\r\n\r", "\n"]), whole);
        assert_eq!(exchange(&["GET /metrics HTTP/1.1\n\n"]), whole);
        let head = exchange(&["HEAD /metrics HTTP/1.1\r\n\r\n"]);
        assert!(whole.starts_with(&head) && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn what_is_too_long_or_no_request_is_told_so() {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "y".repeat(HEAD));
        assert!(exchange(&[&long]).starts_with("HTTP/1.1 431 "));
        assert!(exchange(&["hello\r\n\r\n"]).starts_with("HTTP/1.1 400 "));
        let other = exchange(&["DELETE /metrics HTTP/1.1\r\n\r\n"]);
        assert!(
            other.starts_with("HTTP/1.1 405 ") && other.contains("Allow: GET, HEAD"),
            "{other}"
        );
    }
}
