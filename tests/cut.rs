//! Connections that end with a terminated generation are counted and reported, whatever ended it;
//! and `--drain-timeout`, for a service and for one reload.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal::{SIGKILL, SIGTERM, SIGTTOU, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::harness::{
    Fault, Guest, Haproxy, Scene, config, eventually, finish, serves, with_faults,
};

fn status(scene: &Scene) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    all["supervisors"][0].clone()
}

/// haproxy with these options and two requests in progress, and the files for its next generation.
fn in_progress(scene: &Scene, program: &Path, options: &[&str]) -> (Haproxy, [TcpStream; 2]) {
    let (address, haproxy) = Haproxy::start_at(scene, options, program);
    let halves = [(); 2].map(|()| {
        let mut half = TcpStream::connect(address).expect("connecting");
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
        half
    });
    // Connections are accepted in order.
    serves(address, 1);
    scene.write("haproxy.cfg", &config(address, 2));
    (haproxy, halves)
}

/// Waits until generation 1 drains and the supervisor knows of both connections.
fn drains(scene: &Scene) {
    eventually("generation 1 to drain with two connections", || {
        let first = status(scene)["generations"][0].clone();
        (first["state"] == "draining" && first["connections"] == 2).then_some(())
    });
}

/// Checks that two connections were cut, and that the events say why.
fn cut(scene: &Scene, why: &str) {
    assert_eq!(status(scene)["connections_cut"], 2);
    let events = scene.run("events", &["--name", "web"]).ok();
    assert!(events.contains(&format!("SIGTERM: {why}; connections cut: 2")), "{events}");
}

const TIMEOUT: &str = "its connections did not end in time (--drain-timeout)";

#[test]
fn what_retire_cuts_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (haproxy, _halves) = in_progress(&scene, &program, &[]);
        haproxy.reload(&scene).ok();
        drains(&scene);
        let told = scene.run("retire", &["--name", "web"]).ok();
        assert!(told.contains('2'), "{told}");
        cut(&scene, "`bindonce retire` or a reload asked it to end");
    }
}

#[test]
fn what_max_draining_cuts_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (haproxy, _halves) = in_progress(&scene, &program, &["--max-draining", "1"]);
        haproxy.reload(&scene).ok();
        drains(&scene);
        // Generation 2 is told to stop, and then two generations drain.
        haproxy.reload(&scene).ok();
        eventually("generation 1 to be ended", || {
            (status(&scene)["connections_cut"] == 2).then_some(())
        });
        cut(&scene, "more generations drain than --max-draining allows");
    }
}

#[test]
fn what_drain_timeout_of_the_service_cuts_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (_haproxy, _halves) = in_progress(&scene, &program, &["--drain-timeout", "500ms"]);
        let words = ["--name", "web", "--wait", "drained"];
        let told = finish(scene.bindonce("reload").args(words)).ok();
        assert!(told.contains("connections cut: 2"), "{told}");
        cut(&scene, TIMEOUT);
    }
}

#[test]
fn one_reload_can_have_a_drain_timeout_of_its_own() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (_haproxy, _halves) = in_progress(&scene, &program, &[]);
        let words = ["--name", "web", "--wait", "drained", "--drain-timeout", "500ms"];
        let told = finish(scene.bindonce("reload").args(words)).ok();
        assert!(told.contains("connections cut: 2"), "{told}");
        cut(&scene, TIMEOUT);
    }
}

