use std::pin::pin;

use tokio::io::DuplexStream;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, yield_now};

use super::*;

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\n\r\n";

/// A client that connects and sends this.
async fn connect<F>(
    open: &mut Open,
    page: &Rc<impl Fn(Subject) -> F + 'static>,
    text: &str,
) -> DuplexStream
where
    F: Future<Output = Option<String>> + 'static,
{
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    client.write_all(text.as_bytes()).await.expect("writing");
    take(Ok((server, ())), open, StatusPage::Local, page).await;
    client
}

/// Lets the newest connection come to wait for metrics.
async fn newest_waits(open: &Open) {
    while !open.connections.back().is_some_and(|newest| newest.awaits_metrics.get()) {
        yield_now().await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_for_metrics_is_ended_for_no_other() {
    let made = Rc::new(Semaphore::new(0));
    let when_made = Rc::clone(&made);
    let page = Rc::new(move |_: Subject| {
        let made = Rc::clone(&when_made);
        async move {
            drop(made.acquire().await);
            Some("page\n# EOF\n".to_owned())
        }
    });
    let mut open = Open::default();
    let scrapes = async {
        let mut first = connect(&mut open, &page, SCRAPE).await;
        newest_waits(&open).await;
        let mut others = Vec::new();
        // Those say nothing more, or wait for another page.
        for text in ["GET /met", "GET / HTTP/1.1\r\n\r\n"].repeat(2 * CONNECTIONS) {
            others.push(connect(&mut open, &page, text).await);
            yield_now().await;
        }
        assert_eq!(open.connections.len(), CONNECTIONS);
        for _ in 1..CONNECTIONS {
            others.push(connect(&mut open, &page, SCRAPE).await);
            newest_waits(&open).await;
        }
        // Now all wait for metrics, and the next one does not get in.
        let mut next = pin!(connect(&mut open, &page, SCRAPE));
        let soon = Duration::from_millis(10);
        assert!(timeout(soon, next.as_mut()).await.is_err(), "another was ended");
        made.add_permits(1);
        let mut last = next.await;
        for client in [&mut first, &mut last] {
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.expect("reading");
            assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        }
    };
    LocalSet::new().run_until(scrapes).await;
}

#[tokio::test(flavor = "current_thread")]
async fn scrapers_that_come_all_at_once_are_all_served() {
    let page = Rc::new(|_: Subject| async { Some("page\n# EOF\n".to_owned()) });
    let mut open = Open::default();
    let scrapes = async {
        let mut clients = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            clients.push(connect(&mut open, &page, SCRAPE).await);
        }
        for mut client in clients {
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.expect("reading");
            assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        }
    };
    LocalSet::new().run_until(scrapes).await;
}

#[test]
fn the_first_line_says_what_is_asked() {
    let get = |subject| Ok(Request { subject, head_only: false });
    for (line, asked) in [
        ("GET /metrics HTTP/1.1", get(Subject::Metrics)),
        ("GET / HTTP/1.0", get(Subject::Status)),
        ("GET /?x HTTP/1.0", get(Subject::Status)),
        ("GET /doctor HTTP/1.0", get(Subject::Findings)),
        ("GET /metrics?collect[]=x HTTP/1.1", get(Subject::Metrics)),
        ("HEAD /metrics HTTP/1.1", Ok(Request { subject: Subject::Metrics, head_only: true })),
        ("GET /other HTTP/1.1", Err(Refusal::Elsewhere)),
        ("POST /metrics HTTP/1.1", Err(Refusal::OtherMethod)),
        ("GET /metrics", Err(Refusal::Nonsense)),
        ("GET /metrics HTTP/2", Err(Refusal::Nonsense)),
        ("GET  /metrics HTTP/1.1", Err(Refusal::Nonsense)),
        (" / HTTP/1.1", Err(Refusal::Nonsense)),
        ("", Err(Refusal::Nonsense)),
    ] {
        let head = format!("{line}\r\nHost: x\r\n\r\n");
        assert_eq!(read(head.as_bytes(), StatusPage::Open), asked, "{line:?}");
    }
}

#[test]
fn the_status_page_is_for_this_host_unless_it_was_opened() {
    let ask = |head: &str, status_page| {
        let head = format!("GET / HTTP/1.1\r\n{head}\r\n\r\n");
        read(head.as_bytes(), status_page).map(|request| request.subject)
    };
    for (host, local) in [
        ("Host: 127.0.0.1:9100", true),
        ("Host: localhost", true),
        ("host:LOCALHOST:9100", true),
        ("Host: [::1]:9100", true),
        ("Host: [::1]", true),
        ("Accept: */*", true),
        ("Host: evil.example:9100", false),
        ("Host: localhost.evil.example", false),
        ("Host: 127.0.0.1\r\nHost: evil.example", false),
        ("Host:", false),
    ] {
        let expected = if local { Ok(Subject::Status) } else { Err(Refusal::OtherHost) };
        assert_eq!(ask(host, StatusPage::Local), expected, "{host}");
        assert_eq!(ask(host, StatusPage::Open), Ok(Subject::Status), "{host}");
        assert_eq!(ask(host, StatusPage::Off), Err(Refusal::StatusOff), "{host}");
    }
    for (address, page) in [
        ("127.0.0.1:9100", StatusPage::Local),
        ("[::1]:9100", StatusPage::Local),
        ("unix@/run/m.sock", StatusPage::Local),
        (":9100", StatusPage::Off),
        ("192.0.2.1:9100", StatusPage::Off),
    ] {
        let address: Address = address.parse().expect("an address");
        assert_eq!(StatusPage::on(&address, false), page, "{address}");
        assert_eq!(StatusPage::on(&address, true), StatusPage::Open, "{address}");
    }
}

/// The reply to a request that is sent in these parts.
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
        let serve = converse(server, StatusPage::Local, |subject| async move {
            (subject != Subject::Findings).then(|| page.to_owned())
        });
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
    let html = exchange(&["GET / HTTP/1.1\r\n\r\n"]);
    assert!(html.contains("\r\nContent-Security-Policy: default-src 'none';"), "{html}");
    assert!(exchange(&["GET /doctor HTTP/1.1\r\n\r\n"]).starts_with("HTTP/1.1 404 "));
    let head = exchange(&["HEAD /metrics HTTP/1.1\r\n\r\n"]);
    assert!(whole.starts_with(&head) && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn what_is_too_long_or_no_request_is_told_so() {
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "y".repeat(HEAD));
    assert!(exchange(&[&long]).starts_with("HTTP/1.1 431 "));
    assert!(exchange(&["hello\r\n\r\n"]).starts_with("HTTP/1.1 400 "));
    let other = exchange(&["DELETE /metrics HTTP/1.1\r\n\r\n"]);
    assert!(other.starts_with("HTTP/1.1 405 ") && other.contains("Allow: GET, HEAD"), "{other}");
}
