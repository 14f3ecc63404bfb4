//! `run --watch`: a reload when the configuration changes on disk, however it is changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{DEADLINE, Guest, Haproxy, Process, Scene, config, eventually};

/// Writes a version of the configuration into a volume as Kubernetes does (kubelet's atomic
/// writer): a new directory, then the link `..data` replaced in one step.
fn publish(volume: &Path, version: &str, text: &str) {
    let directory = volume.join(version);
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("haproxy.cfg"), text).expect("a file");
    symlink(version, volume.join("..data_tmp")).expect("a link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("the swap");
}

fn watched(scene: &Scene, arguments: &[&str], file: &Path) -> Option<Haproxy> {
    let words = Guest::Haproxy.command(&Guest::Haproxy.program()?, file);
    let mut haproxy = Haproxy::begin_command(scene, arguments, &words);
    haproxy.wait_serving(scene);
    Some(haproxy)
}

#[test]
fn a_volume_that_is_swapped_is_reloaded_and_a_broken_one_is_reported() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let volume = scene.path("volume");
    fs::create_dir(&volume).expect("a directory");
    publish(&volume, "..1", &config(address, 1));
    let file = volume.join("haproxy.cfg");
    symlink("..data/haproxy.cfg", &file).expect("a link");
    let Some(mut haproxy) = watched(&scene, &["--watch"], &file) else { return };
    let mut plan = bindonce_load::Plan::new(address);
    plan.clients = 4;
    plan.rate = Some(400);
    let load = plan.start().expect("load");
    assert!(load.wait_for(20, DEADLINE));
    publish(&volume, "..2", &config(address, 2));
    // Kubernetes removes the older version after the swap.
    fs::remove_dir_all(volume.join("..1")).expect("removing it");
    assert!(load.wait_for_token("2", DEADLINE), "{}", haproxy.supervisor.story());
    publish(&volume, "..3", "no-such-word\n");
    haproxy.supervisor.wait_line("generation 2 still serves");
    publish(&volume, "..4", &config(address, 4));
    assert!(load.wait_for_token("4", DEADLINE), "{}", haproxy.supervisor.story());
    let report = load.stop();
    assert_eq!((report.failed(), report.stale), (0, 0), "{report}");
}

#[test]
fn editors_and_touches_are_told_apart() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let directory = scene.path("conf.d");
    fs::create_dir(&directory).expect("a directory");
    let file = directory.join("10-web.cfg");
    fs::write(&file, config(address, 1)).expect("a file");
    let Some(mut haproxy) = watched(&scene, &["--watch"], &directory) else { return };
    let wait = |haproxy: &mut Haproxy, wanted: u64| {
        eventually("the next generation", || {
            let (generation, _) = haproxy.serving(&scene)?;
            (generation == wanted).then_some(())
        });
    };
    // Rewritten with the same text, which is no change; then renamed into place, as by an editor.
    fs::write(&file, config(address, 1)).expect("a file");
    fs::write(directory.join(".10-web.cfg.new"), config(address, 2)).expect("a file");
    fs::rename(directory.join(".10-web.cfg.new"), &file).expect("renaming it");
    wait(&mut haproxy, 2);
    // One more file in the directory.
    let other = config(scene.address(), 3).replace("frontend web", "frontend other");
    let (_, frontend) = other.split_at(other.find("frontend").expect("a frontend"));
    fs::write(directory.join("20-other.cfg"), frontend).expect("a file");
    wait(&mut haproxy, 3);
}

#[test]
fn a_program_is_reloaded_when_what_was_named_changes() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let tag = scene.write("server.tag", "1\n");
    let Some(program) = Guest::Activated.program() else { return };
    let mut arguments = Guest::Activated.arguments(address);
    arguments.extend(["--watch".to_owned(), tag.display().to_string()]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let words = Guest::Activated.command(&program, &tag);
    let mut server = Haproxy::begin_command(&scene, &arguments, &words);
    server.wait_serving(&scene);
    scene.write("server.tag", "2\n");
    eventually("the next generation", || {
        let (generation, _) = server.serving(&scene)?;
        (generation == 2).then_some(())
    });
}

#[test]
fn a_path_that_is_not_there_is_told() {
    let (scene, _broker) = Scene::with_broker();
    let missing = scene.path("none.cfg");
    let mut command = scene.bindonce("run");
    command.args(["--listen", &format!("web={}", scene.address()), "--ready-delay", "10ms"]);
    command.arg("--watch").arg(&missing).args(["--", "sleep", "1000"]);
    let mut supervisor = Process::start(&mut command);
    let line = supervisor.wait_line("does not exist yet");
    assert!(line.contains("none.cfg"), "{line}");
    supervisor.wait_line("serving");
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
