//! Generations whose supervisor is killed before the broker knows that they serve: their listeners
//! stay bound.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal::SIGTTOU;
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::harness::{Fault, Process, Scene, Stage, Wire, eventually, serves, skip};
use crate::strangers::{brokers, rules, serve};

/// The broker's entry for the listener at this address.
fn held(scene: &Scene, address: SocketAddr) -> Option<Value> {
    let mut listed = scene.wire().call("list", &json!([]));
    let Value::Array(all) = listed["listeners"].take() else { panic!("{listed}") };
    all.into_iter().find(|one| one["address"] == address.to_string())
}

/// A process with a listener as its standard input, which ends when this is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("ending it");
        self.0.wait().expect("its end");
    }
}

/// A supervisor's connection that claimed a listener for a generation, and the process of that
/// generation.
fn generation(scene: &Scene, address: SocketAddr) -> (Wire, Holder) {
    let mut supervisor = scene.wire();
    let label = json!({"service": "web", "generation": 1, "state": "starting"});
    supervisor.call("join", &json!([label]));
    let claim = json!([{"listen": address.to_string(), "tentative": true}]);
    supervisor.call("bind", &claim);
    let socket = supervisor.take(1).remove(0);
    let mut command: Command = scene.command("sleep");
    let process = command.arg("1000").stdin(Stdio::from(socket)).spawn().expect("a process");
    let mut label = label;
    label["pid"] = process.id().into();
    supervisor.call("join", &json!([label]));
    (supervisor, Holder(process))
}

#[test]
fn a_listener_stays_with_the_process_that_has_it_and_ends_with_it() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    // A broker of another user may not inspect this process's descriptors.
    for user in brokers() {
        let scene = Scene::new();
        let mut broker = serve(&scene, &rules("allow = ['list']"), user);
        let address = scene.address();
        let (supervisor, process) = generation(&scene, address);
        let bound = held(&scene, address).expect("it is bound");
        assert_eq!(bound["tentative"], true, "{bound}");
        drop(supervisor);
        broker.wait_line("a generation outlived a supervisor");
        let kept = held(&scene, address).expect("it stays");
        assert_eq!(
            (&kept["inode"], &kept["tentative"]),
            (&bound["inode"], &json!(false)),
            "{kept}"
        );
        assert!(kept["holders"].as_array().is_some_and(Vec::is_empty), "{kept}");
        // The next image keeps it too.
        scene.run("upgrade", &[]).ok();
        assert_eq!(held(&scene, address).expect("it stays")["inode"], bound["inode"]);

        let other = scene.address();
        let (supervisor, second) = generation(&scene, other);
        drop(supervisor);
        broker.wait_line("a generation outlived a supervisor");
        drop(second);
        eventually("it to be closed with the process", || {
            held(&scene, other).is_none().then_some(())
        });

        // A listener claimed by the next supervisor belongs to its service as usual.
        let (supervisor, third) = generation(&scene, other);
        drop(supervisor);
        broker.wait_line("a generation outlived a supervisor");
        let mut next = scene.wire();
        next.bind(&[&other.to_string()]);
        drop(third);
        drop(process);
        eventually("the first to be closed, by the next image", || {
            held(&scene, address).is_none().then_some(())
        });
        // A later listener is closed, so the broker has noticed those ends.
        let last = scene.address();
        let (supervisor, fourth) = generation(&scene, last);
        drop(supervisor);
        broker.wait_line("a generation outlived a supervisor");
        drop(fourth);
        eventually("the last to be closed", || held(&scene, last).is_none().then_some(()));
        assert!(held(&scene, other).is_some(), "{}", broker.story());
    }
}

/// The next broker knows for which process it holds a listener.
#[test]
fn a_listener_of_such_a_process_ends_with_it_under_the_next_broker_too() {
    if !geteuid().is_root() {
        return skip("needs root, to take a socket from another process");
    }
    for in_order in [false, true] {
        let (scene, mut broker) = Scene::with_broker();
        let (kept, gone) = (scene.address(), scene.address());
        let [first, second] = [kept, gone].map(|address| {
            let (supervisor, process) = generation(&scene, address);
            drop(supervisor);
            broker.wait_line("a generation outlived a supervisor");
            process
        });
        let inode = held(&scene, kept).expect("it stays")["inode"].clone();
        if in_order {
            assert!(broker.terminate().success(), "{}", broker.story());
        } else {
            broker.kill();
        }
        // This one ends while there is no broker.
        drop(second);
        let mut next = Process::start(&mut scene.bindonce("serve"));
        next.wait_line("listeners of the previous broker recovered=");
        assert_eq!(held(&scene, kept).expect("it stays")["inode"], inode, "{}", next.story());
        let closed = |address| held(&scene, address).is_none().then_some(());
        eventually("the other to be closed", || closed(gone));
        drop(first);
        eventually("it to be closed with the process", || closed(kept));
    }
}

/// The end of a connection at once ends the listeners that no other process uses.
#[test]
fn a_listener_of_a_generation_that_is_gone_ends_with_the_connection() {
    let (scene, mut broker) = Scene::with_broker();
    let address = scene.address();
    let (mut supervisor, process) = generation(&scene, address);
    drop(process);
    supervisor.close_write();
    assert!(supervisor.message().is_none(), "the broker has ended the leases");
    assert_eq!(held(&scene, address), None);
    // A process without that socket does not belong to the generation, whatever the client claims.
    let mut stranger = Process::start(scene.command("sleep").arg("1000"));
    let mut supervisor = scene.wire();
    let pid = stranger.pid();
    let label = json!({"service": "web", "generation": 2, "pid": pid, "state": "starting"});
    supervisor.call("join", &json!([label]));
    supervisor.call("bind", &json!([{"listen": address.to_string(), "tentative": true}]));
    supervisor.close_write();
    while supervisor.message().is_some() {}
    assert_eq!(held(&scene, address), None, "{}", broker.story());
    stranger.kill();
}

/// The watchdog finishes the handover of a killed supervisor: the new generation serves on a
/// listener that only it has.
#[test]
fn a_listener_of_a_reload_stays_when_the_supervisor_is_killed_in_the_handover() {
    // The older generation ignores SIGTTOU and keeps accepting while the new one is held.
    let Some(mut stage) =
        Stage::start(crate::harness::Haproxy::system(), &[(1, &[Fault::Deaf(SIGTTOU, 0)])], &[])
    else {
        return;
    };
    let second = stage.scene.address();
    let configure = |stage: &Stage, tag| {
        stage.configure(tag);
        let file = stage.scene.path("haproxy.cfg");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        let bind = format!("    bind {}\n", stage.address);
        std::fs::write(&file, text.replace(&bind, &format!("{bind}    bind {second}\n")))
            .expect("writing");
    };
    configure(&stage, 2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("ready: it has bound");
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    eventually("the older one to be gone", || (stage.scene.haproxies().len() == 1).then_some(()));
    stage.only(2);
    serves(second, 2);
    assert!(held(&stage.scene, second).is_some(), "{}", stage.broker.story());
    stage.start_supervisor();
    let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(generation, 2, "{}", stage.haproxy.supervisor.story());
    configure(&stage, 9);
    stage.haproxy.reload(&stage.scene).ok();
    serves(second, 9);
    stage.only(9);
    stage.refused_nobody();
}
