//! Metrics of the broker and of a supervisor, as Prometheus scrapes them: on TCP and UNIX sockets,
//! with correct counts, whichever other client is slow or sends nonsense.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::{Haproxy, Process, Scene, config, eventually, listening, root};

/// Requests a page; returns the head of the reply and the page.
fn ask(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a reply");
    let (head, page) = text.split_once("\r\n\r\n").expect("a head and a page");
    (head.to_owned(), page.to_owned())
}

/// A complete page with the right content type.
pub(crate) fn scrape(stream: impl Read + Write) -> String {
    let (head, page) = ask(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    page
}

pub(crate) fn unix(scene: &Scene, name: &str) -> UnixStream {
    let path = scene.path(name);
    // The socket appears after the control socket, by which the harness knows that a broker serves,
    // and has its mode before it listens.
    let stream = eventually("the socket for metrics", || UnixStream::connect(&path).ok());
    let metadata = fs::metadata(&path).expect("its file");
    let mode = metadata.permissions().mode() & 0o777;
    assert!(mode == 0o600 || mode == 0o660, "{}: {mode:o}", path.display());
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// The value of one series.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {page}")).parse().expect("a number")
}

fn families(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[test]
fn what_happens_is_counted_by_whom_it_concerns() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (broker_at, service_at, address) = (scene.address(), scene.address(), scene.address());
    let arguments = ["--metrics", &broker_at.to_string()];
    let mut broker = Process::start(scene.bindonce("serve").args(arguments));
    scene.wait_broker(&mut broker);
    let path = scene.write("haproxy.cfg", &config(address, 1));
    let arguments = ["--metrics", &service_at.to_string()];
    let haproxy = Haproxy::start_with(&scene, &arguments, &program, &path);
    haproxy.reload(&scene).ok();
    scene.write("haproxy.cfg", "no-such-keyword\n");
    haproxy.reload(&scene).fails(1);

    let page = scrape(TcpStream::connect(broker_at).expect("connect"));
    assert_eq!(value(&page, "bindonce_listeners"), 3.0, "the metrics' own two are listeners too");
    let of = |metric: &str| format!("{metric}{{listener=\"{address}\"}}");
    assert_eq!(value(&page, &of("bindonce_listener_listening")), 1.0);
    assert!(value(&page, &of("bindonce_listener_accept_queue_limit")) >= 1.0);
    assert_eq!(value(&page, &of("bindonce_listener_repairs_total")), 0.0);
    assert_eq!(listening(broker_at).len(), 1, "bound once, as every listener is");
    let same = scrape(unix(&scene, "broker.sock.metrics"));
    assert_eq!(families(&same), families(&page));

    let page = scrape(TcpStream::connect(service_at).expect("connect"));
    let service = |rest: &str| format!("{{service=\"web\"{rest}}}");
    let state = |state| format!("bindonce_generations{}", service(&format!(",state=\"{state}\"")));
    assert_eq!((value(&page, &state("serving")), value(&page, &state("starting"))), (1.0, 0.0));
    let reloads = |how| format!("bindonce_reloads_total{}", service(&format!(",result=\"{how}\"")));
    assert_eq!((value(&page, &reloads("served")), value(&page, &reloads("failed"))), (2.0, 1.0));
    let count = format!("bindonce_reload_duration_seconds_count{}", service(""));
    assert!(value(&page, &count) >= 2.0);
    assert_eq!(value(&page, &format!("bindonce_last_reload_successful{}", service(""))), 0.0);
    assert_eq!(families(&scrape(unix(&scene, "web.d/metrics.sock"))), families(&page));

    // The status page for a browser, and the findings of doctor.
    let look = |at: SocketAddr, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n");
        let (head, page) = ask(TcpStream::connect(at).expect("connect"), &request);
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/html"), "{head}");
        page
    };
    let listener = format!("<td>{address}</td>");
    for (at, own) in [(service_at, "reload-failed"), (broker_at, "listener-bound")] {
        let page = look(at, "/");
        for word in [&listener, own, "Service web", ">serving</td>", "web 2"] {
            assert!(page.contains(word), "{word} is missing: {page}");
        }
    }
    let findings = look(service_at, "/doctor");
    assert!(findings.contains("\nchecked ") && findings.contains("the broker"), "{findings}");

    // docs/metrics.md lists every family.
    let told = fs::read_to_string(root().join("docs/metrics.md")).expect("the page");
    let broker = scrape(TcpStream::connect(broker_at).expect("connect"));
    // The families of haproxy's own exporter are recognized by their prefix.
    let whose = |family: &&str| !family.starts_with("haproxy_");
    for family in families(&page).union(&families(&broker)).copied().filter(whose) {
        assert!(told.contains(&format!("`{family}")), "docs/metrics.md lacks {family}");
    }
}

#[test]
fn who_is_slow_or_says_nonsense_keeps_nobody_out() {
    let (scene, _broker) = Scene::with_broker();
    let mut silent: Vec<_> = (0..40).map(|_| unix(&scene, "broker.sock.metrics")).collect();
    for stream in &mut silent {
        // A connection that was closed for a newer one may be gone.
        let _ = stream.write_all(b"GET /met");
    }
    scrape(unix(&scene, "broker.sock.metrics"));
    for (request, code) in [
        ("POST /metrics HTTP/1.1\r\n\r\n", " 405 "),
        ("GET /else HTTP/1.1\r\n\r\n", " 404 "),
        ("nonsense\r\n\r\n", " 400 "),
    ] {
        let (head, _) = ask(unix(&scene, "broker.sock.metrics"), request);
        assert!(head.contains(code), "{request:?}: {head}");
    }
    scrape(unix(&scene, "broker.sock.metrics"));
    scene.wire().call("ping", &serde_json::json!([]));
}
