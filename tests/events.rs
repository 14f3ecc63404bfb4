//! `bindonce events`: the history of events with their subjects and reasons, over reloads,
//! failures, kills and upgrades; live for followers, and from a file that may be damaged or
//! unwritable.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Fault, Haproxy, Process, Scene, Stage, config, eventually, listening, skip};

/// The output of `bindonce events --json`, by kind and generation.
fn told(scene: &Scene, more: &[&str]) -> Vec<Value> {
    let out = scene.run("events", &[&["--json"], more].concat()).ok();
    out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The events of one kind.
fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

/// The kinds of one generation, in order.
fn life(events: &[Value], generation: u64) -> Vec<&str> {
    let of = events.iter().filter(|event| event["generation"] == generation);
    of.filter_map(|event| event["kind"].as_str()).collect()
}

fn assert_ids_grow(events: &[Value]) {
    let ids: Vec<_> = events.iter().map(|event| event["id"].as_u64().expect("an id")).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

fn file(scene: &Scene) -> PathBuf {
    scene.path("web.d/events.jsonl")
}

#[test]
fn reloads_failures_and_kills_are_told_with_their_cause() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let path = scene.write("haproxy.cfg", &config(address, 1));
    let mut haproxy = Haproxy::start(&scene, &program, &path);
    haproxy.reload(&scene).ok();
    scene.write("haproxy.cfg", "no-such-keyword\n");
    haproxy.reload(&scene).fails(1);
    // The file matches the serving generation: the next supervisor has nothing to reload.
    scene.write("haproxy.cfg", &config(address, 1));
    haproxy.supervisor.kill();

    // The supervisor is gone: its file is read.
    let events = told(&scene, &["--name", "web"]);
    assert_ids_grow(&events);
    let born = ["generation-started", "listener-bound", "generation-ready", "generation-serving"];
    assert!(life(&events, 1).starts_with(&born), "{events:#?}");
    let left = |kind| of_kind(&events, kind).iter().any(|event| event["generation"] == 1);
    assert!(left("generation-draining"), "{events:#?}");
    let [failed] = of_kind(&events, "reload-failed")[..] else { panic!("{events:#?}") };
    let text = failed["text"].as_str().expect("text");
    assert!(text.starts_with("exited; generation 2 still serves"), "{text}");
    assert!(text.contains("no-such-keyword") && !text.contains('\n'), "{text}");
    assert_eq!((&failed["service"], &failed["generation"]), (&json!("web"), &json!(3)));
    let time = failed["time"].as_str().expect("time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    let pid = of_kind(&events, "generation-serving")[1]["pid"].as_i64().expect("a pid");

    // Damaged as by a crash in the middle of a line: the next supervisor continues the file.
    let mut kept = fs::OpenOptions::new().append(true).open(file(&scene)).expect("the file");
    kept.write_all(b"{\"id\":9000,\"time\":\"2026").expect("half a line");
    let mut haproxy = Haproxy::start(&scene, &program, &path);
    scene.run("upgrade", &["--name", "web"]).ok();
    haproxy.wait_serving(&scene);
    haproxy.reload(&scene).ok();
    let after = told(&scene, &["--name", "web"]);
    assert_ids_grow(&after);
    assert_eq!(&after[..events.len()], &events[..], "nothing is lost");
    let [found, again] = of_kind(&after, "taken-over")[..] else { panic!("{after:#?}") };
    assert_eq!((&found["pid"], &again["pid"]), (&json!(pid), &json!(pid)));
    assert_eq!(of_kind(&after, "upgraded").len(), 1);
    assert_eq!(of_kind(&after, "supervisor-started").len(), 2);
    // The text output has the same words.
    let text = scene.run("events", &[]).ok();
    let line = text.lines().find(|line| line.contains("reload-failed")).expect("the line");
    assert!(line.contains("web/3") && line.contains("no-such-keyword"), "{line}");
}

#[test]
fn one_who_follows_misses_nothing_over_kills_and_upgrades() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, mut broker) = Scene::with_broker();
    let address = scene.address();
    let path = scene.write("haproxy.cfg", &config(address, 1));
    let mut haproxy = Haproxy::start(&scene, &program, &path);
    let mut follower = Process::start(scene.bindonce("events").args(["--follow", "--json"]));
    follower.wait_line("generation-serving");
    let inode = listening(address)[0].inode;

    scene.run("upgrade", &[]).ok();
    let line = follower.wait_line("\"upgraded\"");
    assert!(line.contains("\"from\":\"broker\""), "{line}");
    broker.kill();
    follower.wait_line("broker-lost");
    let mut broker = scene.broker();
    // The broker and the supervisor report it in either order.
    follower.wait_line("broker-back");
    let restored = || of_kind(&told(&scene, &[]), "listener-restored").len();
    eventually("the broker to have it back", || (restored() == 1).then_some(()));
    assert_eq!(listening(address)[0].inode, inode);

    haproxy.supervisor.kill();
    let mut haproxy = Haproxy::start(&scene, &program, &path);
    follower.wait_line("taken-over");
    haproxy.reload(&scene).ok();
    follower.wait_line("reload-done");
    assert!(follower.is_running());
    follower.kill();

    // Each of them reports each of its events once, in order.
    let story = follower.story();
    let lines = story.lines().filter_map(|line| line.trim_start().strip_prefix("| {"));
    let lines = lines.map(|line| serde_json::from_str::<Value>(&format!("{{{line}")).expect(line));
    let (ours, brokers): (Vec<_>, Vec<_>) = lines.partition(|event| event["from"] == "web");
    assert_ids_grow(&ours);
    assert_ids_grow(&brokers);
    let all = told(&scene, &["--name", "web"]);
    assert_eq!(ours[..], all[..ours.len()]);
    haproxy.supervisor.terminate();
    broker.terminate();
}

