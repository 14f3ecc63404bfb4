//! The connections of a draining generation: idle ones are closed on request, and requests in
//! progress never are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Haproxy, Process, Scene, config, eventually, finish, serves};

/// A configuration whose idle connections stay open at a soft stop (`idle-close-on-response`), as
/// those of HTTP/2 do.
fn keeps_idle(address: SocketAddr, tag: u64) -> String {
    let kept = "defaults\n    option idle-close-on-response\n";
    config(address, tag).replacen("defaults\n", kept, 1)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// Sends one request on a connection that stays open.
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
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &keeps_idle(address, 1));
    let mut haproxy = Haproxy::start(&scene, program, &file);
    let mut idle: Vec<_> = (0..3).map(|_| connect(address)).collect();
    idle.iter_mut().for_each(|stream| drop(ask(stream)));
    let mut half = connect(address);
    ask(&mut half);
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    scene.write("haproxy.cfg", &keeps_idle(address, 2));
    // Without the option they stay open, and the older configuration answers on them.
    haproxy.reload(&scene).ok();
    // What is counted since then begins there.
    haproxy.supervisor.wait_line("stopped accepting");
    assert!(ask(&mut idle[0]).contains("x-generation: 1\r\n"));
    eventually("the request to be counted", || {
        let text = scene.run("status", &[]).ok();
        text.contains("generation 1 has taken 1 request and sent ").then_some(())
    });
    let words = ["--name", "web", "--drain-idle", "200ms", "--wait", "drained=0s"];
    let told = finish(scene.bindonce("reload").args(words)).fails(1);
    assert!(told.contains("generation 3 serves"), "{told}");
    assert!(told.contains("has not drained within 0ms"), "{told}");
    assert!(told.contains("`bindonce retire --name web` ends the oldest"), "{told}");
    // haproxy closed the first one with its last answer.
    idle.iter().for_each(|stream| assert_eq!(to_the_end(stream), "", "{}", program.display()));
    let counted = eventually("what was closed to be told", || {
        let status: serde_json::Value =
            serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
        let supervisor = status["supervisors"][0].clone();
        (supervisor["generations"][0]["idle_closed"] == 2).then_some(supervisor)
    });
    assert_eq!((&counted["idle_closed"], &counted["connections_cut"]), (&2.into(), &0.into()));
    // One answer, without the answers on the admin connection since then.
    let sent = counted["bytes_after"].as_u64().expect("a number");
    assert!((50..1000).contains(&sent), "{sent}");
    half.write_all(b"\r\n").expect("the rest");
    assert!(to_the_end(&half).contains("x-generation: 1\r\n"));
    // Nothing is left of generations 1 and 2.
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

/// An HTTP/2 connection (RFC 9113) of a client that stays, whatever it receives.
struct Http2 {
    stream: TcpStream,
    next: u32,
    /// Whether it received GOAWAY.
    told: bool,
}

impl Http2 {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn connect(address: SocketAddr) -> Self {
        let mut stream = connect(address);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [Self::frame(4, 0, 0, &[]), Self::frame(4, 1, 0, &[])].concat();
        stream.write_all(&[preface, settings].concat()).expect("a preface");
        Self { stream, next: 1, told: false }
    }

    /// The kind, flags and stream of the next frame; none at the end.
    fn read(&mut self) -> Option<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        if kind == 0 && !payload.is_empty() {
            // Otherwise all answers of the connection share 65,535 bytes, and the next one waits.
            let room = u32::try_from(payload.len()).expect("short").to_be_bytes();
            self.stream.write_all(&Self::frame(8, 0, 0, &room)).ok()?;
        }
        self.told |= kind == 7;
        Some((kind, flags, u32::from_be_bytes(stream)))
    }

    fn ask(&mut self) {
        // GET, http, /, and the authority x.
        let request = [0x82, 0x86, 0x84, 0x01, 1, b'x'];
        self.stream.write_all(&Self::frame(1, 5, self.next, &request)).expect("a request");
        loop {
            let (kind, flags, stream) = self.read().expect("an answer");
            assert_ne!(kind, 3, "reset");
            if stream == self.next && kind <= 1 && flags & 1 == 1 {
                break;
            }
        }
        self.next += 2;
    }
}

