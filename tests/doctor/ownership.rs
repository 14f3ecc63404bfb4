//! Sockets that others could join, or that haproxy bound itself.

use serde_json::Value;

use super::{expect, findings, pids, plain, report, served, text};
use crate::harness::{Haproxy, Scene, config, eventually};

#[test]
fn a_socket_that_haproxy_binds_itself_is_foreign() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, peer) = (scene.address(), scene.address());
    let peers = format!("peers p\n    peer {} {peer}\n", host_name());
    let file = scene.write("haproxy.cfg", &(config(address, 1) + &peers));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    let found = expect(&scene, "foreign");
    assert_eq!((&found["address"], &found["service"]), (&peer.to_string().into(), &"web".into()));
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").expect("host name").trim().to_owned()
}

#[test]
fn not_exclusive_is_a_note_for_a_plain_haproxy() {
    let Some((scene, address, _haproxy)) = served() else { return };
    let report = report(&scene, &[&address.to_string()]);
    let all = report["findings"].as_array().expect("findings");
    let note = all.iter().find(|one| one["kind"] == "not-exclusive" && one["network"].is_null());
    assert_eq!(note.expect("a note")["severity"], "note", "{all:#?}");
}

/// It stays joinable: clearing SO_REUSEPORT after bind does not help.
#[test]
fn a_listener_that_was_adopted_is_not_exclusive() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let stats = scene.path("admin.sock");
    let expose = format!("stats socket {} level admin expose-fd listeners\n", stats.display());
    let text_of =
        config(address, 1).replace("maxconn 500\n", &("maxconn 500\n    ".to_owned() + &expose));
    let file = scene.write("haproxy.cfg", &text_of);
    let haproxy = plain(&scene, &program, &file, &[]);
    scene.run("adopt", &["--stats-socket", &stats.display().to_string()]).ok();
    let found = expect(&scene, "not-exclusive");
    assert_eq!(
        (&found["severity"], &found["address"]),
        (&"warning".into(), &address.to_string().into())
    );
    assert!(pids(&found).contains(&haproxy.pid()), "{found:#}");
    assert!(text(&found["cause"]).contains("taken over"), "{found:#}");
}

/// A wildcard and what it covers are two sockets of one haproxy, and nobody can join either.
#[test]
fn addresses_that_overlap_are_healthy() {
    for program in Haproxy::all() {
        let Some(scene) = Scene::isolated("needs root, for a wildcard of its own") else { return };
        let _broker = scene.broker();
        let binds = ["*:8080", "127.0.0.1:8080", "*:8081", "[::]:8081"];
        let lines = binds.map(|bind| format!(" bind {bind}\n")).concat();
        let times = "timeout client 9s\n timeout connect 9s\n timeout server 9s";
        let text = format!("defaults\n mode http\n {times}\nfrontend f\n{lines}");
        let file = scene.write("haproxy.cfg", &text);
        let haproxy = Haproxy::start(&scene, &program, &file);
        for _ in 0..2 {
            // What a reload leaves behind ends by itself.
            eventually("one generation", || (scene.haproxies().len() == 1).then_some(()));
            assert_eq!(findings(&scene), Vec::<Value>::new(), "{}", program.display());
            let report = report(&scene, &["web"]);
            let sockets = report["sockets"].as_array().expect("sockets").iter();
            let ours = sockets.filter(|one| !one["name"].is_null());
            let accepting = |one: &Value| one["holders"].to_string().matches("yes").count();
            assert_eq!(ours.map(accepting).collect::<Vec<_>>(), [1; 4], "{report:#}");
            haproxy.reload(&scene).ok();
        }
    }
}