#[test]
fn a_signal_beyond_the_normal_course_is_told_with_its_reason() {
    let Some(stage) = Stage::start(
        Haproxy::system(),
        &[(1, &[Fault::Deaf(Signal::SIGUSR1, 0)])],
        &["--drain-timeout", "300ms"],
    ) else {
        return;
    };
    stage.reload(2);
    let events = eventually("it to be ended", || {
        let events = told(&stage.scene, &["--name", "web"]);
        life(&events, 1).contains(&"generation-gone").then_some(events)
    });
    let escalated = of_kind(&events, "signal-escalated");
    assert!(
        escalated.iter().any(|event| {
            event["generation"] == 1 && event["text"].as_str().is_some_and(|t| t.contains("SIG"))
        }),
        "{events:#?}"
    );
}

#[test]
fn the_protocol_gives_what_came_after_an_id_and_cuts_off_who_does_not_read() {
    let scene = Scene::new();
    let config = scene.write("broker.toml", "[limits]\nrequest_time = '300ms'\n");
    let mut process = Process::start(scene.bindonce("serve").arg("--config").arg(config));
    scene.wait_broker(&mut process);
    let mut wire = scene.wire();
    let address = scene.address();
    wire.bind(&[&format!("web={address}")]);
    let all = wire.call("events", &json!([]));
    let events = all["events"].as_array().expect("events");
    assert_eq!(
        (&all["following"], &all["last"]),
        (&json!(false), &events.last().expect("an event")["id"])
    );
    let bound = &events.last().expect("an event");
    assert_eq!(bound["kind"], "listener-bound", "{all}");
    assert_eq!(bound["pid"], std::process::id(), "{all}");
    let last = all["last"].as_u64().expect("an id");
    assert_eq!(wire.call("events", &json!([{"since": last}]))["events"], json!([]));
    assert_eq!(wire.call("events", &json!([{"since": last + 5}]))["events"], all["events"]);
    let wrong = wire.error("events", &json!([{"sinse": 1}]));
    assert_eq!(wrong["code"], -32602, "{wrong}");

    let mut follower = scene.wire();
    let first = follower.call("events", &json!([{"since": last, "follow": true}]));
    assert_eq!((&first["events"], &first["following"]), (&json!([]), &json!(true)));
    // A follower that never reads: its socket is full before the journal is.
    let mut deaf = scene.wire();
    deaf.send(br#"{"method":"events","params":[{"follow":true}]}"#);
    wire.call("release", &json!(["web"]));
    let line = follower.reply();
    assert_eq!(line["method"], "event", "{line}");
    assert_eq!(line["params"][0]["id"], last + 1, "{line}");
    assert_eq!(line["params"][0]["kind"], "listener-released", "{line}");
    drop(follower);
    for round in 0..60 {
        let name = |number: usize| format!("l{number:0>50}-{round}=127.0.0.1:0");
        let listeners: Vec<_> = (0..16).map(name).collect();
        let listeners: Vec<_> = listeners.iter().map(String::as_str).collect();
        wire.bind(&listeners);
    }
    process.wait_line("its reply was not read in time");
    // Other clients were served meanwhile.
    assert_eq!(wire.call("ping", &json!([]))["pong"], true);
}

#[test]
fn only_who_may_list_everything_sees_what_happened_to_everything() {
    let scene = Scene::new();
    let uid = nix::unistd::getuid();
    let rule = |more: &str| format!("[[rule]]\nuid = {uid}\nallow = ['list', 'bind']\n{more}");
    let config = scene.write("broker.toml", &rule("addresses = ['*:80']\n"));
    let mut process = Process::start(scene.bindonce("serve").arg("--config").arg(&config));
    scene.wait_broker(&mut process);
    let mut wire = scene.wire();
    wire.call("list", &json!([]));
    assert_eq!(wire.error("events", &json!([]))["code"], -32002);
    fs::write(&config, rule("")).expect("the configuration");
    process.signal(Signal::SIGHUP);
    process.wait_line("read again");
    let events = wire.call("events", &json!([]))["events"].clone();
    let events = events.as_array().expect("events");
    let [denied] = of_kind(events, "denied")[..] else { panic!("{events:#?}") };
    assert!(denied["text"].as_str().is_some_and(|text| text.contains("may not list")), "{denied}");
    assert_eq!(of_kind(events, "config-read").len(), 1);
}

#[test]
fn a_file_that_cannot_be_written_harms_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a file that root cannot write needs root to make it");
    }
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let path = scene.write("haproxy.cfg", &config(scene.address(), 1));
    // A directory has the path of the file, and of its replacement.
    for name in ["events.jsonl", "events.jsonl.new"] {
        fs::create_dir_all(scene.path("web.d").join(name).join("full")).expect("a directory");
    }
    let mut haproxy = Haproxy::start(&scene, &program, &path);
    haproxy.supervisor.wait_line("events cannot be kept on disk");
    haproxy.reload(&scene).ok();
    let events = told(&scene, &["--name", "web"]);
    assert_eq!(of_kind(&events, "reload-done").len(), 2, "{events:#?}");
}
