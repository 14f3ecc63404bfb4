//! File systems that do not answer stop no supervisor: it answers, and the service continues.

use std::fs;

use crate::harness::{Haproxy, Process, Scene, Stalled, config, finish, own_mounts, skip};

/// A scene with a broker, in which a directory can be stalled; None where that needs rights that
/// the test lacks.
fn scene() -> Option<(Scene, Process)> {
    let scene = Scene::new();
    if let Err(error) = own_mounts() {
        skip(&format!("no mounts of its own: {error}"));
        return None;
    }
    let broker = scene.broker();
    Some((scene, broker))
}

#[test]
fn a_server_state_file_that_cannot_be_written_delays_a_reload_and_nothing_else() {
    let Some(program) = Haproxy::system() else { return };
    let Some((scene, _broker)) = scene() else { return };
    let states = scene.path("states");
    fs::create_dir(&states).expect("a directory");
    let global = format!("maxconn 500\n    server-state-file {}/global.state\n", states.display());
    let text = config(scene.address(), 1)
        .replace("maxconn 500\n", &global)
        .replace("mode http\n", "mode http\n    load-server-state-from-file global\n");
    let file = scene.write("haproxy.cfg", &(text + "backend b\n    server s 127.0.0.1:9\n"));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let Some(stalled) = Stalled::over(&states) else { return };
    let mut reload = Process::start(scene.bindonce("reload").args(["--name", "web"]));
    let line = haproxy.supervisor.wait_line("the state of the servers could not be written");
    assert!(line.contains("global.state") && line.contains("not done within 5s"), "{line}");
    finish(scene.bindonce("ping").args(["--name", "web", "--serving"])).ok();
    // haproxy reads the file too, and gets an error now.
    drop(stalled);
    assert_eq!(reload.wait_exit().code(), Some(0), "{}", reload.story());
}