fn goes_on_over_an_upgrade(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &keeps_idle(address, 1));
    let haproxy = Haproxy::start_with(&scene, &["--drain-idle", "2s"], program, &file);
    let mut client = Http2::connect(address);
    client.ask();
    let mut half = connect(address);
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    haproxy.reload(&scene).ok();
    let mut upgrade = Process::start(scene.bindonce("upgrade").args(["--name", "web"]));
    let mut asked = 0;
    while upgrade.is_running() || asked < 10 {
        client.ask();
        asked += 1;
    }
    assert!(upgrade.wait_exit().success(), "{}", upgrade.story());
    assert!(client.told, "it is told to go, and answered as long as it asks");
    let status = |what: &str| -> serde_json::Value {
        let all: serde_json::Value =
            serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
        all["supervisors"][0][what].clone()
    };
    // haproxy is asked for its counters periodically, and the report covers the last seconds.
    let told = eventually("what it has answered to be told", || {
        client.ask();
        asked += 1;
        status("lately")["draining_requests"].as_u64().filter(|told| *told != 0)
    });
    assert!(told <= asked, "{told} of {asked}");
    while client.read().is_some() {}
    eventually("what was closed to be told", || (status("idle_closed") == 1).then_some(()));
    assert_eq!(status("connections_cut"), 0);
    half.write_all(b"\r\n").expect("the rest");
    assert!(to_the_end(&half).contains("x-generation: 1\r\n"));
}

#[test]
fn idle_connections_are_closed_by_the_supervisor_of_after_an_upgrade() {
    Haproxy::all().for_each(|program| goes_on_over_an_upgrade(&program));
}

fn tells_what_haproxy_cuts(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let text = |tag| {
        let stop = "global\n    hard-stop-after 500ms\n";
        config(address, tag).replacen("global\n", stop, 1)
    };
    let file = scene.write("haproxy.cfg", &text(1));
    let haproxy = Haproxy::start(&scene, program, &file);
    let mut halves = [connect(address), connect(address)];
    for half in &mut halves {
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    }
    // Connections are accepted in order.
    serves(address, 1);
    scene.write("haproxy.cfg", &text(2));
    let words = ["--name", "web", "--wait", "drained"];
    let told = finish(scene.bindonce("reload").args(words)).ok();
    assert!(told.contains("connections cut: 2"), "{told}");
    let status: serde_json::Value =
        serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    assert_eq!(status["supervisors"][0]["connections_cut"], 2);
    let events = scene.run("events", &["--name", "web"]).ok();
    assert!(events.contains("connections cut (hard-stop-after): 2"), "{events}");
    drop((haproxy, halves));
}

#[test]
fn what_haproxy_cuts_by_itself_is_counted_and_told() {
    Haproxy::all().for_each(|program| tells_what_haproxy_cuts(&program));
}

/// haproxy with a request in progress.
fn in_progress(scene: &Scene, program: &Path) -> (SocketAddr, Haproxy, TcpStream) {
    let (address, haproxy) = Haproxy::start_at(scene, &[], program);
    let mut half = connect(address);
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    // Connections are accepted in order.
    serves(address, 1);
    (address, haproxy, half)
}

/// Its end is also that of the supervisor.
#[test]
fn who_ends_the_last_generation_of_a_stop_is_answered() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (_, mut haproxy, half) = in_progress(&scene, &program);
    haproxy.supervisor.signal(Signal::SIGTERM);
    haproxy.supervisor.wait_line("stopped accepting");
    let told = scene.run("retire", &["--name", "web"]).ok();
    assert!(told.starts_with("generation 1, pid ") && told.contains("was ended"), "{told}");
    assert!(haproxy.supervisor.wait_exit().success(), "{}", haproxy.supervisor.story());
    drop(half);
}

#[test]
fn who_waits_for_the_last_generation_of_a_stop_is_answered() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, mut haproxy, mut half) = in_progress(&scene, &program);
    scene.write("haproxy.cfg", &config(address, 2));
    let words = ["--name", "web", "--wait", "drained"];
    let mut reload = Process::start(scene.bindonce("reload").args(words));
    haproxy.supervisor.wait_line("stopped accepting");
    haproxy.supervisor.signal(Signal::SIGTERM);
    eventually("the other generation to be gone", || (scene.haproxies().len() == 1).then_some(()));
    half.write_all(b"\r\n").expect("the rest");
    assert!(to_the_end(&half).contains("x-generation: 1\r\n"));
    assert!(reload.wait_exit().success(), "{}", reload.story());
    assert!(reload.story().contains("no older generation is left"), "{}", reload.story());
    assert!(haproxy.supervisor.wait_exit().success(), "{}", haproxy.supervisor.story());
}
