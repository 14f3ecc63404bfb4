//! Thousands of listeners: all of them, or none and the limit by its name.

use serde_json::json;

use crate::harness::{Process, Scene, bindonce, finish, skip};

/// `bindonce serve` under a limit of open files.
fn broker_with_limit(scene: &Scene, files: u32) -> Process {
    let mut command = scene.command("sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh"]).arg(bindonce());
    let mut broker = Process::start(command.arg("serve").arg("--socket").arg(scene.socket()));
    scene.wait_broker(&mut broker);
    broker
}

/// How many TCP sockets listen in the test's network.
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
    let scene = Scene::new();
    if !scene.is_isolated() {
        return skip("needs a network of its own");
    }
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