#[test]
fn the_drain_timeout_of_one_reload_can_be_longer_and_holds_over_an_upgrade() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (_haproxy, mut halves) = in_progress(&scene, &program, &["--drain-timeout", "300ms"]);
    let words = ["--name", "web", "--drain-timeout", "1h"];
    finish(scene.bindonce("reload").args(words)).ok();
    scene.run("upgrade", &["--name", "web"]).ok();
    // The service's own timeout has passed when this one has.
    let words = ["--name", "web", "--wait", "drained=600ms", "--drain-timeout", "1h"];
    let told = finish(scene.bindonce("reload").args(words)).fails(1);
    assert!(told.contains("has not drained within 600ms"), "{told}");
    assert_eq!(status(&scene)["connections_cut"], 0);
    for half in &mut halves {
        half.write_all(b"\r\n").expect("the rest");
    }
    eventually("the older generations to be gone", || {
        (status(&scene)["generations"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(status(&scene)["connections_cut"], 0);
}

/// Waits until the supervisor knows of the two connections.
fn both_are_known(scene: &Scene) {
    eventually("the supervisor to know of both connections", || {
        (status(scene)["generations"][0]["connections"] == 2).then_some(())
    });
}

/// The number of cut connections in the status.
fn counted(scene: &Scene) -> u64 {
    status(scene)["connections_cut"].as_u64().expect("a number")
}

#[test]
fn what_is_cut_before_a_reload_is_over_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let deaf = [Fault::Deaf(SIGTTOU, 0), Fault::Deaf(SIGUSR1, 0)];
        let program = with_faults(&scene, Guest::Haproxy, &program, &[(1, &deaf)]);
        let (_haproxy, _halves) = in_progress(&scene, &program, &["--retire-timeout", "500ms"]);
        let words = ["--name", "web", "--wait", "drained"];
        let told = finish(scene.bindonce("reload").args(words)).ok();
        // The number may include a probe that generation 1 has accepted.
        let cut = counted(&scene);
        assert!((2..6).contains(&cut), "{cut}");
        let ended = "generation 1 went on accepting and had to be ended; its connections are lost";
        assert!(told.contains(&format!("{ended}: {cut}\n")), "{told}");
        assert!(told.contains(&format!("connections cut: {cut}\n")), "{told}");
        let events = scene.run("events", &["--name", "web"]).ok();
        let why = "`grace` of haproxy); connections cut: ";
        assert!(events.contains(&format!("{why}{cut}")), "{events}");
    }
}

#[test]
fn what_ends_with_a_generation_that_dies_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (mut haproxy, _halves) = in_progress(&scene, &program, &[]);
        both_are_known(&scene);
        let (_, pid) = haproxy.wait_serving(&scene);
        kill(Pid::from_raw(pid), SIGKILL).expect("killing it");
        eventually("generation 2 to serve", || {
            (status(&scene)["generations"][0]["generation"] == 2).then_some(())
        });
        assert_eq!(counted(&scene), 2);
        let events = scene.run("events", &["--name", "web"]).ok();
        assert!(events.contains("died while it served: SIGKILL; connections cut: 2"), "{events}");
    }
}

#[test]
fn what_ends_with_the_workers_of_a_master_that_dies_is_counted_and_told() {
    let Some(program) = Haproxy::with_masters().next() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (mut haproxy, _halves) = in_progress(&scene, &program, &["--nested-master"]);
    both_are_known(&scene);
    let (_, master) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(master), SIGKILL).expect("killing it");
    eventually("what was cut to be counted", || (counted(&scene) == 2).then_some(()));
    let events = scene.run("events", &["--name", "web"]).ok();
    assert!(events.contains("connections cut: 2"), "{events}");
}

#[test]
fn what_is_cut_just_after_an_upgrade_of_the_supervisor_is_counted_and_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (haproxy, _halves) = in_progress(&scene, &program, &[]);
        haproxy.reload(&scene).ok();
        drains(&scene);
        scene.run("upgrade", &["--name", "web"]).ok();
        let told = scene.run("retire", &["--name", "web"]).ok();
        assert!(told.contains('2'), "{told}");
        cut(&scene, "`bindonce retire` or a reload asked it to end");
    }
}

#[test]
fn what_a_shutdown_at_once_cuts_is_told() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (mut haproxy, _halves) = in_progress(&scene, &program, &[]);
        both_are_known(&scene);
        let supervisor = Pid::from_raw(i32::try_from(haproxy.supervisor.pid()).expect("a pid"));
        kill(supervisor, SIGTERM).expect("the first");
        drains(&scene);
        kill(supervisor, SIGTERM).expect("the second");
        haproxy.supervisor.wait_line("the service is being shut down; connections cut: 2");
    }
}
