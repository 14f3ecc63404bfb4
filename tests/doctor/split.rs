//! Two configurations at once, made with lost signals; and reloads that leave none.

use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{doctor, expect, findings, half_a_request, pids, plain, report, text, wait_bound};
use crate::harness::{Haproxy, Process, Scene, bindonce, config, eventually, finish, root, skip};

/// The seed case: a generation that missed its signal, then a second one.
#[test]
fn split_names_the_pids_and_their_share() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let first = plain(&scene, &program, &file, &[]);
    let second = plain(&scene, &program, &file, &[]);
    for _ in 0..5 {
        let found = expect(&scene, "split");
        assert_eq!(found["address"], address.to_string());
        assert_eq!(pids(&found), [first.pid()]);
        let summary = text(&found["summary"]);
        assert!(summary.starts_with("1 of 2 connections, 50 %, go to pid "), "{summary}");
    }
    let third = plain(&scene, &program, &file, &[]);
    let found = expect(&scene, "split");
    assert_eq!(pids(&found), [first.pid(), second.pid()]);
    let summary = text(&found["summary"]);
    assert!(summary.starts_with("2 of 3 connections, 67 %, go to pid "), "{summary}");
    assert!(
        summary.ends_with(&format!("older than pid {} with the newest configuration", third.pid()))
    );
    // The person sees the finding first, and the remedy, run as it is printed, helps.
    let said = doctor(&scene, &[&address.to_string()]).fails(3);
    assert!(said.starts_with(&format!("split {address}: 2 of 3")), "{said}");
    assert!(said.contains("-f") && said.contains("haproxy.cfg"), "{said}");
    let remedy = text(&found["remedy"][0]);
    assert!(said.contains(remedy), "{said}");
    finish(scene.command("sh").args(["-c", remedy])).ok();
    eventually("the older to end", || (scene.haproxies().len() == 1).then_some(()));
    assert_eq!(findings(&scene), Vec::<Value>::new());
}

/// As it is measured (tests/measure/seed.py), once: signals that are really lost, requests that really fail,
/// and a remedy that helps.
#[test]
fn the_seed_case_is_named_and_cured() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("needs root, for a host of its own") else { return };
    let binaries = scene.path("binaries");
    std::fs::create_dir(&binaries).expect("a directory");
    std::os::unix::fs::symlink(bindonce(), binaries.join("bindonce")).expect("a link");
    let version = finish(scene.command(program).arg("-v")).ok();
    let version = version.split_whitespace().nth(2).and_then(|word| word.split('-').next());
    let mut measure = scene.command(root().join("tests/measure/seed.py"));
    measure.env("BINDONCE_MEASURE_BINARIES", &binaries).args(["--runs", "1", "--reloads", "3"]);
    measure.args(["--every", "0.2", "--only", version.expect("a version")]);
    let said = finish(&mut measure).ok();
    assert_eq!(said.matches("doctor right in 1 of 1 runs").count(), 2, "{said}");
    assert!(said.contains(" 2 processes: ") && said.contains(" 3 processes: "), "{said}");
}

#[test]
fn a_plain_reload_gives_no_finding() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut haproxy = plain(&scene, &program, &file, &[]);
    for _ in 0..5 {
        let old = haproxy.pid().to_string();
        let mut command = scene.command(&program);
        let next = Process::start(command.arg("-db").arg("-f").arg(&file).args(["-sf", &old]));
        assert_eq!(findings(&scene), Vec::<Value>::new());
        haproxy.wait_exit();
        haproxy = next;
    }
}

#[test]
fn reloads_under_bindonce_give_no_finding() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, _haproxy) = Haproxy::start_at(&scene, &[], &program);
    let _draining = half_a_request(address);
    let script = "until [ -e \"$3\" ]; do \"$1\" reload --name web --socket \"$2\" || exit 1; done";
    let stop = scene.path("stop");
    let mut reloads = scene.command("sh");
    reloads.args(["-c", script, "sh"]).arg(bindonce());
    let mut reloads = Process::start(reloads.arg(scene.socket()).arg(&stop));
    for _ in 0..5 {
        assert_eq!(findings(&scene), Vec::<Value>::new());
    }
    scene.write("stop", "");
    assert!(reloads.wait_exit().success(), "{}", reloads.story());
    let report = report(&scene, &["web"]);
    let sockets = report["sockets"].as_array().expect("sockets");
    let web = sockets.iter().find(|one| one["address"] == address.to_string());
    let holders = web.expect("the listener")["holders"].as_array().expect("holders").clone();
    let accepting: Vec<_> = holders.iter().filter(|one| one["accepts"] == "yes").collect();
    assert_eq!(accepting.len(), 1, "{holders:#?}");
}

/// Two generations on one shared socket, as after a lost signal with fd@.
fn shared(scene: &Scene, program: &Path, address: SocketAddr) -> Process {
    let text = config(address, 1).replace(&address.to_string(), "\"fd@${web}\"");
    let file = scene.write("shared.cfg", &text);
    let mut command = scene.bindonce("exec");
    command.arg("--listen").arg(format!("web={address}")).arg("--").arg(program);
    let process = Process::start(command.arg("-db").arg("-f").arg(&file));
    wait_bound(process.pid());
    process
}

#[test]
fn stale_and_ghost_on_a_shared_socket() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let old = shared(&scene, &program, address);
    assert_eq!(findings(&scene), Vec::<Value>::new());
    let client = half_a_request(address);
    eventually("the old one to take it", || {
        let sockets = report(&scene, &[&address.to_string()])["sockets"][0]["queue"].as_u64();
        (sockets == Some(0)).then_some(())
    });
    let new = shared(&scene, &program, address);
    let found = expect(&scene, "stale");
    assert_eq!(pids(&found), [old.pid()]);
    assert!(text(&found["summary"]).contains(&format!("beside pid {}", new.pid())), "{found:#}");

    // Told to stop it closes its listener; its epoll set keeps it, as 2.6 in -db does.
    old.signal(Signal::SIGUSR1);
    eventually("the ghost", || {
        findings(&scene).iter().all(|one| one["kind"] != "stale").then_some(())
    });
    let kinds: Vec<_> = findings(&scene).iter().map(|one| text(&one["kind"]).to_owned()).collect();
    if kinds.is_empty() {
        skip("this haproxy leaves no ghost");
    } else {
        let found = expect(&scene, "ghost");
        assert_eq!(pids(&found), [old.pid()]);
        assert_eq!(found["address"], address.to_string());
    }
    drop(client);
}
