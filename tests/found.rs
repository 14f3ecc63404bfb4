//! The state of a killed supervisor is not its last one, or what it has left is in disorder: what
//! the next supervisor takes for a generation, and what it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::deadlines::watchdog;
use crate::harness::{Haproxy, Scene, Stage, Stranger, eventually, serves};

/// Changes what the killed supervisor has saved.
fn change(stage: &Stage, how: impl FnOnce(&mut Value)) {
    let path = stage.scene.path("web.d/state.json");
    let text = fs::read(&path).expect("the state");
    let mut state = serde_json::from_slice(&text).expect("JSON");
    how(&mut state);
    fs::write(&path, state.to_string()).expect("writing");
}

#[test]
fn a_generation_that_was_not_saved_yet_goes_on() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let pid = stage.pid(1);
    stage.kill_supervisor();
    change(&stage, |state| state["generations"] = json!([]));
    stage.start_supervisor();
    assert_eq!(stage.haproxy.wait_serving(&stage.scene), (1, pid));
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
    stage.answered_throughout(Duration::from_secs(1));
}

#[test]
fn a_generation_that_was_started_while_the_state_could_not_be_saved_goes_on() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    let pid = stage.pid(2);
    stage.kill_supervisor();
    // As if the one that served had died: an older one still drains.
    change(&stage, |state| {
        let all = state["generations"].as_array_mut().expect("generations");
        let newest = all.iter_mut().find(|one| one["id"] == 2).expect("the newest");
        newest["start_time"] = json!(1);
    });
    stage.start_supervisor();
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    assert_eq!(stage.pid(2), pid);
    stage.reload(3);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.answered_throughout(Duration::from_secs(1));
}

/// As by `pkill -9 bindonce`, when the newer generation dies too.
#[test]
fn an_older_generation_that_is_paused_for_a_handover_which_nobody_finishes_is_resumed() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    stage.answered_throughout(Duration::from_secs(1));
    stage.configure(2);
    // The proof waits, with the older generation paused.
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    let (newer, watchdog) = (Pid::from_raw(stage.pid(2)), watchdog(&stage.haproxy));
    stage.haproxy.supervisor.signal(Signal::SIGSTOP);
    for pid in [newer, watchdog] {
        kill(pid, Signal::SIGKILL).expect("ending it");
    }
    stage.kill_supervisor();
    for pid in [newer, watchdog] {
        eventually("its end", || kill(pid, None).is_err().then_some(()));
    }
    drop(stranger);
    reload.wait_exit();
    stage.configure(1);
    stage.start_supervisor();
    assert_eq!(stage.haproxy.wait_serving(&stage.scene).0, 1);
    stage.only(1);
}

/// As a program that a script in haproxy has started, which has haproxy's sockets and environment.
#[test]
fn a_child_that_outlives_haproxy_and_its_supervisor_is_no_generation() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let marker = scene.path("child");
    let script = format!(
        "#!/bin/sh\n\
         if [ -n \"$BINDONCE_ADMIN\" ]; then sleep 1000 >/dev/null 2>&1 & echo $! >{}; fi\n\
         exec {} \"$@\"\n",
        marker.display(),
        program.display()
    );
    let wrapper = scene.write("haproxy", &script);
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("its mode");
    let child = || {
        let pid = fs::read_to_string(&marker).expect("the child").trim().parse().expect("a pid");
        fs::remove_file(&marker).expect("removing");
        Pid::from_raw(pid)
    };
    let (address, mut haproxy) = Haproxy::start_at(&scene, &[], &wrapper);
    let (_, pid) = haproxy.wait_serving(&scene);
    let first = child();
    haproxy.supervisor.kill();
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGKILL).expect("ending haproxy");
    eventually("its end", || kill(pid, None).is_err().then_some(()));
    let mut haproxy = Haproxy::start(&scene, &wrapper, &scene.path("haproxy.cfg"));
    let (generation, _) = haproxy.wait_serving(&scene);
    assert_eq!(generation, 2, "{}", haproxy.supervisor.story());
    serves(address, 1);
    // As long as a child has its listeners, a generation counts as one that drains.
    for child in [first, child()] {
        kill(child, Signal::SIGKILL).expect("ending a child");
    }
}
