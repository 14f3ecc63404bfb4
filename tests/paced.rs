//! Reloads in quick succession wait for each other (`--min-interval`), and a start may take long
//! while it makes progress.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Haproxy, Process, Scene, config, eventually, serves};

fn status(scene: &Scene) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    all["supervisors"][0].clone()
}

#[test]
fn reloads_that_wait_are_answered_together_by_one_with_the_latest_files() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, mut haproxy) = Haproxy::start_at(&scene, &["--min-interval", "1h"], &program);
    let mut reloads: Vec<_> =
        (0..3).map(|_| Process::start(scene.bindonce("reload").args(["--name", "web"]))).collect();
    eventually("three to wait", || (status(&scene)["reloads_waiting"] == 3).then_some(()));
    scene.write("haproxy.cfg", &config(address, 2));
    // No reload waits while nothing serves.
    let (_, pid) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing it");
    for reload in &mut reloads {
        reload.wait_line("generation 2 serves");
        assert!(reload.wait_exit().success(), "{}", reload.story());
    }
    serves(address, 2);
    assert_eq!(status(&scene)["reloads_waiting"], 0);
}

#[test]
fn a_reload_that_waits_has_its_turn() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &["--min-interval", "300ms"], &program);
    for tag in 2..4 {
        scene.write("haproxy.cfg", &config(address, tag));
        haproxy.reload(&scene).ok();
        serves(address, tag);
    }
}

#[test]
fn a_start_that_makes_progress_may_take_longer_than_ready_timeout() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let busy = scene.path("haproxy");
    let spin = "[ $BINDONCE_GENERATION = 2 ] && timeout 3 sh -c 'while :; do :; done'";
    let script = format!("#!/bin/sh\n{spin}\nexec {} \"$@\"\n", program.display());
    fs::write(&busy, script).expect("a script");
    fs::set_permissions(&busy, fs::Permissions::from_mode(0o755)).expect("its mode");
    let haproxy = Haproxy::start_with(&scene, &["--ready-timeout", "2s"], &busy, &file);
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    serves(address, 2);
    let known = status(&scene)["generations"].clone();
    let generations = known.as_array().expect("generations");
    let newest = generations.iter().find(|one| one["generation"] == 2).expect("the second");
    assert!(newest["start_ms"].as_u64().is_some_and(|took| took >= 3000), "{known}");
    let told = scene.run("events", &[]).ok();
    assert!(told.contains("s after its start began"), "{told}");
}
