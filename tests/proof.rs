//! A reload ends only when no older generation accepts, and a listener that no connection can prove
//! keeps no client waiting.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::harness::{Haproxy, Scene, allow, config, finish};

/// A frontend on these bind lines.
fn frontend(name: &str, binds: &[String], tag: u64) -> String {
    let mut text = format!("frontend {name}\n");
    for bind in binds {
        let _ = writeln!(text, "    bind {bind}");
    }
    text + &format!(
        "    http-request return status 200 content-type text/plain hdr x-generation {tag} string ok\n"
    )
}

fn tag_of(mut stream: impl Read + Write) -> Option<String> {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let line = answer.lines().find_map(|line| line.strip_prefix("x-generation: "))?;
    Some(line.to_owned())
}

/// `grace` delays the close, and these listeners cannot be paused.
fn grace(program: Option<PathBuf>, master: bool) {
    let Some(program) = program else { return };
    let scene = Scene::new();
    let (web, path) = (scene.address(), scene.path("web.sock"));
    let name = format!("bindonce-{}", path.display());
    let _broker = scene.broker();
    let write = |tag| {
        let master = if master { "    master-worker\n" } else { "" };
        let binds = [format!("unix@{}", path.display()), format!("abns@{name}")];
        let global = format!("global\n    grace 700ms\n{master}");
        let text = config(web, tag).replace("global\n", &global) + &frontend("more", &binds, tag);
        scene.write("haproxy.cfg", &text)
    };
    let nested: &[&str] = if master { &["--nested-master"] } else { &[] };
    let haproxy = Haproxy::start_with(&scene, nested, &program, &write(1));
    let mut padded = name.clone().into_bytes();
    padded.resize(107, 0);
    let hidden = UnixAddress::from_abstract_name(padded).expect("an abstract name");
    for tag in 2..4 {
        write(tag);
        haproxy.reload(&scene).ok();
        for _ in 0..20 {
            let seen = [
                tag_of(TcpStream::connect(web).expect("connect")),
                tag_of(UnixStream::connect(&path).expect("connect")),
                tag_of(UnixStream::connect_addr(&hidden).expect("connect")),
            ];
            assert_eq!(seen, [(); 3].map(|()| Some(tag.to_string())));
        }
    }
}

#[test]
fn grace_keeps_no_older_generation_accepting() {
    grace(Haproxy::system(), false);
}

#[test]
fn grace_keeps_no_older_worker_accepting() {
    Haproxy::with_masters().for_each(|program| grace(Some(program), true));
}

#[test]
fn grace_keeps_no_older_generation_accepting_with_haproxy_3_0() {
    grace(Haproxy::fetched("3.0"), false);
}

#[test]
fn grace_keeps_no_older_generation_accepting_with_haproxy_3_2() {
    grace(Haproxy::fetched("3.2"), false);
}

/// The longest wait of a client of `address` while `what` was done.
fn longest_wait(address: SocketAddr, what: impl FnOnce()) -> Duration {
    let over = Arc::new(AtomicBool::new(false));
    let client = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !over.load(Relaxed) {
                let begun = Instant::now();
                tag_of(TcpStream::connect(address).expect("connect")).expect("an answer");
                longest = longest.max(begun.elapsed());
            }
            longest
        })
    };
    what();
    over.store(true, Relaxed);
    client.join().expect("the client")
}

/// Reloads beside idle listeners with these words, each of which a connection reaches in its own
/// way or not at all; `spoil` runs before the reload.
fn idle(program: &Path, arguments: &[&str], binds: &[String], spoil: impl Fn(&Scene)) {
    let Some(scene) = Scene::isolated("no network of its own") else { return };
    finish(Command::new("ip").args(["addr", "add", "10.11.12.13/32", "dev", "lo"])).ok();
    let web = scene.address();
    let _broker = scene.broker();
    let directory = scene.path("").display().to_string();
    let write = |tag| {
        let binds: Vec<_> = binds.iter().map(|bind| bind.replace("DIR/", &directory)).collect();
        scene.write("haproxy.cfg", &(config(web, tag) + &frontend("idle", &binds, tag)))
    };
    let mut haproxy = Haproxy::start_with(&scene, arguments, program, &write(1));
    spoil(&scene);
    for tag in 2..4 {
        write(tag);
        let longest = longest_wait(web, || drop(haproxy.reload(&scene).ok()));
        // 100 ms are promised; a retire timeout would be 5 s.
        assert!(longest < allow(Duration::from_secs(1)), "{binds:?}: {longest:?}");
        assert_eq!(tag_of(TcpStream::connect(web).expect("connect")), Some(tag.to_string()));
    }
    let story = haproxy.supervisor.story();
    assert!(!story.contains("SIGTERM"), "a generation was ended: {story}");
}

fn idle_of_every_kind(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    idle(&program, &[], &words(&["127.0.0.1:9001 defer-accept"]), |_| {});
    let unreached = words(&[
        "127.0.0.1:9001 interface lo",
        ":9002 interface lo defer-accept",
        "10.99.99.99:9003 transparent",
        "10.11.12.13:9004",
        "[::1]:9005 v6only",
    ]);
    idle(&program, &[], &unreached, |_| {
        finish(Command::new("ip").args(["addr", "del", "10.11.12.13/32", "dev", "lo"])).ok();
    });
    idle(&program, &["--no-probe"], &unreached, |_| {});
    // A removed path, and a dead socket at another's path.
    idle(&program, &[], &words(&["unix@DIR/one.sock", "unix@DIR/two.sock"]), |scene| {
        std::fs::remove_file(scene.path("one.sock")).expect("the socket");
        std::fs::remove_file(scene.path("two.sock")).expect("the socket");
        let other = std::os::unix::net::UnixListener::bind(scene.path("two.sock"));
        drop(other.expect("another socket"));
    });
}

#[test]
fn an_idle_listener_that_no_connection_reaches_keeps_no_client_waiting() {
    idle_of_every_kind(Haproxy::system());
}

#[test]
fn an_idle_listener_keeps_no_client_waiting_with_haproxy_3_0() {
    idle_of_every_kind(Haproxy::fetched("3.0"));
}

#[test]
fn an_idle_listener_keeps_no_client_waiting_with_haproxy_3_2() {
    idle_of_every_kind(Haproxy::fetched("3.2"));
}
