//! A listener that left the configuration is closed as soon as no generation accepts from it,
//! however long older generations drain, and is bound anew when an older configuration comes back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Fault, Haproxy, Scene, Stage, Wire, config, eventually, listening};

/// Half a request; the generation that accepted it drains until the request is complete.
struct Half(TcpStream);

impl Half {
    #[track_caller]
    fn to(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).expect("connecting");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n").expect("a half");
        Self(stream)
    }

    #[track_caller]
    fn complete(mut self) -> String {
        self.0.write_all(b"\r\n").expect("the rest");
        let mut text = String::new();
        self.0.read_to_string(&mut text).expect("an answer");
        text
    }
}

/// The generations of the service by state, as the supervisor reports them.
fn states(scene: &Scene) -> Vec<(u64, String)> {
    let mut wire = Wire::try_connect(&scene.path("web.d/control.sock")).expect("a supervisor");
    let status = wire.call("status", &json!([]));
    let found = status["generations"].as_array().cloned().unwrap_or_default();
    let state =
        |g: &serde_json::Value| Some((g["generation"].as_u64()?, g["state"].as_str()?.to_owned()));
    found.iter().filter_map(state).collect()
}

fn names(scene: &Scene) -> Vec<String> {
    let listed = scene.wire().call("list", &json!([]));
    let all = listed["listeners"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|one| Some(one["address"].as_str()?.to_owned())).collect()
}

fn with_others(address: SocketAddr, others: &[String], tag: u64) -> String {
    let binds: String = others.iter().map(|other| format!("    bind {other}\n")).collect();
    config(address, tag).replace("    http-request", &format!("{binds}    http-request"))
}

