//! The broker keeps the order of a service's generations: their numbers only grow, one serves, and
//! older ones are told to retire; over an upgrade, a kill and an orderly restart.

use std::os::unix::process::CommandExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Process, Scene, Wire, eventually, finish};

fn say(wire: &mut Wire, generation: Option<u64>, state: &str) -> Value {
    let mut params = json!({"service": "edge", "state": state, "handover": true});
    if let Some(generation) = generation {
        params["generation"] = generation.into();
    }
    wire.call("join", &json!([params]))
}

fn answer(generation: u64, state: &str) -> Value {
    json!({"joined": true, "generation": generation, "state": state})
}

fn retire(generation: u64, successor: u64) -> Value {
    let params = json!([{"service": "edge", "generation": generation, "successor": successor}]);
    json!({"jsonrpc": "2.0", "method": "retire", "params": params})
}

fn serve(generation: u64) -> Value {
    let params = json!([{"service": "edge", "generation": generation}]);
    json!({"jsonrpc": "2.0", "method": "serve", "params": params})
}

fn stay(generation: u64) -> Value {
    let params = json!([{"service": "edge", "generation": generation}]);
    json!({"jsonrpc": "2.0", "method": "stay", "params": params})
}

/// Reports that a generation has stopped to make room for a newer one.
fn obey(wire: &mut Wire, generation: u64, successor: u64) -> Value {
    let params = json!([{"service": "edge", "generation": generation, "state": "draining",
        "handover": true, "successor": successor}]);
    wire.call("join", &params)
}

/// The generations of `edge` as `status` shows them: number and state.
fn shown(scene: &Scene) -> Vec<(u64, String)> {
    let status = scene.wire().call("status", &json!([]));
    let generations = status["services"][0]["generations"].as_array().cloned().unwrap_or_default();
    let shown = |generation: Value| {
        let state = generation["state"].as_str().expect("a state").to_owned();
        (generation["generation"].as_u64().expect("a number"), state)
    };
    generations.into_iter().map(shown).collect()
}

/// A serving generation, and a newer one that is ready and waits.
fn handover(scene: &Scene) -> (Wire, Wire) {
    let (mut old, mut new) = (scene.wire(), scene.wire());
    assert_eq!(say(&mut old, None, "starting"), answer(1, "starting"));
    assert_eq!(say(&mut old, None, "serving"), answer(1, "serving"));
    assert_eq!(say(&mut new, None, "starting"), answer(2, "starting"));
    assert_eq!(say(&mut new, None, "serving"), answer(2, "starting"), "it has to wait");
    (old, new)
}

#[test]
fn a_newer_generation_serves_when_the_older_one_has_stopped() {
    let (scene, mut broker) = Scene::with_broker();
    // Neither gets unsolicited messages: one has not joined, and one orders its generations itself.
    let (mut plain, mut other) = (scene.wire(), scene.wire());
    let joined = json!([{"service": "haproxy", "generation": 9, "pid": 1, "state": "serving"}]);
    assert_eq!(other.call("join", &joined), json!({"joined": true}));

    let (mut old, mut new) = handover(&scene);
    assert_eq!(old.reply(), retire(1, 2));
    let line = broker.wait_line("told to retire");
    assert!(line.contains("edge") && line.contains("generation=1"), "{line}");
    assert!(new.is_quiet(), "the older one has not said that it stopped");
    assert_eq!(shown(&scene), [(1, "serving".into()), (2, "starting".into())]);
    assert_eq!(say(&mut old, Some(1), "draining"), answer(1, "draining"));
    assert_eq!(new.reply(), serve(2));
    assert_eq!(shown(&scene), [(1, "draining".into()), (2, "serving".into())]);

    // A generation that dies before it is ready disturbs no other; one that dies later makes room.
    let mut third = scene.wire();
    say(&mut third, None, "starting");
    drop(third);
    eventually("its end", || (shown(&scene).len() == 2).then_some(()));
    assert!(new.is_quiet() && old.is_quiet());
    let mut fourth = scene.wire();
    assert_eq!(say(&mut fourth, None, "serving"), answer(4, "starting"));
    assert_eq!(new.reply(), retire(2, 4));
    drop(new);
    assert_eq!(fourth.reply(), serve(4));
    assert!(plain.is_quiet() && other.is_quiet());

    let text = scene.run("status", &[]).ok();
    assert!(text.contains("edge") && text.contains("haproxy"), "{text}");
}

#[test]
fn a_newer_generation_that_dies_before_it_is_let_in_changes_nothing() {
    let (scene, mut broker) = Scene::with_broker();
    let (mut old, new) = handover(&scene);
    assert_eq!(old.reply(), retire(1, 2));
    drop(new);
    assert_eq!(old.reply(), stay(1));
    let line = broker.wait_line("told to stay");
    assert!(line.contains("edge") && line.contains("generation=1"), "{line}");
    // The generation had already stopped for a successor that no longer exists: it keeps serving.
    assert_eq!(obey(&mut old, 1, 2), answer(1, "serving"));
    assert_eq!(shown(&scene), [(1, "serving".into())]);
    let mut third = scene.wire();
    assert_eq!(say(&mut third, None, "serving"), answer(3, "starting"));
    assert_eq!(old.reply(), retire(1, 3));
    assert_eq!(obey(&mut old, 1, 3), answer(1, "draining"));
    assert_eq!(third.reply(), serve(3));
}

