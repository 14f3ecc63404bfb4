//! What becomes of the connections of a generation that drains: idle ones are closed when that is wanted, and what is in progress never is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use crate::harness::{DEADLINE, Haproxy, Scene, config, eventually, finish};

/// Idle connections stay at a soft stop (`idle-close-on-response`), as those of HTTP/2 do.
fn keeps_idle(address: SocketAddr, tag: u64) -> String {
    let kept = "defaults\n    option idle-close-on-response\n";
    config(address, tag).replacen("defaults\n", kept, 1)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// Asks once on a connection that stays.
fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let mut some = [0; 512];
        let count = stream.read(&mut some).expect("an answer");
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&some[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn to_the_end(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the end");
    text
}

fn closes_idle_ones_alone(program: &Path) {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &keeps_idle(address, 1));
    let haproxy = Haproxy::start(&scene, program, &file);
    let mut idle: Vec<_> = (0..3).map(|_| connect(address)).collect();
    idle.iter_mut().for_each(|stream| drop(ask(stream)));
    let mut half = connect(address);
    ask(&mut half);
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    scene.write("haproxy.cfg", &keeps_idle(address, 2));
    // Without the wish they stay, and the older configuration answers on them.
    haproxy.reload(&scene).ok();
    assert!(ask(&mut idle[0]).contains("x-generation: 1\r\n"));
    eventually("the request to be counted", || {
        let text = scene.run("status", &[]).ok();
        text.contains("generation 1 has taken 1 request and sent ").then_some(())
    });
    let words = ["--name", "web", "--drain-idle", "200ms", "--wait", "drained=0s"];
    let told = finish(scene.bindonce("reload").args(words)).fails(1);
    assert!(told.contains("generation 3 serves"), "{told}");
    assert!(told.contains("has not drained within 0ms"), "{told}");
    // Haproxy has closed the first one with its last answer.
    idle.iter().for_each(|stream| assert_eq!(to_the_end(stream), "", "{}", program.display()));
    let counted = eventually("what was closed to be told", || {
        let status: serde_json::Value =
            serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
        let supervisor = status["supervisors"][0].clone();
        (supervisor["generations"][0]["idle_closed"] == 2).then_some(supervisor)
    });
    assert_eq!((&counted["idle_closed"], &counted["connections_cut"]), (&2.into(), &0.into()));
    half.write_all(b"\r\n").expect("the rest");
    assert!(to_the_end(&half).contains("x-generation: 1\r\n"));
    // Of generations 1 and 2 nothing is left.
    let words = ["--name", "web", "--wait", "drained"];
    let told = finish(scene.bindonce("reload").args(words)).ok();
    assert!(told.contains("no older generation is left; idle connections closed: 0"), "{told}");
}

#[test]
fn idle_connections_of_older_generations_are_closed_and_requests_are_not() {
    Haproxy::all().for_each(|program| closes_idle_ones_alone(&program));
}

#[test]
fn idle_connections_are_closed_only_where_haproxy_tells_which_they_are() {
    let scene = Scene::new();
    let words = ["--no-admin", "--drain-idle", "1s", "--", "haproxy", "-f", "none.cfg"];
    let said = scene.run("run", &words).fails(2);
    assert!(said.contains("--drain-idle: only haproxy tells"), "{said}");
}