/// The listeners that left are closed, and clients are refused, while both older generations drain.
fn closed_while_older_ones_drain(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let path = scene.path("other.sock");
    let name = format!("left-{}", std::process::id());
    let others = [other.to_string(), path.display().to_string(), format!("abns@{name}")];
    let file = scene.write("haproxy.cfg", &with_others(address, &others, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let first = Half::to(other);
    scene.write("haproxy.cfg", &with_others(address, &others, 2));
    haproxy.reload(&scene).ok();
    let second = Half::to(other);
    scene.write("haproxy.cfg", &config(address, 3));
    haproxy.reload(&scene).ok();
    eventually("the listeners to be closed", || (names(&scene).len() == 1).then_some(()));
    assert_eq!(listening(other), []);
    assert!(TcpStream::connect(other).is_err(), "a client waits where nobody accepts");
    assert!(UnixStream::connect(&path).is_err(), "a client waits where nobody accepts");
    let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    assert!(UnixStream::connect_addr(&abstract_name).is_err());
    let draining = |id: u64| (id, "draining".to_owned());
    let expected = [draining(1), draining(2), (3, "serving".to_owned())];
    assert_eq!(states(&scene), expected, "both drain all the while");
    // The older generations answer their clients, and the next generation may claim the address
    // again.
    scene.write("haproxy.cfg", &with_others(address, &others, 4));
    haproxy.reload(&scene).ok();
    assert!(Half::to(other).complete().contains("x-generation: 4"));
    assert!(first.complete().contains("x-generation: 1"));
    assert!(second.complete().contains("x-generation: 2"));
    eventually("the older ones to be gone", || (states(&scene).len() == 1).then_some(()));
    assert_eq!(names(&scene).len(), 4);
    assert!(Path::new(&path).exists());
}

#[test]
fn a_listener_that_left_is_closed_while_older_generations_drain() {
    closed_while_older_ones_drain(Haproxy::system());
}

#[test]
fn a_listener_that_left_is_closed_with_haproxy_3_0() {
    closed_while_older_ones_drain(Haproxy::fetched("3.0"));
}

#[test]
fn a_listener_that_left_is_closed_with_haproxy_3_2() {
    closed_while_older_ones_drain(Haproxy::fetched("3.2"));
}

/// haproxy's own master keeps a copy of each listener for its next worker, for as long as an older
/// worker drains.
#[test]
fn a_listener_that_left_is_closed_under_a_nested_master() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let path = scene.path("other.sock");
    let others = [other.to_string(), path.display().to_string()];
    let with = |tag: u64, others: &[String]| {
        let text = with_others(address, others, tag);
        scene.write("haproxy.cfg", &text.replace("global\n", "global\n    master-worker\n"))
    };
    let haproxy = Haproxy::start_with(&scene, &["--nested-master"], &program, &with(1, &others));
    let first = Half::to(other);
    with(2, &[]);
    haproxy.reload(&scene).ok();
    eventually("clients to be refused", || TcpStream::connect(other).is_err().then_some(()));
    eventually("clients to be refused", || UnixStream::connect(&path).is_err().then_some(()));
    with(3, &others);
    haproxy.reload(&scene).ok();
    assert!(Half::to(other).complete().contains("x-generation: 3"));
    UnixStream::connect(&path).expect("another socket");
    assert!(first.complete().contains("x-generation: 1"));
}

/// That generation has claimed its listeners: what it has left out need not wait until it serves,
/// or reloads that follow each other would keep the listener for ever.
#[test]
fn a_listener_that_left_is_closed_while_the_next_generation_starts() {
    let faults: &[(u64, &[Fault])] = &[(3, &[Fault::Waits]), (4, &[Fault::Waits])];
    let Some(stage) = Stage::start(Haproxy::system(), faults, &[]) else { return };
    let other = stage.scene.address();
    stage.scene.write("haproxy.cfg", &with_others(stage.address, &[other.to_string()], 2));
    stage.haproxy.reload(&stage.scene).ok();
    assert_eq!(listening(other).len(), 1);
    // Generation 2 drains all the while.
    let half = stage.half_a_request();
    stage.configure(3);
    let mut reload = stage.reload_beside();
    stage.wait_waiting(3);
    let mut next = stage.reload_beside();
    eventually("the next reload to wait", || {
        let mut wire = Wire::try_connect(&stage.scene.path("web.d/control.sock"))?;
        (wire.call("status", &json!([]))["reloads_waiting"] == 1).then_some(())
    });
    stage.let_start(3);
    stage.wait_waiting(4);
    eventually("the listener to be closed", || listening(other).is_empty().then_some(()));
    stage.let_start(4);
    assert!(reload.wait_exit().success(), "{}", reload.story());
    assert!(next.wait_exit().success(), "{}", next.story());
    drop(half);
}

#[test]
fn the_next_supervisor_does_not_bind_it_again() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &with_others(address, &[other.to_string()], 1));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    let half = Half::to(other);
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    eventually("the listener to be closed", || listening(other).is_empty().then_some(()));
    haproxy.supervisor.kill();
    let haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(listening(other), []);
    assert_eq!(names(&scene), [address.to_string()]);
    haproxy.reload(&scene).ok();
    assert_eq!(names(&scene), [address.to_string()]);
    assert!(half.complete().contains("x-generation: 1"));
}

#[test]
fn a_listener_that_somebody_else_uses_stays() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &with_others(address, &[other.to_string()], 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let mut user = scene.wire();
    user.call("bind", &json!([{ "listen": other.to_string() }]));
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    eventually("the older one to be gone", || (states(&scene).len() == 1).then_some(()));
    assert_eq!(names(&scene).len(), 2);
    // At the next release of listeners it is free.
    drop(user);
    haproxy.reload(&scene).ok();
    eventually("the listener to be closed", || (names(&scene).len() == 1).then_some(()));
}

#[test]
fn an_older_configuration_that_comes_back_has_its_listeners_again() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let file = scene.write("haproxy.cfg", &with_others(address, &[other.to_string()], 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    // Only a configuration that served for a while counts as one that worked.
    eventually("it to have worked", || {
        let mut wire = Wire::try_connect(&scene.path("web.d/control.sock"))?;
        let status = wire.call("status", &json!([]));
        (status["generations"][0]["age"].as_u64()? > 10).then_some(())
    });
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    eventually("the listener to be closed", || listening(other).is_empty().then_some(()));
    let mut last = 0;
    for _ in 0..3 {
        let (generation, pid) =
            eventually("one more to serve", || haproxy.serving(&scene).filter(|s| s.0 > last));
        last = generation;
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing it");
    }
    eventually("the older configuration to serve", || {
        (listening(other).len() == 1 && haproxy.serving(&scene)?.0 > last).then_some(())
    });
    assert!(Half::to(other).complete().contains("x-generation: 1"));
    assert_eq!(names(&scene).len(), 2);
}
