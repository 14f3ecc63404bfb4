//! haproxy with a master of its own (`-W`): the worker accepts, not the process that was started.

use crate::harness::{Haproxy, Scene, config};

#[test]
fn what_the_worker_of_a_master_binds_by_itself_is_told() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (address, stats) = (scene.address(), scene.address());
    let text = config(address, 1).replace(
        "global\n",
        &format!("global\n    master-worker\n    stats socket ipv4@{stats} level admin\n"),
    );
    let file = scene.write("haproxy.cfg", &text);
    let _broker = scene.broker();
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.supervisor.wait_line("has bound this by itself");
}
