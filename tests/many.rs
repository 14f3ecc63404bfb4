//! Thousands of listeners: all are bound, or none, with the name of the limit.

use std::io::Write as _;
use std::net::TcpStream;

use serde_json::json;

use crate::harness::{Haproxy, Process, Scene, bindonce, config, finish, skip};

/// `bindonce serve` under a limit of open files.
fn broker_with_limit(scene: &Scene, files: u32) -> Process {
    let mut command = scene.command("sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh"]).arg(bindonce());
    let mut broker = Process::start(command.arg("serve").arg("--socket").arg(scene.socket()));
    scene.wait_broker(&mut broker);
    broker
}

/// The number of listening TCP sockets in the test's network namespace.
fn count() -> usize {
    finish(std::process::Command::new("ss").arg("-Hltn")).ok().lines().count()
}

#[test]
fn ten_thousand_with_the_limit_high_enough() {
    let scene = Scene::new();
    let (_, hard) = bindonce_sys::limits::nofile();
    if !scene.is_isolated() || (hard < 12_000 && !nix::unistd::geteuid().is_root()) {
        return skip("needs a network of its own and a limit of 12,000 open files");
    }
    let broker = broker_with_limit(&scene, 12_000);
    scene.run("bind", &["r=127.0.0.1:20000-29999"]).ok();
    assert_eq!(count(), 10_000);
    let status = scene.wire().call("status", &json!([]));
    assert_eq!(status["broker"]["listeners"], 10_000);
    scene.run("bind", &["r=127.0.0.1:20000-29999"]).ok();
    assert_eq!(count(), 10_000, "a repeated bind gives the same sockets");
    drop(broker);
}

#[test]
fn with_the_limit_too_low_it_is_named_and_nothing_is_bound() {
    let Some(scene) = Scene::isolated("needs a network of its own") else { return };
    let mut broker = broker_with_limit(&scene, 500);
    let error = scene.wire().error("bind", &json!([{"listen": "r=127.0.0.1:20000-29999"}]));
    assert_eq!(error["code"], -32008, "{error}");
    let text = error.to_string();
    assert!(text.contains("RLIMIT_NOFILE") && text.contains("500"), "{text}");
    assert_eq!(count(), 0, "half bound");
    assert!(broker.is_running());
    scene.wire().bind(&["127.0.0.1:20000"]);
    assert_eq!(count(), 1, "the broker works on");
}

/// A supervisor whose limit allows two descriptors for each listener and some more, but not three.
#[test]
fn a_reload_needs_each_listener_twice_and_a_start_once() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("no network of its own") else { return };
    let _broker = scene.broker();
    let address = scene.address();
    const LISTENERS: usize = 600;
    const LIMIT: usize = 2 * LISTENERS + 120;
    let text = |tag: u64| {
        config(address, tag)
            .replace("maxconn 500", "maxconn 50")
            .replace("    http-request", "    bind 127.0.0.1:20000-20598\n    http-request")
    };
    let file = scene.write("haproxy.cfg", &text(1));
    let mut command = scene.command("sh");
    let script = format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(bindonce()).args(["run", "--socket"]).arg(scene.socket());
    command.args(["--name", "web", "--"]).args([program.as_os_str(), "-f".as_ref(), file.as_ref()]);
    let supervisor = Process::start(&mut command);
    let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    haproxy.supervisor.wait_line("a reload needs about");
    let pid = haproxy.supervisor.pid();
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    let mut halves = Vec::new();
    for tag in 2..6 {
        let mut half = TcpStream::connect(address).expect("connecting");
        half.write_all(b"GET / HTTP/1.1\r\n").expect("half a request");
        halves.push(half);
        scene.write("haproxy.cfg", &text(tag));
        haproxy.reload(&scene).ok();
    }
    // All draining generations share the supervisor's descriptors.
    assert!(open() < LISTENERS + 120, "{} descriptors", open());
}
