//! Limits of haproxy's own, and generations that do not end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{expect_any, findings, half_a_request, pids, plain, text};
use crate::harness::{DEADLINE, Haproxy, Process, Scene, config, eventually, listening};

#[test]
fn saturated_is_haproxys_own_limit() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (address, second) = (scene.address(), scene.address());
    // Told on two sockets, as under bindonce, and of two listeners, it is one finding.
    let [stats, other] = ["stats.sock", "other.sock"].map(|name| scene.path(name));
    let global = format!(
        "maxconn 3\n    stats socket {} level admin\n    stats socket {}\n",
        stats.display(),
        other.display()
    );
    let text_of = config(address, 1)
        .replace("maxconn 500\n", &global)
        .replace("frontend web\n", &format!("frontend web\n    bind {second}\n"));
    let file = scene.write("haproxy.cfg", &text_of);
    let haproxy = plain(&scene, &program, &file, &[]);
    assert_eq!(findings(&scene), Vec::<Value>::new());
    let _clients: Vec<_> = (0..5).map(|_| half_a_request(address)).collect();
    let found = eventually("the limit", || expect_any(&scene, "saturated"));
    assert_eq!(pids(&found), [haproxy.pid()]);
    assert!(text(&found["summary"]).contains("3 of 3"), "{found:#}");
    let all = findings(&scene);
    assert_eq!(all.len(), 1, "the queue is explained by it: {all:#?}");
}

#[test]
fn saturated_is_also_a_backend_that_cannot_keep_up() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (address, behind) = (scene.address(), scene.address());
    let _server = TcpListener::bind(behind).expect("a server that never answers");
    let stats = scene.path("stats.sock");
    let text_of = config(address, 1)
        .replace("maxconn 500\n", &format!("stats socket {} level admin\n", stats.display()));
    let text_of = text_of
        .lines()
        .filter(|line| !line.contains("http-request"))
        .fold(String::new(), |text, line| text + line + "\n");
    let backend = format!(
        "    default_backend app\nbackend app\n    timeout queue 30s\n    server s1 {behind} maxconn 1\n"
    );
    let file = scene.write("haproxy.cfg", &(text_of + &backend));
    let _haproxy = plain(&scene, &program, &file, &[]);
    let _clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = TcpStream::connect(address).expect("connecting");
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
            client
        })
        .collect();
    let found = eventually("requests to queue", || expect_any(&scene, "saturated"));
    assert!(text(&found["summary"]).contains("3 requests wait for"), "{found:#}");
    assert!(text(&found["summary"]).contains("app"), "{found:#}");
}

#[test]
fn lingering_tells_how_many_and_what_holds_the_oldest() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut old: Vec<Process> = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let last = old.last().map(|process| process.pid().to_string());
        let more: Vec<&str> = last.iter().flat_map(|pid| ["-sf", pid]).collect();
        old.push(plain(&scene, &program, &file, &more));
        // The one before must have given the address up, else the client may reach it.
        eventually("one socket", || (listening(address).len() == 1).then_some(()));
        clients.push(half_a_request(address));
    }
    let found = eventually("the generations", || expect_any(&scene, "lingering"));
    let summary = text(&found["summary"]);
    assert!(summary.starts_with("7 replaced generations drain"), "{found:#}");
    assert!(summary.contains(&format!("pid {}", old[0].pid())), "{found:#}");
    assert!(text(&found["cause"]).contains(&address.to_string()), "{found:#}");
    for process in &mut old {
        process.signal(Signal::SIGTERM);
    }
}

#[test]
fn answering_is_a_replaced_generation_that_clients_stay_with() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let kept = "    close-spread-time 1h\ndefaults\n    option idle-close-on-response\n";
    let text_of = config(address, 1).replacen("defaults\n", kept, 1);
    let haproxy = Haproxy::start(&scene, &program, &scene.write("haproxy.cfg", &text_of));
    let mut client = TcpStream::connect(address).expect("connecting");
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut ask = || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
        let (mut answer, mut some) = (Vec::new(), [0; 512]);
        while !answer.ends_with(b"\r\n\r\nok") {
            let count = client.read(&mut some).expect("an answer");
            assert!(count > 0, "closed");
            answer.extend_from_slice(&some[..count]);
        }
    };
    ask();
    haproxy.reload(&scene).ok();
    let found = eventually("the generation that still answers", || {
        (0..10).for_each(|_| ask());
        expect_any(&scene, "answering")
    });
    assert_eq!(found["service"], "web", "{found:#}");
    let summary = text(&found["summary"]);
    assert!(summary.starts_with("1 draining generation of \"web\" answered"), "{found:#}");
    scene.run("retire", &["--name", "web"]).ok();
    assert!(findings(&scene).iter().all(|one| one["kind"] != "answering"), "it is gone");
}
