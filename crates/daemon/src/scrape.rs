//! Serves metrics and the status page over HTTP/1.1, for Prometheus, `curl` and browsers.
//!
//! It answers GET and HEAD, one request to a connection, and is no web server. A request has a
//! longest head and a deadline; the reading of a reply has a deadline too. The number of open
//! connections is limited. For the next one, the oldest ends that does not wait for metrics, so
//! slow or silent clients keep no scraper out; while all wait for metrics, the next one waits too.
//! Nothing that a client sends is kept or passed on.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_sys::memory;
use bindonce_sys::patience::timeout;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::openmetrics::CONTENT_TYPE;

/// The longest head of a request, in bytes.
const HEAD: usize = 8 * 1024;
/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a client may take to read the reply.
const REPLY: Duration = Duration::from_secs(10);
/// The length of a page, in bytes, from which its memory is given back to the system.
const LARGE: usize = 32 * 1024;
/// The most connections open at the same time.
const CONNECTIONS: usize = 16;
/// How long a connection is open at least, however many others come: a request that has come with
/// it is read.
const OPEN: Duration = Duration::from_millis(10);
/// Pause after accept(2) has failed. If descriptors or memory were short, no event announces their
/// return.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// The pages that a client can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// `/metrics`.
    Metrics,
    /// `/`, the status page.
    Status,
    /// `/doctor`, what `bindonce doctor` finds.
    Findings,
}

/// Who may read the status page. Metrics are open to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusPage {
    /// No client.
    Off,
    /// Clients that name this host by its address or as `localhost`: a page of another site whose
    /// name resolves to this host (DNS rebinding) reads nothing.
    Local,
    /// Every client that reaches the listener.
    Open,
}

impl StatusPage {
    /// The setting for a listener at this address: on if only this host reaches it, or if it was
    /// `wanted`.
    pub fn on(address: &Address, wanted: bool) -> Self {
        match address {
            _ if wanted => Self::Open,
            Address::Tcp(at) if !at.ip().is_loopback() => Self::Off,
            _ => Self::Local,
        }
    }
}

/// What is served on one listener.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Whether the listener is a TCP socket; else it is a UNIX socket.
    pub is_tcp: bool,
    /// Who may read the status page.
    pub status_page: StatusPage,
}

/// Serves pages on a listening TCP or UNIX socket that does not block, until the task is ended.
/// Call it within a [`tokio::task::LocalSet`]. `page` is called for each request. A page that is
/// empty or does not come in time is answered with 503, None with 404.
///
/// # Errors
/// If the socket is neither, or cannot be watched.
pub async fn serve<P, F>(listener: OwnedFd, served: Served, page: P) -> io::Result<()>
where
    P: Fn(Subject) -> F + 'static,
    F: Future<Output = Option<String>> + 'static,
{
    let page = Rc::new(page);
    let mut open = Open::default();
    if served.is_tcp {
        let listener = TcpListener::from_std(listener.into())?;
        loop {
            take(listener.accept().await, &mut open, served.status_page, &page).await;
        }
    }
    let listener = UnixListener::from_std(listener.into())?;
    loop {
        take(listener.accept().await, &mut open, served.status_page, &page).await;
    }
}

/// The open connections.
#[derive(Default)]
struct Open {
    /// The oldest first.
    connections: VecDeque<Connection>,
    /// A connection waits for metrics no longer.
    moved_on: Rc<Notify>,
}

struct Connection {
    task: AbortHandle,
    begun: Instant,
    /// Whether its request has come and the metrics for it are being made.
    awaits_metrics: Rc<Cell<bool>>,
}

impl Open {
    /// Makes room for one more connection.
    async fn make_room(&mut self) {
        loop {
            self.connections.retain(|open| !open.task.is_finished());
            if self.connections.len() < CONNECTIONS {
                return;
            }
            let waits_for_its_client = |open: &Connection| !open.awaits_metrics.get();
            let Some(at) = self.connections.iter().position(waits_for_its_client) else {
                self.moved_on.notified().await;
                continue;
            };
            let age = self.connections.get(at).map_or(OPEN, |open| open.begun.elapsed());
            if age < OPEN {
                tokio::time::sleep(OPEN - age).await;
            } else if let Some(oldest) = self.connections.remove(at) {
                return oldest.task.abort();
            }
        }
    }
}

/// A connection waits for metrics until this is dropped.
struct Awaits(Rc<Cell<bool>>, Rc<Notify>);

impl Awaits {
    fn new(awaits_metrics: &Rc<Cell<bool>>, moved_on: &Rc<Notify>) -> Self {
        awaits_metrics.set(true);
        Self(Rc::clone(awaits_metrics), Rc::clone(moved_on))
    }
}

impl Drop for Awaits {
    fn drop(&mut self) {
        self.0.set(false);
        self.1.notify_one();
    }
}

async fn take<S, A, P, F>(
    accepted: io::Result<(S, A)>,
    open: &mut Open,
    status_page: StatusPage,
    page: &Rc<P>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    P: Fn(Subject) -> F + 'static,
    F: Future<Output = Option<String>> + 'static,
{
    let stream = match accepted {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::debug!(%error, "metrics: cannot accept a connection");
            return tokio::time::sleep(ACCEPT_AGAIN).await;
        }
    };
    open.make_room().await;
    let awaits_metrics = Rc::<Cell<bool>>::default();
    let (page, awaits, moved_on) =
        (Rc::clone(page), Rc::clone(&awaits_metrics), Rc::clone(&open.moved_on));
    let page = move |subject: Subject| {
        let waits = (subject == Subject::Metrics).then(|| Awaits::new(&awaits, &moved_on));
        let page = page(subject);
        async move {
            let page = page.await;
            drop(waits);
            page
        }
    };
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = converse(stream, status_page, page).await {
            tracing::debug!(%error, "metrics: connection ended");
        }
    });
    let (task, begun) = (task.abort_handle(), Instant::now());
    open.connections.push_back(Connection { task, begun, awaits_metrics });
}

