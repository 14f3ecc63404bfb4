//! `bind`, `list`, `status`, `ping`, `release`: their output for people and scripts.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Haproxy, Process, Scene, config, eventually, finish, listening};

#[test]
fn list_shows_the_kernels_queue() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    scene.run("bind", &[&format!("web={address},backlog=50")]).ok();
    let _waiting: Vec<_> =
        (0..3).map(|_| TcpStream::connect(address).expect("connecting")).collect();
    let listed: Value = serde_json::from_str(&scene.run("list", &["--json"]).ok()).expect("JSON");
    let entries = listed.get("listeners").unwrap_or(&listed);
    let web = &entries[0];
    assert_eq!(web["name"], "web", "{listed:#}");
    assert_eq!(web["address"], address.to_string());
    assert_eq!(web["listening"], true);
    assert_eq!(web["queue"], 3, "{listed:#}");
    assert_eq!(web["backlog"], 50);
    assert_eq!(web["inode"], listening(address)[0].inode);
    let table = scene.run("list", &[]).ok();
    assert!(table.contains("web") && table.contains(&address.to_string()), "{table}");
}

#[test]
fn bind_is_idempotent_and_release_closes() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    for _ in 0..2 {
        scene.run("bind", &[&address.to_string()]).ok();
        assert_eq!(listening(address).len(), 1);
    }
    scene.run("release", &[&address.to_string()]).ok();
    assert!(listening(address).is_empty());
    let said = scene.run("release", &[&address.to_string()]).fails(1);
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn status_is_json_for_scripts() {
    let (scene, broker) = Scene::with_broker();
    let status: Value = serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    assert_eq!(status["broker"]["pid"], broker.pid(), "{status:#}");
    assert_eq!(status["broker"]["listeners"], 0);
    assert_eq!(status["services"], serde_json::json!([]));
    assert!(!scene.run("status", &[]).ok().is_empty());
}

#[test]
fn a_watched_status_goes_on_while_broker_and_supervisor_are_restarted() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let mut watch =
        Process::start(scene.bindonce("status").args(["--watch", "--interval", "100ms"]));
    watch.wait_line("--- 20");
    watch.wait_line(&format!("no broker answers at {}, waiting", scene.socket().display()));
    let mut broker = scene.broker();
    watch.wait_line(&format!(" pid {} on ", broker.pid()));
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    watch.wait_line(&format!("service web, supervisor pid {}", haproxy.supervisor.pid()));
    broker.kill();
    watch.wait_line("no broker answers at ");
    // The supervisor's part is shown all the same.
    watch.wait_line("service web, supervisor pid ");
    let broker = scene.broker();
    watch.wait_line(&format!(" pid {} on ", broker.pid()));
    drop(haproxy);
    watch.signal(Signal::SIGINT);
    watch.wait_exit();
}

#[test]
fn a_watched_status_is_an_object_a_line_and_ends_with_its_reader() {
    let scene = Scene::new();
    let script = "\"$0\" status --socket \"$1\" --watch --json --interval 100ms | head -n 2";
    let mut command = scene.command("sh");
    command.args(["-c", script]).arg(crate::harness::bindonce()).arg(scene.socket());
    let said = finish(&mut command).ok();
    let lines: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["error"].as_str().is_some_and(|text| text.contains("waiting")), "{said}");
    scene.run("status", &["--interval", "1s"]).fails(2);
}

#[test]
fn ping_tells_who_answers_and_whether_anything_serves() {
    let scene = Scene::new();
    let said = scene.run("ping", &[]).fails(1);
    assert!(said.contains("hint:"), "{said}");
    let broker = scene.broker();
    let said = scene.run("ping", &[]).ok();
    assert!(said.starts_with("broker ") && said.ends_with(" answers\n"), "{said}");
    scene.run("ping", &["--serving"]).fails(2);
    let said = scene.run("ping", &["--name", "web"]).fails(1);
    assert!(said.contains("service \"web\" has no supervisor"), "{said}");
    // A supervisor whose haproxy never starts is alive all the same, but not ready.
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let slow = scene.write("haproxy", "#!/bin/sh\nexec sleep 60\n");
    fs::set_permissions(&slow, Permissions::from_mode(0o755)).expect("its mode");
    let mut slow = Haproxy::begin(&scene, &[], &slow, &file);
    let ping = |words: &[&str]| scene.run("ping", &[&["--name", "web"], words].concat());
    let said = eventually("the supervisor to answer", || {
        let asked = ping(&[]);
        (asked.code == Some(0)).then(|| asked.ok())
    });
    assert!(said.contains("no generation serves"), "{said}");
    assert!(ping(&["--serving"]).fails(1).contains("no generation of \"web\" serves"));
    slow.supervisor.signal(Signal::SIGTERM);
    slow.supervisor.wait_exit();
    let Some(program) = Haproxy::system() else { return };
    let haproxy = Haproxy::start(&scene, &program, &file);
    let (generation, _) = haproxy.serving(&scene).expect("a generation");
    let said = scene.run("reload", &["--name", "wbe"]).fails(1);
    assert!(said.contains("give --name one that has (\"web\"), or start one"), "{said}");
    let said = ping(&["--serving"]).ok();
    assert!(said.contains(&format!("generation {generation} serves")), "{said}");
    // A hanging broker delays a health check no longer than its limit.
    broker.signal(Signal::SIGSTOP);
    let said = scene.run("ping", &["--timeout", "100ms"]).fails(1);
    broker.signal(Signal::SIGCONT);
    assert!(said.contains("does not answer"), "{said}");
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let scene = Scene::new();
    scene.run("list", &["--no-such-flag"]).fails(2);
    scene.run("exec", &[]).fails(2);
}
