//! File systems that do not answer stop no supervisor: it answers, and the service continues.

use std::fs;

use crate::harness::{
    Haproxy, Process, Scene, Stalled, config, eventually, finish, own_mounts, skip,
};

/// A scene with a broker, in which a directory can be stalled; None where that needs rights that
/// the test lacks.
fn scene() -> Option<(Scene, Process)> {
    let scene = Scene::new();
    if let Err(error) = own_mounts() {
        skip(&format!("no mounts of its own: {error}"));
        return None;
    }
    let place = scene.path("stalls");
    fs::create_dir(&place).expect("a directory");
    drop(Stalled::over(&place)?);
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
    let stalled = Stalled::over(&states).expect("a directory that stalls");
    let mut reload = Process::start(scene.bindonce("reload").args(["--name", "web"]));
    let line = haproxy.supervisor.wait_line("the state of the servers could not be written");
    assert!(line.contains("global.state") && line.contains("not done within 5s"), "{line}");
    finish(scene.bindonce("ping").args(["--name", "web", "--serving"])).ok();
    // haproxy reads the file too, and gets an error now.
    drop(stalled);
    assert_eq!(reload.wait_exit().code(), Some(0), "{}", reload.story());
}

#[test]
fn a_watched_directory_that_does_not_answer_delays_no_takeover_and_loses_no_change() {
    let Some(program) = Haproxy::system() else { return };
    let Some((scene, _broker)) = scene() else { return };
    let maps = scene.path("maps");
    fs::create_dir(&maps).expect("a directory");
    let map = scene.write("maps/a.map", "a 1\n");
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let arguments = ["--watch", map.to_str().expect("UTF-8")];
    let mut haproxy = Haproxy::start_with(&scene, &arguments, &program, &file);
    haproxy.supervisor.kill();
    fs::write(&map, "a 2\n").expect("a change");
    let stalled = Stalled::over(&maps).expect("a directory that stalls");
    haproxy = Haproxy::begin(&scene, &arguments, &program, &file);
    haproxy
        .supervisor
        .wait_lines(&["the files that are watched cannot be read", ": taken over: serving"]);
    let (generation, _) = haproxy.wait_serving(&scene);
    assert_eq!(generation, 1, "{}", haproxy.supervisor.story());
    eventually("it to answer", || {
        let ping = finish(scene.bindonce("ping").args(["--name", "web", "--serving"]));
        (ping.code == Some(0)).then_some(())
    });
    drop(stalled);
    eventually("the change to be reloaded", || {
        haproxy.serving(&scene).filter(|(generation, _)| *generation > 1)
    });
}