async fn converse<S, F>(
    mut stream: S,
    status_page: StatusPage,
    page: impl Fn(Subject) -> F,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Option<String>>,
{
    let asked = match timeout(REQUEST, head(&mut stream)).await {
        Ok(head) => head?.as_deref().map_or(Err(Refusal::TooLong), |head| read(head, status_page)),
        Err(_) => Err(Refusal::TooLate),
    };
    let found = match asked {
        Ok(request) => match timeout(REPLY, page(request.subject)).await {
            Ok(Some(text)) if !text.is_empty() => Ok((request, text)),
            Ok(None) => Err(Refusal::Elsewhere),
            // The part that makes the page has not begun or has ended.
            _ => Err(Refusal::NotNow),
        },
        Err(refusal) => Err(refusal),
    };
    let body_wanted = found.as_ref().map_or(true, |(request, _)| !request.head_only);
    let (status, fields, text) = match found {
        Ok((request, text)) => ("200 OK", request.subject.fields(), text),
        Err(refusal) => refusal.reply(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    let reply = async {
        stream.write_all(head.as_bytes()).await?;
        if body_wanted {
            stream.write_all(text.as_bytes()).await?;
        }
        stream.shutdown().await?;
        // Waits until the client has it all: if the client has sent more, an earlier close would
        // cut it off.
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

/// Reads up to the empty line that ends the head; None if the head is too long.
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

impl Subject {
    /// The header fields that say what the page is, and what a browser may do with it.
    fn fields(self) -> Cow<'static, str> {
        match self {
            Self::Metrics => format!("Content-Type: {CONTENT_TYPE}\r\n").into(),
            Self::Status | Self::Findings => HTML.into(),
        }
    }
}

/// A browser runs nothing, loads nothing and keeps nothing of the page.
const HTML: &str = "Content-Type: text/html; charset=utf-8\r\n\
    Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
    Cache-Control: no-store\r\n";

/// A client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    subject: Subject,
    /// Only the head of the reply is wanted.
    head_only: bool,
}

/// Why a client gets no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NotNow,
    Elsewhere,
    StatusOff,
    OtherHost,
    OtherMethod,
    Nonsense,
    TooLong,
    TooLate,
}

impl Refusal {
    fn reply(self) -> (&'static str, Cow<'static, str>, String) {
        let plain = "Content-Type: text/plain; charset=utf-8\r\n";
        let (status, text) = match self {
            Self::NotNow => ("503 Service Unavailable", "not available yet: try again"),
            Self::Elsewhere => ("404 Not Found", "metrics are at /metrics, the status page at /"),
            Self::StatusOff => (
                "404 Not Found",
                "the status page is off beyond this host: --status-page serves it; metrics are at /metrics",
            ),
            Self::OtherHost => (
                "421 Misdirected Request",
                "the status page answers to an address or to localhost; --status-page opens it to every name",
            ),
            Self::OtherMethod => ("405 Method Not Allowed", "ask with GET"),
            Self::Nonsense => ("400 Bad Request", "this is not an HTTP/1 request"),
            Self::TooLong => {
                ("431 Request Header Fields Too Large", "a head has at most 8192 bytes")
            }
            Self::TooLate => ("408 Request Timeout", "the request did not come in time"),
        };
        let fields = match self {
            Self::OtherMethod => format!("{plain}Allow: GET, HEAD\r\n").into(),
            _ => plain.into(),
        };
        (status, fields, format!("{text}\n"))
    }
}

/// Reads the first line of a head (RFC 9112, section 3), and the host from the rest.
fn read(head: &[u8], status_page: StatusPage) -> Result<Request, Refusal> {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Nonsense);
    };
    if !version.starts_with(b"HTTP/1.") || method.is_empty() {
        return Err(Refusal::Nonsense);
    }
    let head_only = match method {
        b"GET" => false,
        b"HEAD" => true,
        _ => return Err(Refusal::OtherMethod),
    };
    let subject = match target.split(|byte| *byte == b'?').next().unwrap_or_default() {
        b"/metrics" => Subject::Metrics,
        b"/" => Subject::Status,
        b"/doctor" => Subject::Findings,
        _ => return Err(Refusal::Elsewhere),
    };
    match status_page {
        _ if subject == Subject::Metrics => {}
        StatusPage::Off => return Err(Refusal::StatusOff),
        StatusPage::Local if !lines.filter_map(host).all(is_this_host) => {
            return Err(Refusal::OtherHost);
        }
        StatusPage::Local | StatusPage::Open => {}
    }
    Ok(Request { subject, head_only })
}

/// The value of a header line that names the host.
fn host(line: &[u8]) -> Option<&[u8]> {
    let (name, value) = line.split_at_checked(5)?;
    name.eq_ignore_ascii_case(b"host:").then(|| value.trim_ascii())
}

/// Whether a host is an address or `localhost`, with or without a port.
fn is_this_host(host: &[u8]) -> bool {
    let Ok(host) = str::from_utf8(host) else { return false };
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'))
        .map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;