#[test]
fn a_peer_that_does_not_read_is_cut_off_and_the_newer_one_serves() {
    let scene = Scene::new();
    let config = scene.write("broker.toml", "[limits]\nretire_time = '200ms'\n");
    let mut broker = Process::start(scene.bindonce("serve").arg("--config").arg(&config));
    scene.wait_broker(&mut broker);
    let (mut old, mut new) = handover(&scene);
    assert_eq!(new.reply(), serve(2));
    let line = broker.wait_line("cut off");
    assert!(line.contains("generation=1") && line.contains("doctor"), "{line}");
    assert_eq!(old.reply(), retire(1, 2), "it could have read this");
    assert!(old.message().is_none(), "the connection has ended");
    // It comes back and learns that its place is taken.
    let mut again = scene.wire();
    assert_eq!(say(&mut again, Some(1), "serving"), answer(1, "draining"));
    assert_eq!(shown(&scene), [(1, "draining".into()), (2, "serving".into())]);
}

#[test]
fn an_upgrade_in_the_middle_of_a_handover_is_not_noticed() {
    let (scene, _broker) = Scene::with_broker();
    let (mut old, mut new) = handover(&scene);
    scene.run("upgrade", &[]).ok();
    assert_eq!(old.reply(), retire(1, 2));
    assert_eq!(shown(&scene), [(1, "serving".into()), (2, "starting".into())]);
    say(&mut old, Some(1), "draining");
    assert_eq!(new.reply(), serve(2));
    scene.run("upgrade", &[]).ok();
    let mut third = scene.wire();
    assert_eq!(say(&mut third, None, "serving"), answer(3, "starting"));
    assert_eq!(new.reply(), retire(2, 3));
}

#[test]
fn after_a_kill_the_one_that_served_is_waited_for_and_numbers_go_on() {
    let (scene, mut first) = Scene::with_broker();
    let _both = handover(&scene);
    first.kill();
    let mut second = scene.broker();
    // The newer generation is back first; the older one may still accept.
    let (mut new, mut old) = (scene.wire(), scene.wire());
    assert_eq!(say(&mut new, Some(2), "serving"), answer(2, "starting"));
    assert!(new.is_quiet());
    assert_eq!(say(&mut old, Some(1), "serving"), answer(1, "serving"));
    assert_eq!(old.reply(), retire(1, 2));
    say(&mut old, Some(1), "draining");
    assert_eq!(new.reply(), serve(2));
    // The generation that served does not come back: the broker waits for it, but not forever.
    second.kill();
    let mut third = scene.broker();
    let (mut newest, begun) = (scene.wire(), Instant::now());
    assert_eq!(say(&mut newest, None, "serving"), answer(3, "starting"));
    assert_eq!(newest.reply(), serve(3));
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    third.wait_line("has not come back");
    // An orderly restart keeps the numbers too.
    third.terminate();
    let _fourth = scene.broker();
    assert_eq!(say(&mut scene.wire(), None, "starting"), answer(4, "starting"));
}

#[test]
fn a_service_has_one_user_and_one_way_of_being_ordered() {
    let (scene, _broker) = Scene::with_broker();
    let mut first = scene.wire();
    say(&mut first, None, "serving");
    let plain = json!([{"service": "edge", "generation": 9, "state": "serving"}]);
    let error = scene.wire().error("join", &plain);
    assert_eq!(error["code"], -32003, "{error}");
    assert!(error["data"]["hint"].as_str().is_some_and(|hint| hint.contains("another name")));
    let other = json!([{"service": "haproxy", "generation": 9, "state": "serving"}]);
    let mut supervisor = scene.wire();
    supervisor.call("join", &other);
    let next = json!([{"service": "haproxy", "state": "starting", "handover": true}]);
    assert_eq!(scene.wire().error("join", &next)["code"], -32003);
    let numbered = json!([{"service": "edge", "generation": 7, "state": "serving"}]);
    assert_eq!(first.error("join", &numbered)["code"], -32003);
    assert!(first.is_quiet(), "nobody was disturbed");
}

#[test]
fn another_user_may_not_take_a_service_over() {
    let scene = Scene::new();
    if !nix::unistd::getuid().is_root() {
        return crate::harness::skip("only root can act as two users");
    }
    let rules =
        "[[rule]]\nuid = 0\nallow = ['list', 'bind']\n[[rule]]\nuid = 65534\nallow = ['list']\n";
    let config = scene.write("broker.toml", rules);
    let mut broker = Process::start(scene.bindonce("serve").arg("--config").arg(&config));
    scene.wait_broker(&mut broker);
    let mut first = scene.wire();
    say(&mut first, None, "serving");
    for path in [scene.socket().parent().expect("a directory"), &scene.socket()] {
        finish(scene.command("chmod").arg("a+rwx").arg(path)).ok();
    }
    let script = format!(
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect({:?})\n\
         s.sendall(b'{{\"method\":\"join\",\"params\":[{{\"service\":\"edge\",\"state\":\"starting\",\
         \"handover\":true}}]}}\\n')\nprint(s.recv(9999).decode())",
        scene.socket().display().to_string()
    );
    let mut command = scene.command("python3");
    let refused = finish(command.args(["-c", &script]).uid(65534).gid(65534)).ok();
    assert!(refused.contains("-32002") && refused.contains("belongs to uid 0"), "{refused}");
    broker.wait_line("may not join");
    assert!(first.is_quiet(), "nobody was disturbed");
}
